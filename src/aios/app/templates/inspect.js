"use strict";
(() => {
  const bar = document.getElementById("filter");
  const cards = [...document.querySelectorAll("#samples article")];
  const field = (name) => document.getElementById("f-" + name);
  const status = field("status");
  const texts = new Map();
  for (const card of cards) {
    for (const row of card.querySelectorAll("[data-kind]")) {
      texts.set(row, (card.dataset.passage + " " + row.textContent).toLowerCase());
    }
  }
  const apply = () => {
    const kind = field("kind").value;
    const reason = field("reason").value;
    const strategy = field("strategy").value;
    const words = field("words").value.trim().toLowerCase();
    let passages = 0;
    let rows = 0;
    for (const card of cards) {
      let any = 0;
      for (const row of card.querySelectorAll("[data-kind]")) {
        const fits =
          (!kind || row.dataset.kind === kind) &&
          (!reason || row.dataset.reason === reason) &&
          (!strategy || row.dataset.strategy === strategy) &&
          (!words || texts.get(row).includes(words));
        row.hidden = !fits;
        any += fits ? 1 : 0;
      }
      card.hidden = any === 0;
      passages += any ? 1 : 0;
      rows += any;
    }
    status.textContent =
      `${passages} of ${cards.length} passages, ${rows} of ${texts.size} edits and drops`;
  };
  bar.addEventListener("input", apply);
  field("clear").addEventListener("click", () => {
    for (const name of ["kind", "reason", "strategy", "words"]) field(name).value = "";
    apply();
    field("kind").focus();
  });
  bar.hidden = false;
  apply();
})();
