// What the chat page asks of the server: an answer as it is written, and short requests.

/** The server refused something, and says why. */
export class Refused extends Error {
  constructor(text, remedy = "") {
    super(text);
    this.remedy = remedy;
  }
}

const code = () => document.querySelector('meta[name="code"]').content;

async function refusal(response) {
  const text = await response.text().catch(() => "");
  try {
    const found = JSON.parse(text);
    return new Refused(found.text || found.error.message, found.remedy || "");
  } catch {
    return new Refused(text.trim().slice(0, 300) || `The server answered ${response.status}.`);
  }
}

async function reached(request) {
  try {
    return await request;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer.", "Try again when it is back; the conversation is kept.");
  }
}

/** The events of an answer; see aios.web.pages.chat_stream. */
export async function* answer(body, signal) {
  const response = await reached(
    fetch("/chat/answer", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Code": code() },
      body,
      signal,
    }),
  );
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reached(reader.read());
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
  }
}

/** Presses a button of the server; gives what it answers. */
export async function press(path, fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  const response = await reached(
    fetch(path, {
      method: "POST",
      headers: { Accept: "application/json", "X-Code": code() },
      body: form,
    }),
  );
  if (!response.ok) throw await refusal(response);
  const found = await response.json().catch(() => {
    throw new Refused("The server's answer cannot be read.", "Load the page again.");
  });
  if (found.tone === "bad") throw new Refused(found.text, found.remedy);
  return found;
}

/** How a session stands; null where the server cannot say now. */
export async function state(session, seen) {
  const query = new URLSearchParams({ session, seen });
  try {
    const response = await fetch(`/chat/state?${query}`, { headers: { Accept: "application/json" } });
    return response.ok ? await response.json() : null;
  } catch {
    return null;
  }
}
