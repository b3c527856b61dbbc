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
from ..guard import check_weights, placement, untouched
from ..images import Images, ImageSet, open_images
from ..jobs.draft import Draft
from ..jobs.runner import Memory, laid_out
from ..model.survey import resolve
from ..model.table import Layer
from ..rules import table as rules
from ..rules.signals import Items
from ..tape.record import record
from ..topk.result import TopK
from .bulk import Frames, allocate, fill
from .deconvnet import begin, carry
from .result import Projections, likeness
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
    rule: str = "deconvnet",
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
        rule: "deconvnet", "guided" or "backprop", see `deconv`.
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
        LayerError, UnitError, ImageError, ModelError, StoreError: As their names say.

    Source:
        Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 2.1, Fig. 2.
    """
    saving = rules.Saving(rule, lrn, allow_gradient)
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
            found = resolve(network, layer, example, saving)
            # Before the long scan: refuse an operation without a rule now.
            rehearse(network, found, example, saving)
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
        facts = _facts(frames, source, rule, scan.skipped)
        known = {"kind": "projections", **facts}
        key = "" if draft is None and team.size == 1 else hash_job(model, source, frames, saving, batch_size)
        team.agree(key, "weights, images or options")
        if team.rank > 0:
            arrays = laid_out(frames.fields())
        elif draft is None:
            arrays = allocate(frames, known)
        else:
            arrays = draft.open(key, frames.fields(), known, frames.arrays())
        with untouched(model) as network:
            fill(network, source, frames, arrays, draft or Memory(), saving, batch_size, progress)

        def finish() -> Projections:
            arrays["likeness"].copy_(likeness(arrays["projections"]))
            if draft is None:
                return Projections(**{**arrays, **facts})
            draft.finish()
            return Projections.load(draft.path)

        result: Projections = team.deliver(finish, Projections, out)
    return result


def _facts(frames: Frames, source: ImageSet, rule: str, skipped: tuple[tuple[int, str], ...]) -> dict[str, Any]:
    """Return the fields of the result that are no arrays."""
    seen, layer = source.preprocess.inverse, frames.layer
    facts: dict[str, Any] = {"layer": layer.name, "number": layer.number, "rule": rule, "switches": layer.switches}
    facts |= {"mean": seen.mean, "std": seen.std, "order": seen.order, "count": len(source), "skipped": skipped}
    return facts | {"names": source.names_of(frames.ids), "labels": source.labels_of(frames.ids)}


def rehearse(network: nn.Module, layer: Layer, example: Tensor, saving: rules.Saving) -> None:
    """Go all the way once, with the first image as a batch of two: an operation that mixes images shows there."""

    def go(images: Tensor) -> None:
        batch = example.repeat(len(images), 1, 1, 1)
        tape = record(network, batch, until=layer.value, keep=[layer.value], saver=saving)
        zero = torch.zeros(1, dtype=torch.long)
        start = begin(tape, layer, torch.ones(1), zero, torch.zeros(1, 2, dtype=torch.long))
        carry(tape, layer, start, Items(zero, torch.zeros(1, 2, dtype=torch.long)), saving.rectifier)

    for _ in Portions(2).run(go, torch.arange(2)):
        pass
