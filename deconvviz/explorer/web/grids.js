// One stop of the Tab key for each grid; arrows go on inside of it.

const GRIDS = "#cards, .tiles, #bars, #scans, #filter-cards";

const itemsOf = (grid) => [...grid.querySelectorAll("a, button")].filter((item) => !item.disabled);

// The chosen item is the stop, else the first.
function settleGrid(grid) {
  const items = itemsOf(grid);
  const stop = items.find((item) => item.matches("[aria-current], [aria-pressed=true]")) ?? items[0];
  for (const item of items) item.tabIndex = item === stop ? 0 : -1;
}

// How many items stand in the first line.
function columnsOf(items) {
  const top = items[0].getBoundingClientRect().top;
  const next = items.findIndex((item) => item.getBoundingClientRect().top > top + 1);
  return next < 0 ? items.length : next;
}

function moveInGrid(grid, from, key) {
  const items = itemsOf(grid);
  const at = items.indexOf(from);
  const line = columnsOf(items);
  const steps = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - line, ArrowDown: at + line, Home: 0, End: items.length - 1 };
  const to = items[steps[key]];
  if (!to) return;
  for (const item of items) item.tabIndex = item === to ? 0 : -1;
  to.focus();
  to.scrollIntoView({ block: "nearest" });
}

addEventListener("keydown", (event) => {
  const grid = event.target.closest?.(GRIDS);
  if (!grid || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  if (!/^(Arrow|Home|End)/.test(event.key)) return;
  event.preventDefault();
  event.stopImmediatePropagation(); // before what arrows do elsewhere on the page
  moveInGrid(grid, event.target, event.key);
}, true);

for (const grid of document.querySelectorAll(GRIDS)) {
  const changed = { childList: true, subtree: true, attributes: true, attributeFilter: ["aria-current", "aria-pressed", "disabled"] };
  new MutationObserver(() => settleGrid(grid)).observe(grid, changed);
}
