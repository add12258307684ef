// Pages of ReST-EM: what a run has come to is shown anew when its panel says that there is more,
// and a run is not started with an estimate of what was chosen before.

import { announce, show } from "./app.js";

const results = document.getElementById("results");
let mark = document.querySelector("[data-mark]")?.dataset.mark;

document.addEventListener("shown", async () => {
  const now = document.querySelector("[data-mark]")?.dataset.mark;
  if (!results || !now || now === mark) return;
  mark = now;
  const answer = await fetch(results.dataset.results, { headers: { Accept: "text/html" } }).catch(
    () => null,
  );
  if (!answer || !answer.ok) {
    mark = ""; // tried again with the next change
    return;
  }
  show(results, await answer.text());
  announce("There are new results.");
});

const choice = document.getElementById("restem-choice");
if (choice) {
  choice.addEventListener("input", () => {
    const start = document.querySelector("#restem-start button");
    if (start) start.disabled = true; // until the estimate is that of the new choice
  });
}
