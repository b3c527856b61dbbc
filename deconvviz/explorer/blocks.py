"""The blocks that stand beside a unit's projections: what is measured of them, of which units, and how it is kept."""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import ranks
from ..checks import numbers_of, whole
from ..errors import DeconvvizError, UnitError
from ..guard import placement, untouched
from ..images import ImageSet
from ..images.display import peak_of
from ..model.table import Layer, find_all
from ..occlusion.evidence import evidence
from ..occlusion.field import Evidence, centres
from ..occlusion.occluder import SHARE
from ..optimization.maximize import maximize
from ..rules.table import Saving
from ..tape.arguments import bound
from ..tape.record import record
from ..topk.result import LayerTop, TopK
from . import sprites
from .unfinished import Unfinished

TELLING = 3  # units of each layer that the page opens on
PLACES = 64  # about so many does a report cover of each patch: whole occluders beside each other
OPTIMIZED, STEPS = 4, 64  # different optimized images of a unit, and steps of each
MOST_WORK = 5e12  # multiplications; what would take more is measured only where it is asked for


def highlights(given: Mapping[int | str, Sequence[int]] | None, layers: Sequence[Layer]) -> dict[str, list[int]]:
    """Return by the layers' names the units that were asked for to open the page on."""
    wanted: dict[str, list[int]] = {}
    for name, units in (given or {}).items():
        (layer,) = find_all(layers, [name])
        wanted[layer.name] = numbers_of(units, layer.units, f"highlights[{name!r}]", error=UnitError)
    return wanted


def telling(top: LayerTop, units: Sequence[int]) -> list[int]:
    """Return up to three of the units, those first whose images are many and excite them about equally.

    A unit that one image excites far more than all others says little of what the others have in common.
    """
    values, there = top.values[list(units)].double(), top.mask[list(units)]
    last = values.where(there, 0).clamp_min(0)
    even = last.sum(1) / (last.amax(1).clamp_min(1e-30) * values.shape[1])
    order = even.argsort(descending=True, stable=True).tolist()
    return [units[place] for place in order if even[place] > 0][:TELLING]


def first_units(count: int, opened_on: Sequence[int], shown: Sequence[int]) -> list[int]:
    """Return so many units: those that the page opens on, then the strongest."""
    return list(dict.fromkeys([*opened_on, *shown]))[:count]


def measured_units(wanted: int | None, opened_on: Sequence[int], shown: Sequence[int], affordable: bool) -> list[int]:
    """Return the units whose evidence is measured: those that the page opens on, then the strongest."""
    if wanted is None:
        return list(opened_on) if affordable else []
    return first_units(whole(wanted, "evidence", 0), opened_on, shown)


def affordable(model: nn.Module, example: Tensor, layers: Sequence[Layer], k: int) -> bool:
    """Say whether the evidence of the telling units of all layers is a matter of a minute, even where all runs in full."""
    device, dtype = placement(model)
    with untouched(model) as network:
        tape = record(network, example.to(device, dtype), saver=Saving())
    work = {value: 0.0 for value in range(len(tape.shapes))}
    total = 0.0
    for op in tape.ops:
        if op.short in ("conv2d", "linear"):
            weight = bound(op)["weight"]
            total += tape.shapes[op.outputs[0]].numel() * math.prod(weight.shape[1:])
        work |= dict.fromkeys(op.outputs, total)
    return TELLING * k * PLACES * sum(work[layer.value] for layer in layers) < MOST_WORK


def measure(
    model: nn.Module,
    source: ImageSet,
    layer: Layer,
    top: LayerTop,
    units: Sequence[int],
    keep: Callable[..., Any],
    *,
    out: Path,
    asked: bool,
    **options: Any,
) -> dict[str, Any]:
    """Return what the page holds of the evidence of some units of a layer; a note where it cannot be measured."""
    if not units:
        return {"units": {}}
    scan = TopK((top,), top.values.shape[1], len(source))
    side = max(1, round(min(layer.reach.window()) / SHARE))

    def make() -> dict[str, Any]:
        try:
            chosen: dict[str, Any] = {"units": units, "top": scan, "size": side, "stride": side, "out": out, **options}
            found = evidence(model, source, layer=layer.name, **chosen)
        except DeconvvizError as error:
            if asked:
                raise
            return {"units": {}, "note": str(error)}
        kept = describe(found)
        if ranks.team().rank == 0:
            out.unlink()
        return kept

    held: dict[str, Any] = keep(f"evidence of {layer.name}", make, shared=True)
    return held


def describe(found: Evidence) -> dict[str, Any]:
    """Return numbers from which the page draws the evidence: per unit its maps as bytes, and its effective field.

    A byte is the root of a place's share of the unit's largest; `down` and `across` say at which pixel of the patch the
    first occluder's centre is and how far it is to the next.
    """
    height, width = found.patches.shape[-2:]
    lines = ((found.rows, found.size[0], height), (found.cols, found.size[1], width))
    down, across = (_steps(centres(*line), len(line[0])) for line in lines)
    units = {
        str(int(unit)): {"maps": _bytes(maps), "field": field.tolist(), "most": float(f"{float(maps.max()):.3g}")}
        for unit, maps, field in zip(found.units, found.maps, found.field, strict=True)
    }
    places = len(found.rows), len(found.cols)
    return {"units": units, "places": places, "down": down, "across": across, "size": found.size}


def seconds(model: nn.Module, layers: Sequence[Layer], counts: Sequence[int], **options: Any) -> float:
    """Return about how long the optimized images of some units of each layer take, from a few steps of one unit."""
    total = 0.0
    for layer, count in zip(layers, counts, strict=True):
        taken = []
        for steps in (1, 3):
            begun = time.perf_counter()
            with ranks.alone():
                chosen: dict[str, Any] = {"units": [0], "n": OPTIMIZED, "steps": steps, "progress": False, **options}
                maximize(model, layer=layer.name, **chosen)
            taken.append(time.perf_counter() - begun)
        total += max(taken[1] - taken[0], 0.0) / 2 * STEPS * count
    return total / ranks.team().size


def optimize(
    model: nn.Module,
    number: int,
    layer: Layer,
    top: LayerTop,
    units: Sequence[int],
    unfinished: Unfinished,
    **options: Any,
) -> dict[str, Any]:
    """Keep a sprite of the optimized images of each of some units; return what the page holds of them."""
    if not units:
        return {"units": {}}

    def make() -> dict[str, Any]:
        out = unfinished.path("optimized")
        chosen: dict[str, Any] = {"units": units, "n": OPTIMIZED, "steps": STEPS, "out": out, **options}
        found = maximize(model, layer=layer.name, **chosen)
        height, width = found.images.shape[-2:]
        shape = sprites.Shape.of(height, width, round(math.sqrt(OPTIMIZED)), sprites.FINE)
        held = {}
        for unit, images, reached in zip(units, found.images, found.activations[:, :, -1], strict=True):
            unfinished.add(f"m{number}-{unit}", sprites.photos(images, shape))
            photo = sprites.shorten(max(float(top.values[unit, 0]), 0.0))
            held[str(unit)] = {"activations": sprites.shorten_all(reached.tolist()), "photo": photo}
        if ranks.team().rank == 0:
            out.unlink()
        facts = {"pixels": (height, width), "steps": STEPS, **shape.facts()}
        return {"units": held, **facts}

    kept: dict[str, Any] = unfinished.part(f"optimized images of {layer.name}", make, shared=True)
    return kept


def _steps(ends: tuple[int, int], count: int) -> tuple[float, float]:
    return ends[0], (ends[1] - ends[0]) / (count - 1) if count > 1 else 1.0


def _bytes(maps: Tensor) -> str:
    shown = maps.clamp_min(0)
    share = (shown / peak_of(shown.flatten())).clamp(max=1).sqrt()
    return base64.b64encode((share * 255).round().to(torch.uint8).numpy().tobytes()).decode()
