// A setting is saved and reset in its place: the page stays where it is. Without this script the
// same forms load the page again.

import { announce, localTimes, parse } from "./app.js";

const FORMS = 'form[data-own="setting"]';

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.matches(FORMS)) return;
  event.preventDefault();
  if (!form.dataset.busy) send(form);
});

document.addEventListener("input", (event) => {
  const form = event.target.closest(FORMS);
  if (form) form.dataset.dirty = "1";
});

async function send(form) {
  const row = form.closest(".setting");
  form.dataset.busy = "1";
  const answer = await fetch(form.action.split("#")[0], {
    method: "POST",
    body: new URLSearchParams(new FormData(form)),
    headers: { Accept: "text/html" },
  }).catch(() => null);
  delete form.dataset.busy;
  if (!answer) {
    announce("The server does not answer. Nothing was saved.");
    document.getElementById("connection").hidden = false;
    return;
  }
  document.getElementById("connection").hidden = true;
  const page = parse(await answer.text());
  const top = page.getElementById("settings-top");
  if (!top) {
    location.reload(); // signed out, or another page: let it say so
    return;
  }
  replace(document.getElementById("settings-top"), top);
  const told = page.querySelector(".note-bar strong");
  place(row, page.getElementById(row.id), answer.ok, told ? told.textContent : "");
}

/** Puts the row as it is now in the place of the one that was sent. */
function place(row, fresh, saved, told) {
  const inside = row.contains(document.activeElement);
  if (!fresh) {
    const next = row.nextElementSibling || document.querySelector("input[type=search]");
    row.remove(); // it is no longer among those that were looked for
    if (inside && next) (next.querySelector("input:not([type=hidden]), select, textarea") || next).focus();
    announce(told);
    return;
  }
  const now = replace(row, fresh);
  const wrong = now.querySelector(".problem");
  if (inside) (now.querySelector('[aria-invalid="true"]') || now.querySelector("form button") || now).focus();
  announce(wrong ? wrong.textContent : told);
  if (saved && !wrong) mark(now);
}

function mark(row) {
  const note = document.createElement("span");
  note.className = "state done";
  note.textContent = "✓ done";
  note.setAttribute("aria-hidden", "true"); // it was announced
  row.querySelector(".how form").append(note);
  setTimeout(() => note.remove(), 2500);
}

function replace(old, fresh) {
  const now = document.importNode(fresh, true);
  old.replaceWith(now);
  localTimes(now);
  return now;
}
