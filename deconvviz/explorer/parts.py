"""What the explorer shows beside the units: the images, the filters, the occlusion maps, the network's facts."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..checks import is_whole, whole, wholes
from ..errors import UnreadableImage
from ..guard import hash_weights, unwrapped
from ..images import ImageSet
from ..model.table import HEADINGS, Layer, LayerTable
from ..occlusion.cells import cell_edges, label_index, score
from ..occlusion.result import Occlusion
from ..studies.filters import Filters
from . import sprites
from .unfinished import Unfinished

_FEW, _SIDE, _SMALL_SIDE = 600, 224, 160  # whole images: up to 600 are shown at 224 px, more at 160 px
_AT_ONCE = 64
MAPS = 4  # images with occlusion maps, where the network classifies
_OF_TRAINING = ("data", "recipe", "epochs", "accuracy", "command")
_PACKAGES = ("deconvviz", "torch", "torchvision", "numpy", "pillow")


def images(source: ImageSet, wanted: Iterable[int], pictures: Unfinished) -> dict[str, Any]:
    """Keep each wanted image whole, as the network sees it; return size, names and labels."""
    ids = sorted(set(wanted))
    side = _SIDE if len(ids) <= _FEW else _SMALL_SIDE
    height, width = source.take(ids[:1] or [0]).shape[-2:]  # where every unit is silent, none is shown
    shape = sprites.Shape.of(height, width, 1, side)
    for first in range(0, len(ids), _AT_ONCE):
        part = ids[first : first + _AT_ONCE]
        for i, pixels in zip(part, source.invert(source.take(part)), strict=True):
            pictures.add(f"i{i}", sprites.photos(pixels[None], shape))
    labels = {} if source.labels is None else {i: str(source.labels[i]) for i in ids}
    names = {i: _strip_folders(source.names[i]) for i in ids}
    return {"pixels": (height, width), **shape.facts(), "names": names, "labels": labels, "count": len(source)}


def _strip_folders(name: str) -> str:
    """Leave the folders of this machine out of a name."""
    return Path(name).name if os.path.isabs(name) else name


def filters(found: Filters, rows: Sequence[Layer], pictures: Unfinished) -> dict[str, Any]:
    """Keep the first layer's filters as one sprite; return their numbers."""
    count, _, height, width = found.weights.shape
    shape = sprites.Shape.of(height, width, math.ceil(math.sqrt(count)))
    encoded, contrast = sprites.signed_sprite(found.weights.float(), shape)
    pictures.add("f", encoded)
    twins: list[list[int]] = [[] for _ in range(count)]
    for a, b in found.duplicates.tolist():
        twins[a].append(b)
        twins[b].append(a)
    # The units of a layer that sees just what the filters see are these filters' own.
    same = [row.name for row in rows if row.units == count and row.receptive_field == (height, width)]
    return {
        "name": found.name,
        "pixels": (height, width),
        "stride": found.stride,
        **shape.facts(),
        "contrast": contrast,
        "rms": sprites.shorten_all(found.rms.tolist(), 4),
        "dead": found.dead.tolist(),
        "dominant": found.dominant.tolist(),
        "twins": twins,
        "layers": same,
        "summary": [(k, sprites.shorten(v, 3)) for k, v in found.summary().items() if not math.isnan(v)],
    }


def choose_images(source: ImageSet, wanted: int | Sequence[int] | None) -> list[int]:
    """Return the images to scan: as given, or the first ones of as many labels, or some spread evenly."""
    if isinstance(wanted, Iterable) and not is_whole(wanted):
        return list(dict.fromkeys(wholes(wanted, "occlusion")))
    count = MAPS if wanted is None else whole(wanted, "occlusion", 0)
    firsts = list({label: i for i, label in reversed(list(enumerate(source.labels or ())))}.values())
    ids = sorted(firsts) if len(firsts) >= count else list(range(len(source)))
    count = min(count, len(ids))
    return [ids[n * len(ids) // count] for n in range(count)]


def readable(source: ImageSet, ids: Sequence[int], on_error: str) -> list[int]:
    """Leave the images out that cannot be read, where they may be skipped."""
    found = []
    for i in ids:
        try:
            source.take([i])
        except UnreadableImage:
            if on_error == "raise":
                raise
            continue
        found.append(i)
    return found


def skipped(source: ImageSet, lost: Sequence[tuple[int, str]]) -> dict[str, str]:
    """Return the line of the page's facts that names the images which could not be read, if there are any."""
    return {"Not read": ", ".join(_strip_folders(source.names[i]) for i, _ in lost)} if lost else {}


def occlusion(result: Occlusion, index: int, source: ImageSet, pictures: Unfinished) -> dict[str, Any]:
    """Keep the occluded image; return its position maps and what they are maps of."""
    height, width = result.image_size
    shape = sprites.Shape.of(height, width, 1, 2 * _SIDE)
    pictures.add(f"o{index}", sprites.photos(source.invert(result.image[None]), shape))
    assert result.size is not None and not isinstance(result.target, tuple)
    what, values, usual = score(result)
    maps = [_map(f"{what.capitalize()} of “{result.name_of(result.target)}”", values, usual)]
    if result.activation is not None:
        title = f"Activity of unit {result.unit} of {result.layer}"
        maps.append(_map(title, result.activation, float(result.unoccluded["activation"])))
    labels, legend = label_index(result)
    return {
        "image": index,
        "name": _strip_folders(source.names[index]),
        "pixels": (height, width),
        **shape.facts(),
        "answer": result.name_of(int(result.unoccluded["label"])),
        "window": result.size,
        "fill": result.fill_name,
        "rows": result.rows.tolist(),
        "cols": result.cols.tolist(),
        "down": _reach_edges(cell_edges(result.rows, result.size[0], height).tolist(), height),
        "across": _reach_edges(cell_edges(result.cols, result.size[1], width).tolist(), width),
        "maps": maps,
        "labels": labels.flatten().tolist(),
        "legend": legend,
    }


def _reach_edges(cells: list[float], length: int) -> list[float]:
    """Let the outer cells reach the picture's edges: a pixel there is nearest to them."""
    return sprites.shorten_all([0.0, *cells[1:-1], float(length)])


def _map(title: str, values: Tensor, usual: float) -> dict[str, Any]:
    flat = values.flatten().tolist()
    return {"title": title, "values": sprites.shorten_all(flat, 4), "usual": sprites.shorten(usual, 4)}


def table(rows: LayerTable) -> dict[str, Any]:
    """Return the layer table as text."""
    return {"headings": HEADINGS, "rows": rows.lines()}


def facts(model: nn.Module, source: ImageSet, given: Mapping[str, str], images: object) -> list[tuple[str, str]]:
    """Return what the page says of the network, its weights, the images and the versions."""
    network = unwrapped(model)
    count = sum(p.numel() for p in network.parameters())
    found = {"Network": f"{type(network).__name__}, {count:,} parameters"}
    card = getattr(network, "card", None)
    if card is not None and hasattr(card, "paper"):
        found |= _card_facts(card)
    found["Weights"] = found.get("Weights", "as they were given")
    found |= {"Fingerprint of the weights": _fingerprint(network)}
    found |= {"Images": f"{len(source):,}" + _origin(images)}
    found |= {"Preprocessing": _describe_preprocess(source)}
    found |= {"Versions": ", ".join([f"Python {platform.python_version()}", *_list_versions()])}
    return list((found | dict(given)).items())


def _card_facts(card: Any) -> dict[str, str]:
    found = {"Network": card.name, "Paper": card.paper}
    if card.deviations:
        found["Differs from it"] = " ".join(card.deviations)
    found["Weights"] = f"{card.weights_file}, licence: {card.licence}" if card.weights_file else "random"
    training = card.training or {}
    return found | {name.capitalize(): str(training[name]) for name in _OF_TRAINING if name in training}


def _origin(images: object) -> str:
    if images is None:
        return ", windows of the sample photos that come with deconvviz"
    if isinstance(images, (str, os.PathLike)):
        return f", from {Path(images).resolve().name}"
    return ""


def _describe_preprocess(source: ImageSet) -> str:
    known = source.preprocess
    size = "×".join(map(str, source.example("skip").shape[-2:]))
    text = f"{size} pixels"
    if known.mean is not None and known.std is not None:
        mean, std = (", ".join(f"{v:.3g}" for v in values) for values in (known.mean, known.std))
        text += f"; minus {mean}; divided by {std}"
    return f"{text} ({known.source})"


def _list_versions() -> list[str]:
    return [f"{name} {version(name)}" for name in _PACKAGES]


def _fingerprint(network: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=8)
    hash_weights(network, digest)
    return digest.hexdigest()
