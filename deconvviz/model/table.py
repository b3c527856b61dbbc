"""A layer, the table of all layers, and how to find one in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..checks import is_whole, numbers_of
from ..devices import sent
from ..errors import ImageError, LayerError, UnitError
from ..results.text import as_html, as_text
from ..tape.operations import Tape
from ..tape.receptive_field import Reach, Span

Key = tuple[int, "tuple[int, int] | None"]  # what tells a layer's response from others'


@dataclass(frozen=True)
class Layer:
    """One layer, as it ran on images of one size.

    `name` and each of `aliases` (modules that return the same tensor) is what `layer=` takes, `number` the papers'
    number if it has one; `receptive_field` and `stride` are (vertical, horizontal) input pixels, the stride None for
    a layer without rows and columns. `switches` counts the max-pools between the layer and the images, all that a
    deconvnet's way back takes from an image. `units` is 0 where it can't be told which of a tensor's dimensions are
    channels, as inside an attention: such a layer is listed, and refused. `parameters` and `macs`, multiply-adds for one
    image, count what ran since the layer listed before it; `layers` alone counts them, `cost` says more.
    """

    name: str
    number: int | None
    kind: str
    units: int
    height: int
    width: int
    receptive_field: tuple[int, int]
    stride: tuple[int, int] | None
    aliases: tuple[str, ...] = field(repr=False)
    value: int = field(repr=False)
    reach: Reach = field(repr=False, compare=False)
    maker: str = field(repr=False, compare=False, default="")  # the operation that `value` comes from
    switches: int = 0  # max-pools between it and the images
    parameters: int = field(compare=False, default=0)
    macs: int = field(compare=False, default=0)
    tokens: tuple[int, int] | None = field(default=None, repr=False)  # where its tokens begin, of how many

    @property
    def key(self) -> Key:
        """The recorded value, and which of its tokens."""
        return self.value, self.tokens

    def response_in(self, tape: Tape) -> Tensor:
        """Return the recorded response as the network made it."""
        # Values are numbered in the order of execution, which a model may change from one batch to the next.
        if self.value not in tape.kept or self.maker not in ("", maker_of(tape, self.value)):
            raise LayerError(
                f"layer {self.name!r} did not run as on the first image: the model takes another path for these images."
            )
        response = tape.kept[self.value]
        if response.shape[:1] != tape.shapes[0][:1]:
            raise LayerError(
                f"layer {self.name!r} returns {len(response) if response.dim() else 1} responses for {tape.shapes[0][0]} "
                "images: its first dimension is not the batch, so it can't be told which image a response is of."
            )
        return response

    def as_maps(self, response: Tensor) -> Tensor:
        """Give a recorded tensor the form (N, units, height, width)."""
        if self.reach.dims is None:
            return response.reshape(len(response), self.units, self.height, self.width)
        row, col = self.reach.dims
        if row == col:
            flat = response.movedim(row, -1).flatten(1, -2)
            if self.tokens is not None:
                first, total = self.tokens
                if flat.shape[2] != total:
                    raise ImageError(
                        f"layer {self.name!r} has {flat.shape[2]} tokens, {total} on the first image: where they lie is not "
                        "known. Let preprocess bring all images to one size."
                    )
                flat = flat[:, :, first : first + self.height * self.width]
            return flat.unflatten(2, (self.height, self.width))
        return response.movedim((row, col), (-2, -1)).flatten(1, -3)

    def choose(self, units: Sequence[int] | str | None) -> list[int]:
        """Return the numbers of the units that `units` means: a list, a mask, "all", or None for 16 spread evenly.

        Raises:
            UnitError: It is none of these, or names a unit that the layer does not have.
        """
        if units is None:
            count = min(16, self.units)
            return [i * self.units // count for i in range(count)]
        if isinstance(units, str):
            if units != "all":
                raise UnitError(f"units={units!r} is not known; give a list of numbers, 'all' or None.")
            return list(range(self.units))
        try:
            numbers = numbers_of(units, self.units, "units", error=UnitError)
        except UnitError as error:
            raise UnitError(f"{error} Or give a mask of all units, 'all' or None.") from error
        return [self.check_unit(number) for number in numbers]

    def check_unit(self, unit: Any) -> int:
        """Return a unit's number as an int, or refuse what is no unit of the layer."""
        if not is_whole(unit) or not 0 <= int(unit) < self.units:
            what = f"unit {unit!r} is out of range" if is_whole(unit) else f"unit={unit!r} is no whole number"
            raise UnitError(f"{what}: layer {self.name!r} has units 0 to {self.units - 1}.")
        return int(unit)

    def spread(self, amounts: Tensor, units: Tensor, positions: Tensor, shape: torch.Size) -> Tensor:
        """Return tensors like the recorded one, zero but for one unit at one position each."""
        full = amounts.new_zeros(len(amounts), *shape[1:])
        place = torch.arange(shape[1:].numel()).view(1, *shape[1:])  # of each element in a response
        chosen = self.as_maps(place)[0, units, positions[:, 0], positions[:, 1]]
        index = sent(torch.stack([torch.arange(len(amounts)), chosen]), full.device)
        full.flatten(1)[tuple(index)] = amounts
        return full


def maker_of(tape: Tape, value: int) -> str:
    """Return which operation made a value, as errors name it."""
    for op in reversed(tape.ops):
        if value in op.outputs:
            return op.where
    return "the input"


def images_of(tape: Tape) -> Layer:
    """Return the images themselves as a layer, whose units are their channels."""
    units, height, width = tape.shapes[0][1:]
    reach = Reach(Span.of_input(height), Span.of_input(width), (2, 3))
    return Layer(
        "images", None, "images", units, height, width, (1, 1), (1, 1), ("images",), 0, reach, maker_of(tape, 0)
    )


@dataclass(frozen=True)
class LayerTable:
    """The layers of a model in the order of execution; prints as a table, iterates over its rows."""

    rows: tuple[Layer, ...]
    input_size: tuple[int, int, int]

    def __iter__(self) -> Iterator[Layer]:
        """Go through the rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.rows)

    def __getitem__(self, layer: int | str) -> Layer:
        """Pick a layer by number or name."""
        return find(self.rows, layer)

    @property
    def numbered(self) -> tuple[Layer, ...]:
        """The layers that have a number, in its order."""
        return tuple(sorted((r for r in self.rows if r.number is not None), key=lambda r: r.number or 0))

    def lines(self) -> list[tuple[str, ...]]:
        """Return each row as text, one for each of `HEADINGS`."""
        return [
            (
                "" if r.number is None else str(r.number),
                r.name,
                r.kind,
                str(r.units or "?"),
                f"{r.height}×{r.width}" if r.units else "?",
                f"{r.receptive_field[0]}×{r.receptive_field[1]}",
                "" if r.stride is None else f"{r.stride[0]}×{r.stride[1]}",
                str(r.switches),
                f"{r.parameters:,}" if r.parameters else "",
                f"{r.macs:,}" if r.macs else "",
            )
            for r in self.rows
        ]

    def __str__(self) -> str:
        """Lay the table out as text."""
        return as_text(HEADINGS, self.lines())

    def _repr_html_(self) -> str:
        return as_html(HEADINGS, self.lines())


HEADINGS = (
    *("number", "name", "kind", "units", "map", "receptive field", "stride", "max-pools below"),
    *("parameters", "multiply-adds"),
)


Layers = int | str | Sequence[int | str]  # what `layers=` takes: one, or several, each by number or name


def one_by_one(wanted: Layers) -> list[int | str]:
    """Return one layer or several as a list of numbers and names."""
    one: Any = wanted  # a tensor with one number is iterable, too
    several = isinstance(one, Iterable) and not isinstance(one, str) and not is_whole(one)
    return list(one) if several else [one]


def find_all(rows: Sequence[Layer], wanted: Layers) -> list[Layer]:
    """Pick one layer or several, each by number or name; each has the name that it was asked for by."""
    return [_as_called(find(rows, layer), layer) for layer in one_by_one(wanted)]


def _as_called(layer: Layer, wanted: int | str) -> Layer:
    # Results are looked through with the name that the user has in hand.
    other = isinstance(wanted, str) and wanted != layer.name and wanted in layer.aliases
    return replace(layer, name=str(wanted)) if other else layer


def find(rows: Sequence[Layer], wanted: int | str) -> Layer:
    """Pick a layer by number or name, or raise a LayerError that lists the right ones."""
    if isinstance(wanted, Layer):
        return wanted
    if is_whole(wanted):
        wanted = int(wanted)
        match = [r for r in rows if r.number == wanted]
        if match:
            return match[0]
        numbered = LayerTable(tuple(rows), (0, 0, 0)).numbered
        listing = ", ".join(f"{r.number} ({r.name})" for r in numbered) or "none"
        raise LayerError(
            f"there is no layer {wanted}; this model's numbered layers are {listing}. "
            "Other layers go by module path; deconvviz.layers(model) lists them."
        )
    if not isinstance(wanted, str):
        raise LayerError(f"layer must be a number or a module path, got {wanted!r}.")
    match = [r for r in rows if wanted in r.aliases]
    if match:
        return _told(match[0])
    calls = [name for r in rows for name in r.aliases if re.fullmatch(re.escape(wanted) + r"#\d+", name)]
    if calls:
        raise LayerError(f"{wanted!r} runs {len(calls)} times; say which: {', '.join(calls)}.")
    parts = [name for r in rows for name in r.aliases if name.startswith(f"{wanted}[")]
    if parts:
        raise LayerError(f"{wanted!r} returns {len(parts)} tensors; say which: {', '.join(parts)}.")
    if wanted.startswith("module."):  # a name in a DataParallel or DistributedDataParallel wrapper
        return find(rows, wanted.removeprefix("module."))
    raise LayerError(
        f"there is no layer {wanted!r} whose result is a tensor; the layers are {', '.join(r.name for r in rows)}. "
        "One that is missing did not run, or stands behind .numpy() or another library, which cannot be followed."
    )


def _told(layer: Layer) -> Layer:
    if layer.units == 0:
        raise LayerError(
            f"which dimension of layer {layer.name!r} holds its channels can't be told: {layer.kind} mixes positions. "
            "Choose a layer whose units deconvviz.layers(model) lists, such as the block that holds it."
        )
    return layer
