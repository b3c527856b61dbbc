"""What an image is to excite: units, directions, whole layers, classes, and sums and differences of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import OptionError, UnitError

# A layer's response (units, rows, cols), or the output (classes,), to one image -> a number.
Score = Callable[[Tensor], Tensor]
AT = ("mean", "center")
# Where fields overlap, the image of the largest mean may excite the unit less at its strongest place than a photo does,
# as in three of eight units of SqueezeNet's second layer. That it counts as ten others lifts that place, and only that.
_PEAK = 10


# (layer or None for the output, how it is read) -> the reading of one image.
Read = Callable[["int | str | None", str], Tensor]


@dataclass(frozen=True)
class Term:
    """One part of an objective: a score of one layer's response, or of the output (layer None), with its weight.

    `reads` says what is scored: "before" is what goes into the layer's activation, "alive" the response with "before"
    in place of its zeros, "response" the response itself. `key` says what the score computes, so that an unfinished
    file is not taken for another objective's.
    """

    layer: int | str | None
    score: Score
    weight: float = 1.0
    reads: str = "response"
    key: str = ""


@dataclass(frozen=True)
class Objective:
    """A weighted sum of scores; objectives add, subtract and scale.

    `reached` is what is reported of a single unit, its strongest activation; of anything else it is the sum itself.

    Example:
        >>> from deconvviz.optimization.objectives import unit
        >>> (unit(3, 10) - 0.5 * unit(3, 11)).name
        'unit 10 of layer 3 - 0.5 unit 11 of layer 3'
    """

    terms: tuple[Term, ...]
    name: str
    reached: Score | None = None

    def __add__(self, other: Objective) -> Objective:
        """Excite both."""
        return Objective(self.terms + other.terms, f"{self.name} + {other.name}")

    def __sub__(self, other: Objective) -> Objective:
        """Excite this one and not the other."""
        return Objective(self.terms + (-1 * other).terms, f"{self.name} - {other.name}")

    def __neg__(self) -> Objective:
        """Excite it as little as can be; what is reported stays the unit's own."""
        return Objective((-1 * self).terms, f"- {self.name}", self.reached)

    def __mul__(self, weight: float) -> Objective:
        """Weigh the objective."""
        terms = tuple(replace(term, weight=term.weight * weight) for term in self.terms)
        return Objective(terms, f"{weight:g} {self.name}")

    __rmul__ = __mul__

    @property
    def key(self) -> str:
        """Say what is computed, beyond the name."""
        return repr([(term.layer, term.weight, term.reads, term.key) for term in self.terms])

    @property
    def layers(self) -> tuple[int | str | None, ...]:
        """The layers that must be read; None stands for the output."""
        return tuple(dict.fromkeys(term.layer for term in self.terms))

    def score(self, read: Read) -> Tensor:
        """Return the objective's value for one image."""
        return torch.stack([term.weight * term.score(read(term.layer, term.reads)) for term in self.terms]).sum()

    def measure(self, read: Read) -> Tensor:
        """Return what is reported of one image."""
        if self.reached is not None:
            return self.reached(read(self.terms[0].layer, "response"))
        return torch.stack([t.weight * t.score(read(t.layer, "response")) for t in self.terms]).sum()


def unit(layer: int | str, number: int, at: str = "mean") -> Objective:
    """Return the objective of one unit: the "mean" of its map, the strongest place ten times more, or the "center"."""
    _check(at)

    def score(response: Tensor) -> Tensor:
        if not 0 <= number < len(response):
            raise UnitError(f"unit {number} is out of range: layer {layer!r} has units 0 to {len(response) - 1}.")
        found = _place(response[number], at)
        return found + _PEAK / response[number].numel() * response[number].amax() if at == "mean" else found

    return Objective(
        (Term(layer, score, reads="before", key=f"unit {number} {at} {_PEAK}"),),
        f"unit {number} of layer {layer}",
        lambda response: response[number].amax() if at == "mean" else _place(response[number], at),
    )


def direction(layer: int | str, vector: Tensor | Sequence[float], at: str = "mean") -> Objective:
    """Return the objective of a direction: the responses' product with a vector (units,) of length 1."""
    _check(at)
    given = torch.as_tensor(vector).detach().float().cpu()
    if given.dim() != 1 or not torch.isfinite(given).all() or not given.any():
        raise OptionError(f"a direction is one finite number per unit, not all zero; got shape {tuple(given.shape)}.")
    axis = given / given.norm()

    def score(response: Tensor) -> Tensor:
        if len(axis) != len(response):
            raise UnitError(f"the direction has {len(axis)} numbers, layer {layer!r} has {len(response)} units.")
        return _place(torch.einsum("u,uhw->hw", axis.to(response), response), at)

    key = f"direction {axis.tolist()} {at}"
    return Objective((Term(layer, score, reads="alive", key=key),), f"a direction of layer {layer}")


def whole(layer: int | str) -> Objective:
    """Return the objective of a whole layer, the mean square of its response: "deep dream"."""
    return Objective((Term(layer, lambda response: response.square().mean(), key="whole"),), f"layer {layer}")


def output(number: int, name: str | None = None) -> Objective:
    """Return the objective of one class: its number in the output (N, classes), before any softmax."""

    def score(values: Tensor) -> Tensor:
        if values.dim() != 1 or not 0 <= number < len(values):
            raise OptionError(f"class {number} is out of range: the output has shape (N, {tuple(values.shape)}).")
        return values[number]

    return Objective((Term(None, score, key=f"class {number}"),), name or f"class {number}")


def _check(at: str) -> None:
    if at not in AT:
        raise OptionError(f"at={at!r}: expected one of {', '.join(map(repr, AT))}.")


def _place(found: Tensor, at: str) -> Tensor:
    rows, cols = found.shape
    return found.mean() if at == "mean" else found[rows // 2, cols // 2]
