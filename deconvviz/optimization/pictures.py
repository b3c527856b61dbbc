"""Images between the pixels of this room, 0 to 1, and what users bring and networks take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ImageError, OptionError
from ..guard import unwrapped
from ..images.opening import open_one
from ..images.preprocess import Preprocess, configured_size, preprocess_for
from ..images.preprocess import input_size as find_input_size


def pixels_of(model: nn.Module, preprocess: Any) -> Preprocess | None:
    """Return how 0–1 pixels become the model's input; None where nobody knows: they are its input then."""
    try:
        known = preprocess_for(model, preprocess)
    except ImageError:
        return None
    if known.mean is None:
        raise ImageError(
            "how pixels become this model's input cannot be told from its preprocess. Give preprocess=deconvviz.images."
            "Preprocess(size, resize, mean, std)."
        )
    return known


def size_of(model: nn.Module, known: Preprocess | None, size: int | tuple[int, ...] | None) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images to make: as asked, else the model's own."""
    if size is None:
        size = (known.size if known is not None else None) or configured_size(model)
        if size is None:
            raise OptionError(
                f"how large the images of this {type(unwrapped(model)).__name__} are is not known. Give input_size=224, "
                "or the side that it was trained with."
            )
    return find_input_size(model, size)


def open_picture(model: nn.Module, image: Any, preprocess: Any) -> tuple[Tensor, Preprocess | None]:
    """Return one image as the network sees it, (C, H, W) with pixels from 0 to 1, and the preprocessing."""
    opened = open_one(model, image, preprocess)
    if len(opened) != 1:
        raise ImageError(f"there are {len(opened)} images, expected one.")
    known = pixels_of(model, preprocess)
    values = opened.take([0])[0].float().cpu()
    if known is not None and known.mean is not None and known.std is not None:
        mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (known.mean, known.std))
        values = values * std + mean
    if values.min() < -1e-3 or values.max() > 1 + 1e-3:
        raise ImageError(
            f"the image's pixels go from {float(values.min()):.3g} to {float(values.max()):.3g}, expected 0 to 1. Give a "
            "tensor in the model's input space, or preprocess= where the model does not say what that is."
        )
    return values.clamp(0, 1), known


def shape_of(image: Tensor) -> tuple[int, int, int]:
    """Return an image's (channels, height, width)."""
    channels, height, width = image.shape
    return channels, height, width
