"""What a residual block adds: how strong its branch is beside what it is added to."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .. import ranks
from ..calls import Call, called
from ..errors import LayerError
from ..images import Images, open_images
from ..model.table import Layer, maker_of
from ..results.base import Result
from ..results.text import amount, skipped_lines
from ..rules.kinds import WEIGHTED, Kind
from ..rules.table import kind_of
from ..scan.engine import Scan, first_pass
from ..scan.state import Progress
from ..tape.operations import Op, Tape
from .responses import Moments, Responses


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ResidualShares(Result):
    """The strength of both sides of L additions x + F(x), over images, positions and units.

    Attributes:
        names: the sums' module paths, in the order of execution.
        shortcut: (L,) float64, the standard deviation of x, as it is added.
        branch: (L,) float64, that of F(x).
        total: (L,) float64, that of the sum.
        identity: of each whether x is what F is made of, unchanged.
        count: how many images were seen.
        skipped: (image id, reason) of the images that could not be read, with `on_error="skip"`.
    """

    names: tuple[str, ...]
    shortcut: Tensor
    branch: Tensor
    total: Tensor
    identity: tuple[bool, ...]
    count: int
    skipped: tuple[tuple[int, str], ...] = ()
    drawn_by = "residuals"

    @property
    def share(self) -> Tensor:
        """(L,) float64: the branch's standard deviation over the shortcut's."""
        return self.branch / self.shortcut

    def plot(
        self,
        figure: Any = None,
        *,
        name: str = "this network",
        others: Mapping[str, ResidualShares] | None = None,
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw both sides and their ratio over the depth; see `deconvviz.plotting.residuals.draw`, `Result.plot`."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw", figure, name=name, others=others, **look)

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each addition."""
        strengths = {"shortcut": self.shortcut, "branch": self.branch, "total": self.total, "share": self.share}
        return {"addition": list(self.names), **strengths, "identity": list(self.identity)}

    def describe(self) -> str:
        """Say how many additions and images."""
        return f"{amount(len(self.names), 'addition')}: {amount(self.count, 'image')}"

    def table(self) -> str:
        """Return one line per addition."""
        rows = zip(self.names, self.branch.tolist(), self.shortcut.tolist(), self.share.tolist(), strict=True)
        lines = [f"{name}: F {f:.4g}, x {x:.4g}, F / x {share:.3f}" for name, f, x, share in rows]
        head = f"standard deviations over {self.count} images"
        return "\n".join([head, *lines, *skipped_lines(self.skipped)])


@ranks.together
def residual_share(
    model: nn.Module,
    images: Images = None,
    *,
    batch_size: int | None = None,
    preprocess: object = None,
    call: Call | None = None,
    workers: int = 0,
    out: str | os.PathLike[str] | None = None,
    on_error: str = "raise",
    progress: bool = True,
) -> ResidualShares:
    """Measure what each residual block adds: the standard deviation of F beside that of x, at every x + F(x).

    Example:
        >>> import deconvviz, torch
        >>> model = deconvviz.zoo.create("preresnet-20")
        >>> result = deconvviz.residual_share(model, torch.randn(4, 3, 32, 32), progress=False)
        >>> len(result.names), result.share.shape, result.identity[:3]
        (9, torch.Size([9]), (True, True, True))

    An addition counts where both sides come from one value and one of them, the branch, does so through more
    convolutions and matrices; the other one is the shortcut. Deeper ResNets' blocks change the signal less each (He et
    al., Fig. 7). In pre-activation networks, where nothing follows the sum, identity shortcuts make x_L = x_l + ΣF:
    a sum is any earlier one plus all branches between, and its gradient reaches that one unchanged beside theirs.

    Args:
        model: The network; left as it was found.
        images: (N, C, H, W) in the model's input space, pictures, a folder, a dataset, or None: the sample photos.
        batch_size: Images per forward pass; None: what a `DataLoader` says, else 64, or fewer where a CPU is faster so.
        preprocess: See `project`.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        workers: Processes that decode files.
        out: Path of a file that keeps the pass while it runs, to go on from after a stop, and at the end its result.
        on_error: "raise" at an image that cannot be read, or "skip" it; the result lists it.
        progress: Show a bar.

    Returns:
        A `ResidualShares`: `names`, `shortcut`, `branch`, `total`, `share` (L,), `identity`, `count`.

    Raises:
        LayerError: The network has no such addition.
        ImageError, ModelError: Unfit images; weights or responses that are not finite.

    Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, section 2; "Deep Residual Learning for
        Image Recognition", CVPR 2016, section 4.2 and Fig. 7.
    """
    model = called(model, call)
    opened = open_images(model, images, preprocess)
    tape, rows = first_pass(model, opened, on_error)
    sums = _additions(tape, rows)
    if not sums:
        raise LayerError("this model has no residual additions: no sum of a value and of what convolutions make of it.")
    layers = tuple(layer for one in sums for layer in one[:3])
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "on_error": on_error, "progress": progress}
    names = tuple(layer.name for layer in layers)
    scan = Scan(model, opened, [Moments(names, layers)], tape, name="residual_share", **options)

    def finish(progress: Progress) -> ResidualShares:
        found: Responses = progress.accumulators[0].result()
        shortcut, branch, total = found.std.unflatten(0, (-1, 3)).unbind(1)
        known = tuple(one[2].name for one in sums), shortcut, branch, total, tuple(one[3] for one in sums)
        return ResidualShares(*known, found.count, tuple(sorted(progress.skipped.items())))

    return scan.run(finish, ResidualShares, out)


_Addition = tuple[Layer, Layer, Layer, bool]


def _additions(tape: Tape, rows: Sequence[Layer]) -> list[_Addition]:
    """Return (shortcut, branch, sum, whether the shortcut is an identity) for each residual addition."""
    by_value = {row.value: row for row in rows}
    found = []
    for op in tape.ops:
        if kind_of(op) is not Kind.SUM or len(op.inputs) != 2 or op.inputs[0] == op.inputs[1]:
            continue
        value = op.outputs[0]
        row = by_value.get(value)
        if row is None or any(tape.shapes[v] != tape.shapes[value] for v in op.inputs):
            continue
        sides = _sides(tape, *op.inputs)
        if sides is None:
            continue
        shortcut, branch, identity = sides
        made = [dataclasses.replace(row, value=v, maker=maker_of(tape, v)) for v in (shortcut, branch)]
        found.append((made[0], made[1], row, identity))
    return found


def _sides(tape: Tape, a: int, b: int) -> tuple[int, int, bool] | None:
    """Tell shortcut and branch apart, both made of the last value that both depend on; None where there are none."""
    ways = [tape.needed_for([value]) for value in (a, b)]
    sources = [{value, *(v for op in way for v in op.inputs)} for value, way in zip((a, b), ways, strict=True)]
    shared = sources[0] & sources[1]
    if not shared:
        return None
    start = max(shared)
    weights = [sum(kind_of(op) in WEIGHTED for op in _after(way, start)) for way in ways]
    if weights[0] == weights[1]:
        return None
    shortcut, branch = (a, b) if weights[0] < weights[1] else (b, a)
    return shortcut, branch, shortcut == start


def _after(way: Sequence[Op], start: int) -> list[Op]:
    """Return those operations of a way, in order, that depend on a value."""
    reached, found = {start}, []
    for op in way:
        if reached.intersection(op.inputs):
            reached.update(op.outputs)
            found.append(op)
    return found
