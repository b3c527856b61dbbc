"""What a scan measures at each position: the targets, the most probable class, one map's summed activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..calls.called import name_of
from ..checks import is_whole
from ..errors import ModelError, OptionError, UnitError
from ..model.table import Layer
from ..targets import class_number, named

# (output (b, classes), response (b, U, h, w) or None) -> (b,)
Function = Callable[[Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class Target:
    """A class by number or name, or a scalar function of the output or of a layer, with its name."""

    name: int | str
    function: Function | None = None
    of_output: Callable[[Any], Tensor] | None = None  # of whatever the model returns


@dataclass(frozen=True)
class Targets:
    """The targets of a call: `several` says that the maps get a leading axis, `layer` what they need recorded."""

    given: tuple[Target, ...] | None  # None: the most probable class
    several: bool
    layer: int | str | None
    measured: bool = False  # the output is these targets' own numbers (b, targets), and there are no classes

    @property
    def functions(self) -> list[Any]:
        """The functions of what the model returns, in their order."""
        return [target.of_output for target in self.given or () if target.of_output is not None]

    def of_any_output(self) -> Targets | None:
        """Return the targets for a network that returns its functions' numbers in place of an output.

        None where these targets need the output itself: scores (N, classes).
        """
        given = self.given or ()
        if any(target.function is None for target in given) or not self.functions:
            return None
        order = iter(range(len(given)))
        columns = [t if t.of_output is None else replace(t, function=_Column(next(order))) for t in given]
        return replace(self, given=tuple(columns), measured=True)

    @classmethod
    def read(cls, target: Any, layer: int | str | None) -> Targets:
        """Make sense of `occlude`'s `target` and `layer`."""
        if target is None:
            return cls(None, False, layer)
        several = isinstance(target, Sequence) and not isinstance(target, (str, tuple))
        several |= isinstance(target, (Tensor, np.ndarray)) and target.ndim == 1  # such as `topk(3).indices`
        wanted = list(target) if several else [target]
        if not wanted:
            raise OptionError("target is an empty list; give some classes, or None for the most probable one.")
        layers_named = [layer, *(t[0] for t in wanted if isinstance(t, tuple) and len(t) == 2)]
        layers = {int(x) if is_whole(x) else x for x in layers_named if x is not None}
        if len(layers) > 1:
            raise OptionError(f"one layer can be measured in one scan, got {', '.join(map(repr, layers))}.")
        return cls(tuple(map(_one, wanted)), several, next(iter(layers), None))

    def resolved(self, output: Tensor, layer: Layer | None, names: Sequence[str] | None) -> list[Target]:
        """Return the targets for an unoccluded output (1, classes), after checking them; classes go by their numbers."""
        classes = output.shape[1]
        if self.measured:
            return list(self.given or ())
        targets = [_resolved(t, names) for t in self.given or (Target(int(output[0].argmax())),)]
        for target in targets:
            if target.function is None and classes < 2:
                raise ModelError(
                    "the model has one output, which has no probability among classes. Give target= a function of the "
                    "output: lambda y: y[:, 0]."
                )
            if isinstance(target.name, int) and not 0 <= target.name < classes:
                raise OptionError(
                    f"target {target.name} is out of range: the model has {classes} classes, 0 to {classes - 1}."
                )
            unit = getattr(target.function, "unit", None)
            if unit is not None and layer is not None and not 0 <= unit < layer.units:
                raise UnitError(f"unit {unit} is out of range: layer {layer.name!r} has units 0 to {layer.units - 1}.")
        return targets


def _resolved(target: Target, names: Sequence[str] | None) -> Target:
    """Let the classes' names become numbers."""
    if target.of_output is not None:
        function = named(target.of_output, names)
        return replace(target, function=lambda output, _: function(output))
    if isinstance(target.name, str) and target.function is None:
        return Target(class_number(target.name, names))
    return target


def _one(target: Any) -> Target:
    if is_whole(target):
        return Target(int(target))
    if isinstance(target, str):
        return Target(target)
    if callable(target):
        return Target(name_of(target), lambda output, _: target(output), target)
    if isinstance(target, tuple) and len(target) == 2 and is_whole(target[1]):
        layer, unit = target[0], int(target[1])
        return Target(f"unit {unit} of layer {layer}", _Unit(unit))
    if isinstance(target, tuple) and len(target) == 2 and callable(target[1]):
        name = getattr(target[1], "__name__", type(target[1]).__name__)
        return Target(f"{name} of layer {target[0]}", lambda _, response: target[1](response))
    raise OptionError(
        f"target={target!r} has no meaning here. Give a class by number or name, a function of the output "
        "(b, classes), or of whatever the model returns, -> (b,), "
        "(layer, unit), (layer, function of its response (b, units, h, w)), a list of these, or None."
    )


@dataclass(frozen=True)
class _Unit:
    unit: int

    def __call__(self, output: Tensor, response: Tensor | None) -> Tensor:
        assert response is not None
        return response[:, self.unit].sum((1, 2))


@dataclass(frozen=True)
class _Column:
    column: int

    def __call__(self, output: Tensor, response: Tensor | None) -> Tensor:
        return output[:, self.column]


class Meter:
    """Receives outputs and keeps what they say of the targets: maps over P positions, on the device.

    Nothing is read back before `measured` is asked for, so that a GPU never waits.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        unit: int | None,
        output: Tensor,
        response: Tensor | None,
        classless: bool = False,
    ) -> None:
        """Take the unoccluded output (1, classes) and response, and measure them into `unoccluded`."""
        self.classless = classless
        self.targets, self.unit, self.classes = targets, unit, output.shape[1]
        self.dtype = torch.float64 if output.dtype == torch.float64 else torch.float32
        low, total = float(output.min()), float(output.float().sum())
        self.is_share = low >= 0 and abs(total - 1) < 1e-2 and output.shape[1] > 1  # the network ends in a softmax
        self.unoccluded = {name: value[..., 0].cpu() for name, value in self._values(output, response).items()}
        self._maps: dict[str, Tensor] = {}

    def open(self, count: int, device: torch.device) -> None:
        """Make room for `count` positions."""
        for name, value in self.unoccluded.items():
            self._maps[name] = torch.zeros(*value.shape, count, dtype=value.dtype, device=device)

    def receive(self, where: slice | Tensor, output: Tensor, response: Tensor | None) -> None:
        """Measure a batch of positions."""
        for name, value in self._values(output, response).items():
            self._maps[name][..., where] = value

    def measured(self) -> dict[str, Tensor]:
        """Return what was measured, on the CPU: `probability` and `logit` (T, P), `label` and `activation` (P,)."""
        maps = {name: value.cpu() for name, value in self._maps.items()}
        for name in ("logit", "activation"):
            bad = int((~torch.isfinite(maps[name])).sum()) if name in maps else 0
            if bad:
                raise ModelError(f"the {name} is NaN or infinite at {bad} positions. Give another fill= or dtype=.")
        return maps

    def _values(self, output: Tensor, response: Tensor | None) -> dict[str, Tensor]:
        output = output.to(self.dtype)
        shares = output if self.is_share else output.softmax(1)
        values = {
            "probability": torch.stack([_probability(t, shares) for t in self.targets]),
            "logit": torch.stack([_logit(t, output, response) for t in self.targets]),
            "label": torch.full_like(shares[:, 0], -1, dtype=torch.long) if self.classless else shares.argmax(1),
        }
        if self.unit is not None and response is not None:
            values["activation"] = response[:, self.unit].to(self.dtype).sum((1, 2))
        return values


def _probability(target: Target, shares: Tensor) -> Tensor:
    if target.function is None:
        return shares[:, int(target.name)]
    return torch.full_like(shares[:, 0], torch.nan)


def _logit(target: Target, output: Tensor, response: Tensor | None) -> Tensor:
    if target.function is None:
        return output[:, int(target.name)]
    value = target.function(output, response)
    if not isinstance(value, Tensor) or value.shape != output.shape[:1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise OptionError(f"target {target.name!r} gave {got} for {len(output)} images, expected ({len(output)},).")
    return value.to(output.dtype)
