// Occlusion maps over their picture: a coloured cell per place of the occluder.

const occlusionState = { scan: null, place: 0, whole: false };
const HARDLY = 0.1; // a probability that moves by less than this: the answer hardly changes
const ENLARGED = 448; // pixels: the longest side that a map is drawn with

function showOcclusion() {
  if (occlusionState.scan) return;
  const { scans, note } = data.occlusion;
  if (!scans.length) {
    const why = note ? `No maps: ${note}` : "No image was scanned for this page.";
    $("maps").replaceChildren(make("p", {}, why));
    $("occlusion-tools").hidden = true;
    return;
  }
  $("scans").replaceChildren(...scans.map((scan, i) => {
    const label = make("span", {}, scan.answer);
    const canvas = make("canvas", { "aria-hidden": "true" });
    const button = make("button", { type: "button", class: "card", "aria-label": `${scan.name}, seen as ${scan.answer}` }, canvas, label);
    picture(`o${scan.image}`, scan.mime).then((bitmap) => drawOne(canvas, bitmap, scan, 0, 96));
    button.addEventListener("click", () => chooseScan(i));
    return button;
  }));
  chooseScan(0);
}

function chooseScan(index) {
  const scan = data.occlusion.scans[index];
  occlusionState.scan = scan;
  [...$("scans").children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));
  const figures = scan.maps.map((map) => mapFigure(scan, map.title, scaleLegend(map)));
  figures.push(mapFigure(scan, "Most probable class", classLegend(scan)));
  $("maps").replaceChildren(...figures);
  $("place").max = scan.rows.length * scan.cols.length - 1;
  drawMaps();
  choosePlace(leastPlace(scan.maps[0]));
}

const leastPlace = (map) => map.values.indexOf(Math.min(...map.values));

function mapFigure(scan, title, legend) {
  const canvas = make("canvas", { role: "img", "aria-label": `${title}, over ${scan.name}` });
  const frame = make("div", { class: "frame" }, canvas, make("div", { class: "occluder" }));
  frame.style.aspectRatio = `${scan.pixels[1]} / ${scan.pixels[0]}`;
  frame.addEventListener("pointermove", (event) => choosePlace(placeAt(scan, frame, event)));
  frame.addEventListener("pointerdown", (event) => choosePlace(placeAt(scan, frame, event)));
  return make("figure", {}, make("figcaption", {}, title), frame, legend);
}

const isProbability = (map) => map.title.startsWith("Probability");

// What the stretched colours would not tell: how little of the probability it is.
function hardlyChanges(map) {
  const [low, high] = [Math.min(map.usual, ...map.values), Math.max(map.usual, ...map.values)];
  if (!isProbability(map) || high - low >= HARDLY) return [];
  return [make("p", { class: "soft hardly" }, `The answer hardly changes, whatever is covered: ${short(low, 3)} to ${short(high, 3)}.`)];
}

function scaleOf(map) {
  if (occlusionState.whole && isProbability(map)) return { low: 0, range: 1 };
  const low = Math.min(map.usual, ...map.values);
  const high = Math.max(map.usual, ...map.values);
  return { low, range: high - low || 1e-6 };
}

function scaleLegend(map) {
  const { low, range } = scaleOf(map);
  const stops = SHADES.map((_, i) => shade(i / (SHADES.length - 1))).join(",");
  const bar = make("div", { class: "ramp" }, make("i", { title: "with nothing covered" }));
  bar.style.setProperty("background", `linear-gradient(90deg,${stops})`);
  bar.firstChild.style.left = `${(100 * (map.usual - low)) / range}%`;
  const ends = make("div", { class: "ends soft" }, make("span", {}, short(low, 4)), make("span", {}, `uncovered ${short(map.usual, 4)}`), make("span", {}, short(low + range, 4)));
  return make("div", { class: "legend" }, bar, ends, ...hardlyChanges(map));
}

function classLegend(scan) {
  const items = scan.legend.map(([text, colour]) => {
    const swatch = make("i");
    swatch.style.background = colour;
    return make("li", {}, swatch, text);
  });
  return make("ul", { class: "legend classes" }, ...items);
}

async function drawMaps() {
  const { scan } = occlusionState;
  const bitmap = await picture(`o${scan.image}`, scan.mime);
  if (scan !== occlusionState.scan) return;
  const alpha = $("opacity").value / 100;
  [...$("maps").querySelectorAll("canvas")].forEach((canvas, i) => {
    drawGray(canvas, bitmap, scan);
    const map = scan.maps[i];
    const scale = map && scaleOf(map);
    drawCells(canvas, scan, alpha, (at) => (map ? shade((map.values[at] - scale.low) / scale.range) : scan.legend[scan.labels[at]][1]));
  });
}

// Without its own colours: they would mix with the map's.
function drawGray(canvas, bitmap, scan) {
  drawOne(canvas, bitmap, scan, 0, ENLARGED);
  const context = canvas.getContext("2d");
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  const bytes = pixels.data;
  for (let i = 0; i < bytes.length; i += 4) bytes.fill(0.299 * bytes[i] + 0.587 * bytes[i + 1] + 0.114 * bytes[i + 2], i, i + 3);
  context.putImageData(pixels, 0, 0);
}

function drawCells(canvas, scan, alpha, colour) {
  const context = canvas.getContext("2d");
  const across = scan.across.map((x) => Math.round((x * canvas.width) / scan.pixels[1]));
  const down = scan.down.map((y) => Math.round((y * canvas.height) / scan.pixels[0]));
  context.globalAlpha = alpha;
  scan.rows.forEach((_, r) => scan.cols.forEach((_, c) => {
    context.fillStyle = colour(r * scan.cols.length + c);
    context.fillRect(across[c], down[r], across[c + 1] - across[c], down[r + 1] - down[r]);
  }));
  context.globalAlpha = 1;
}

// Which cell a pointer is in: the last edge before it.
function placeAt(scan, frame, event) {
  const bounds = frame.getBoundingClientRect();
  const find = (edges, share, length) => {
    const at = edges.findLastIndex((edge) => edge <= share * length);
    return Math.min(Math.max(at, 0), edges.length - 2);
  };
  const row = find(scan.down, (event.clientY - bounds.top) / bounds.height, scan.pixels[0]);
  const col = find(scan.across, (event.clientX - bounds.left) / bounds.width, scan.pixels[1]);
  return row * scan.cols.length + col;
}

function choosePlace(at) {
  const { scan } = occlusionState;
  $("place").value = at;
  const top = scan.rows[Math.floor(at / scan.cols.length)];
  const left = scan.cols[at % scan.cols.length];
  const [height, width] = scan.pixels;
  for (const box of $("maps").querySelectorAll(".occluder")) {
    Object.assign(box.style, {
      top: `${(100 * top) / height}%`, left: `${(100 * left) / width}%`,
      height: `${(100 * Math.min(scan.window[0], height - top)) / height}%`,
      width: `${(100 * Math.min(scan.window[1], width - left)) / width}%`,
    });
  }
  const values = scan.maps.map((map, i) => `${i ? "activity" : map.title.split(" ")[0].toLowerCase()} ${short(map.values[at], 4)} (uncovered ${short(map.usual, 4)})`);
  $("reading").textContent = `Covered from row ${top}, column ${left}: ${values.join(", ")}`;
}

$("place").addEventListener("input", (event) => choosePlace(Number(event.target.value)));
$("opacity").addEventListener("input", drawMaps);
$("whole-scale").addEventListener("change", (event) => {
  occlusionState.whole = event.target.checked;
  chooseScan(data.occlusion.scans.indexOf(occlusionState.scan));
});
