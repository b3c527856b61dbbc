"""First-layer filters as a picture and as numbers, one network or several side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..calls import Call, called
from ..errors import LayerError, ModelError, OptionError
from ..guard import check_weights, placement, untouched
from ..images import Images
from ..images.preprocess import input_size
from ..results.base import Result
from ..results.text import amount, as_text, skipped_lines
from ..rules.kinds import BEFORE_THE_FIRST_CONV
from ..rules.table import kind_of
from ..tape.arguments import bound
from ..tape.operations import Op, Tape
from ..tape.record import record
from . import spectrum as _spectrum

_ORIENTATIONS, _OCTAVES = 6, 2  # bins of the coverage


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Filters(Result):
    """A network's F first-layer filters and what is wrong with them.

    Attributes:
        name: the convolution's module path.
        weights: (F, C, h, w).
        stride: (vertical, horizontal).
        rms: (F,) root mean square of each filter, the quantity that the paper's training limits to 0.1.
        dead: (F,) bool: RMS below a tenth of the RMS that 90 % of the filters do not exceed; on a common scale such
            a filter is plain gray. The reference is not the median, which dead filters themselves pull down.
        dominant: (F,) bool: RMS above three times the median of the filters that are not dead; "a few of them
            dominate" (paper, section 3.1), and the common scale fades the others.
        likeness: (F, F) largest absolute cosine over all shifts; the same filter inverted or shifted gives the next
            layer little new.
        duplicates: (P, 2) pairs a < b, neither dead, with likeness of at least 0.9.
        colour: (F,) share of a filter's energy that is not common to its channels: 0 gray, 1 pure opponent colours.
        frequency: (F,) cycles per pixel where the spectrum is largest, 0 for a blob. The peak, not the mean: a small
            window smears a blob's spectrum over the middle frequencies, but its peak stays where it is.
        orientation: (F,) degrees below 180, the direction of change: 0 for vertical stripes, counterclockwise;
            means nothing where the frequency is 0.
        band: the middle frequencies: from 1 / size of the filter (below, no whole period fits in) to 3/8 cycle per
            pixel (above, a period is hardly longer than two pixels), unless others were given.
        folded: (F,) share of the power of a filter's response to natural images (whose power falls as 1/f²) beyond
            1 / (2 · stride) vertically or horizontally: sampled with this stride it turns up at wrong frequencies,
            and layer 2 cannot tell. Two filters with one stride differ by what they let through.
        aliasing_units: (A,) the units of layer 2 whose projections were looked at; none without images.
        aliasing: (A,) the share of the energy of a layer-2 unit's projections at those same frequencies. What
            layer 2 wants to see there is either folded already or the grid of the stride: the pattern in the paper's
            Fig. 6 (d). All of a unit's projections together, their means left out.
        skipped: (image id, reason) of the images that could not be read, with `on_error="skip"`.
    """

    name: str
    weights: Tensor
    stride: tuple[int, int]
    rms: Tensor
    dead: Tensor
    dominant: Tensor
    likeness: Tensor
    duplicates: Tensor
    colour: Tensor
    frequency: Tensor
    orientation: Tensor
    band: tuple[float, float]
    folded: Tensor
    aliasing_units: Tensor
    aliasing: Tensor
    skipped: tuple[tuple[int, str], ...] = ()
    drawn_by = "filters"

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of the living filters below, within and above the middle frequencies."""
        alive = self.frequency[~self.dead]
        low, high = (alive < self.band[0]).double().mean(), (alive > self.band[1]).double().mean()
        return float(low), float(1 - low - high), float(high)

    @property
    def coverage(self) -> float:
        """How much of the middle frequencies is covered: the share of 2 × 6 bins that hold a living filter's peak.

        The bins halve `band` on a logarithmic scale and divide the orientations into sixths, centred on 0°, 30°, ….
        """
        low, high = self.band
        inside = ~self.dead & (self.frequency >= low) & (self.frequency <= high)
        place = (self.frequency[inside] / low).log() / torch.tensor(high / low).log()
        row = (place * _OCTAVES).long().clamp(0, _OCTAVES - 1)
        col = (self.orientation[inside] * _ORIENTATIONS / 180).round().long() % _ORIENTATIONS
        return len((row * _ORIENTATIONS + col).unique()) / (_ORIENTATIONS * _OCTAVES)

    def summary(self) -> dict[str, float]:
        """Return the figures that networks are compared by, by name; `aliasing` is NaN without images."""
        count, alive = len(self.rms), ~self.dead
        low, middle, high = self.shares
        twins = len(self.duplicates.unique())
        return {
            "filters": float(count),
            "median RMS": float(self.rms.median()),
            "dead": float(self.dead.double().mean()),
            "dominant": float(self.dominant.double().mean()),
            "with a duplicate": twins / count,
            "share of colour": float(self.colour[alive].mean()),
            "low frequencies": low,
            "middle frequencies": middle,
            "high frequencies": high,
            "coverage of the middle": self.coverage,
            "folded by the stride": float(self.folded[alive].mean()),
            "aliasing in layer 2": float(self.aliasing.mean()) if len(self.aliasing) else float("nan"),
        }

    def plot(
        self,
        figure: Any = None,
        *,
        scale: str = "all",
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw the filters by falling RMS and their figures; see `deconvviz.plotting.filters.draw` and `Result.plot`."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw", figure, scale=scale, **look)

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each filter."""
        names = ("rms", "dead", "dominant", "colour", "frequency", "orientation", "folded")
        return {"filter": torch.arange(len(self.rms)), **{name: getattr(self, name) for name in names}}

    def describe(self) -> str:
        """Say of which layer, how many and how large."""
        (height, width), (down, right) = self.weights.shape[2:], self.stride
        return f"{self.name}: {amount(len(self.rms), 'filter')}, {height}×{width} px, stride {down}×{right}"

    def table(self) -> str:
        """Return the figures of `summary`, one a line."""
        lines = [f"{name}: {value:.4g}" for name, value in self.summary().items()]
        return "\n".join([*lines, *skipped_lines(self.skipped)])


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FilterComparison(Result):
    """The first-layer filters of several networks.

    Attributes:
        names: what the networks are called.
        filters: one `Filters` each.
    """

    names: tuple[str, ...]
    filters: tuple[Filters, ...]
    holds = (Filters,)
    drawn_by = "filters"

    def __getitem__(self, name: str) -> Filters:
        """Return the filters of one network."""
        if name not in self.names:
            raise OptionError(f"no network {name!r} in this comparison, it has {', '.join(self.names)}.")
        return self.filters[self.names.index(name)]

    def summary(self) -> dict[str, dict[str, float]]:
        """Return each network's figures, see `Filters.summary`."""
        return {name: one.summary() for name, one in zip(self.names, self.filters, strict=True)}

    def plot(
        self,
        figure: Any = None,
        *,
        scale: str = "all",
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw the filters by falling RMS and their figures; see `deconvviz.plotting.filters.draw` and `Result.plot`."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw", figure, scale=scale, **look)

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each filter of each network."""
        parts = [one.columns() for one in self.filters]
        of = [name for name, one in zip(self.names, self.filters, strict=True) for _ in one.rms]
        return {"network": of, **{name: torch.cat([part[name] for part in parts]) for name in parts[0]}}

    def describe(self) -> str:
        """Say of which networks."""
        return f"{amount(len(self.names), 'network')}: {', '.join(self.names)}"

    def table(self) -> str:
        """Return the figures as a table, a column per network."""
        columns = self.summary()
        keys = columns[self.names[0]]
        return as_text(["", *self.names], [[key, *(f"{columns[n][key]:.4g}" for n in self.names)] for key in keys])


def filters(
    model: nn.Module,
    images: Images = None,
    *,
    aliasing: bool | None = None,
    units: Any = None,
    band: tuple[float, float] | None = None,
    preprocess: object = None,
    call: Call | None = None,
    on_error: str = "raise",
    progress: bool = True,
) -> Filters:
    """Look at a network's first-layer filters: which are dead, dominant, duplicates, extreme or aliased.

    Example:
        >>> import deconvviz
        >>> result = deconvviz.filters(deconvviz.zoo.create("zfnet64"))
        >>> result.weights.shape, result.rms.shape, sorted(result.summary())[:2]
        (torch.Size([64, 3, 7, 7]), torch.Size([64]), ['aliasing in layer 2', 'coverage of the middle'])

    The first layer is the convolution that reads the images. Everything but the aliasing score of layer 2 comes
    from the weights alone; that one projects the top 9 activations of some units of layer 2, which takes a scan
    over the images.

    Args:
        model: The network; left as it was found.
        images: For the aliasing score, see `project`.
        aliasing: Compute that score; None: if images are given. True without images takes the sample photos.
        units: Units of layer 2 for it: a list, "all", or None: 16 spread evenly.
        band: (lowest, highest) middle frequency in cycles per pixel, to hold networks with filters of different
            sizes against the same limits; None: see `Filters.band`.
        preprocess: See `project`.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        on_error: "raise" at an image that cannot be read, or "skip" it; the result lists it.
        progress: Show a bar.

    Returns:
        A `Filters`, whose attributes define and give reasons for each score; `summary()` and `coverage`.

    Raises:
        LayerError: No convolution reads the images, or there is no layer 2 to project.
        ModelError: Weights that are not finite.
        OptionError: A `band` that is none.

    Source: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", section 4.1 and Fig. 6.
    """
    model = called(model, call)
    name, weights, stride = _first(model)
    band = band or _spectrum.usual_band(max(weights.shape[2:]))
    if not 0 < band[0] <= band[1] <= 1:
        raise OptionError(f"band={band}: expected (lowest, highest) in cycles per pixel, above 0, at most 1.")
    looked_at: dict[str, Any] = {"aliasing_units": torch.zeros(0, dtype=torch.int64)}
    looked_at["aliasing"] = torch.zeros(0, dtype=torch.float64)
    if aliasing or (aliasing is None and images is not None):
        options = {"units": units, "preprocess": preprocess, "on_error": on_error, "progress": progress}
        looked_at = _aliasing(model, images, stride, options)
    return Filters(name, weights, stride, **_spectrum.scores(weights, stride, band), **looked_at)


def compare_filters(models: Mapping[str, nn.Module], images: Images = None, **options: Any) -> FilterComparison:
    """Put the first-layer filters of several networks side by side, as pictures and as numbers.

    Example:
        >>> import deconvviz
        >>> networks = {name: deconvviz.zoo.create(name) for name in ("alexnet64", "zfnet64")}
        >>> print(deconvviz.compare_filters(networks).table())  # doctest: +SKIP

    Args:
        models: Name to network.
        images: For the aliasing score, the same for all, see `filters`.
        options: See `filters`; `band` is by default that of the smallest filters, the same for all networks; `call` may
            be a mapping from the names to each network's own.

    Returns:
        A `FilterComparison`: `names`, `filters`, `summary()` and `table()`.

    Raises:
        OptionError: No networks. For the rest see `filters`.

    Source: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", section 4.1 and Fig. 6 (b)–(e).
    """
    if not isinstance(models, Mapping) or not models:
        raise OptionError(f"models is {models!r:.60}, expected a dict of names and networks.")
    call = options.pop("call", None)
    calls = call if isinstance(call, Mapping) else dict.fromkeys(models, call)
    networks = {name: called(model, calls.get(name)) for name, model in models.items()}
    smallest = min(max(_first(model)[1].shape[2:]) for model in networks.values())
    options = {**options, "band": options.get("band") or _spectrum.usual_band(smallest)}
    found = tuple(filters(model, images, **options) for model in networks.values())
    return FilterComparison(tuple(map(str, networks)), found)


def _first(model: nn.Module) -> tuple[str, Tensor, tuple[int, int]]:
    """Return module path, filters on the CPU and stride of the convolution that reads the images."""
    device, dtype = placement(model)
    with untouched(model) as network:
        check_weights(network)
        tape = record(network, torch.zeros(1, *input_size(model), device=device, dtype=dtype))
    reading = [op for op in tape.ops if op.short == "conv2d" and _reads_images(op, tape)]
    if not reading:
        raise LayerError("no 2-D convolution of this model reads the images, so it has no first-layer filters.")
    if len(reading) > 1:
        raise ModelError(f"{len(reading)} convolutions read the images ({', '.join(op.where for op in reading)}).")
    found = bound(reading[0])
    return reading[0].module, found["weight"].detach().cpu().clone(), found["stride"]


def _reads_images(op: Op, tape: Tape) -> bool:
    """Say whether nothing but views, constants and normalization lies between the images and `op`."""
    made, value = tape.producer(), op.inputs[0]
    while value != 0:
        maker = made[value]
        if kind_of(maker) not in BEFORE_THE_FIRST_CONV:
            return False
        value = maker.inputs[0]
    return True


def _aliasing(model: nn.Module, images: Images, stride: tuple[int, int], options: dict[str, Any]) -> dict[str, Any]:
    from ..projection.project import project

    result = project(model, images, layer=2, **options)
    powers = [_spectrum.folded(unit, stride) for unit in result.projections]  # of K projections each
    beyond, whole = (torch.stack([x.sum() for x in part]) for part in zip(*powers, strict=True))
    shares = _spectrum.ratio(beyond, whole)
    return {"aliasing_units": result.units, "aliasing": shares, "skipped": result.skipped}
