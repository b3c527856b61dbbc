"""A classifier as a network of convolutions alone: one answer for each place of an image of any size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name

from ..errors import ModelError, OptionError
from ..guard import check_weights, placement, untouched, unwrapped
from ..images import open_images
from ..images.preprocess import input_size as find_input_size
from ..images.preprocess import preprocess_for
from ..results.base import Result
from ..rules.table import Saving, reach_all
from ..tape.arguments import bound
from ..tape.operations import Op, Slot, short_name
from ..tape.receptive_field import Reach
from ..tape.record import record
from .output import class_names, find_class

Size = tuple[int, int]


@dataclasses.dataclass
class _Plan:
    """What the calls that depend on the size of a map do at the classifier's own size, in the order of the calls."""

    means: list[tuple[Size, Size]] = dataclasses.field(default_factory=list)  # size of the map, and of the result
    matrices: list[Size] = dataclasses.field(default_factory=list)  # size of the map that is multiplied
    pools: list[Size] = dataclasses.field(default_factory=list)  # strides of the max-pools
    before_head: int = 0  # how many max-pools come before the first mean or matrix


class Convolutional(nn.Module):
    """A classifier of images of one size, as convolutions: a larger image has an answer for each window in it.

    Made by `convolutional`; maps (N, C, H, W) to (N, classes, rows, columns).

    Attributes:
        network: the classifier itself, whose weights these are.
        window: (height, width) of the images that it was made for: what one answer sees.
        stride: (vertical, horizontal) pixels between the windows of neighbouring answers.
        fine: whether the last max-pool is taken at every offset.
        pooled: whether a last mean over the whole map is taken.
    """

    stride: Size

    def __init__(self, network: nn.Module, window: Size, fine: bool, pooled: bool) -> None:
        super().__init__()
        self.network, self.window, self.fine, self.pooled = network, window, fine, pooled
        self._plan = _Plan()
        if hasattr(network, "card"):
            self.card = network.card

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, classes, rows, columns); [n, :, 0, 0] is the answer for the top left window."""
        if x.shape[-2] < self.window[0] or x.shape[-1] < self.window[1]:
            raise ModelError(
                f"an image of {x.shape[-2]}×{x.shape[-1]} pixels holds no window of {self.window[0]}×{self.window[1]}."
            )
        with _Sliding(self._plan, self.fine, self.pooled):
            return self.network(x)

    def learn(self, image: Tensor) -> None:
        """Find out, with an image (1, C, H, W) of the classifier's size, what the calls do, and check the answer.

        Raises:
            ModelError: Some call cannot slide, or the answer is another one.
        """
        with untouched(self) as dense:
            assert isinstance(dense, Convolutional)
            image = image.clone()  # outside of an inference mode that the caller may be in
            usual = dense.network(image.clone())
            if not isinstance(usual, Tensor) or usual.dim() != 2:
                shape = tuple(usual.shape) if isinstance(usual, Tensor) else type(usual).__name__
                raise ModelError(f"the model's output for one image is {shape}, expected (1, classes).")
            with _Sliding(self._plan, False, True, learning=True):
                found = dense.network(image.clone())
            self._check(found, usual)
            if self.fine and not self._plan.before_head:
                raise OptionError("fine=True: this model has no max-pool with a stride before its classes.")
            if not self.pooled and not any(after == (1, 1) for _, after in self._plan.means):
                raise OptionError("pooled=False: this model takes no mean over a whole map before its classes.")
            tape = record(dense, image, saver=Saving())
            if tape.output is None:
                raise ModelError("the model's output cannot be followed back to the image.")
            reach = reach_all(tape)[tape.output]
            self.stride = reach.rows.stride, reach.cols.stride
            if self.pooled:
                self._check(dense(image.clone())[..., :1, :1], usual)
            else:
                self._check(dense(image.clone()).mean((2, 3), keepdim=True), usual)

    @staticmethod
    def _check(found: Any, usual: Tensor) -> None:
        if not isinstance(found, Tensor) or found.shape != (*usual.shape, 1, 1):
            raise ModelError(
                "the model's classes are not made of maps by means and matrices: it cannot be made of convolutions."
            )
        if usual.device.type == "meta":  # shapes are all there is
            return
        bound = 1e4 * torch.finfo(usual.dtype).eps * float(usual.abs().max().clamp_min(1e-30))
        if float((found[..., 0, 0] - usual).abs().max()) <= bound:
            return
        raise ModelError("the model as convolutions answers otherwise than as it is: something in it cannot slide.")

    def reach(self, image: Tensor) -> Reach:
        """Return what each answer for an image (1, C, H, W) sees of it."""
        with untouched(self) as dense:
            tape = record(dense, image, saver=Saving())
            assert tape.output is not None
            return reach_all(tape)[tape.output]

    def look(
        self, image: Any, *, target: int | str | None = None, side: int | None = None, preprocess: Any = None
    ) -> ClassMap:
        """Return the map of answers for one image.

        Example:
            >>> import deconvviz, torch
            >>> model = deconvviz.zoo.create("squeezenet-1.1", weights="bundled")
            >>> found = deconvviz.convolutional(model, pooled=False).look(torch.randn(3, 227, 227), target=254)
            >>> found.scores.shape, found.probability.shape
            (torch.Size([1000, 14, 14]), torch.Size([14, 14]))

        Args:
            image: A PIL image, a file, or a tensor (C, H, W) or (1, C, H, W) in the model's input space.
            target: A class, by number or name; None: the most probable one of the mean answer.
            side: Bring a picture's shorter side to so many pixels and look at all of it; None: what the model's
                preprocessing cuts out of it.
            preprocess: How a picture becomes the model's input, where the model does not say.

        Raises:
            OptionError, ImageError, ModelError: As their names say.
        """
        given = image.detach()[None] if isinstance(image, Tensor) and image.dim() == 3 else image
        how: Any = preprocess
        if side is not None:
            if isinstance(given, Tensor):
                raise OptionError("side= resizes pictures; a tensor is taken as it is. Leave it out.")
            known = preprocess_for(self.network, preprocess)
            if known.transform is not None:
                raise OptionError("side= needs a preprocessing that is known; this one is a function of yours.")
            how = dataclasses.replace(known, size=None, resize=side)
        opened = open_images(self.network, given, how)
        taken = opened.take([0])
        device, dtype = placement(self)
        seen = taken.to(device, dtype)
        with untouched(self) as dense:
            check_weights(dense)
            scores = dense(seen.clone())[0]
        reach = self.reach(seen)
        centres = [
            torch.tensor([span.stride * p + span.offset + span.size / 2 for p in range(count)], dtype=torch.float64)
            for span, count in ((reach.rows, scores.shape[1]), (reach.cols, scores.shape[2]))
        ]
        names = class_names(self.network, preprocess, None, len(scores))
        best = int(scores.mean((1, 2)).argmax()) if target is None else find_class(target, names, len(scores))
        return ClassMap(opened.invert(taken)[0], scores.cpu(), centres[0], centres[1], self.stride, best, names)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ClassMap(Result):
    """A classifier's answers at the places of one image.

    Attributes:
        picture: (3, H, W) pixels from 0 to 1, as the network sees the image.
        scores: (classes, rows, columns), the answers before a softmax.
        rows: (rows,) float64, pixels from the top to the middle of what an answer sees.
        cols: (columns,) float64, the same from the left.
        stride: pixels between neighbours.
        target: the class that is drawn.
        class_names: one per class, or None.
    """

    picture: Tensor
    scores: Tensor
    rows: Tensor
    cols: Tensor
    stride: tuple[int, int]
    target: int
    class_names: tuple[str, ...] | None = None
    drawn_by = "dense"

    @property
    def score(self) -> Tensor:
        """The target's score at each place, (rows, columns); without a last mean, their mean is the answer's."""
        return self.scores[self.target]

    @property
    def probability(self) -> Tensor:
        """The target's probability at each place by a softmax there, (rows, columns) float64."""
        return self.scores.double().softmax(0)[self.target]

    @property
    def name(self) -> str:
        """The target's name, or its number where names are not known."""
        return f"class {self.target}" if self.class_names is None else self.class_names[self.target]

    def plot(
        self,
        figure: Any = None,
        *,
        what: str = "score",
        occlusion: Any = None,
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw the image and the map, beside an `Occlusion` of it; see `deconvviz.plotting.dense.draw`, `Result.plot`."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw", figure, what=what, occlusion=occlusion, **look)

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each place; `y` and `x` are pixels, scores those of the target."""
        row, col = torch.meshgrid(torch.arange(len(self.rows)), torch.arange(len(self.cols)), indexing="ij")
        found: dict[str, Any] = {"row": row.flatten(), "column": col.flatten()}
        found |= {"y": self.rows[found["row"]], "x": self.cols[found["column"]]}
        return found | {"score": self.score.flatten(), "probability": self.probability.flatten()}

    def describe(self) -> str:
        """Say of which class, and how large the map is."""
        return f"{self.name}: {self.scores.shape[1]}×{self.scores.shape[2]} places, {self.stride[0]} px apart"

    def table(self) -> str:
        """Return where the target is most probable, and how probable it is in the mean."""
        chance = self.probability
        row, col = divmod(int(chance.argmax()), chance.shape[1])
        place = f"at row {row}, column {col} (pixel {self.rows[row]:.0f}, {self.cols[col]:.0f})"
        mean = float(self.scores.double().mean((1, 2)).softmax(0)[self.target])
        return (
            f"{self.describe()}\nmost probable, {float(chance.max()):.4f}, {place}; by the mean of the map {mean:.4f}"
        )


def convolutional(
    model: nn.Module, *, fine: bool = False, pooled: bool = True, input_size: int | tuple[int, ...] | None = None
) -> Convolutional:
    """Make a classifier answer at every place of an image of any size, its matrices as convolutions.

    Example:
        >>> import deconvviz, torch
        >>> dense = deconvviz.convolutional(deconvviz.zoo.create("alexnet64"))
        >>> dense(torch.zeros(1, 3, 96, 128)).shape, dense.stride
        (torch.Size([1, 200, 2, 3]), (32, 32))

    A matrix that reads a flattened map is a convolution with the map's size, a mean over the whole map one over
    windows of that size; each later matrix is a 1×1 convolution. Each answer is the one for the window alone, up to
    rounding, where no padding lies within the image; with padding, windows see what lies beside them in its place.

    Args:
        model: The classifier, (N, C, H, W) to (N, classes). Its own weights are used, not copies; it is left as it is.
        fine: Take the last max-pool at every offset instead of at its stride: that many times more answers, each
            the one for a window that starts there.
        pooled: False leaves out a last mean over the whole map, so that there is an answer for each position of that
            map: a class map, whose mean is the classifier's answer.
        input_size: Side, (height, width) or (channels, height, width) of the images that the classifier takes; None: its
            own.

    Returns:
        A `Convolutional`, a module like any other: (N, C, H, W) to (N, classes, rows, columns). Its `look(image)` is a
        map that can be drawn.

    Raises:
        ModelError: The classes are not made of maps by means and matrices, as in a network of attentions.
        OptionError: `fine` without a max-pool, or `pooled=False` without a mean.

    Source: Sermanet et al., "OverFeat", ICLR 2014, sections 3.3 and 3.5; Simonyan & Zisserman 2015, section 3.2.
    """
    size = find_input_size(model, input_size)
    device, dtype = placement(model)
    network = unwrapped(model)
    dense = Convolutional(network, (size[1], size[2]), fine, pooled)
    dense.training = network.training
    # Not blank: a blank image could hide that something answers otherwise.
    noise = torch.rand(1, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    dense.learn(torch.empty(1, *size, device="meta", dtype=dtype) if device.type == "meta" else noise.to(device, dtype))
    return dense


class _Sliding(TorchFunctionMode):
    """Makes the calls that depend on a map's size slide over a larger one; everything else runs as it is."""

    def __init__(self, plan: _Plan, fine: bool, pooled: bool, *, learning: bool = False) -> None:
        super().__init__()
        self._plan, self._fine, self._pooled, self._learning = plan, fine, pooled, learning
        self._means = self._matrices = self._pools = 0
        self._apart = (1, 1)  # positions between those of one offset, once a pool was taken at every one

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = resolve_name(func) or getattr(func, "__name__", "")
        x = args[0] if args else kwargs.get("input")
        slide = self._of(short_name(name)) if isinstance(x, Tensor) and x.dim() == 4 else None
        if slide is not None and isinstance(x, Tensor):
            more = args[1:] if args else args
            op = Op(name, func, "", (Slot(0), *more), {k: v for k, v in kwargs.items() if k != "input"}, (0,))
            found = slide(x, op)
            if found is not None:
                return found
        return func(*args, **kwargs)

    def _of(self, short: str) -> Callable[[Tensor, Op], Tensor | None] | None:
        return {
            "flatten": self._flatten,
            "view": self._flatten,
            "reshape": self._flatten,
            "squeeze": self._flatten,
            "linear": self._matrix,
            "adaptive_avg_pool2d": self._mean,
            "mean": self._mean,
            "max_pool2d": self._pool,
            "conv2d": self._convolution,
            "avg_pool2d": self._refused,
            "pad": self._refused,
            "softmax": self._softmax,
            "log_softmax": self._softmax,
        }.get(short)

    def _flatten(self, x: Tensor, op: Op) -> Tensor | None:
        given = list(op.args[1:])
        if op.short == "squeeze":
            return x
        if op.short == "flatten":
            start = op.kwargs.get("start_dim", given[0] if given else 0)
            end = op.kwargs.get("end_dim", given[1] if len(given) > 1 else -1)
            return x if start == 1 and end in (-1, 3) else None
        sizes = given[0] if given and isinstance(given[0], (tuple, list)) else given
        return x if len(sizes) == 2 else None

    def _matrix(self, x: Tensor, op: Op) -> Tensor:
        weight, bias = bound(op)["weight"], bound(op)["bias"]
        if self._learning:
            self._plan.before_head = self._plan.before_head or self._last_pool()
            self._plan.matrices.append((x.shape[2], x.shape[3]))
            if weight.shape[1] != x[0].numel():
                raise ModelError(f"a matrix of {weight.shape[1]} columns reads a map of {tuple(x.shape[1:])}.")
        height, width = self._plan.matrices[self._matrices]
        self._matrices += 1
        filters = weight.reshape(weight.shape[0], x.shape[1], height, width)
        return F.conv2d(x, filters, bias, dilation=self._apart)

    def _mean(self, x: Tensor, op: Op) -> Tensor | None:
        size = (x.shape[2], x.shape[3])
        if op.short == "mean":
            dims = bound(op).get("dim")
            if not isinstance(dims, (tuple, list)) or sorted(d % 4 for d in dims) != [2, 3]:
                return None
            wanted: Size = (1, 1)
        else:
            given = bound(op)["output_size"]
            pair = list(given) if isinstance(given, (tuple, list)) else [given, given]
            rows, cols = (s if n is None else int(n) for s, n in zip(size, pair, strict=True))
            wanted = rows, cols
        if self._learning:
            self._plan.means.append((size, wanted))
            self._plan.before_head = self._plan.before_head or self._last_pool()
            if len(self._plan.means) > 1:
                raise ModelError(
                    "the model takes means over whole maps on the way, such as in squeeze-and-excitation: what a window "
                    "alone would give cannot be told from the whole image."
                )
        before, after = self._plan.means[self._means]
        self._means += 1
        if any(b % a for b, a in zip(before, after, strict=True)):
            raise ModelError(f"{after[0]}×{after[1]} means of a map of {before[0]}×{before[1]} cannot slide.")
        window = before[0] // after[0], before[1] // after[1]
        if window == (1, 1) or (after == (1, 1) and not self._pooled):
            return x
        if self._apart == (1, 1):
            return F.avg_pool2d(x, window, 1 if after == (1, 1) else window)
        if after != (1, 1):
            raise ModelError("fine=True: the model's means over parts of its last map cannot slide.")
        even = x.new_full((x.shape[1], 1, *window), 1 / (window[0] * window[1]))
        return F.conv2d(x, even, None, dilation=self._apart, groups=x.shape[1])

    def _last_pool(self) -> int:
        """Return the number of the last max-pool so far that has a stride, 0 if there is none."""
        return max((n for n, stride in enumerate(self._plan.pools, 1) if stride != (1, 1)), default=0)

    def _pool(self, x: Tensor, op: Op) -> Tensor | None:
        p = bound(op)
        if p["return_indices"]:
            return None
        if self._learning:
            self._plan.pools.append(_pair(p["stride"]))
            return None
        self._pools += 1
        kernel, padding, dilation = p["kernel_size"], p["padding"], p["dilation"]
        if self._fine and self._pools == self._plan.before_head:
            self._apart = _pair(p["stride"])
            return F.max_pool2d(x, kernel, 1, padding, dilation)
        if self._apart == (1, 1):
            return None
        self._without_stride(p)
        (up, left), wide = padding, tuple(d * a for d, a in zip(dilation, self._apart, strict=True))
        up, left = up * self._apart[0], left * self._apart[1]
        return F.max_pool2d(F.pad(x, (left, left, up, up), value=float("-inf")), kernel, 1, 0, wide)

    def _convolution(self, x: Tensor, op: Op) -> Tensor | None:
        if self._apart == (1, 1):
            return None
        p = bound(op)
        self._without_stride(p)
        dilation = tuple(d * a for d, a in zip(p["dilation"], self._apart, strict=True))
        padding = p["padding"]
        if not isinstance(padding, str):
            padding = tuple(n * a for n, a in zip(padding, self._apart, strict=True))
        return F.conv2d(x, p["weight"], p["bias"], 1, padding, dilation, p["groups"])

    @staticmethod
    def _without_stride(p: dict[str, Any]) -> None:
        if _pair(p["stride"]) != (1, 1):
            raise ModelError(
                "fine=True: a layer with a stride follows the last max-pool; it cannot be at every offset."
            )

    def _refused(self, x: Tensor, op: Op) -> Tensor | None:
        if self._apart != (1, 1):
            raise ModelError(f"fine=True: {op.short} follows the last max-pool and cannot be taken at every offset.")
        return None

    def _softmax(self, x: Tensor, op: Op) -> Tensor | None:
        dim = op.kwargs.get("dim", op.args[1] if len(op.args) > 1 else None)
        if dim == 1:
            return None
        raise ModelError(f"the model ends in a softmax over dimension {dim}, expected 1. Give it without the softmax.")


def _pair(value: Any) -> Size:
    return (int(value[0]), int(value[1])) if isinstance(value, (tuple, list)) else (int(value), int(value))
