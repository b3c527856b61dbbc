"""The strongest images of every unit in one pass over the images, resumable."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ranks
from ..calls import Call, called
from ..checks import whole
from ..errors import LayerError, OptionError
from ..images import Images, ImageSet, open_images
from ..model.table import Layer, Layers, find_all
from ..scan.engine import Scan, first_pass
from ..scan.state import Progress
from .accumulator import Strongest
from .result import TopK
from .saturation import before_saturation

_DISTINCT = ("source", "label")


@ranks.together
def top(
    model: nn.Module,
    images: Images = None,
    *,
    layers: Layers | None = None,
    k: int = 9,
    batch_size: int | None = None,
    preprocess: object = None,
    call: Call | None = None,
    workers: int = 0,
    out: str | os.PathLike[str] | None = None,
    distinct: str | None = None,
    interior: bool = False,
    on_error: str = "raise",
    progress: bool = True,
) -> TopK:
    """Find the images that drive each unit of several layers most, in one pass over the images.

    Example:
        >>> result = top(zoo.create("zfnet64"), layers=[1, 5], progress=False)
        >>> result[5].values.shape, result[5].positions.shape
        (torch.Size([192, 9]), torch.Size([192, 9, 2]))

    Per batch and layer the largest value of each map is taken; the units that it can change are sorted and
    merged into their strongest so far, and only for images that enter is the position looked up. So a scan
    costs little more than the forward pass, and its memory doesn't depend on the number of images. Equal values at
    the end of a saturating activation (ReLU6, a clamp, a sigmoid) are ranked by what went into it. With `out`
    the state is written every half minute and when the scan stops, also by Ctrl-C; the same call then goes on
    from there, and its file ends up the same to the byte.

    Args:
        model: the network; left as it was found.
        images: see `open_images`; (N, C, H, W), pictures, a folder, a dataset, or None: the sample photos.
        layers: numbers or module paths; None: those of the numbers 1 to 5 that the network has.
        k: how many images per unit.
        batch_size: images per forward pass; None: what a `DataLoader` says, else 64, or fewer where a CPU is faster so.
        preprocess: see `preprocess_for`.
        call: how the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        workers: processes that decode files; the result is the same for any number.
        out: path of a file that keeps the scan's state and, at the end, its result. A scan goes on only with the
            same weights, options and images: files are told by name, size and time, a dataset by its type, its
            length and four of its images, for it may be too large to read twice.
        distinct: "source": of each photo, file or video at most one place per unit, its strongest; "label": of each
            label; None: every image counts.
        interior: let only positions count whose receptive field lies inside the image, so that no patch is cut by its
            border; where the field is too large for that, those that lose least of it.
        on_error: "raise" at an image that cannot be read, or "skip" it; the result lists it.
        progress: show a bar.

    Returns:
        Per layer `values` (units, k), `image_ids` (units, k) and `positions` (units, k, 2), on the CPU; k is
        the number of images where that is smaller. Places that no image excites are empty: value 0, image id −1.

    Raises:
        LayerError: no such layer.
        ImageError: no images, or unfit ones.
        ModelError: weights or activations that are not finite.
        StoreError: `out` cannot be written, or holds another scan.

    Source: Zeiler & Fergus 2014, section 4: "for a given feature map, we show the top 9 activations".
    """
    k = whole(k, "k", 1)
    model = called(model, call)
    opened = open_images(model, images, preprocess)
    tape, rows = first_pass(model, opened, on_error, layers)
    origins = _origins(opened, distinct)
    strongest = [
        Strongest(x, k, before_saturation(tape, x), origins, x.reach.interior() if interior else None)
        for x in _chosen(rows, layers)
    ]
    scan = Scan(
        model,
        opened,
        strongest,
        tape,
        name="top",
        batch_size=batch_size,
        workers=workers,
        on_error=on_error,
        progress=progress,
    )

    def finish(progress: Progress) -> TopK:
        tops = tuple(one.result() for one in progress.accumulators)
        skipped = tuple(sorted(progress.skipped.items()))
        ids = torch.cat([one.image_ids.flatten() for one in tops])
        known: dict[str, Any] = {"names": opened.names_of(ids), "labels": opened.labels_of(ids), "interior": interior}
        key = scan.key if out is not None else ""
        return TopK(tops, k, len(opened), key, skipped, distinct or "", **known)

    return scan.run(finish, TopK, out)


def _chosen(rows: Sequence[Layer], layers: Layers | None) -> list[Layer]:
    if layers is None:
        found = sorted((r for r in rows if r.number is not None and r.number <= 5), key=lambda r: r.number or 0)
        if not found:
            raise LayerError(
                "this model has no numbered layers. Give module paths; deconvviz.layers(model) lists them."
            )
    else:
        found = find_all(rows, layers)
        if not found:
            raise OptionError("layers is empty, expected numbers or module paths, or None for layers 1 to 5.")
    return list({layer.name: layer for layer in found}.values())


def _origins(images: ImageSet, distinct: str | None) -> Tensor | None:
    """Return one number per image, the same for images of which one may count; None where all may."""
    if distinct is None:
        return None
    if distinct not in _DISTINCT:
        raise OptionError(f"distinct={distinct!r} has no meaning here. Give 'source', 'label' or None.")
    keys = images.origins if distinct == "source" else images.labels
    if keys is None:
        raise OptionError("distinct='label': the images come without labels.")
    numbers: dict[object, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
