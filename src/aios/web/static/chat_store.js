// What a tab keeps of its conversation, so that a reload shows it again. It is gone with the tab.

const KEY = "aios-chat";
const MOST_ITEMS = 400;
const MOST_CHARACTERS = 1_000_000;

/** An id for a session; also where the page is not in a secure context. */
export function newSession() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The newest items within the bounds; they begin with what the user said. */
export function bounded(items, characters = MOST_CHARACTERS) {
  let first = items.length;
  for (let left = characters; first > 0 && items.length - first < MOST_ITEMS; first -= 1) {
    left -= items[first - 1].text.length;
    if (left < 0) break;
  }
  while (first > 0 && first < items.length && items[first].role !== "user") first += 1;
  return items.slice(first);
}

export function read() {
  let found = null;
  try {
    found = JSON.parse(sessionStorage.getItem(KEY));
  } catch {
    // nothing, or nothing that can be read: a new conversation
  }
  const items = Array.isArray(found?.items) ? found.items : [];
  const known = (item) => typeof item?.text === "string" && /^(user|assistant)$/.test(item.role);
  return {
    session: typeof found?.session === "string" && found.session ? found.session : newSession(),
    items: items.filter(known),
    settings: found?.settings ?? {},
    model: found?.model ?? "",
    adapts: found?.adapts ?? null,
    drawn: found?.drawn ?? 0,
    typed: found?.typed ?? "",
  };
}

export function write(kept) {
  for (let most = MOST_CHARACTERS; most > 1000; most /= 4) {
    try {
      sessionStorage.setItem(KEY, JSON.stringify({ ...kept, items: bounded(kept.items, most) }));
      return;
    } catch {
      // the browser keeps less: the older half goes
    }
  }
}
