// The chat page: what is typed goes to the server with the whole conversation, and the answer is
// shown as it comes. The conversation is kept in this tab (chat_store.js), not on the server.

import { announce, show } from "./app.js";
import { readFile, saveFile } from "./chat_files.js";
import { bounded, newSession, read, write } from "./chat_store.js";
import { answer, press, Refused, state } from "./chat_talk.js";
import { Draft, make, offer, toEnd, turn } from "./chat_view.js";

const at = (id) => document.getElementById(id);
const page = at("chat");
const [field, log, draftPlace, model, settings] = ["message", "log", "draft", "model", "settings"].map(at);
const mostBytes = Number(page.dataset.mostBytes) * 0.95;
const FIELDS = ["temperature", "top_p", "max_tokens", "seed", "system"];

const kept = read();
let current = null; // the answer that is being written
let seen = ""; // which list of choices is shown
let learned = null; // adaptations that were told of
let lastAsked = 0;
let numbered = 0; // answers so far
let leaving = false; // the page is being left, which breaks off what is asked

function save() {
  write({ ...kept, typed: field.value });
}

function problem(error) {
  const text = error instanceof Refused ? error.message : "The page has failed.";
  const remedy = error instanceof Refused ? error.remedy : "Load it again; the conversation stays.";
  at("problem").replaceChildren(make("p", {}, make("strong", {}, text), remedy ? ` ${remedy}` : ""));
  if (!(error instanceof Refused)) console.error(error);
}

// ------------------------------------------------------------------ showing the conversation

function draw() {
  log.setAttribute("aria-live", "off"); // what was said before is not news
  numbered = 0;
  log.replaceChildren(...kept.items.map(shown));
  tell();
  setTimeout(() => log.setAttribute("aria-live", "polite"), 500);
}

function shown(item) {
  numbered += item.role === "assistant" ? 1 : 0;
  return turn(item, numbered, doings);
}

function add(item) {
  kept.items.push(item);
  log.append(shown(item));
  const spare = kept.items.length - bounded(kept.items).length; // more are not kept
  kept.items.splice(0, spare);
  for (let left = spare; left > 0; left -= 1) log.firstElementChild.remove();
  tell();
}

function removeLast() {
  kept.items.pop();
  log.lastElementChild?.remove();
  tell();
}

function tell() {
  const turns = kept.items.filter((item) => item.role === "user").length;
  const tokens = kept.items.reduce((sum, item) => sum + (item.done?.tokens ?? 0), 0);
  const uncounted = kept.items.some((item) => item.facts && !item.done); // stopped ones
  const messages = `${turns.toLocaleString()} ${turns === 1 ? "message" : "messages"}`;
  const written = `${uncounted ? "over " : ""}${tokens.toLocaleString()} ${tokens === 1 ? "token" : "tokens"} written`;
  at("totals").textContent = turns ? `${messages}, ${written}` : "";
  at("empty").hidden = turns > 0;
  for (const [id, text] of [
    ["new", "Forget this conversation and what was learned from it?"],
    ["open", "Put a file's conversation in the place of this one?"],
  ]) {
    if (turns) at(id).dataset.confirm = text;
    else delete at(id).dataset.confirm;
  }
  at("save").disabled = turns === 0;
}

// ------------------------------------------------------------------ asking

const number = (id) => (at(id).value === "" ? null : Number(at(id).value));

/** The request: as much of the conversation as the server takes. */
function request() {
  const system = at("system").value.trim();
  const head = system ? [{ role: "system", content: system }] : [];
  let items = bounded(kept.items);
  for (;;) {
    const spoken = items.map(({ role, text }) => ({ role, content: text }));
    const body = new TextEncoder().encode(
      JSON.stringify({
        messages: [...head, ...spoken],
        model: model.value,
        session: kept.session,
        temperature: number("temperature"),
        top_p: number("top_p"),
        max_tokens: number("max_tokens"),
        seed: number("seed"),
        drawn: kept.drawn,
        tta: at("adapting").checked,
      }),
    );
    if (items.length && body.length <= mostBytes) return body;
    const next = items.findIndex((item, index) => index > 0 && item.role === "user");
    if (next < 0) {
      throw new Refused("The message is too long to be sent.", `At most ${Math.floor(mostBytes / 1024).toLocaleString()} KiB are.`);
    }
    items = items.slice(next);
  }
}

function busy(now) {
  at("send").hidden = now;
  at("stop").hidden = !now;
  for (const id of ["new", "open"]) at(id).querySelector("button").disabled = now;
}

/** Asks; `old` are the items that the new answer takes the place of. */
async function ask(text, old = []) {
  if (!settings.checkValidity()) {
    settings.closest("details").open = true;
    settings.reportValidity();
    return;
  }
  at("problem").replaceChildren();
  const stopping = new AbortController();
  current = { stopping, text, old, written: "", facts: null };
  const item = { role: "assistant", text: "" };
  add({ role: "user", text });
  const draft = new Draft(draftPlace);
  busy(true);
  toEnd();
  let failure = null;
  try {
    const body = request();
    kept.drawn += 1;
    for await (const event of answer(body, stopping.signal)) {
      if (event.kind === "loading") {
        draft.waiting("The model is being loaded, which takes some seconds…");
        announce("The model is being loaded");
        at("status").textContent = "The model is being loaded.";
      } else if (event.kind === "begun") {
        current.facts = item.facts = event;
        draft.begun(event);
      } else if (event.kind === "piece") {
        current.written += event.text;
        draft.piece(event.text);
      } else if (event.kind === "done") {
        item.done = event;
      } else if (event.kind === "failed") {
        throw new Refused(event.text, event.remedy);
      }
    }
    if (!item.done) throw new Refused("The connection broke off.", "Send the message again.");
  } catch (error) {
    if (error.name === "AbortError" || leaving) item.stopped = true;
    else failure = error;
  }
  item.text = current.written;
  if (failure && item.text.trim()) item.problem = failure.message;
  finish(item, failure);
}

/** An answer has ended: it stays, or what could not be answered is taken back. */
function finish(item, failure) {
  const { text, old } = current;
  current = null;
  draftPlace.replaceChildren();
  busy(false);
  if (item.text.trim() || item.done) {
    add(item);
    announce(item.stopped ? "Stopped" : item.problem ? "The answer broke off" : "The answer is complete");
  } else {
    removeLast();
    old.forEach(add);
    if (!old.length && !field.value.trim()) field.value = text;
    if (item.stopped) announce("Stopped");
  }
  if (failure) problem(failure);
  lastAsked = Date.now();
  save();
  toEnd();
  field.focus({ preventScroll: true });
  refresh();
}

function stop() {
  current?.stopping.abort();
}

function send() {
  const text = field.value;
  if (!text.trim()) return;
  if (current) {
    announce("An answer is being written; Escape stops it");
    return;
  }
  field.value = "";
  ask(text);
}

// ------------------------------------------------------------------ what can be done with answers

/** What was asked of the server; null, with the problem shown, where it refuses. */
async function tried(request) {
  try {
    const found = await request;
    at("problem").replaceChildren();
    if (found.text) announce(found.text);
    return found;
  } catch (error) {
    problem(error);
    return null;
  }
}

const done = (path, fields) => tried(press(path, fields));

const doings = {
  async rate(item, rating) {
    if (!(await done("/chat/feedback", { id: item.facts.id, rating }))) return false;
    item.rating = rating;
    item.noted = true;
    save();
    return true;
  },
  async correct(item, form) {
    const { correction, comment } = Object.fromEntries(new FormData(form));
    const button = form.querySelector("button");
    button.disabled = true;
    const found = await done("/chat/feedback", { id: item.facts.id, correction, comment });
    button.disabled = false;
    if (!found) return;
    item.noted = true;
    save();
    const row = form.previousElementSibling;
    row.querySelector("[aria-expanded]").setAttribute("aria-expanded", "false");
    row.querySelector("[role=status]").textContent = "Noted.";
    form.remove();
    field.focus({ preventScroll: true });
  },
  async copy(item) {
    await navigator.clipboard.writeText(item.text).then(
      () => announce("Copied"),
      () => problem(new Refused("The browser does not let the page copy.", "Mark the text instead.")),
    );
  },
  again() {
    if (current) return;
    const first = kept.items.findLastIndex((item) => item.role === "user");
    if (first < 0) return;
    const old = kept.items.slice(first);
    old.forEach(removeLast);
    ask(old[0].text, old);
  },
};

// ------------------------------------------------------------------ the session

/** Begins a conversation, of these items; what was learned from the old one is dropped. */
async function begin(items, system = null) {
  const session = kept.session;
  Object.assign(kept, { session: newSession(), items, drawn: 0 });
  if (system !== null) at("system").value = kept.settings.system = system;
  learned = null;
  draw();
  save();
  toEnd();
  field.focus({ preventScroll: true });
  await done("/chat/forget", { session });
  await refresh();
}

async function openFile() {
  const [file] = at("file").files;
  at("file").value = "";
  const found = file && (await tried(readFile(file, mostBytes)));
  if (found) await begin(found.items, found.system);
}

async function refresh() {
  const session = kept.session;
  const found = await state(session, seen);
  if (!found || session !== kept.session || current) return;
  at("status").textContent = found.status;
  if (found.choices && document.activeElement !== model) {
    offer(model, found.choices);
    seen = found.stamp;
  }
  const cannot = found.can_adapt === false;
  at("cannot-adapt").hidden = !cannot;
  at("adapting").disabled = cannot;
  if (cannot) at("adapting").checked = false;
  at("undo").disabled = found.in_use === 0;
  show(at("adaptations"), found.adaptations);
  at("learned-count").textContent = found.count
    ? `: ${found.in_use} of ${found.count} ${found.count === 1 ? "adaptation" : "adaptations"} in use`
    : "";
  if (learned !== null && found.count > learned) {
    announce("An adaptation has ended; it is under Learning from this conversation");
  }
  learned = found.count;
}

// ------------------------------------------------------------------ wiring

field.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && current && !document.querySelector("dialog[open]")) stop();
});
window.addEventListener("submit", (event) => {
  const { id } = event.target;
  if (event.defaultPrevented) return; // a question is asked first
  if (["ask", "settings", "new", "open"].includes(id)) event.preventDefault();
  if (id === "ask") send();
  if (id === "new") begin([]);
  if (id === "open") at("file").click();
});
at("stop").addEventListener("click", () => {
  stop();
  field.focus({ preventScroll: true });
});
at("save").addEventListener("click", () => tried(saveFile(at("system").value.trim(), kept.items)));
at("file").addEventListener("change", openFile);
at("undo").addEventListener("click", async () => {
  await done("/chat/undo", { session: kept.session });
  await refresh();
});
at("adapting").addEventListener("change", async () => {
  const on = at("adapting").checked;
  const found = await done("/chat/adapting", { session: kept.session, on: on ? "1" : "0" });
  if (!found) at("adapting").checked = !on;
  kept.adapts = at("adapting").checked;
  save();
});
model.addEventListener("change", () => {
  kept.model = model.value;
  const address = model.value === "auto" ? "/chat" : `/chat?model=${encodeURIComponent(model.value)}`;
  history.replaceState(null, "", address);
  save();
});
settings.addEventListener("input", (event) => {
  if (event.target.id === "seed") kept.drawn = 0;
  for (const id of FIELDS) kept.settings[id] = at(id).value;
  save();
});
settings.addEventListener("reset", () => {
  kept.settings = {};
  kept.drawn = 0;
  setTimeout(save);
});
window.addEventListener("beforeunload", () => {
  leaving = true;
  setTimeout(() => (leaving = false), 2000);
});
window.addEventListener("pagehide", () => {
  if (!current) return save();
  const { text, old, written, facts } = current;
  const before = kept.items.slice(0, -1);
  const answered = [{ role: "user", text }, { role: "assistant", text: written, facts, stopped: true }];
  const items = [...before, ...(written.trim() ? answered : old)];
  write({ ...kept, items, typed: written.trim() || old.length ? field.value : text });
});
document.addEventListener("visibilitychange", () => document.hidden || refresh());

function start() {
  for (const id of FIELDS) at(id).value = kept.settings[id] ?? "";
  const known = [...model.options].some((option) => option.value === kept.model);
  if (known && !new URLSearchParams(location.search).has("model")) model.value = kept.model;
  else kept.model = model.value;
  if (kept.adapts !== null) at("adapting").checked = kept.adapts;
  field.value = kept.typed;
  for (const element of page.querySelectorAll(":disabled")) element.disabled = false;
  at("undo").disabled = true;
  draw();
  busy(false);
  if (kept.items.length) toEnd();
  field.focus({ preventScroll: true });
  refresh();
  let ticks = 0;
  setInterval(() => {
    ticks += 1; // what was said lately may be learned from now
    if (!document.hidden && (Date.now() - lastAsked < 120_000 || ticks % 10 === 0)) refresh();
  }, 3000);
}

start();
