// Where one is (the address's #), the keyboard, light and dark, and the start.

const KEYS = [
  ["← →", "previous, next unit"], ["↑ ↓", "layer above, below"], ["1 … 9", "image of the unit"],
  ["s", "stretch each projection"], ["Tab", "from grid to grid, arrows inside"], ["/", "search"], ["Enter", "open what is chosen"],
  ["Esc", "close, back to the list"], ["t", "light, dark, as the system"], ["?", "this help"],
];
const VIEWS = [["overview", "Overview", showOverview], ["filters", "Filters", showFilters], ["occlusion", "Occlusion", showOcclusion], ["about", "About", showAbout]];
const narrow = matchMedia("(max-width: 860px)");
let listScroll = 0;

function route() {
  const [kind, name, unit] = location.hash.slice(1).split("/").map(safelyDecoded);
  const view = VIEWS.find(([id]) => id === (kind || "overview"));
  if (view) return show(view[0], view[2]);
  const layer = Math.max(0, data.layers.findIndex((one) => kind === "layer" && one.name === name));
  const chosen = unit !== undefined && data.layers[layer].units.includes(Number(unit));
  if (layer !== state.layer) listScroll = 0;
  Object.assign(state, { layer, unit: chosen ? Number(unit) : kept(layer), tile: chosen && Number(unit) === state.unit ? state.tile : 0 });
  show("units", () => {
    if (narrow.matches && !document.body.classList.contains("one") && chosen) listScroll = scrollY;
    const returning = narrow.matches && document.body.classList.contains("one") && !chosen;
    document.body.classList.toggle("one", chosen);
    showList();
    showDetail();
    if (narrow.matches && chosen) scrollTo(0, 0);
    if (returning) scrollTo(0, listScroll);
    $("detail").scrollTop = 0;
  });
}

function safelyDecoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a % in an address typed by hand
  }
}

// A layer shows the unit that was chosen there last, at first the top of its list.
const lastUnit = new Map();
const kept = (layer) => lastUnit.get(layer) ?? data.layers[layer].units[order(data.layers[layer])[0]];

function show(id, draw) {
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== id;
  if (id !== "units") document.body.classList.remove("one");
  const place = id === "units" ? layerHash(current()) : `#${id}`;
  for (const link of $("tabs").children) {
    if (link.getAttribute("href") === place) {
      link.setAttribute("aria-current", "page");
      link.scrollIntoView({ block: "nearest", inline: "center" });
    } else link.removeAttribute("aria-current");
  }
  draw();
  if (id === "units") lastUnit.set(state.layer, state.unit);
  else scrollTo(0, 0);
}

function showTabs() {
  const tab = (href, ...children) => make("a", { href }, ...children);
  const layers = data.layers.map((layer) => {
    const text = layer.number === null ? layer.name : `Layer ${layer.number}`;
    const link = tab(layerHash(layer), text);
    link.title = `${layer.name}: ${many(layer.of, "unit")}, receptive field ${by(layer.field)}`;
    return link;
  });
  const [overview, ...others] = VIEWS.map(([id, name]) => tab(`#${id}`, name));
  $("tabs").replaceChildren(overview, ...layers, ...others);
}

function showAbout() {
  rows($("facts"), data.facts);
  const { headings, rows: lines } = data.table;
  rows($("table"), lines.map((cells) => [...cells]), headings);
}

// ---- moving ----

function moveUnit(step) {
  const layer = current();
  const places = order(layer);
  const to = places[places.indexOf(layer.units.indexOf(state.unit)) + step];
  if (to === undefined) return;
  replaceHash(unitHash(layer, layer.units[to]));
  markSelected()?.scrollIntoView({ block: "nearest" });
}

function moveLayer(step) {
  const to = state.layer + step;
  if (!data.layers[to]) return;
  const layer = data.layers[to];
  const one = document.body.classList.contains("one");
  replaceHash(one ? unitHash(layer, kept(to)) : layerHash(layer));
}

// Keys are pressed many times: they leave no trail of pages to go back through.
function replaceHash(hash) {
  history.replaceState(null, "", hash);
  route();
}

function onUnits(action) {
  if (!$("units").hidden) action();
}

const ACTIONS = {
  ArrowLeft: () => onUnits(() => moveUnit(-1)),
  ArrowRight: () => onUnits(() => moveUnit(1)),
  ArrowUp: () => onUnits(() => moveLayer(-1)),
  ArrowDown: () => onUnits(() => moveLayer(1)),
  s: () => onUnits(() => $("stretch").click()),
  t: () => nextTheme(),
  "/": () => ($("search").focus(), $("search").select()),
  "?": () => $("help").showModal(),
  Escape: () => document.body.classList.contains("one") && narrow.matches && replaceHash(layerHash(current())),
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open || $("large").open) return;
  if (event.target.matches("input:not([type=checkbox], [type=radio]), select, textarea")) return;
  if (event.target.matches("[type=radio], .scroll") && event.key.startsWith("Arrow")) return;
  const digit = /^[1-9]$/.test(event.key) ? () => onUnits(() => chooseTile(Number(event.key) - 1)) : null;
  const action = ACTIONS[event.key] ?? digit;
  if (!action) return;
  if (event.key.startsWith("Arrow") && $("units").hidden) return; // other views scroll
  event.preventDefault();
  action();
});

// ---- light and dark ----

const THEMES = { auto: "◐", light: "☀", dark: "☾" };

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = THEMES[name];
  $("theme").setAttribute("aria-label", `Colours: ${name}. Change`);
  $("theme").title = `Colours: ${name}`;
  remembered("theme", name);
}

function nextTheme() {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]);
}

// ---- start ----

setTheme(remembered("theme") in THEMES ? remembered("theme") : "auto");
showTabs();
for (const table of document.querySelectorAll("table.keys")) rows(table, KEYS);
$("theme").addEventListener("click", nextTheme);
$("keys").addEventListener("click", () => $("help").showModal());
$("help").addEventListener("click", (event) => event.target.matches("a") && $("help").close());
$("previous").addEventListener("click", () => moveUnit(-1));
$("next").addEventListener("click", () => moveUnit(1));
addEventListener("hashchange", route);
narrow.addEventListener("change", route);
$("search").placeholder = narrow.matches ? "Search" : $("search").placeholder;
route();
