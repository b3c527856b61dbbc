// Search: layers by name or number, units by number, images by name or label.

const MOST_FOUND = 40;
let hits = [];
let active = -1;

function search(text) {
  const query = text.trim().toLowerCase();
  if (!query) return [];
  return [...foundLayers(query), ...foundUnits(query), ...foundViews(query), ...foundImages(query)].slice(0, MOST_FOUND);
}

function foundLayers(query) {
  const wanted = query.replace(/^layer\s*/, "");
  return data.layers
    .filter((layer) => String(layer.number) === wanted || (wanted && layer.name.toLowerCase().includes(wanted)))
    .map((layer) => ({ hash: layerHash(layer), text: capital(layerLabel(layer)), note: `${layer.name}, ${many(layer.of, "unit")}` }));
}

// "37" is unit 37 of any layer, "5/37", "5:37" and "5 37" that of layer 5 alone.
function foundUnits(query) {
  const found = query.match(/^(?:(.+?)[\s/:]+)?(?:unit\s*)?(\d+)$/);
  if (!found) return [];
  const unit = Number(found[2]);
  const where = found[1]?.replace(/^layer\s*/, "").trim();
  return data.layers
    .filter((layer) => layer.units.includes(unit))
    .filter((layer) => !where || where === "unit" || String(layer.number) === where || layer.name.toLowerCase().includes(where))
    .map((layer) => ({ hash: unitHash(layer, unit), text: `Unit ${unit}`, note: `${layerLabel(layer)}, ${layer.name}` }));
}

function foundViews(query) {
  const views = [["Overview", "#overview"], ["Filters", "#filters"], ["Occlusion", "#occlusion"], ["About", "#about"]];
  return views.filter(([name]) => name.toLowerCase().startsWith(query)).map(([text, hash]) => ({ hash, text, note: "" }));
}

// Units whose strongest images are named or labelled so; those with the most of them first.
function foundImages(query) {
  const matches = new Set();
  // A number is a unit's, or one by itself in a name: "12" is not the beginning of "128px".
  const fits = /^\d+$/.test(query) ? (text) => text.split(/\D+/).includes(query) : (text) => text.toLowerCase().includes(query);
  for (const [id, name] of Object.entries(data.images.names)) {
    if (fits(name) || fits(String(data.images.labels[id] ?? ""))) matches.add(Number(id));
  }
  if (!matches.size) return [];
  const found = data.layers.flatMap((layer) => layer.units.map((unit, at) => {
    const count = layer.images[at].filter((id) => matches.has(id)).length;
    return { layer, unit, count, of: layer.images[at].length };
  }));
  return found
    .filter((hit) => hit.count)
    .sort((a, b) => b.count - a.count || data.layers.indexOf(b.layer) - data.layers.indexOf(a.layer))
    .map(({ layer, unit, count, of }) => ({
      hash: unitHash(layer, unit), text: `Unit ${unit}`,
      note: `${layerLabel(layer)}, ${count} of ${of} images match`,
    }));
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

function showFound() {
  const text = $("search").value;
  hits = search(text);
  active = hits.length ? 0 : -1;
  const lines = hits.map((hit, i) => {
    const line = make("li", { role: "option", id: `hit-${i}` }, make("b", {}, hit.text), make("span", { class: "soft" }, hit.note));
    line.addEventListener("pointerdown", (event) => event.preventDefault()); // the field keeps its focus until the click
    line.addEventListener("click", () => go(i));
    return line;
  });
  const nothing = make("li", { class: "soft none" }, "Nothing found. Try a unit’s number, a layer’s name or an image’s name.");
  $("found").replaceChildren(...(lines.length ? lines : [nothing]));
  open(text.trim() !== "");
  mark();
}

function open(visible) {
  $("found").hidden = !visible;
  $("search").setAttribute("aria-expanded", String(visible));
}

function mark() {
  [...$("found").children].forEach((line, i) => line.setAttribute("aria-selected", String(i === active)));
  if (active < 0) return $("search").removeAttribute("aria-activedescendant");
  $("search").setAttribute("aria-activedescendant", `hit-${active}`);
  $(`hit-${active}`).scrollIntoView({ block: "nearest" });
}

function go(index) {
  if (!hits[index]) return;
  open(false);
  $("search").blur();
  location.hash = hits[index].hash;
}

$("search").addEventListener("input", showFound);
$("search").addEventListener("focus", () => $("search").value && showFound());
$("search").addEventListener("blur", () => open(false));
$("search").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step && hits.length) active = (active + step + hits.length) % hits.length;
  else if (event.key === "Enter") go(active);
  else if (event.key === "Escape") $("search").blur();
  else return;
  event.preventDefault();
  event.stopPropagation();
  mark();
});
