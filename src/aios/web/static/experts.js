// The table of experts: shown anew when experts changed elsewhere; one box that ticks all.

import { localTimes, morphChildren, parse } from "./app.js";

const list = document.getElementById("experts-list");
const tiles = document.getElementById("tiles");

function revision() {
  const place = tiles.querySelector("[data-revision]");
  return place ? place.dataset.revision : "";
}

async function refresh() {
  const headers = { Accept: "text/html" };
  const answer = await fetch(window.location.href, { headers }).catch(() => null);
  if (!answer || !answer.ok) return;
  const fresh = parse(await answer.text()).getElementById("experts-list");
  if (!fresh) return;
  morphChildren(list, fresh);
  localTimes(list);
  offerAll();
}

function offerAll() {
  for (const place of list.querySelectorAll(".choose-all")) place.hidden = false;
}

let seen = revision();
tiles.addEventListener("shown", () => {
  if (revision() === seen) return;
  seen = revision();
  refresh();
});
list.addEventListener("change", (event) => {
  if (!event.target.matches("[data-all]")) return;
  for (const box of list.querySelectorAll('input[name="id"]')) box.checked = event.target.checked;
});
new MutationObserver(offerAll).observe(list, { childList: true, subtree: true });
offerAll();
