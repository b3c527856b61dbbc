// From sprites to canvases. Small tiles are enlarged by whole factors, so that their pixels stay crisp.

const ZERO = 128; // the byte of a signed tile that means nothing

function place(shape, index) {
  const row = Math.floor(index / shape.columns);
  return [(index % shape.columns) * shape.pitch[1], row * shape.pitch[0]];
}

const factorFor = (shape, goal) => Math.max(1, Math.round(goal / Math.max(...shape.size)));

// Draws one tile at (x, y), enlarged; a contrast takes a signed tile to the scale that it shares with others.
function drawTile(context, bitmap, shape, index, x, y, factor, contrast = 1) {
  const [height, width] = shape.size;
  const [left, top] = place(shape, index);
  const [w, h] = [width * factor, height * factor];
  context.imageSmoothingEnabled = false;
  context.drawImage(bitmap, left, top, width, height, x, y, w, h);
  if (contrast === 1) return;
  const pixels = context.getImageData(x, y, w, h);
  const bytes = pixels.data; // clamped by its type
  for (let i = 0; i < bytes.length; i++) if ((i & 3) !== 3) bytes[i] = ZERO + (bytes[i] - ZERO) * contrast;
  context.putImageData(pixels, x, y);
}

function prepare(canvas, width, height) {
  canvas.width = width;
  canvas.height = height;
  return canvas.getContext("2d", { willReadFrequently: true });
}

function drawOne(canvas, bitmap, shape, index, goal, contrast) {
  const factor = factorFor(shape, goal);
  const context = prepare(canvas, shape.size[1] * factor, shape.size[0] * factor);
  drawTile(context, bitmap, shape, index, 0, 0, factor, contrast);
}

// Draws a tile for each image from tile `first` on as a block with hairlines between them; empty places stay empty.
function drawBlock(canvas, bitmap, shape, first, images, goal, contrasts) {
  const factor = factorFor(shape, goal);
  const [height, width] = shape.size.map((side) => side * factor);
  const lines = Math.ceil(images.length / shape.columns);
  const gap = 2;
  const context = prepare(canvas, shape.columns * (width + gap) - gap, lines * (height + gap) - gap);
  for (let i = 0; i < images.length; i++) {
    if (images[i] < 0) continue;
    const x = (i % shape.columns) * (width + gap);
    const y = Math.floor(i / shape.columns) * (height + gap);
    drawTile(context, bitmap, shape, first + i, x, y, factor, contrasts?.[i]);
  }
}

// Draws what comes into view, and lets go of what left it: a list may hold thousands of pictures.
function lazily(draw) {
  const watch = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        target.near = isIntersecting;
        if (isIntersecting) draw(target);
        else target.width = target.height = 0;
      }
    },
    { rootMargin: "300px 0px" },
  );
  return watch;
}

// matplotlib's viridis, which the package's figures use, at nine places.
const SHADES = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
  [31, 158, 137], [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37],
];

function shade(share) {
  const at = Math.min(Math.max(share, 0), 1) * (SHADES.length - 1);
  const low = Math.min(Math.floor(at), SHADES.length - 2);
  const mix = SHADES[low].map((v, i) => Math.round(v + (SHADES[low + 1][i] - v) * (at - low)));
  return `rgb(${mix.join(" ")})`;
}
