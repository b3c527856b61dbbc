"""Images in: whatever a user calls images becomes one `ImageSet`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

from numpy import ndarray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..errors import ImageError
from .archives import Shards, Zipped
from .files import Files
from .image_set import ImageSet
from .parts import Keyed
from .photos import Photos
from .preprocess import Preprocess
from .rows import Arrays, Rows
from .sources import Items, Pictures, Tensors
from .streams import Streamed

_Picture: TypeAlias = Image.Image | str | os.PathLike[str]
Images: TypeAlias = (
    Tensor | ndarray | _Picture | Sequence[_Picture] | Dataset[Any] | DataLoader[Any] | Keyed | ImageSet | None
)
"""What every function takes as `images`, see `open_images`."""

# Each is asked in turn whether it takes what was given: a new kind of input is one source and one name here.
SOURCES = (Tensors, Arrays, Streamed, Rows, Items, Photos, Pictures, Shards, Zipped, Files)


def open_images(model: nn.Module, images: Images = None, preprocess: object = None) -> ImageSet:
    """Open whatever a user calls images as one `ImageSet`.

    Example:
        >>> len(open_images(model, "photos/", preprocess=weights.transforms()))  # doctest: +SKIP
        200

    A tensor is in the model's input space already. Pictures, folders and sample photos go through the model's
    preprocessing (`preprocess_for`); so do the PIL images of a dataset, while its tensors are taken as they
    are. A `DataLoader` gives its dataset, in the dataset's order even if the loader shuffles, its batch size,
    workers and `collate_fn`: an image's number is always its index in the dataset, which should not augment
    at random.

    Args:
        model: the network that the images are for.
        images: tensor (N, C, H, W), PIL image, list of PIL images or paths, path of a folder (walked
            recursively, each folder once, in sorted order, the top folder is the label) or of one file, a pattern
            (``photos/**/*.jpg``), a zip file of pictures, tar shards (``train-{000..127}.tar``), an array (N, H, W, C) of
            bytes, a dataset of torch or Hugging Face, map-style or iterable, `DataLoader`, `Keyed`, `ImageSet`, or None:
            the sample photos.
        preprocess: see `preprocess_for`; needed where the model is not known.

    Returns:
        The images, numbered in their order.

    Raises:
        ImageError: no images, or of the wrong shape, type or range, or of a kind that is not known.
    """
    if isinstance(images, ImageSet):
        return images
    for source in SOURCES:
        opened = source.open(model, images, preprocess)
        if opened is not None:
            return opened
    hint = " Stack tensors with torch.stack." if isinstance(images, (list, tuple)) else ""
    raise ImageError(
        f"images is a {type(images).__name__}, expected a tensor (N, C, H, W), PIL images, a folder, a torch "
        f"Dataset or DataLoader, or None for the sample photos.{hint}"
    )


def open_one(model: nn.Module, image: Any, preprocess: object = None) -> ImageSet:
    """Open what a function takes as `image`: all that `open_images` takes, and a tensor (C, H, W), but not None.

    Raises:
        ImageError: None, or what `open_images` refuses.
    """
    if image is None:
        raise ImageError("no image: give a tensor, a PIL image or a path.")
    if isinstance(image, Tensor):
        image = image.detach()[None] if image.dim() == 3 else image.detach()
    return open_images(model, image, preprocess)


def samples(
    size: int | tuple[int, int] = 64, count: int | None = None, *, preprocess: Preprocess | None = None
) -> ImageSet:
    """Give the sample photos: whole in large images, in windows of several scales in small ones.

    Example:
        >>> photos, windows = samples(227), samples(64)
        >>> len(photos), photos.names[12], len(windows), windows.names[0], windows.labels[0]
        (72, 'stone-house', 3339, 'astronaut 512px @ (0,0)', 'astronaut')

    From 128 pixels on these are 72 photos, each once: its middle, as large as it fits. For most of them ImageNet
    has a name. Below, or where `count` is given, photos are cut into windows; below 128 pixels the
    twelve that are there in full resolution. Each photo is resized (with antialiasing) so that its short side is 1,
    1.5, 2, 3, 4, 6 and 8 windows long, never enlarged by more than 1.5; the windows are slices of that, half a
    window apart or a little less. Where that makes more than `count`, windows of the finest scales are left out,
    evenly. The result is always the same. Photos are read when the first of their windows is asked for.

    Args:
        size: height and width of the windows in pixels.
        count: how many windows at most. None: 3,600 below 128 pixels, else whole photos.
        preprocess: brings the windows into a model's input space; without it they have values from 0 to 1.

    Returns:
        The images; `labels` say the photo, `names` the photo and of a window the side in the photo's own pixels
        and the top-left corner.

    Raises:
        ImageError: a photo is not where this package, scikit-image or matplotlib should have it.
        OptionError: a size or count below 1.
    """
    return Photos.cut(size, count, preprocess)
