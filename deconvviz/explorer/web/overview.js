// What the page opens on: a few telling units of each layer, with all that is known of them.

const glances = lazily((canvas) => {
  const layer = data.layers[canvas.dataset.layer];
  drawKind(canvas, canvas.dataset.kind, layer, Number(canvas.dataset.at), 84, true).then(shown);
});

function showOverview() {
  if ($("glances").childElementCount) return;
  $("glances").replaceChildren(...[...data.layers].reverse().filter((layer) => layer.highlights.length).map(layerGlance));
  for (const canvas of $("glances").querySelectorAll("canvas")) glances.observe(canvas);
}

function layerGlance(layer) {
  const cards = layer.highlights.map((unit) => unitGlance(layer, layer.units.indexOf(unit)));
  const title = make("h3", {}, make("a", { href: layerHash(layer) }, capital(layerLabel(layer))));
  const note = layer.note ? [make("p", { class: "warning" }, layer.note)] : [];
  return make("section", { class: "glance" }, title, ...note, make("div", { class: "glance-cards" }, ...cards));
}

function unitGlance(layer, at) {
  const kinds = Object.keys(BLOCKS).filter((kind) => BLOCKS[kind].has(layer, at));
  const pictures = kinds.map((kind) => {
    const canvas = make("canvas", {
      "data-layer": data.layers.indexOf(layer), "data-at": at, "data-kind": kind, "aria-hidden": "true",
    });
    canvas.style.aspectRatio = ratioOf(kind, layer, at);
    return canvas;
  });
  const unit = layer.units[at];
  const label = make("span", {}, make("b", {}, `Unit ${unit}`), make("span", { class: "soft" }, commonLabels(layer, at)));
  const name = `Unit ${unit} of ${layerLabel(layer)}: ${kinds.join(", ")}`;
  return make("a", { href: unitHash(layer, unit), class: "card glance-card", "aria-label": name },
    make("span", { class: "glance-blocks" }, ...pictures), label);
}
