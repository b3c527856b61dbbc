"""What one must know to use a network: its paper, its input, its classes, where its weights come from."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..results.base import check_fields
from ..results.store import open_file, replacing

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MOST_BYTES, _MOST_PIXELS = 4 << 20, 1 << 12
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")


@dataclasses.dataclass(frozen=True)
class Card:
    """The facts about one network and its weights; every model of the zoo carries one as `.card`.

    Example:
        >>> zoo.create("zfnet").card.input_size
        (224, 224)

    Attributes:
        name: the network's name in the zoo.
        paper: authors, title, where it appeared.
        deviations: one sentence for each thing that differs from the paper.
        input_size: (height, width) of the network's input in pixels.
        resize: length of an image's short side before the centre crop of `input_size`.
        mean: per channel, on the 0–1 scale, subtracted from the pixels.
        std: per channel, on the 0–1 scale; what is left is divided by it.
        interpolation: PIL's filter for the resize, "bilinear" or "bicubic".
        classes: the classes' names in the order of the outputs, or None where no weights give them.
        weights_file: name of the file the weights came from, or None for random weights.
        licence: the licence of the weights.
        reported: the errors that the paper reports for this network, with their conditions; "" where it has none.
        training: data, recipe, epochs, accuracy and command of the training run, or None for random weights.
        layers: module paths of layers 1, 2, …, where a person would choose other ones than `deconvviz.layers` counts.
    """

    name: str
    paper: str
    deviations: tuple[str, ...] = ()
    input_size: tuple[int, int] = (224, 224)
    resize: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    classes: tuple[str, ...] | None = None
    weights_file: str | None = None
    licence: str = "not stated"
    reported: str = ""
    training: Mapping[str, Any] | None = None
    layers: tuple[str, ...] = ()

    def write(self, path: str | Path) -> None:
        """Write the card as JSON, all or nothing."""
        with replacing(path) as temporary:
            text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Card:
        """Read a card that `write` wrote.

        Raises:
            StoreError: the file cannot be read or is not a card.
        """
        try:
            with open_file(path) as file:
                text = file.read(_MOST_BYTES + 1)
            if len(text) > _MOST_BYTES:
                raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MiB")
            fields = json.loads(text)
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
            card = cls(**values)
            card._check()
            return card
        except OSError as error:
            raise StoreError(f"cannot read the card {path}: {error.strerror or error}.") from error
        except Exception as error:  # whatever a damaged file makes of itself
            raise StoreError(f"{path} is no card that deconvviz wrote, or damaged ({error}).") from error

    def _check(self) -> None:
        """Refuse what a file may say and no network can be fed with."""
        check_fields(self)
        if not all(1 <= side <= _MOST_PIXELS for side in (*self.input_size, self.resize)):
            raise ValueError(f"input_size and resize are not from 1 to {_MOST_PIXELS} pixels")
        numbers = (*self.mean, *self.std)
        if (
            len(self.mean) != len(self.std)
            or not self.mean
            or not all(map(math.isfinite, numbers))
            or min(self.std) <= 0
        ):
            raise ValueError("mean and std are not a number for each channel, those of std above 0")
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(f"interpolation is none of {', '.join(_INTERPOLATIONS)}")
        folders = (self.training or {}).get("folders", [])
        if not isinstance(folders, (list, tuple)) or not all(isinstance(folder, str) for folder in folders):
            raise ValueError("folders is no list of names")
