"""A picture in whatever form an item of a dataset holds it, and which part of the item that is."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as F

from ..errors import ImageError, UnreadableImage, form_of
from .preprocess import Preprocess, checked

_LABELS = ("label", "labels", "target", "class", "cls", "category", "fine_label", "y")


@dataclasses.dataclass(frozen=True)
class Keyed:
    """Data whose items are mappings, and the keys of the image and the label in each.

    Example:
        >>> rows = [{"photo": Image.new("RGB", (8, 8)), "mask": Image.new("L", (8, 8)), "kind": "sky"}]
        >>> images = Keyed(rows, image_key="photo", label_key="kind")

    It is `images` for every function. A dataset need not be wrapped where one of its keys alone holds an image.
    `label_key` makes a dataset of torch read each item once, for its label.
    """

    data: Any
    image_key: str | None = None
    label_key: str | None = None


def is_hugging(data: object) -> bool:
    """Say whether something is a dataset of Hugging Face's `datasets`."""
    kinds = (kind.__module__ for kind in type(data).__mro__)
    return any(kind.startswith("datasets.") for kind in kinds) and hasattr(data, "features")


def is_image(value: object) -> bool:
    """Say whether a part of an item is an image: a picture, its bytes, or an array or tensor with rows and columns."""
    if isinstance(value, Mapping):  # undecoded, as `datasets` has it
        return set(value) == {"bytes", "path"}
    if isinstance(value, Tensor):
        return value.dim() == 3 and (value.is_floating_point() or value.dtype == torch.uint8)
    if isinstance(value, np.ndarray):
        return value.ndim in (2, 3) and value.dtype == np.uint8 and min(value.shape[:2]) > 1
    return isinstance(value, (Image.Image, bytes))


def find_image_key(item: Mapping[str, Any], given: str | None) -> str:
    """Return the key of an item's image: the given one, or the only one that holds an image."""
    if given is not None:
        if given not in item:
            raise ImageError(f"image_key={given!r}: the items have {', '.join(map(repr, item))}.")
        return given
    found = [key for key, value in item.items() if is_image(value)]
    if len(found) == 1:
        return found[0]
    what = (
        f"{', '.join(map(repr, found))} hold images"
        if found
        else f"none of {', '.join(map(repr, item))} holds an image"
    )
    raise ImageError(
        f"which part of an item is the image can't be told: {what}. Say which: "
        "images=deconvviz.images.Keyed(dataset, image_key=…, label_key=…)."
    )


def find_label_key(keys: Iterable[str], given: str | None) -> str | None:
    """Return the key of the labels: the given one, or the only one with a usual name; None if there is none."""
    known = list(keys)
    if given is not None:
        if given not in known:
            raise ImageError(f"label_key={given!r}: the items have {', '.join(map(repr, known))}.")
        return given
    found = [key for key in known if key in _LABELS]
    return found[0] if len(found) == 1 else None


def find_class_key(features: Mapping[str, Any], given: str | None) -> str | None:
    """Return the key of the labels in a dataset of Hugging Face: its only column of classes, where none was given."""
    classes = [name for name, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    return find_label_key(features, given or (classes[0] if len(classes) == 1 else None))


def plain_label(value: Any, names: Sequence[str] | None = None) -> Any:
    """Return a label as a text or a number: a class's name where it is known."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and np.ndim(value) == 0:
        value = value.item()
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return value if isinstance(value, (str, int, float)) else str(value)


def as_input(value: Any, preprocess: Preprocess | None, name: str) -> Tensor:
    """Return an image (C, H, W) in the model's input space; a float tensor is there already."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return checked(value)
    if preprocess is None:
        raise ImageError(f"{name} is a picture, and how the model wants its images is not known. Give preprocess=.")
    try:
        return preprocess(as_picture(value))
    except UnreadableImage as error:
        raise UnreadableImage(f"{name}: {error}") from error
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL raises
        raise UnreadableImage(
            f'cannot read {name}: {error or type(error).__name__}. Repair it, leave it out, or pass on_error="skip".'
        ) from error


def as_picture(value: Any) -> Image.Image:
    """Return a PIL image of a picture in any form."""
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        value = value["bytes"] if value["bytes"] is not None else Image.open(value["path"])
    if isinstance(value, bytes):
        value = Image.open(io.BytesIO(value))
    if isinstance(value, Tensor) and value.dtype == torch.uint8 and value.dim() == 3:
        return F.to_pil_image(value)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        value = Image.fromarray(value[..., 0] if value.ndim == 3 and value.shape[-1] == 1 else value)
    if not isinstance(value, Image.Image):
        raise ImageError(f"an image is {form_of(value)}, {type(value).__name__}: expected a picture.")
    return value
