// Turns of a conversation as elements. Foreign text goes in as text, never as HTML.

/** An element with attributes and children; texts are inserted as text. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const count = (number, what) => `${number.toLocaleString()} ${what}${number === 1 ? "" : "s"}`;
const short = (value) => value.toLocaleString([], { maximumFractionDigits: value < 10 ? 1 : 0 });
const seconds = (value) => (value < 0.1 ? "under 0.1 s" : `${short(value)} s`);

function who(facts) {
  const line = make("p", {}, "Answered by ");
  if (!facts.experts.length) line.append("the base model");
  facts.experts.forEach(({ id, weight }, index) => {
    if (index) line.append(", ");
    const share = weight.toLocaleString([], { maximumFractionDigits: 2, minimumFractionDigits: 2 });
    line.append(make("a", { href: `/experts/${encodeURIComponent(id)}` }, id), ` (weight ${share})`);
  });
  if (facts.adapted) line.append(", adapted to this conversation");
  if (facts.reason) line.append(`; why: ${facts.reason}`);
  return line;
}

function took(item) {
  const { done, facts } = item;
  const parts = [];
  if (done) {
    const speed = done.speed ? `, then ${short(done.speed)} a second` : "";
    parts.push(`${count(done.tokens, "token")} in ${seconds(done.seconds)} (the first after ${seconds(done.seconds_to_first)}${speed})`);
    if (done.ended === "length") parts.push("cut off at the longest answer");
    if (done.ended === "timeout") parts.push("cut off by the limit of time");
  }
  if (item.stopped) parts.push("stopped");
  if (item.problem) parts.push(`broke off: ${item.problem}`);
  parts.push(`${count(facts.read, "token")} read`);
  if (facts.left_out) parts.push(`${count(facts.left_out, "older message")} left out`);
  if (facts.cut) parts.push(`the first ${count(facts.cut, "character")} of the message not read`);
  return make("p", {}, parts.join(" · "));
}

function thumb(way) {
  const within = (name, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const icon = within("svg", { viewBox: "0 0 20 20", class: `thumb ${way}`, "aria-hidden": "true" });
  icon.append(within("path", { d: "M2 9h3.5v9H2zM7 17.5V9l3-7c2 .2 2.6 1.8 2 5.5h4.6c1.1 0 1.9.9 1.7 2l-1.2 6.6c-.2 1-1 1.4-2 1.4z" }));
  return icon;
}

function action(icon, label, number, press, attributes = {}) {
  const named = { type: "button", class: "quiet", "aria-label": `${label}: answer ${number}` };
  const button = make("button", { ...named, ...attributes }, icon, label);
  button.addEventListener("click", () => press(button));
  return button;
}

/** The form for a correction, under an answer. */
function corrections(item, number, doings) {
  const field = (label, name, text) => {
    const area = make("textarea", { name, rows: "3", maxlength: "100000" });
    area.value = text;
    return make("label", {}, label, area);
  };
  const form = make(
    "form",
    { class: "correct", "data-own": true, "aria-label": `Correction of answer ${number}` },
    field("What should have been answered", "correction", ""),
    field("Anything else about the answer", "comment", ""),
    make("div", { class: "buttons" }, make("button", {}, "Send the correction")),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    doings.correct(item, form);
  });
  return form;
}

function actions(item, number, doings) {
  const told = make("small", { role: "status" }, item.noted ? "Noted." : "");
  const row = make("div", { class: "acts" });
  const rate = (rating) => async () => {
    if (!(await doings.rate(item, rating))) return;
    for (const [name, button] of Object.entries(rated)) {
      button.setAttribute("aria-pressed", String(item.rating === name));
    }
    told.textContent = "Noted.";
  };
  const pressed = (name) => ({ "aria-pressed": String(item.rating === name) });
  const rated = {
    up: action(thumb("up"), "Good", number, rate("up"), pressed("up")),
    down: action(thumb("down"), "Bad", number, rate("down"), pressed("down")),
  };
  const correct = action(null, "Correct it", number, (button) => {
    const open = row.nextElementSibling;
    if (open) open.remove();
    else row.after(corrections(item, number, doings));
    button.setAttribute("aria-expanded", String(!open));
    row.nextElementSibling?.querySelector("textarea").focus();
  }, { "aria-expanded": "false" });
  if (item.facts?.id) row.append(rated.up, rated.down, correct);
  if (navigator.clipboard) {
    row.append(action(null, "Copy", number, () => doings.copy(item)));
  }
  row.append(action(null, "Answer again", number, () => doings.again(), { class: "quiet again" }), told);
  return row;
}

/** A turn: what the user said, or an answer with what is known of it. */
export function turn(item, number, doings) {
  const mine = item.role === "user";
  const article = make(
    "article",
    { class: `turn ${item.role}` },
    make("h3", {}, mine ? "You" : "Answer"),
    make("div", { class: "text", dir: "auto" }, item.text),
  );
  if (!mine) {
    if (item.facts) article.append(make("div", { class: "by" }, who(item.facts), took(item)));
    article.append(make("div", { "aria-live": "off" }, actions(item, number, doings)));
  }
  return article;
}

/** An answer that is being written. */
export class Draft {
  constructor(place) {
    this.wait = make("p", { class: "muted" }, "Waiting for the first word…");
    this.by = make("div", { class: "by" });
    this.text = document.createTextNode("");
    const text = make("div", { class: "text", dir: "auto" }, this.text);
    place.replaceChildren(
      make("article", { class: "turn assistant" }, make("h3", {}, "Answer"), this.wait, text, this.by),
    );
    this.pending = "";
    this.frame = 0;
  }

  waiting(text) {
    this.wait.textContent = text;
  }

  begun(facts) {
    this.wait.textContent = "Waiting for the first word…";
    this.by.replaceChildren(who(facts));
  }

  piece(text) {
    this.wait.hidden = true;
    this.pending += text;
    this.frame ||= requestAnimationFrame(() => this.flush());
  }

  flush() {
    const low = innerHeight + scrollY >= document.documentElement.scrollHeight - 160;
    this.text.appendData(this.pending);
    this.pending = "";
    this.frame = 0;
    if (low) toEnd();
  }
}

export function toEnd() {
  scrollTo(0, document.documentElement.scrollHeight);
}

/** Fills a field with those that can be asked; who was chosen stays chosen. */
export function offer(select, choices) {
  const label = ({ id, description }) =>
    description && description !== id ? `${id}: ${description.slice(0, 60)}` : id;
  const option = (choice) => make("option", { value: choice.id }, label(choice));
  const chosen = select.value;
  const experts = choices.filter((choice) => choice.kind === "expert");
  select.replaceChildren(...choices.filter((choice) => choice.kind !== "expert").map(option));
  if (experts.length) select.append(make("optgroup", { label: "Experts" }, ...experts.map(option)));
  if (!choices.some((choice) => choice.id === chosen)) {
    select.append(make("option", { value: chosen }, `${chosen} (does not answer now)`));
  }
  select.value = chosen;
}
