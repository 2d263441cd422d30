"use strict";
/* Tables: a click on a head sorts by that column, another one the other way. Cells without a value stay below. */
const order = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

function sort(table, head) {
  const column = head.cellIndex;
  const number = head.classList.contains("number");
  const up = head.getAttribute("aria-sort") !== "ascending";
  const valueOf = (row) => row.cells[column].dataset.by;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [valueOf(a), valueOf(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const way = number ? toNumber(x) - toNumber(y) || 0 : order.compare(x, y);
    return up ? way : -way;
  });
  table.tBodies[0].append(...rows);
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
}

/* Python writes inf. */
const toNumber = (text) => (text.endsWith("inf") ? (text.startsWith("-") ? -Infinity : Infinity) : Number(text));

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sort(button.closest("table"), button.closest("th")));
}

/* Items: of one model, of one task, one way. */
const tools = document.getElementById("tools");
if (tools) {
  const chosen = (name) => {
    const select = document.getElementById(`by-${name}`);
    return select ? select.value : "";
  };
  const refresh = () => {
    const [model, task, way] = ["model", "task", "way"].map(chosen);
    let shown = 0;
    for (const group of document.querySelectorAll(".way")) {
      const fits = (!model || group.dataset.model === model) && (!way || group.dataset.way === way);
      let here = 0;
      for (const item of group.querySelectorAll("article")) {
        item.hidden = !fits || (task !== "" && item.dataset.task !== task);
        if (!item.hidden) here += 1;
      }
      group.hidden = !here;
      shown += here;
    }
    document.getElementById("found").textContent = `${shown} shown`;
  };
  tools.addEventListener("change", refresh);
  tools.hidden = false;
  refresh();
}

window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
