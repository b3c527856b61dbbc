"""How strong the responses of each layer are: standard deviations in one pass over the images."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ranks
from ..calls import Call, called
from ..devices import doubled
from ..errors import LayerError, OptionError
from ..images import Images, open_images
from ..model.table import Layer, Layers, find_all
from ..results.base import Result
from ..results.text import amount, skipped_lines
from ..rules.kinds import Kind
from ..rules.table import kind_of
from ..scan.accumulator import Accumulator, Flaw, check_shapes
from ..scan.engine import Scan, first_pass
from ..scan.state import Progress
from ..tape.arguments import bound
from ..tape.operations import Op, Tape

_CHUNK = 1 << 18  # values turned to float64 at once: they stay in the cache (5 times faster than 1 << 22)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Responses(Result):
    """The standard deviation of each layer's responses, over images, positions and units.

    Attributes:
        names: the L layers' module paths, in the order of execution; a convolution's name also where its batch
            normalization's output is what was measured.
        measured: what was measured of each: the module path of that tensor.
        units: how many units (channels) each layer has.
        count: how many images were seen.
        values: (L,) int64, numbers seen per unit: images × positions.
        unit_mean: (sum of units,) float64, each unit's mean, layer after layer.
        unit_squares: (sum of units,) float64, each unit's sum of squared deviations from its mean.
        skipped: (image id, reason) of the images that could not be read, with `on_error="skip"`.
    """

    names: tuple[str, ...]
    measured: tuple[str, ...]
    units: tuple[int, ...]
    count: int
    values: Tensor
    unit_mean: Tensor
    unit_squares: Tensor
    skipped: tuple[tuple[int, str], ...] = ()
    drawn_by = "responses"

    @property
    def std(self) -> Tensor:
        """(L,) float64: the standard deviation of all of a layer's responses (divided by their number)."""
        parts = zip(self.values.tolist(), self.unit_mean.split(self.units), self._squares(), strict=True)
        # The spread of the units' means is part of the layer's.
        return torch.stack([(s / n + (m - m.mean()).square()).mean().sqrt() for n, m, s in parts])

    @property
    def mean(self) -> Tensor:
        """(L,) float64: the mean of all of a layer's responses."""
        return torch.stack([m.mean() for m in self.unit_mean.split(self.units)])

    def unit_std(self, layer: str) -> Tensor:
        """Return (units,) float64: the standard deviation of each unit of `layer`, one of `names`."""
        if layer not in self.names:
            raise LayerError(f"no layer {layer!r} in this result, it has {', '.join(self.names)}.")
        index = self.names.index(layer)
        return (self._squares()[index] / int(self.values[index])).sqrt()

    def sorted(self) -> Responses:
        """Return the same with the layers in order of falling standard deviation, as in the paper's lower panel."""
        order = self.std.argsort(descending=True, stable=True).tolist()
        means, squares = self.unit_mean.split(self.units), self._squares()
        return dataclasses.replace(
            self,
            names=tuple(self.names[i] for i in order),
            measured=tuple(self.measured[i] for i in order),
            units=tuple(self.units[i] for i in order),
            values=self.values[order],
            unit_mean=torch.cat([means[i] for i in order]),
            unit_squares=torch.cat([squares[i] for i in order]),
        )

    def merge(self, other: Responses) -> Responses:
        """Return the result for the images of both, equal to one pass over all of them up to float64 rounding.

        Raises:
            OptionError: other layers.
        """
        if (self.names, self.measured, self.units) != (other.names, other.measured, other.units):
            raise OptionError(f"a merge takes results of the same layers: {self.names} and {other.names}.")
        each = torch.tensor(self.units)
        a, b = (x.values.double().repeat_interleave(each) for x in (self, other))  # integers would divide in float32
        mean, squares = combine((a, self.unit_mean, self.unit_squares), (b, other.unit_mean, other.unit_squares))
        return dataclasses.replace(
            self,
            count=self.count + other.count,
            values=self.values + other.values,
            unit_mean=mean,
            unit_squares=squares,
            skipped=(*self.skipped, *other.skipped),
        )

    def plot(
        self,
        figure: Any = None,
        *,
        name: str = "this network",
        others: Mapping[str, Responses] | None = None,
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw the standard deviations in order and sorted; see `deconvviz.plotting.responses.draw` and `Result.plot`."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw", figure, name=name, others=others, **look)

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each layer."""
        named = {"layer": self.names, "measured": self.measured, "units": self.units}
        return {name: list(x) for name, x in named.items()} | {"mean": self.mean, "std": self.std}

    def describe(self) -> str:
        """Say how many layers and images."""
        return f"{amount(len(self.names), 'layer')}: {amount(self.count, 'image')}"

    def table(self) -> str:
        """Return one line per layer."""
        lines = [f"{name}: {std:.4g}" for name, std in zip(self.names, self.std.tolist(), strict=True)]
        return "\n".join([f"standard deviation over {self.count} images", *lines, *skipped_lines(self.skipped)])

    def _squares(self) -> tuple[Tensor, ...]:
        return self.unit_squares.split(self.units)


def combine(a: tuple[Any, Tensor, Tensor], b: tuple[Any, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Merge (number, mean, sum of squared deviations) of two sets; return the mean and the sum for both.

    Source: Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """
    (count_a, mean_a, squares_a), (count_b, mean_b, squares_b) = a, b
    share = count_b / (count_a + count_b)
    step = mean_b - mean_a
    return mean_a + step * share, squares_a + squares_b + step.square() * count_a * share


@ranks.together
def response_std(
    model: nn.Module,
    images: Images = None,
    *,
    layers: Layers | None = None,
    kind: str | None = None,
    batch_size: int | None = None,
    preprocess: object = None,
    call: Call | None = None,
    workers: int = 0,
    out: str | os.PathLike[str] | None = None,
    on_error: str = "raise",
    progress: bool = True,
) -> Responses:
    """Measure the standard deviation of each layer's responses, after BN and before the nonlinearity or addition.

    Example:
        >>> import deconvviz, torch, torchvision
        >>> model = torchvision.models.resnet18(weights=None)
        >>> result = deconvviz.response_std(model, torch.randn(4, 3, 64, 64), progress=False)
        >>> len(result.names), result.std.shape, result.unit_std("layer1.0.conv1").shape
        (16, torch.Size([16]), torch.Size([64]))

    A convolution's response is the output of the batch normalization that alone reads it, where there is one, else
    its own output. Mean and squared deviations of each unit are summed in float64, batch by batch, and merged
    exactly, so memory does not depend on the number of images.

    Args:
        model: The network; left as it was found.
        images: (N, C, H, W) in the model's input space, pictures, a folder, a dataset, or None: the sample photos.
        layers: Module paths or numbers; a convolution named here is measured as above, any other layer at its own
            output. None chooses by `kind`.
        kind: "3x3" or another size of filter, "conv" for all convolutions; None: the 3×3 ones (as in the paper) if
            there are any, else all.
        batch_size: Images per forward pass; None: what a `DataLoader` says, else 64, or fewer where a CPU is faster so.
        preprocess: See `project`.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        workers: Processes that decode files.
        out: Path of a file that keeps the pass while it runs, to go on from after a stop, and at the end its result.
        on_error: "raise" at an image that cannot be read, or "skip" it; the result lists it.
        progress: Show a bar.

    Returns:
        A `Responses`: `names`, `std` (L,), `mean` (L,), `count`, `unit_std(name)` (units,), `sorted()`, `merge()`.

    Raises:
        LayerError: No such layer, or none of this kind.
        OptionError: A `kind` that has no meaning, or one beside `layers`.
        ImageError, ModelError: Unfit images; weights or responses that are not finite.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2 and Fig. 7.
    """
    check_kind(kind, layers)
    model = called(model, call)
    opened = open_images(model, images, preprocess)
    tape, rows = first_pass(model, opened, on_error, layers)
    names, found = targets(tape, rows, layers, kind)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "on_error": on_error, "progress": progress}
    scan = Scan(model, opened, [Moments(names, tuple(found))], tape, name="response_std", **options)

    def finish(progress: Progress) -> Responses:
        return dataclasses.replace(progress.accumulators[0].result(), skipped=tuple(sorted(progress.skipped.items())))

    return scan.run(finish, Responses, out)


def check_kind(kind: str | None, layers: Layers | None) -> None:
    """Refuse a kind of filter that has no meaning, or one beside layers that were named."""
    if kind is not None and (layers is not None or not re.fullmatch(r"conv|\d+x\d+", kind)):
        raise OptionError(f'kind={kind!r}: expected "conv" or a size such as "3x3", and no layers beside it.')


@dataclasses.dataclass(frozen=True)
class Moments(Accumulator):
    """Number, mean and squared deviations of each unit of several layers, in float64.

    `parts` has (numbers per unit, mean (units,), sum of squared deviations (units,)) for each layer.
    """

    one_size = False

    names: tuple[str, ...]
    measured: tuple[Layer, ...]
    count: int = 0
    parts: tuple[tuple[int, Tensor, Tensor], ...] = ()

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers measured."""
        return self.measured

    def update(self, first: int, responses: Sequence[Tensor], output: Tensor | None) -> Moments:
        """Take in a batch."""
        new = dataclasses.replace(self, count=len(responses[0]), parts=tuple(moments(x) for x in responses))
        device = new.parts[0][1].device  # what was read from a file is on the CPU
        return self._on(device).merge(new)

    def _on(self, device: torch.device) -> Moments:
        parts = tuple((number, mean.to(device), squares.to(device)) for number, mean, squares in self.parts)
        return dataclasses.replace(self, parts=parts)

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both."""
        if not self.parts or not other.parts:
            return self if not other.parts else other
        both = tuple((a[0] + b[0], *combine(a, b)) for a, b in zip(self.parts, other.parts, strict=True))
        return dataclasses.replace(self, count=self.count + other.count, parts=both)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the moments."""
        arrays = {
            f"{i}/{name}": x for i, part in enumerate(self.parts) for name, x in zip(_OF_PART, part[1:], strict=True)
        }
        return {"count": self.count, "numbers": [n for n, _, _ in self.parts]}, arrays

    def from_state(self, facts: dict[str, Any], arrays: dict[str, Tensor]) -> Moments:
        """Take the moments back."""
        for i, layer in zip(range(len(facts["numbers"])), self.measured, strict=bool(facts["numbers"])):
            check_shapes(arrays, {f"{i}/{name}": (layer.units,) for name in _OF_PART})
        parts = tuple(
            (number, *(arrays[f"{i}/{name}"].clone() for name in _OF_PART)) for i, number in enumerate(facts["numbers"])
        )
        return dataclasses.replace(self, count=facts["count"], parts=parts)

    def describe(self) -> str:
        """Say which layers."""
        return f"moments {[layer.name for layer in self.measured]}"

    def flaw(self) -> Flaw | None:
        """Look at the sums, which are not finite if any number was not."""
        for layer, (_, mean, squares) in zip(self.measured, self.parts, strict=False):
            bad = ~torch.isfinite(mean + squares)
            if bad.any():
                return Flaw(layer.name, int(bad.nonzero()[0]))
        return None

    def result(self) -> Responses:
        """Return the moments on the CPU."""
        return Responses(
            self.names,
            tuple(layer.name for layer in self.measured),
            tuple(layer.units for layer in self.measured),
            self.count,
            torch.tensor([n for n, _, _ in self.parts]),
            torch.cat([mean for _, mean, _ in self.parts]).cpu(),
            torch.cat([squares for _, _, squares in self.parts]).cpu(),
        )


_OF_PART = ("mean", "squares")


def moments(response: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return how many numbers each unit has, their mean (units,) and sum of squared deviations (units,)."""
    total: tuple[int, Tensor, Tensor] | None = None
    for part in response.split(max(1, _CHUNK // response[0].numel())):
        values = doubled(part.flatten(2))
        each = values.mean(2)  # (n, units): image by image, along the memory
        inner = torch.linalg.vector_norm(values - each[..., None], dim=2).square().sum(0)
        mean = each.mean(0)
        squares = inner + values.shape[2] * (each - mean).square().sum(0)
        one = values.shape[0] * values.shape[2], mean, squares
        total = one if total is None else (total[0] + one[0], *combine(total, one))
    assert total is not None
    return total


# ---- which tensor ----------------------------------------------------------------------------------------------------


def targets(tape: Tape, rows: Sequence[Layer], layers: Any, kind: str | None) -> tuple[tuple[str, ...], list[Layer]]:
    """Return the names of the layers and the tensors to measure for them."""
    made = tape.producer()
    convolutions = {v: op for v, op in made.items() if op.short == "conv2d"}
    if layers is None:
        chosen = [row for row in rows if row.value in _of_kind(convolutions, kind)]
    else:
        chosen = find_all(rows, layers)
        chosen = sorted({row.value: row for row in chosen}.values(), key=lambda row: row.value)
    if not chosen:
        raise LayerError(
            f"this model has no layers of kind {kind!r}. Give layers=; deconvviz.layers(model) lists them."
        )
    found: dict[int, tuple[str, Layer]] = {}
    for row in chosen:
        named = dataclasses.replace(row, name=_path(row, made.get(row.value)))
        target = _after(named, tape, rows) if row.value in convolutions else named
        found.setdefault(target.value, (named.name, target))
    return tuple(name for name, _ in found.values()), [target for _, target in found.values()]


def _of_kind(convolutions: dict[int, Op], kind: str | None) -> set[int]:
    if kind == "conv":
        return set(convolutions)
    size = [int(part) for part in (kind or "3x3").split("x")]
    found = {value for value, op in convolutions.items() if list(bound(op)["weight"].shape[2:]) == size}
    return found if found or kind is not None else set(convolutions)


def _after(row: Layer, tape: Tape, rows: Sequence[Layer]) -> Layer:
    """Return the batch normalization's output where one alone reads the convolution, else the convolution's."""
    consumers, value = tape.consumers(), row.value
    while True:
        readers = consumers.get(value, [])
        if len(readers) != 1 or not (kind_of(readers[0]) is Kind.IDENTITY or readers[0].short == "batch_norm"):
            return row
        value = readers[0].outputs[0]
        if readers[0].short == "batch_norm":
            named = next((r.name for r in rows if r.value == value), f"{readers[0].module}:batch_norm")
            return dataclasses.replace(row, value=value, name=named, maker=readers[0].where)


def _path(row: Layer, op: Op | None) -> str:
    """Prefer the name of the module that made the tensor to that of a block which only returns it."""
    own = [name for name in row.aliases if op is not None and re.split("[#:]", name)[0] == op.module]
    return own[0] if own else row.name
