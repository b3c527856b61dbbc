"""project: each unit's strongest activations, carried back to pixels by the deconvnet."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ranks
from ..calls import Call, called
from ..checks import at_once
from ..devices import Portions
from ..errors import OptionError
from ..guard import check_weights, placement, untouched
from ..images import Images, ImageSet, open_images
from ..jobs.draft import Draft
from ..jobs.runner import After, Kept, Memory, laid_out
from ..model.survey import resolve
from ..model.table import Layer
from ..rules import table as rules
from ..rules.signals import Items
from ..tape.record import record
from ..topk.result import TopK
from .bulk import Frames, allocate, fill
from .deconvnet import begin, carry
from .likeness import likeness
from .result import BESIDE, Projections
from .strongest import find_frames, hash_job, images_per_unit


@ranks.together
def project(
    model: nn.Module,
    images: Images = None,
    *,
    layer: int | str,
    units: Sequence[int] | str | None = None,
    k: int = 9,
    top: TopK | int | None = None,
    rule: str | Sequence[str] = "deconvnet",
    lrn: str = "pass",
    allow_gradient: bool = False,
    preprocess: Any = None,
    call: Call | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    out: str | os.PathLike[str] | None = None,
    distinct: str | None = None,
    interior: bool = False,
    on_error: str = "raise",
    progress: bool = True,
) -> Projections:
    """Find each unit's strongest images and carry those activations back to pixels.

    Example:
        >>> import deconvviz, torch, torchvision
        >>> model = torchvision.models.alexnet(weights=None)
        >>> images = torch.randn(20, 3, 224, 224)
        >>> result = deconvviz.project(model, images, layer=5, units=[0, 1], k=3, progress=False)
        >>> result.projections.shape
        torch.Size([2, 3, 3, 163, 163])

    One scan finds the top images; each image that is needed runs once more with its switches recorded; all
    projections of a batch of images are then carried back together, each on its own receptive field.

    Args:
        model: Any network whose path to the layer has rules, see `audit`; it is left as it was.
        images: Tensor (N, C, H, W) in the model's input space, a PIL image or a list, a folder, a `Dataset` or
            `DataLoader`, or None for the sample photos.
        layer: Number or module path, see `deconvviz.layers`.
        units: A list, a mask of all units, "all", or None for 16 spread evenly over the layer.
        k: How many images per unit.
        top: A `TopK` that holds this layer, from a scan of the same images, in place of a new scan; `k` is then its
            own. A number here is taken as `k`.
        rule: "deconvnet", "guided" or "backprop", see `deconv`; or several, such as ("deconvnet", "guided"): the others'
            projections of the same patches are in `beside`, and `plot` draws all of them.
        lrn: "pass" as in the paper, or "gradient", for local response normalization.
        allow_gradient: Give operations without a rule their plain gradient instead of refusing.
        preprocess: How a picture becomes the model's input, where the model does not say.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        batch_size: Images per forward pass; None: what a `DataLoader` says, else 32.
        workers: Processes that read images.
        out: File to stream the result to; a result over 1.5 GiB goes to a temporary file without it. A job that was
            killed goes on from the files `.name.draft…` beside it when the same call is made again.
        distinct: "source": of each photo, file or video at most one image per unit, its strongest; "label": of each
            label; None: every image counts.
        interior: Take only places whose receptive field lies inside the image, see `top`.
        on_error: "raise" at an image that cannot be read, or "skip" it; the result lists it.
        progress: Whether to show progress bars.

    Returns:
        `Projections`.

    Raises:
        UnsupportedOp: An operation on the path has no rule.
        OptionError: A rule that is not known, or twice the same.
        LayerError, UnitError, ImageError, ModelError, StoreError: As their names say.

    Source:
        Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 2.1, Fig. 2.
    """
    savings = _savings(rule, lrn, allow_gradient)
    k, scan = images_per_unit(k, top)
    model = called(model, call)
    source = open_images(model, images, preprocess)
    batch_size = at_once(batch_size, source.batch_size, usual=32)
    device, dtype = placement(model)
    team = ranks.team()
    with contextlib.nullcontext() if out is None or team.rank > 0 else Draft(out) as draft:
        example = source.example(on_error).to(device, dtype)
        with untouched(model) as network:
            check_weights(network)
            found = resolve(network, layer, example, savings[0])
            # Before the long scan: refuse an operation without a rule now.
            for saving in savings:
                steps = rehearse(network, found, example, saving)
        chosen = torch.tensor(found.choose(units))
        frames, scan = find_frames(
            *(model, source, found, chosen, scan or k, draft),
            batch_size=batch_size,
            workers=workers,
            progress=progress,
            distinct=distinct,
            interior=interior,
            on_error=on_error,
        )
        facts = _facts(frames, source, savings, steps, scan.skipped)
        known = {"kind": "projections", **facts}
        key = "" if draft is None and team.size == 1 else hash_job(model, source, frames, *savings, batch_size)
        others = len(savings) - 1
        team.agree(key, "weights, images or options")
        if team.rank > 0:
            arrays = laid_out(frames.fields(others))
        elif draft is None:
            arrays = allocate(frames, known, others)
        else:
            arrays = draft.open(key, frames.fields(others), known, frames.arrays())
        with untouched(model) as network:
            kept: Kept = draft or Memory()
            for number, saving in enumerate(savings):
                own = arrays if number == 0 else {name: arrays[_beside(number, name)] for name in frames.carried()}
                done = fill(network, source, frames, own, kept, saving, batch_size, progress, steps)
                kept = After(kept, done)

        def finish() -> Projections:
            for first in ("", *map(BESIDE.format, range(others))):
                arrays[f"{first}likeness"].copy_(likeness(frames, arrays[f"{first}projections"]))
            if draft is None:
                return Projections.from_header(facts, arrays)
            draft.finish()
            return Projections.load(draft.path)

        result: Projections = team.deliver(finish, Projections, out)
    return result


def _savings(rule: str | Sequence[str], lrn: str, allow_gradient: bool) -> list[rules.Saving]:
    """Return what each rule saves, the first one's first."""
    named = [rule] if isinstance(rule, str) else list(rule)
    if not named or len({*named}) < len(named):
        raise OptionError(f"rule={rule!r}: expected one of {', '.join(rules.RECTIFIERS)}, or several different ones.")
    return [rules.Saving(one, lrn, allow_gradient) for one in named]


def _beside(number: int, name: str) -> str:
    return f"{BESIDE.format(number - 1)}{name}"


def _facts(
    frames: Frames,
    source: ImageSet,
    savings: Sequence[rules.Saving],
    steps: Sequence[str],
    skipped: tuple[tuple[int, str], ...],
) -> dict[str, Any]:
    """Return the fields of the result that are no arrays."""
    seen, layer = source.preprocess.inverse, frames.layer
    facts: dict[str, Any] = {"layer": layer.name, "number": layer.number, "rule": savings[0].rectifier}
    facts |= {"steps": tuple(steps), "switches": layer.switches}
    facts |= {"mean": seen.mean, "std": seen.std, "order": seen.order, "count": len(source), "skipped": skipped}
    facts |= {"names": source.names_of(frames.ids), "labels": source.labels_of(frames.ids)}
    return facts | {"others": [one.rectifier for one in savings[1:]]}


def rehearse(network: nn.Module, layer: Layer, example: Tensor, saving: rules.Saving) -> list[str]:
    """Go all the way once, with the first image as a batch of two: an operation that mixes images shows there.

    Returns the modules on the way, in order; "" is the network itself.
    """

    def go(images: Tensor) -> list[str]:
        batch = example.repeat(len(images), 1, 1, 1)
        tape = record(network, batch, until=layer.value, keep=[layer.value], saver=saving, gradient=saving.gradient)
        zero = torch.zeros(1, dtype=torch.long)
        start = begin(tape, layer, torch.ones(1), zero, torch.zeros(1, 2, dtype=torch.long))
        carry(tape, layer, start, Items(zero, torch.zeros(1, 2, dtype=torch.long)), saving.rectifier)
        return list(dict.fromkeys(["", *(op.module for op in tape.ops)]))

    return [*Portions(2).run(go, torch.arange(2))][-1]
