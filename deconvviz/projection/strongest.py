"""Each unit's strongest places: what projections and evidence begin with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import is_whole, whole
from ..errors import ImageError, OptionError, StoreError
from ..guard import hash_weights, placement, unwrapped
from ..images import ImageSet
from ..jobs.draft import Draft
from ..model.table import Layer
from ..topk.result import TopK
from ..topk.scan import top as scan_top
from .bulk import Frames


def images_per_unit(k: Any, top: Any) -> tuple[int, TopK | None]:
    """Return the number of images per unit, and the scan where one was given."""
    if isinstance(top, TopK):
        if k not in (9, top.k):
            raise OptionError(f"k={k!r}, but the scan in top= holds {top.k} images per unit. Leave k out.")
        return top.k, top
    if top is None:
        return whole(k, "k", 1), None
    if not is_whole(top):
        raise OptionError(f"top={top!r}: expected a TopK, from deconvviz.top. The number of images per unit is k=.")
    return whole(top, "top", 1), None


def find_frames(
    model: nn.Module,
    source: ImageSet,
    layer: Layer,
    units: Tensor,
    top: int | TopK,
    draft: Draft | None,
    **options: Any,
) -> tuple[Frames, TopK]:
    """Find the units' strongest images, or take them from a scan of the same images; `options` are those of `top`."""
    channels = source.example(options.get("on_error", "raise")).shape[1]
    if not isinstance(top, TopK):
        top = _scan(model, source, layer, draft, k=top, **options)
    for name in ("distinct", "interior"):
        if (wanted := options.get(name)) and wanted != getattr(top, name):
            raise OptionError(f"{name}={wanted!r}: the scan in top= was made without it. Give it to deconvviz.top.")
    best = top[next((name for name in _names(layer) if name in top), layer.name)]
    if (last := int(best.image_ids.max())) >= len(source):
        raise ImageError(f"the scan counted other images: it names image {last} of {len(source)}.")
    frames = Frames(layer, units, best.values[units], best.image_ids[units], best.positions[units], channels)
    frames.inputs = None if best.preactivations is None else best.preactivations[units]
    return frames, top


def _names(layer: Layer) -> Iterator[int | str]:
    """Go through all that a layer may be called in a `TopK`."""
    yield from (layer.name, *layer.aliases)
    if layer.number is not None:
        yield layer.number


def _scan(model: nn.Module, source: ImageSet, layer: Layer, draft: Draft | None, **options: Any) -> TopK:
    """Find the strongest images; a draft keeps the scan, too, so that a killed job does not repeat it."""
    if draft is None:
        return scan_top(model, source, layers=[layer.name], **options)
    path = draft.beside("scan")
    try:
        return scan_top(model, source, layers=[layer.name], out=path, **options)
    except StoreError:  # that of another job
        path.unlink(missing_ok=True)
        return scan_top(model, source, layers=[layer.name], out=path, **options)


def hash_job(model: nn.Module, source: ImageSet, frames: Frames, *what: object) -> str:
    """Hash all that a job over these frames depends on."""
    digest = hashlib.blake2b(digest_size=16)
    facts = (frames.layer.name, frames.shape, *placement(model), source.fingerprint(), *what)
    digest.update(repr(facts).encode())
    for array in (frames.units, frames.values, frames.ids, frames.positions):
        digest.update(array.contiguous().flatten().view(torch.uint8).numpy().data)
    hash_weights(unwrapped(model), digest)
    return digest.hexdigest()
