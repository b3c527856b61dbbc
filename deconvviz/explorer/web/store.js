// The page's numbers and pictures. A picture is base64 text until it is first wanted.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

const KEPT = 64; // decoded pictures at most: a phone's memory is small
const decoded = new Map(); // name -> promise of a bitmap, the last used one last

function picture(name, mime) {
  const found = decoded.get(name) ?? decode(name, mime);
  decoded.delete(name);
  decoded.set(name, found);
  for (const [old, bitmap] of decoded) {
    if (decoded.size <= KEPT) break;
    decoded.delete(old);
    // Whoever waits for it draws first: closing is a later step of the same promise.
    bitmap.then((b) => setTimeout(() => b.close(), 1000), () => {});
  }
  return found;
}

async function decode(name, mime) {
  const letters = atob((await parsed(name)).textContent);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return createImageBitmap(new Blob([bytes], { type: mime }));
}

// The pictures stand at the page's end: the first unit is looked at while the others are still being read.
function parsed(name) {
  return new Promise((resolve, reject) => {
    const look = () => {
      const node = $(name);
      const complete = document.readyState !== "loading";
      if (node && (node.nextSibling || complete)) resolve(node);
      else if (complete) reject(new Error(`the page holds no picture ${name}`));
      else setTimeout(look, 20);
    };
    look();
  });
}

// ---- small helpers ----

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function short(value, digits = 3) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e4 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
}

const many = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const by = (pair) => pair.join("×");
const layerLabel = (layer) => (layer.number === null ? layer.name : `layer ${layer.number}`);

function terms(list, pairs) {
  list.replaceChildren(...pairs.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
}

function rows(table, lines, headings) {
  table.replaceChildren();
  if (headings) table.append(make("thead", {}, make("tr", {}, ...headings.map((h) => make("th", { scope: "col" }, h)))));
  const line = (cells) => make("tr", {}, make("th", { scope: "row" }, cells[0]), ...cells.slice(1).map((c) => make("td", {}, c)));
  table.append(make("tbody", {}, ...lines.map(line)));
}

function remembered(name, value) {
  try {
    if (value !== undefined) localStorage.setItem(`deconvviz-${name}`, value);
    return localStorage.getItem(`deconvviz-${name}`);
  } catch {
    return null; // a page opened from a file may have no storage
  }
}
