// What the pages do beyond links and forms: live parts, filters as one types, questions before
// harm, local times, the theme. Everything else works without a script.

const policy = window.trustedTypes
  ? window.trustedTypes.createPolicy("aios", { createHTML: (text) => text })
  : { createHTML: (text) => text };

/** Parses HTML of our own server without running anything in it. */
export function parse(text) {
  return new DOMParser().parseFromString(policy.createHTML(text), "text/html");
}

export function announce(text) {
  const place = document.getElementById("announcer");
  if (place) place.textContent = text;
}

// ------------------------------------------------------------------ changing a part in place

const OURS = new Set(["open", "data-busy"]); // attributes that belong to the reader, not the server

function alike(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName && (a.id || "") === (b.id || "");
}

/** Makes `old` like `fresh` and keeps what did not change: focus, open details, scrolled boxes. */
export function morph(old, fresh) {
  if (!alike(old, fresh)) {
    old.replaceWith(document.importNode(fresh, true));
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !OURS.has(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value && !OURS.has(name)) old.setAttribute(name, value);
  }
  if (old.nodeName === "TIME") old.removeAttribute("data-local");
  if (old === document.activeElement && /^(INPUT|TEXTAREA|SELECT)$/.test(old.nodeName)) return;
  morphChildren(old, fresh);
}

export function morphChildren(old, fresh) {
  const byId = new Map();
  for (const child of old.children) if (child.id) byId.set(child.id, child);
  let place = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const known = wanted.id ? byId.get(wanted.id) : null;
    if (known && known !== place) old.insertBefore(known, place);
    const here = known || place;
    if (here && alike(here, wanted)) {
      place = here.nextSibling;
      morph(here, wanted);
    } else {
      old.insertBefore(document.importNode(wanted, true), place);
    }
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

/** Replaces what is inside an element by HTML of our own server. */
export function show(element, text) {
  morphChildren(element, parse(text).body);
  localTimes(element);
  element.dispatchEvent(new CustomEvent("shown", { bubbles: true }));
}

// ------------------------------------------------------------------ live parts

function follow(element) {
  let source = null;
  let retry = 0;
  const open = () => {
    if (source || document.hidden || !element.dataset.live) return;
    source = new EventSource(element.dataset.live);
    source.onmessage = (event) => {
      retry = 0;
      connection(true);
      show(element, JSON.parse(event.data));
    };
    source.addEventListener("gone", (event) => {
      close();
      announce(JSON.parse(event.data));
    });
    source.onerror = () => {
      connection(false);
      if (source && source.readyState === EventSource.CLOSED) {
        close(); // the browser gave up (an error page, say): we do not
        retry = Math.min(retry + 1, 8);
        setTimeout(open, 500 * retry);
      }
    };
    source.onopen = () => connection(true);
  };
  const close = () => {
    if (source) source.close();
    source = null;
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", open);
  element.addEventListener("relive", () => {
    close();
    open();
  });
  open();
}

/** A filter has put `fresh` in the place of `old`: the live part around it follows the filter. */
function relive(old, fresh) {
  const part = old.closest("[data-live]");
  const address = fresh.closest("[data-live]")?.dataset.live ?? "";
  if (!part || part.dataset.live === address) return;
  part.dataset.live = address;
  part.dispatchEvent(new Event("relive"));
}

function connection(good) {
  const place = document.getElementById("connection");
  if (place) place.hidden = good;
}

// ------------------------------------------------------------------ forms

let allowed = null; // the form whose question was answered with yes

function ask(form) {
  const dialog = document.getElementById("confirm");
  const [no, yes] = dialog.querySelectorAll("button");
  dialog.querySelector("p").textContent = form.dataset.confirm;
  yes.textContent = form.querySelector("button:not([type=button])").textContent;
  no.onclick = () => dialog.close();
  yes.onclick = () => {
    dialog.close();
    allowed = form;
    say(form, "sure");
    form.requestSubmit();
  };
  dialog.showModal();
}

/** Puts a field into a form that tells the server so. */
function say(form, name) {
  if (form.elements[name]) return;
  const field = document.createElement("input");
  Object.assign(field, { type: "hidden", name, value: "1" });
  form.append(field);
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.confirm && allowed !== form) {
    event.preventDefault();
    ask(form);
    return;
  }
  allowed = null;
  if (form.method === "post" && !form.dataset.own) {
    if (form.dataset.busy) {
      event.preventDefault(); // pressed twice
      return;
    }
    form.dataset.busy = "1";
    form.setAttribute("aria-busy", "true");
  }
});
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-busy]")) {
    delete form.dataset.busy;
    form.removeAttribute("aria-busy");
  }
});

/** A form with data-filter="ID": its result is shown in that element as one types. */
function filter(form) {
  const target = document.getElementById(form.dataset.filter);
  let timer = 0;
  let asked = 0;
  const look = async () => {
    const query = new URLSearchParams(new FormData(form));
    const address = `${form.action.split("?")[0]}?${query}`;
    const number = ++asked;
    const answer = await fetch(address, { headers: { Accept: "text/html" } }).catch(() => null);
    if (!answer || !answer.ok || number !== asked) return;
    const fresh = parse(await answer.text()).getElementById(target.id);
    if (!fresh) return;
    relive(target, fresh);
    morphChildren(target, fresh);
    localTimes(target);
    history.replaceState(null, "", address);
    const told = target.querySelector("[data-count]");
    if (told) announce(told.textContent);
  };
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, 250);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    look();
  });
}

// ------------------------------------------------------------------ times, theme

export function localTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-local])")) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    const today = at.toDateString() === new Date().toDateString();
    time.title = at.toLocaleString();
    time.textContent = today
      ? at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })
      : at.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    time.dataset.local = "1";
  }
}

function switchTheme() {
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  document.cookie = `aios_theme=${next}; Path=/; Max-Age=31536000; SameSite=Strict`;
  announce(`${next} theme`);
}

localTimes(document);
for (const element of document.querySelectorAll("[data-live]")) follow(element);
for (const form of document.querySelectorAll("form[data-filter]")) filter(form);
for (const button of document.querySelectorAll("[data-theme-switch]")) {
  button.addEventListener("click", switchTheme);
}
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.nodeName)) return;
  const search = document.querySelector("input[type=search]");
  if (search) {
    event.preventDefault();
    search.focus();
  }
});
