// The list of a layer's units: a card each, drawn when it comes into view.

const state = { layer: 0, unit: null, tile: 0, sort: "activation", side: "projections", stretch: false, smooth: false, gray: false, crop: false };
const current = () => data.layers[state.layer];

function order(layer) {
  const places = layer.units.map((_, i) => i); // the page holds them strongest first
  return state.sort === "number" ? places.sort((a, b) => layer.units[a] - layer.units[b]) : places;
}

const unitHash = (layer, unit) => `#layer/${encodeURIComponent(layer.name)}/${unit}`;
const layerHash = (layer) => `#layer/${encodeURIComponent(layer.name)}`;
const numberOf = (layer) => data.layers.findIndex((one) => one.name === layer.name);
const spriteName = (layer, unit) => `u${numberOf(layer)}-${unit}`;
const optimizedName = (layer, unit) => `m${numberOf(layer)}-${unit}`;
const fineName = (layer, unit) => `v${numberOf(layer)}-${unit}`; // projections alone, not reduced

// A place that no image excites has the image number -1; a unit that has no other is dead on these images.
const isDead = (layer, at) => layer.images[at].every((id) => id < 0);
const noResponse = () => `no response in ${many(data.images.count, "image")}`;

let firstShown = false;

async function drawCard(canvas) {
  const layer = data.layers[canvas.dataset.layer];
  const at = Number(canvas.dataset.at);
  await picture(spriteName(layer, layer.units[at]), layer.mime);
  if (!canvas.near || !canvas.isConnected) return;
  await drawKind(canvas, state.side, layer, at, 56);
  shown();
}

// The moment that the load time is measured to.
function shown() {
  if (!firstShown) performance.mark("deconvviz-first-unit");
  firstShown = true;
}

const cardWatch = lazily(drawCard);
let listed = null; // what the list shows: layer and order

function showList() {
  const layer = current();
  const wanted = `${state.layer} ${state.sort}`;
  if (listed === wanted) return markSelected();
  listed = wanted;
  cardWatch.disconnect();
  const ratio = (layer.size[1] / layer.size[0]) * (layer.columns / Math.ceil(layer.images[0].length / layer.columns));
  $("cards").style.setProperty("--ratio", ratio);
  $("cards").replaceChildren(...order(layer).map((at) => card(layer, at)));
  for (const canvas of $("cards").querySelectorAll("canvas")) cardWatch.observe(canvas);
  const shownUnits = layer.units.length;
  $("count").textContent = shownUnits < layer.of ? `${shownUnits} of ${many(layer.of, "unit")}` : many(layer.of, "unit");
  $("note").textContent = layer.note;
  markSelected();
}

function card(layer, at) {
  const unit = layer.units[at];
  const strongest = isDead(layer, at) ? noResponse() : short(layer.activations[at][0]);
  const canvas = make("canvas", { "data-layer": state.layer, "data-at": at, "aria-hidden": "true" });
  const label = make("span", {}, make("b", {}, String(unit)), make("span", { class: "soft" }, strongest));
  const text = isDead(layer, at) ? `Unit ${unit}: ${strongest}` : `Unit ${unit}, strongest activation ${strongest}`;
  return make("li", {}, make("a", { href: unitHash(layer, unit), class: "card", "aria-label": text, "data-unit": unit }, canvas, label));
}

function markSelected() {
  for (const link of $("cards").querySelectorAll("[aria-current]")) link.removeAttribute("aria-current");
  const link = $("cards").querySelector(`[data-unit="${state.unit}"]`);
  link?.setAttribute("aria-current", "true");
  return link;
}

function redrawCards() {
  for (const canvas of $("cards").querySelectorAll("canvas")) if (canvas.near) drawCard(canvas);
}

$("sort").addEventListener("change", (event) => {
  state.sort = event.target.value;
  showList();
  markSelected()?.scrollIntoView({ block: "nearest" });
  showDetail();
});

$("side").addEventListener("change", (event) => {
  state.side = event.target.value;
  redrawCards();
});
