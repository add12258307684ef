// A conversation as a file, in the form that `aios chat` saves and loads.

import { press, Refused } from "./chat_talk.js";
import { make } from "./chat_view.js";

/** Hands the conversation to the browser as a file. */
export async function saveFile(system, items) {
  const messages = items.map(({ role, text }) => ({ role, content: text }));
  const found = await press("/chat/save", { system, messages: JSON.stringify(messages) });
  const blob = new Blob([JSON.stringify(found, null, 2)], { type: "application/json" });
  const link = make("a", { href: URL.createObjectURL(blob), download: "conversation.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  return { text: "The conversation is saved" };
}

/** What a file holds: its system text, and what was said. */
export async function readFile(file, mostBytes) {
  if (file.size > mostBytes) {
    const most = Math.floor(mostBytes / 1024).toLocaleString();
    throw new Refused("The file is too large for a conversation.", `At most ${most} KiB are read.`);
  }
  const found = await press("/chat/open", { file });
  const items = found.messages.map(({ role, content }) => ({ role, text: content }));
  return { system: found.system, items };
}
