"use strict";
const box = document.getElementById("search");
const failedOnly = document.getElementById("failed");
const unfold = document.getElementById("unfold");
const found = document.getElementById("found");
const entries = [...document.querySelectorAll("article")];
const texts = new Map();
const openedBySearch = new Set();
const MOST_MARKS = 5000;

const textOf = (entry) => {
  if (!texts.has(entry)) texts.set(entry, entry.textContent.toLowerCase());
  return texts.get(entry);
};

/* Ranges of every place that holds the words, without touching the text itself. */
function* places(entry, words) {
  const walk = document.createTreeWalker(entry, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const text = node.data.toLowerCase();
    if (text.length !== node.data.length) continue;
    for (let at = text.indexOf(words); at >= 0; at = text.indexOf(words, at + words.length)) {
      const range = new Range();
      range.setStart(node, at);
      range.setEnd(node, at + words.length);
      yield range;
    }
  }
}

/* keep: mark the words, and hide nothing for lack of them. */
function refresh(keep) {
  const words = box.value.trim().toLowerCase();
  for (const details of openedBySearch) details.open = false;
  openedBySearch.clear();
  const marks = [];
  let shown = 0;
  for (const entry of entries) {
    const fits = (!failedOnly.checked || "failed" in entry.dataset) && (keep || !words || textOf(entry).includes(words));
    entry.hidden = !fits;
    if (!fits) continue;
    shown += 1;
    if (!words || marks.length >= MOST_MARKS) continue;
    for (const range of places(entry, words)) {
      marks.push(range);
      if (marks.length >= MOST_MARKS) break;
      for (let up = range.startContainer.parentElement; up && up !== entry; up = up.parentElement) {
        if (up.tagName === "DETAILS" && !up.open && !range.startContainer.parentElement.closest("summary")) {
          up.open = true;
          openedBySearch.add(up);
        }
      }
    }
  }
  if (window.Highlight && CSS.highlights) CSS.highlights.set("hit", new Highlight(...marks));
  found.textContent = shown === entries.length ? `${entries.length} shown` : `${shown} of ${entries.length}`;
}

let waiting = 0;
box.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => refresh(false), 120);
});
failedOnly.addEventListener("change", () => refresh(false));

let folded = unfold.dataset.full === undefined;
function fold(open) {
  folded = !open;
  openedBySearch.clear();
  for (const details of document.querySelectorAll("details")) details.open = open;
  unfold.textContent = open ? "Fold all" : "Unfold all";
}
unfold.addEventListener("click", () => fold(folded));
window.addEventListener("beforeprint", () => fold(true));

function go(step) {
  const seen = entries.filter((entry) => !entry.hidden);
  if (!seen.length) return;
  const top = document.querySelector(".bar").getBoundingClientRect().bottom + 24;
  const here = seen.findIndex((entry) => entry.classList.contains("here"));
  const first = seen.findIndex((entry) => entry.getBoundingClientRect().bottom > top);
  const next = here < 0 ? Math.max(0, first) : Math.min(seen.length - 1, Math.max(0, here + step));
  for (const entry of entries) entry.classList.toggle("here", entry === seen[next]);
  seen[next].scrollIntoView({ block: "start" });
  seen[next].focus({ preventScroll: true });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === box) {
    if (event.key === "Escape") {
      box.value = "";
      box.blur();
      refresh(false);
    }
    return;
  }
  if (event.key === "/") box.focus();
  else if (event.key === "j") go(1);
  else if (event.key === "k") go(-1);
  else if (event.key === "f") failedOnly.click();
  else if (event.key === "u") fold(folded);
  else return;
  event.preventDefault();
});

document.getElementById("tools").hidden = false;
refresh(true); /* whoever made the page has searched already */
