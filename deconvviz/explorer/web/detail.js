// One unit: its tiles, the whole image behind the chosen one, and the numbers.

function tileButtons(kind, layer, at) {
  const [group, { title, tell }] = [$(kind), BLOCKS[kind]];
  const { images, size, columns } = frameOf(kind, layer, at);
  const count = images.length;
  group.style.setProperty("--columns", columns);
  group.style.setProperty("--tile", `${size[1]} / ${size[0]}`);
  if (group.childElementCount !== count) {
    group.replaceChildren(...Array.from({ length: count }, (_, i) => {
      const button = make("button", { type: "button", class: "tile" }, make("canvas", { "aria-hidden": "true" }));
      const choose = () => BLOCKS[kind].frame || chooseTile(i);
      button.addEventListener("click", () => (choose(), openTile(i, kind)));
      button.addEventListener("focus", () => button.matches(":focus-visible") && choose());
      return button;
    }));
  }
  [...group.children].forEach((button, i) => {
    const id = images[i];
    button.disabled = id < 0;
    const place = kind === "projections" && lostAt(layer, at, i);
    const seen = () => `${data.images.names[id]}, activation ${short(layer.activations[at][i])}${place ? `, lost at ${place}` : ""}`;
    const about = id < 0 ? `empty, ${noResponse()}` : (tell ?? seen)(layer, at, i);
    button.setAttribute("aria-label", `${title} ${i + 1} of ${count}: ${about}`);
  });
}

async function showDetail() {
  const layer = current();
  const at = layer.units.indexOf(state.unit);
  if (at < 0) return;
  const places = order(layer);
  const position = places.indexOf(at);
  $("unit").textContent = `Unit ${state.unit}`;
  $("about-unit").textContent = `${layer.number === null ? "" : `Layer ${layer.number}, `}${layer.name} · ` +
    (isDead(layer, at) ? noResponse() : `${ordinal(layer.ranks[at])}strongest of ${layer.of.toLocaleString("en")}`);
  $("previous").disabled = position === 0;
  $("next").disabled = position === places.length - 1;
  $("back").setAttribute("href", layerHash(layer));
  for (const [kind, block] of Object.entries(BLOCKS)) {
    $(kind).closest("figure").hidden = !block.has(layer, at);
    if (block.has(layer, at)) tileButtons(kind, layer, at);
  }
  $("crop-label").hidden = !hasEvidence(layer, at);
  const blocks = kindsOf(layer, at).length;
  $("blocks").style.setProperty("--blocks", blocks);
  $("blocks").style.setProperty("--abreast", blocks > 3 ? 2 : blocks); // where the page is narrow
  $("no-evidence").textContent = hasEvidence(layer, at) ? "" : whyNoEvidence(layer);
  $("about-optimized").textContent = aboutOptimized(layer, at);
  chooseTile(Math.min(state.tile, layer.images[at].length - 1));
  await drawTiles(layer, at);
}

const kindsOf = (layer, at) => Object.keys(BLOCKS).filter((kind) => BLOCKS[kind].has(layer, at));

function whyNoEvidence(layer) {
  if (layer.evidence.note) return `No evidence: ${layer.evidence.note}`;
  const measured = Object.keys(layer.evidence.units);
  if (!measured.length) return "Evidence was not measured for this page: give the report evidence=3.";
  return `Evidence was measured of ${many(measured.length, "unit")} of this layer: ${measured.slice(0, 12).join(", ")}.`;
}

function aboutOptimized(layer, at) {
  if (BLOCKS.optimized.has(layer, at)) {
    const made = `Optimized images, ${layer.optimized.steps} steps from noise`;
    const times = timesThePhoto(layer, at);
    if (!times.length) return `${made}; no image excites this unit.`;
    return `${made}, excite it ${times.join(", ")} times as much as its strongest image.`;
  }
  const made = Object.keys(layer.optimized.units);
  return made.length ? `Optimized images were made for ${many(made.length, "unit")} of this layer: ${made.slice(0, 12).join(", ")}.` : "";
}

function ordinal(n) {
  if (n === 1) return "";
  const ending = n % 100 > 10 && n % 100 < 14 ? "th" : ["th", "st", "nd", "rd"][n % 10] ?? "th";
  return `${n}${ending} `;
}

async function drawTiles(layer, at) {
  const unit = layer.units[at];
  const kinds = kindsOf(layer, at);
  const frames = kinds.map((kind) => frameOf(kind, layer, at));
  const bitmaps = await Promise.all(frames.map((frame) => picture(frame.sprite, frame.mime)));
  if (current() !== layer || state.unit !== unit) return; // another was chosen meanwhile
  for (const [n, kind] of kinds.entries()) {
    const [{ images, size }, bitmap] = [frames[n], bitmaps[n]];
    const factor = factorFor(frames[n], 128);
    images.forEach((image, i) => {
      const canvas = $(kind).children[i].firstChild;
      if (image < 0) return prepare(canvas, 1, 1);
      const context = prepare(canvas, size[1] * factor, size[0] * factor);
      BLOCKS[kind].draw(context, bitmap, layer, at, i, 0, 0, factor, state.crop);
    });
  }
  $("detail").dataset.shown = `${state.layer}/${unit}`;
  shown();
}

function chooseTile(index) {
  const layer = current();
  const at = layer.units.indexOf(state.unit);
  if (at < 0 || index >= layer.images[at].length) return;
  state.tile = index;
  for (const kind of kindsOf(layer, at).filter((one) => !BLOCKS[one].frame)) {
    [...$(kind).children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
  }
  showImage(layer, at, index);
  showBars(layer, at, index);
}

async function showImage(layer, at, index) {
  const id = layer.images[at][index];
  if (id < 0) {
    $("which").textContent = noResponse();
    terms($("tile-facts"), []);
    $("image").setAttribute("aria-label", noResponse());
    Object.assign($("box").style, { height: 0, width: 0 });
    prepare($("image"), 1, 1);
    return;
  }
  const [top, left, bottom, right] = layer.boxes[at][index];
  const [height, width] = data.images.pixels;
  const name = data.images.names[id];
  const label = data.images.labels[id];
  $("which").textContent = `Image ${index + 1} of ${layer.images[at].length}`;
  terms($("tile-facts"), [
    ["File", name],
    ...(label ? [["Label", label]] : []),
    ["Activation", short(layer.activations[at][index])],
    ["Position", `row ${layer.positions[at][index][0]}, column ${layer.positions[at][index][1]} of ${by(layer.map)}`],
    ...(lostAt(layer, at, index) ? [["Signal", `nothing reached the pixels: lost at ${lostAt(layer, at, index)}`]] : []),
    ["Sees", `${bottom - top}×${right - left} of ${height}×${width} pixels`],
  ]);
  const percent = (part, whole) => `${(100 * part) / whole}%`;
  Object.assign($("box").style, {
    top: percent(top, height), left: percent(left, width),
    height: percent(bottom - top, height), width: percent(right - left, width),
  });
  $("frame").style.aspectRatio = `${width} / ${height}`;
  $("image").setAttribute("aria-label", `${name}, whole; the unit sees rows ${top} to ${bottom}, columns ${left} to ${right}`);
  const bitmap = await picture(`i${id}`, data.images.mime);
  if (current() !== layer || layer.units[at] !== state.unit || state.tile !== index) return;
  drawOne($("image"), bitmap, data.images, 0, 320);
}

function showBars(layer, at, index) {
  const values = layer.activations[at];
  const most = Math.max(...values, 1e-30);
  $("bars").replaceChildren(...values.map((value, i) => {
    const button = make("button", { type: "button", "aria-pressed": String(i === index), "aria-label": `Image ${i + 1}, activation ${short(value)}`, title: short(value) });
    button.style.setProperty("--share", Math.max(value, 0) / most);
    button.disabled = layer.images[at][i] < 0;
    button.addEventListener("click", () => chooseTile(i));
    return button;
  }));
  const common = commonLabels(layer, at);
  $("labels").textContent = common ? `All ${values.length}: ${common}` : "";
}

// What the unit's images are labelled, the most frequent first.
function commonLabels(layer, at) {
  const counts = new Map();
  for (const id of layer.images[at]) {
    const label = data.images.labels[id];
    if (label) counts.set(label, (counts.get(label) ?? 0) + 1);
  }
  return [...counts].sort((a, b) => b[1] - a[1]).map(([label, n]) => (n > 1 ? `${label} ×${n}` : label)).join(", ");
}

for (const look of ["stretch", "smooth", "gray", "crop"]) {
  $(look).addEventListener("change", (event) => {
    state[look] = event.target.checked;
    const layer = current();
    drawTiles(layer, layer.units.indexOf(state.unit));
    redrawCards();
  });
}
