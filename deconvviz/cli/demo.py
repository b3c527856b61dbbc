"""The demo: layers 1-5 of a shipped network over the sample photos, as pictures, a page of them and the explorer."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import deconvviz

from ..errors import StoreError
from ..results.store import replacing
from ..zoo import Card, create
from .options import check_writable, write_figure

LAYERS = (1, 2, 3, 4, 5)
UNITS = 16
EXPLORER = "report.html"
# Units that a person can name at first sight, chosen by eye among all; other layers show units spread evenly.
TELLING = {
    "squeezenet-1.1": {
        3: (68, 125, 150, 156, 171, 210, 211, 217, 232),
        4: (168, 185, 206, 225, 234, 246, 290, 294, 369),
        5: (19, 33, 85, 112, 163, 185, 344, 354, 424),
    }
}
_MOST = {"squeezenet-1.1": 24}  # units of each layer in the explorer; of the others all
_KNOWN = ("coffee", "chelsea", "hopper", "astronaut")  # photos of things, of which the small networks know some
_OCCLUDED = {"squeezenet-1.1": ("coffee", "koala", "lighthouse")}
_CAPTIONS = {
    1: "Edges of every direction and patches of colour. In the first layer a projection is a filter itself.",
    2: "Corners, crossings, parallel lines and curves: pieces made of several edges.",
    3: "Textures and repeated patterns; similar structures gather although their colours differ.",
    4: "Larger, more specific structures. The nine patches of a unit vary more than their projections do.",
    5: "Parts of objects in varying poses. Where a projection is gray, the network looked away.",
}


def run(
    out: str | os.PathLike[str],
    *,
    network: str = "squeezenet-1.1",
    seed: int | None = None,
    images: Any = None,
    weights: str | None = "bundled",
    most: int | None = None,
    progress: bool = True,
) -> list[Path]:
    """Write layer-1.png … layer-5.png, index.html with them and report.html, for one network or the two of 64 pixels.

    These get a folder each.

    Example:
        >>> run("deconvviz-demo")  # doctest: +SKIP
        [PosixPath('deconvviz-demo/index.html')]

    Args:
        out: The folder, made if it is not there.
        network: "squeezenet-1.1", trained on ImageNet; "zfnet64", "alexnet64" or "both".
        seed: Draws the units that are shown; None shows those of `TELLING` and else units spread evenly.
        images: Other images than the sample photos, as `project` takes them.
        weights: As `zoo.create` takes them.
        most: How many of each layer's units the explorer holds, the strongest; None: all, of SqueezeNet 24.
        progress: Say on stderr what is being done.

    Returns:
        The pages that were written.
    """
    check_writable(out)
    try:  # before the work: not every folder that may be written to takes one
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write {out}: {error.strerror}. Give a path in a folder you may write to.") from error
    if network == "both":
        each: dict[str, Any] = {"seed": seed, "images": images, "weights": weights, "most": most, "progress": progress}
        return [run(Path(out) / name, network=name, **each)[0] for name in ("zfnet64", "alexnet64")]
    started = time.perf_counter()
    model = create(network, weights=weights)
    _tell(progress, f"{network}: looking for the strongest images of every unit of layers 1-5")
    facts = {"Images": "the sample photos"} if images is None else None
    images = deconvviz.images.open_images(model, images)
    # The only scan, and the only projections: pictures and explorer share them.
    scan = deconvviz.top(model, images, layers=LAYERS, k=9, progress=progress)
    sections, made = [], []
    most = most or _MOST.get(network)
    opened_on = {layer: chosen[:3] for layer, chosen in TELLING.get(network, {}).items()}
    for layer in LAYERS:
        shown = _units(network, layer, len(scan[layer].values), seed)
        both = sorted({*shown, *opened_on.get(layer, ()), *scan[layer].strongest_first()[:most]})
        made.append(deconvviz.project(model, images, layer=layer, units=both, top=scan, progress=progress))
        result = made[-1].select(shown)
        picture = Path(out) / f"layer-{layer}.png"
        write_figure(picture, result.plot(title=f"{network}, layer {layer}"))
        _tell(progress, f"wrote {picture}")
        sections.append(_section(layer, result, picture.name))
    units: dict[str, Any] = {"units": "all"} if most is None else {"most": most}
    units |= {"highlights": opened_on, "top": scan, "projections": made}
    occluded = _OCCLUDED.get(network, _KNOWN)
    _explorer(model, images, Path(out) / EXPLORER, occluded, facts=facts, progress=progress, **units)
    took = f"{scan.count:,} images looked through, {time.perf_counter() - started:.0f} seconds in all"
    page = Path(out) / "index.html"
    _write(page, _page(model.card, sections, took).encode())
    return [page]


def _explorer(model: Any, images: Any, page: Path, occluded: Sequence[str], progress: bool, **options: Any) -> None:
    labels = images.labels or []
    shown = [labels.index(name) for name in occluded if name in labels]
    deconvviz.report(model, images, occlusion=shown or None, out=page, progress=progress, **options)
    _tell(progress, f"wrote {page}")


def _units(network: str, layer: int, count: int, seed: int | None) -> Sequence[int]:
    shown = min(UNITS, count)
    if seed is None:
        return TELLING.get(network, {}).get(layer) or [i * count // shown for i in range(shown)]
    return sorted(random.Random(seed).sample(range(count), shown))


def _tell(progress: bool, line: str) -> None:
    if progress:
        print(line, file=sys.stderr, flush=True)


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _section(number: int, result: Any, picture: str) -> str:
    height, width = result.patches.shape[-2:]
    units, tiles = result.activations.shape
    facts = f"{units} units of <code>{escape(result.layer)}</code>, {tiles} images each"
    facts += f"; one tile is {width}×{height} pixels"
    words = f"Top-{tiles} grids of layer {number}: projections at the left, image patches at the right"
    return f"""<section>
<h2>Layer {number}</h2>
<p>{_CAPTIONS[number]}</p>
<figure><a href="{picture}"><img src="{picture}" alt="{words}" loading="lazy"></a>
<figcaption>{facts}. Press the picture for its full size.
<span class="narrow">Swipe it for the patches.</span></figcaption></figure>
</section>"""


def _page(card: Card, sections: Sequence[str], took: str) -> str:
    facts = [(escape(name), escape(text)) for name, text in _facts(card, took)]
    rows = "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in facts)
    parts = {"style": _STYLE, "explorer": EXPLORER, "sections": "\n".join(sections), "rows": rows}
    return _PAGE.format(name=escape(card.name), **parts)


def _facts(card: Card, took: str) -> list[tuple[str, str]]:
    facts = [("Network", card.name), ("Paper", card.paper)]
    facts += [("Differs from it", " ".join(card.deviations))] if card.deviations else []
    facts.append(("Input", f"{card.input_size[0]}×{card.input_size[1]} pixels"))
    facts += [("Classes", f"{len(card.classes):,}")] if card.classes else []
    weights = f"{card.weights_file}, licence: {card.licence}" if card.weights_file else "random"
    facts.append(("Weights", weights))
    for name, value in (card.training or {}).items():
        if isinstance(value, (str, int, float)):
            facts.append((name.replace("_", " ").capitalize(), str(value)))
    return [*facts, ("This page", took)]


_STYLE = """
:root { color-scheme: light; --ink: #1d2129; --soft: #5c6370; --line: #e3e5e9; --accent: #c2410c; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 17px/1.6 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .25rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
p, dl { max-width: 44rem; margin: .5rem 0; }
dt { font-weight: 600; margin-top: .75rem; }
dd { margin: 0; }
figure { margin: 1rem 0 0; overflow-x: auto; }
img { display: block; width: 100%; min-width: 860px; height: auto; }
.explore { display: inline-block; margin: 1.25rem 0 .5rem; padding: .6rem 1.1rem; border-radius: .5rem;
  background: var(--accent); color: #fff; font-weight: 600; text-decoration: none; }
.explore:focus-visible { outline: 2px solid var(--ink); outline-offset: 2px; }
figcaption { position: sticky; left: 0; max-width: 90vw; margin-top: .5rem;
  color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; font-size: .9rem; max-width: 60rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem 1rem .4rem 0;
  border-bottom: 1px solid var(--line); }
th { white-space: nowrap; font-weight: 600; }
td { overflow-wrap: anywhere; }
.narrow { display: none; }
@media (max-width: 900px) { .narrow { display: inline; } }
code { font: .9em ui-monospace, Menlo, Consolas, monospace; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What {name} sees</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>What {name} sees, layer by layer</h1>
<p>Each block of nine belongs to one unit of the network; its number stands above. At the right are the nine
pieces of photos that excite the unit most. At the left, in the same order, is what excited it: the one
activation, carried back through the network to pixels.</p>
<dl>
<dt>Gray is nothing</dt>
<dd>Brighter and darker than mid-gray are positive and negative values. The nine tiles of a block share one
scale.</dd>
<dt>Look for what the nine have in common</dt>
<dd>What the patches share but the projections leave out does not matter to the unit.</dd>
<dt>Tiles grow with the layers</dt>
<dd>A tile is all that the unit can see. Where that reaches beyond the photo, the tile is gray.</dd>
</dl>
<a class="explore" href="{explorer}">Explore all units, filters and occlusion maps</a>
{sections}
<section>
<h2>The network</h2>
<table>{rows}</table>
</section>
</main>
</body>
</html>
"""
