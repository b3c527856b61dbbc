"""What a pass measures: a statistic that takes responses batch by batch, merges, and can be written down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import Tensor

from ..model.table import Layer

_Kind = TypeVar("_Kind", bound="Accumulator")


class Flaw(NamedTuple):
    """A response that is not finite: of which layer, and as far as known which unit, image and value."""

    layer: str
    unit: int | None = None
    image: int | None = None
    value: float | None = None


def check_shapes(arrays: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int | None]]) -> None:
    """Refuse arrays of a state that are not of these shapes; None stands for any length.

    Raises:
        ValueError: Such an array, for the file that it is from to be named.
    """
    for name, shape in shapes.items():
        found = arrays[name].shape
        if len(found) != len(shape) or any(n not in (None, m) for n, m in zip(shape, found, strict=True)):
            raise ValueError(f"{name} is {tuple(found)}, expected {tuple(shape)}")


class Accumulator(ABC):
    """A statistic over images that never changes: `update` and `merge` return a new one.

    So an interrupt finds it as it was before the batch or after it, never between. What it holds stays on the
    device of the responses until `state` or `result` asks for it.
    """

    one_size: ClassVar[bool] = True  # whether all images must give maps of the first one's size
    reads_output: ClassVar[bool] = False  # whether `update` gets the model's output as well

    @property
    @abstractmethod
    def layers(self) -> Sequence[Layer]:
        """The layers whose responses `update` gets, in this order."""

    @abstractmethod
    def update(self: _Kind, first: int, responses: Sequence[Tensor], output: Tensor | None) -> _Kind:
        """Take in each layer's responses (n, units, height, width) to the images from number `first` on."""

    @abstractmethod
    def merge(self: _Kind, other: _Kind) -> _Kind:
        """Return the statistic of the images of both."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what must be kept to go on later: facts that JSON holds, and arrays."""

    @abstractmethod
    def from_state(self: _Kind, facts: dict[str, Any], arrays: dict[str, Tensor]) -> _Kind:
        """Return what `state` wrote down, given the statistic before the first image."""

    @abstractmethod
    def result(self) -> Any:
        """Return what was measured, on the CPU."""

    @abstractmethod
    def describe(self) -> str:
        """Return a text that differs where another number would be measured."""

    @abstractmethod
    def flaw(self) -> Flaw | None:
        """Look whether a response was not finite; on a GPU this waits for the batch."""
