// The kinds of pictures that a unit has, tile by tile: another kind is one entry here and one figure in the page.

const rowsOf = (layer, at) => Math.ceil(layer.images[at].length / layer.columns) * layer.columns;
const fieldOf = (layer, at) => layer.evidence.units[layer.units[at]]?.field;
const lostAt = (layer, at, i) => layer.lost[layer.units[at]]?.[i] || ""; // where nothing was left of a signal
const hasEvidence = (layer, at) => layer.units[at] in layer.evidence.units;

// What of each tile is shown, in pixels of the sprite: the unit's effective field, grown to the tile's proportions.
function partOf(layer, at, crop) {
  const [height, width] = layer.size;
  const field = crop && fieldOf(layer, at);
  if (!field || field[2] <= field[0]) return [0, 0, height, width];
  const [top, left, bottom, right] = field.map((edge, i) => (edge * layer.size[i % 2]) / layer.pixels[i % 2]);
  const share = Math.min(1, Math.max((bottom - top) / height, (right - left) / width, 6 / Math.min(height, width)));
  const [h, w] = [share * height, share * width];
  const y = Math.min(Math.max((top + bottom - h) / 2, 0), height - h);
  const x = Math.min(Math.max((left + right - w) / 2, 0), width - w);
  return [y, x, y + h, x + w];
}

function sharesOf(layer, at, i) {
  const [rows, cols] = layer.evidence.places;
  const letters = atob(layer.evidence.units[layer.units[at]].maps);
  return Uint8Array.from({ length: rows * cols }, (_, n) => letters.charCodeAt(i * rows * cols + n));
}

function drawPatch(context, bitmap, layer, at, i, x, y, factor, crop) {
  drawTile(context, bitmap, layer, rowsOf(layer, at) + i, x, y, factor, { part: partOf(layer, at, crop) });
}

// name -> whether the unit has it, and how its i-th tile is drawn at (x, y), cropped to the unit's field or whole; `frame`
// says how the tiles of a block lie that has others than one for each of the unit's images.
const BLOCKS = {
  patches: { title: "Patch", has: () => true, draw: drawPatch },
  evidence: {
    title: "Evidence",
    has: hasEvidence,
    draw(context, bitmap, layer, at, i, x, y, factor, crop) {
      drawPatch(context, bitmap, layer, at, i, x, y, factor, crop);
      const [h, w] = layer.size.map((side) => side * factor);
      fade(context, layer, sharesOf(layer, at, i), x, y, w, h, partOf(layer, at, crop));
    },
  },
  projections: {
    title: "Projection",
    has: () => true,
    draw(context, bitmap, layer, at, i, x, y, factor, crop) {
      const contrast = state.stretch ? 1 : layer.contrasts[at][i];
      const look = { contrast, smooth: Number(state.smooth), gray: state.gray, part: partOf(layer, at, crop) };
      drawTile(context, bitmap, layer, i, x, y, factor, look);
      const place = lostAt(layer, at, i);
      if (place) crossOut(context, x, y, layer.size[1] * factor, layer.size[0] * factor, `lost at ${place}`);
    },
  },
  optimized: {
    title: "Optimized image",
    has: (layer, at) => layer.units[at] in layer.optimized.units,
    frame: (layer, at) => ({
      ...layer.optimized,
      images: optimizedOf(layer, at).activations.map((_, i) => i),
      sprite: optimizedName(layer, layer.units[at]),
    }),
    draw(context, bitmap, layer, at, i, x, y, factor) {
      drawTile(context, bitmap, layer.optimized, i, x, y, factor);
    },
    tell: (layer, at, i) => `activation ${short(optimizedOf(layer, at).activations[i])}, ${aboveThePhoto(layer, at, i)}`,
  },
};

const optimizedOf = (layer, at) => layer.optimized.units[layer.units[at]];

// How many times the strongest image's activation each optimized image reaches; none where no image excites the unit.
function timesThePhoto(layer, at) {
  const { activations, photo } = optimizedOf(layer, at);
  return photo > 0 ? activations.map((value) => short(value / photo, 2)) : [];
}

function aboveThePhoto(layer, at, i) {
  const times = timesThePhoto(layer, at);
  return times.length ? `${times[i]} × the strongest image's` : "where no image excites it";
}

const frameOf = (kind, layer, at) =>
  BLOCKS[kind].frame?.(layer, at) ?? { ...layer, images: layer.images[at], sprite: spriteName(layer, layer.units[at]) };

const ratioOf = (kind, layer, at) => {
  const { size, columns, images } = frameOf(kind, layer, at);
  return (size[1] / size[0]) * (columns / Math.ceil(images.length / columns));
};

async function drawKind(canvas, kind, layer, at, goal, crop = state.crop) {
  const frame = frameOf(kind, layer, at);
  const bitmap = await picture(frame.sprite, frame.mime);
  if (!canvas.isConnected) return;
  drawBlock(canvas, frame, frame.images, (goal * layer.columns) / frame.columns, (context, i, x, y, factor) => {
    BLOCKS[kind].draw(context, bitmap, layer, at, i, x, y, factor, crop);
  });
}
