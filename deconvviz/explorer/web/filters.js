// The first layer's filters, each with what is wrong with it.

const filterState = { shown: false, stretch: false };

function showFilters() {
  if (filterState.shown) return;
  filterState.shown = true;
  const filters = data.filters;
  if (filters.note) {
    $("filters-about").textContent = `No filters to show: ${filters.note}`;
    $("filters-tools").hidden = true;
    return;
  }
  const count = filters.rms.length;
  $("filters-about").textContent = `${count} filters of ${filters.name}, ${by(filters.pixels)} pixels, stride ${by(filters.stride)}. ` +
    "One scale for all; gray is zero.";
  const layer = data.layers.find((one) => filters.layers.includes(one.name));
  $("filter-cards").replaceChildren(...filters.rms.map((_, i) => filterCard(filters, i, layer)));
  for (const canvas of $("filter-cards").querySelectorAll("canvas")) filterWatch.observe(canvas);
  terms($("filter-figures"), filters.summary.map(([name, value]) => [name, short(value)]));
}

function filterCard(filters, index, layer) {
  const marks = [
    ...(filters.dead[index] ? ["dead"] : []),
    ...(filters.dominant[index] ? ["dominant"] : []),
    ...(filters.twins[index].length ? [`like ${filters.twins[index].slice(0, 3).join(", ")}`] : []),
  ].join(", ");
  const canvas = make("canvas", { "data-at": index, "aria-hidden": "true" });
  const label = make("span", {}, make("b", {}, String(index)), make("span", { class: "soft" }, marks));
  const text = `Filter ${index}${marks ? `, ${marks}` : ""}, root mean square ${short(filters.rms[index])}`;
  const known = layer?.units.includes(index);
  const box = known
    ? make("a", { href: unitHash(layer, index), class: "card", "aria-label": `${text}. Show its unit` })
    : make("div", { class: "card", role: "img", "aria-label": text });
  box.append(canvas, label);
  return make("li", { title: text }, box);
}

const filterWatch = lazily(async (canvas) => {
  const filters = data.filters;
  const index = Number(canvas.dataset.at);
  const bitmap = await picture("f", filters.mime);
  if (canvas.near) drawOne(canvas, bitmap, filters, index, 84, { contrast: filterState.stretch ? 1 : filters.contrast[index] });
});

$("filters-stretch").addEventListener("change", (event) => {
  filterState.stretch = event.target.checked;
  // Observing anew reports what is in view, which draws it.
  filterWatch.disconnect();
  for (const canvas of $("filter-cards").querySelectorAll("canvas")) filterWatch.observe(canvas);
});
