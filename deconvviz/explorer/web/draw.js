// From sprites to canvases. Small tiles are enlarged by whole factors, so that their pixels stay crisp.

const ZERO = 128; // the byte of a signed tile that means nothing

function place(shape, index) {
  const row = Math.floor(index / shape.columns);
  return [(index % shape.columns) * shape.pitch[1], row * shape.pitch[0]];
}

const factorFor = (shape, goal) => Math.max(1, Math.round(goal / Math.max(...shape.size)));

// Draws one tile at (x, y), enlarged. Of `look`: a `contrast` takes a signed tile to the scale that it shares with
// others, `smooth` (pixels) and `gray` change how it is seen, `part` [top, left, bottom, right] is what of it is shown.
function drawTile(context, bitmap, shape, index, x, y, factor, look = {}) {
  const { contrast = 1, smooth = 0, gray = false, part = [0, 0, ...shape.size] } = look;
  const [height, width] = shape.size;
  const [left, top] = place(shape, index);
  const [w, h] = [width * factor, height * factor];
  const [down, across] = [part[2] - part[0], part[3] - part[1]];
  context.imageSmoothingEnabled = part[0] > 0 || part[1] > 0 || down < height || across < width;
  context.drawImage(bitmap, left + part[1], top + part[0], across, down, x, y, w, h);
  if (contrast === 1 && !smooth && !gray) return;
  const pixels = context.getImageData(x, y, w, h);
  const bytes = pixels.data; // clamped by its type
  if (smooth) blur(bytes, w, h, (smooth * factor * height) / down);
  for (let i = 0; i < bytes.length; i += 4) {
    if (gray) bytes.fill((bytes[i] + bytes[i + 1] + bytes[i + 2]) / 3, i, i + 3);
    if (contrast !== 1) for (let c = i; c < i + 3; c++) bytes[c] = ZERO + (bytes[c] - ZERO) * contrast;
  }
  context.putImageData(pixels, x, y);
}

// A Gaussian of `sigma` pixels over the bytes of a picture, first along its lines, then down its columns.
function blur(bytes, width, height, sigma) {
  const radius = Math.ceil(3 * sigma);
  const weights = Array.from({ length: 2 * radius + 1 }, (_, i) => Math.exp(-0.5 * ((i - radius) / sigma) ** 2));
  const whole = weights.reduce((a, b) => a + b);
  const along = (count, length, step, line) => {
    const found = new Float32Array(length);
    for (let n = 0; n < count; n++) {
      for (let c = 0; c < 3; c++) {
        const first = n * line + c;
        for (let i = 0; i < length; i++) {
          let sum = 0;
          for (let k = -radius; k <= radius; k++) {
            const at = i + k;
            const value = at < 0 || at >= length ? ZERO : bytes[first + at * step];
            sum += weights[k + radius] * (value - ZERO);
          }
          found[i] = ZERO + sum / whole;
        }
        for (let i = 0; i < length; i++) bytes[first + i * step] = found[i];
      }
    }
  };
  along(height, width, 4, 4 * width);
  along(width, height, 4 * width, 4);
}

const FADED = 209; // the gray of what counts for nothing, and how much of a pixel's own colour is left there
const OWN = 0.12;

// Fades a patch at (x, y), w × h, as far as covering a place changed nothing: `shares` are 0 to 255, places in a grid.
function fade(context, layer, shares, x, y, w, h, part) {
  const { places: [rows, cols], down, across } = layer.evidence;
  const mask = make("canvas"); // with the outermost places once more around them
  const small = prepare(mask, cols + 2, rows + 2);
  const pixels = small.createImageData(cols + 2, rows + 2);
  const within = (at, count) => Math.min(Math.max(at - 1, 0), count - 1);
  for (let r = 0; r < rows + 2; r++) {
    for (let c = 0; c < cols + 2; c++) {
      const share = shares[within(r, rows) * cols + within(c, cols)] / 255;
      pixels.data.set([FADED, FADED, FADED, 255 * (1 - OWN) * (1 - share)], 4 * (r * (cols + 2) + c));
    }
  }
  small.putImageData(pixels, 0, 0);
  const [high, wide] = layer.pixels; // of the patch; `part` is given in pixels of the tile
  const [scaleY, scaleX] = [high / layer.size[0], wide / layer.size[1]];
  const [top, left] = [part[0] * scaleY, part[1] * scaleX];
  const [toY, toX] = [h / ((part[2] - part[0]) * scaleY), w / ((part[3] - part[1]) * scaleX)];
  context.save();
  context.beginPath();
  context.rect(x, y, w, h);
  context.clip();
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(
    mask,
    x + (across[0] - 1.5 * across[1] - left) * toX, y + (down[0] - 1.5 * down[1] - top) * toY,
    (cols + 2) * across[1] * toX, (rows + 2) * down[1] * toY,
  );
  context.restore();
}

// Marks a tile at (x, y), w × h, that holds no picture, and writes why where there is room.
function crossOut(context, x, y, w, h, text) {
  context.save();
  context.beginPath();
  context.rect(x, y, w, h);
  context.clip();
  context.strokeStyle = "#b4b4b4";
  for (let i = -h; i < w; i += 14) {
    context.beginPath();
    context.moveTo(x + i, y + h);
    context.lineTo(x + i + h, y);
    context.stroke();
  }
  const letter = Math.min(16, w / 8);
  if (letter >= 9) {
    context.font = `${letter}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.fillStyle = "#808080";
    context.fillRect(x, y + h / 2 - letter, w, 2 * letter);
    context.fillStyle = "#fff";
    context.fillText(text, x + w / 2, y + h / 2 + letter / 3, w - 4);
  }
  context.restore();
}

function prepare(canvas, width, height) {
  canvas.width = width;
  canvas.height = height;
  return canvas.getContext("2d", { willReadFrequently: true });
}

function drawOne(canvas, bitmap, shape, index, goal, look) {
  const factor = factorFor(shape, goal);
  const context = prepare(canvas, shape.size[1] * factor, shape.size[0] * factor);
  drawTile(context, bitmap, shape, index, 0, 0, factor, look);
}

// Draws a tile for each image as a block with hairlines between them; empty places stay empty.
function drawBlock(canvas, shape, images, goal, tile) {
  const factor = factorFor(shape, goal);
  const [height, width] = shape.size.map((side) => side * factor);
  const lines = Math.ceil(images.length / shape.columns);
  const gap = 2;
  const context = prepare(canvas, shape.columns * (width + gap) - gap, lines * (height + gap) - gap);
  for (let i = 0; i < images.length; i++) {
    if (images[i] < 0) continue;
    tile(context, i, (i % shape.columns) * (width + gap), Math.floor(i / shape.columns) * (height + gap), factor);
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
