// A tile as large as the page holds it, and pictures to keep: a tile, a block, all of a unit.

const FIGURE = 3; // a saved block has tiles of so many times 56 pixels

async function openTile(index, chosen = "patches") {
  const layer = current();
  const at = layer.units.indexOf(state.unit);
  const { frame, tell, title } = BLOCKS[chosen];
  const { images, pixels } = frameOf(chosen, layer, at);
  const id = images[index];
  if (id < 0) return;
  const what = frame ? title.toLowerCase() : "image";
  $("large-title").textContent = `Unit ${state.unit}, ${what} ${index + 1} of ${images.length}`;
  const name = frame ? tell(layer, at, index) : data.images.names[id];
  const label = frame ? null : data.images.labels[id];
  $("large-about").textContent = [name, ...(label && label !== name ? [label] : []), `${by(pixels)} pixels`].join(" · ");
  const kinds = frame ? [chosen] : kindsOf(layer, at).filter((kind) => !BLOCKS[kind].frame);
  const figures = kinds.map((kind) => {
    const canvas = make("canvas", { role: "img", "aria-label": `${BLOCKS[kind].title} of ${name}` });
    const save = make("button", { type: "button", class: "save", "data-kind": kind }, "Save");
    save.addEventListener("click", () => download(canvas, `${fileName(layer)}-${kind}-${index + 1}.png`));
    const caption = make("figcaption", {}, make("span", {}, BLOCKS[kind].title), save);
    return { kind, canvas, figure: make("figure", {}, canvas, caption) };
  });
  $("large-tiles").replaceChildren(...figures.map((one) => one.figure));
  if (!$("large").open) $("large").showModal();
  for (const { kind, canvas } of figures) await drawLarge(canvas, kind, layer, at, index);
  $("large").dataset.shown = `${state.layer}/${state.unit}/${index}`;
}

// In the field's own pixels, where the page holds them: projections in a picture of their own, patches in the whole image.
async function drawLarge(canvas, kind, layer, at, index) {
  const unit = layer.units[at];
  if (BLOCKS[kind].frame) {
    const frame = frameOf(kind, layer, at);
    const factor = factorFor(frame, 560);
    const context = prepare(canvas, frame.size[1] * factor, frame.size[0] * factor);
    return BLOCKS[kind].draw(context, await picture(frame.sprite, frame.mime), layer, at, index, 0, 0, factor);
  }
  const fine = { ...layer, ...(layer.fine ?? {}) };
  const factor = factorFor(fine, 560);
  const context = prepare(canvas, fine.size[1] * factor, fine.size[0] * factor);
  if (kind === "projections" && layer.fine) {
    const bitmap = await picture(fineName(layer, unit), fine.mime);
    BLOCKS.projections.draw(context, bitmap, fine, at, index, 0, 0, factor, state.crop);
    return;
  }
  const bitmap = await picture(spriteName(layer, unit), layer.mime);
  if (!layer.fine) return BLOCKS[kind].draw(context, bitmap, layer, at, index, 0, 0, factor, state.crop);
  await drawWhole(context, layer, fine, at, index, factor);
  if (kind === "evidence") {
    const [h, w] = fine.size.map((side) => side * factor);
    fade(context, fine, sharesOf(layer, at, index), 0, 0, w, h, partOf(fine, at, state.crop));
  }
}

// The patch out of the whole image; what it lacks at the image's edge is gray.
async function drawWhole(context, layer, fine, at, index, factor) {
  const [top, left, bottom, right] = layer.boxes[at][index];
  const whole = await picture(`i${layer.images[at][index]}`, data.images.mime);
  const [scaleY, scaleX] = [0, 1].map((axis) => data.images.size[axis] / data.images.pixels[axis]);
  const [h, w] = fine.size.map((side) => side * factor);
  const part = partOf(fine, at, state.crop);
  const [zoomY, zoomX] = [h / (part[2] - part[0]), w / (part[3] - part[1])];
  const [unitY, unitX] = [0, 1].map((axis) => fine.size[axis] / layer.pixels[axis]); // pixels of the tile to one of the image
  const [down, across] = layer.shifts[at][index];
  context.fillStyle = "#808080";
  context.fillRect(0, 0, w, h);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(
    whole, left * scaleX, top * scaleY, (right - left) * scaleX, (bottom - top) * scaleY,
    (across * unitX - part[1]) * zoomX, (down * unitY - part[0]) * zoomY,
    (right - left) * unitX * zoomX, (bottom - top) * unitY * zoomY,
  );
}

const fileName = (layer) => `${layer.number === null ? layer.name.replace(/\W+/g, "-") : `layer-${layer.number}`}-unit-${state.unit}`;

function download(canvas, name) {
  canvas.toBlob((blob) => {
    const address = URL.createObjectURL(blob);
    const link = make("a", { href: address, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  });
}

// A block, or all of a unit's beside each other with a line above that says what they are.
async function saveBlocks(wanted) {
  const layer = current();
  const at = layer.units.indexOf(state.unit);
  const kinds = kindsOf(layer, at).filter((kind) => wanted === "all" || wanted === kind);
  const blocks = [];
  for (const kind of kinds) {
    const canvas = make("canvas", { hidden: "" });
    document.body.append(canvas); // drawn only where it is part of the page
    await drawKind(canvas, kind, layer, at, FIGURE * 56);
    canvas.remove();
    blocks.push(canvas);
  }
  if (wanted !== "all") return download(blocks[0], `${fileName(layer)}-${wanted}.png`);
  const [gap, head] = [32, 72];
  const figure = make("canvas");
  const width = blocks.reduce((sum, block) => sum + block.width + gap, -gap);
  const context = prepare(figure, width + 2 * gap, Math.max(...blocks.map((block) => block.height)) + 2 * head);
  context.fillStyle = "#fff";
  context.fillRect(0, 0, figure.width, figure.height);
  context.fillStyle = "#1c1e21";
  context.font = "600 24px system-ui, sans-serif";
  context.fillText(`${data.title} · ${layerLabel(layer)} (${layer.name}), unit ${state.unit}`, gap, 40);
  context.font = "20px system-ui, sans-serif";
  let x = gap;
  blocks.forEach((block, i) => {
    context.fillText(`${BLOCKS[kinds[i]].title}${kinds[i] === "evidence" ? "" : kinds[i] === "patches" ? "es" : "s"}`, x, head + 8);
    context.drawImage(block, x, head + 20);
    x += block.width + gap;
  });
  download(figure, `${fileName(layer)}.png`);
}

for (const button of document.querySelectorAll("[data-block]")) {
  button.addEventListener("click", () => saveBlocks(button.dataset.block));
}
$("large").addEventListener("click", (event) => event.target === $("large") && $("large").close());
