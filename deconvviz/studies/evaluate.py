"""How often a classifier is right: top-1, top-5 and confusion, over one view of each image or many."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..calls import Call, called
from ..checks import at_once, check_on_error, whole, wholes
from ..devices import Portions, doubled
from ..errors import ModelError, OptionError
from ..guard import check_weights, placement, untouched
from ..images import Images, ImageSet, open_images, preprocess_for
from ..images.preprocess import input_size
from ..model.dense import convolutional
from ..model.features import class_numbers, labels_of
from ..model.output import class_names
from ..results.base import Result
from ..results.text import amount, skipped_lines
from .crops import CROPS, Size


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Result):
    """What a classifier, or several in the mean, made of N labelled images.

    Attributes:
        probabilities: (N, classes) float32, the mean of the softmax over all views and networks.
        labels: (N,) int64, the true classes.
        names: of the N images.
        networks: how many networks were averaged.
        views: in words, what was averaged over of each image.
        k: of the second error that is told beside top-1.
        class_names: one per class, or None.
        skipped: (image number, reason) of the images that could not be read, with `on_error="skip"`.
    """

    probabilities: Tensor
    labels: Tensor
    names: tuple[str, ...]
    networks: int
    views: str
    k: int = 5
    class_names: tuple[str, ...] | None = None
    skipped: tuple[tuple[int, str], ...] = ()
    drawn_by = "evaluation"

    @property
    def rank(self) -> Tensor:
        """How many classes come before the true one, (N,) int64; of equal ones the lower number comes first."""
        true = self.probabilities.gather(1, self.labels[:, None])
        before = torch.arange(self.probabilities.shape[1]) < self.labels[:, None]
        return ((self.probabilities > true) | ((self.probabilities == true) & before)).sum(1)

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each image, (N,) int64."""
        return self.probabilities.argmax(1)

    def error(self, k: int = 1) -> float:
        """Return the share, 0 to 1, of images whose class is not among the `k` most probable ones."""
        return float((self.rank >= whole(k, "k", 1)).double().mean())

    @property
    def confusion(self) -> Tensor:
        """How many images of each class (row) were taken for each class (column), (classes, classes) int64."""
        classes = self.probabilities.shape[1]
        return torch.bincount(self.labels * classes + self.predicted, minlength=classes**2).view(classes, classes)

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each image; `rank` counts the classes before the true one."""
        found: dict[str, Any] = {"name": list(self.names), "label": self.labels, "predicted": self.predicted}
        found["probability"] = self.probabilities.gather(1, self.labels[:, None])[:, 0]
        if self.class_names:
            named = {"class": self.labels, "predicted class": self.predicted}
            found |= {column: [self.class_names[n] for n in numbers.tolist()] for column, numbers in named.items()}
        return found | {"rank": self.rank}

    def describe(self) -> str:
        """Say how many images, and the two errors."""
        several = f"{self.networks} networks, " if self.networks > 1 else ""
        errors = f"top-1 error {100 * self.error():.2f} %"
        if 1 < self.k < self.probabilities.shape[1]:
            errors += f", top-{self.k} error {100 * self.error(self.k):.2f} %"
        return f"{amount(len(self.labels), 'image')}, {several}{self.views}: {errors}"

    def table(self) -> str:
        """Return the errors, then the pairs of classes that are mixed up most."""
        wrong = self.confusion.clone().fill_diagonal_(0)
        classes = len(wrong)
        lines = [self.describe()]
        for place in wrong.flatten().argsort(descending=True, stable=True)[:5].tolist():
            row, col = divmod(place, classes)
            if wrong[row, col]:
                lines.append(f"{int(wrong[row, col])} × {self.class_name(row)} taken for {self.class_name(col)}")
        return "\n".join([*lines, *skipped_lines(self.skipped)])

    def class_name(self, number: int) -> str:
        """Return a class's name, or its number where names are not known."""
        return f"class {number}" if self.class_names is None else self.class_names[number]


def evaluate(
    model: nn.Module | Sequence[nn.Module],
    data: Images,
    *,
    labels: object = None,
    crops: int = 1,
    scales: Sequence[int] | None = None,
    dense: str | None = None,
    k: int = 5,
    batch_size: int | None = None,
    preprocess: object = None,
    workers: int = 0,
    on_error: str = "raise",
    progress: bool = True,
    call: Call | None = None,
) -> Evaluation:
    """Measure how often a classifier is right, as the papers do: over one crop of each image, many, or densely.

    Example:
        >>> import deconvviz, torch
        >>> model = deconvviz.zoo.create("lenet-1")
        >>> result = deconvviz.evaluate(model, torch.randn(6, 1, 28, 28), labels=[0, 1, 2, 3, 4, 5], progress=False)
        >>> result.probabilities.shape, result.confusion.shape, 0 <= result.error(5) <= result.error() <= 1
        (torch.Size([6, 10]), torch.Size([10, 10]), True)

    The softmax of each view is averaged over views, scales and networks. Views are cut from the resized picture:

    - 1 crop: the centre, as the model's preprocessing cuts it;
    - 10: corners and centre of the central square, and their mirror images (AlexNet);
    - 144: at four scales three squares; of each its corners, centre and itself made smaller; mirrored (GoogLeNet);
    - 150: at three scales a grid of 5×5, mirrored (VGG).

    `dense` applies the network to the whole picture and its mirror image, see `convolutional`: "mean" takes the mean
    of the scores over all places (VGG), "max" the largest probability of each class over windows at every offset of
    the last max-pool (OverFeat).

    Args:
        model: The classifier, (N, C, H, W) to (N, classes); several of them in a list are an ensemble.
        data: A folder with one subfolder per class, a dataset of (image, label), pictures or a tensor with `labels`.
        labels: One per image, class numbers or names; None: those that come with the images. Names are looked for on
            the model's card; as many as the model has classes are numbered in alphabetical order.
        crops: 1, 10, 144 or 150.
        scales: Shorter sides of the resized pictures; None: what the crops' paper takes, in proportion to the side
            that the model's preprocessing resizes to.
        dense: None, "mean" or "max".
        k: Of the error that is told beside top-1.
        batch_size: Views per forward pass; None: what a `DataLoader` says, else 64.
        preprocess: How a picture becomes the model's input, where the model does not say.
        workers: Processes that decode files.
        on_error: "raise" at an image that cannot be read, or "skip" it; the result lists it.
        progress: Show a bar.
        call: How each model is called with a batch of images, where that is not `model(images)`: lambda model, images: …

    Returns:
        An `Evaluation`: `probabilities` (N, classes), `labels`, `error(k)`, `confusion`, `rank`, `predicted`.

    Raises:
        OptionError: A number of crops that no paper has, scales of a tensor, both crops and `dense`, …
        ImageError: An image is too small for its crops.
        ModelError: The output is not (N, classes), or not finite; networks of an ensemble differ in classes.

    Source: Krizhevsky et al. 2012, section 4.1; Szegedy et al. 2015, section 7; Simonyan & Zisserman 2015, section 3.2;
    Sermanet et al. 2014, section 3.3.
    """
    models: list[Any] = list(model) if isinstance(model, (list, tuple)) else [model]
    models = [called(one, call) for one in models]
    if not models:
        raise OptionError("model is an empty list, expected one classifier or several.")
    if crops not in CROPS or isinstance(crops, bool):
        raise OptionError(f"crops={crops!r}: expected one of {', '.join(map(str, CROPS))}.")
    if dense not in (None, "mean", "max"):
        raise OptionError(f"dense={dense!r}: expected None, 'mean' or 'max'.")
    if dense is not None and crops != 1:
        raise OptionError(f"crops={crops} and dense={dense!r} exclude each other: crops are cut, or there are none.")
    check_on_error(on_error)
    k = whole(k, "k", 1)
    sides = None if scales is None else wholes(scales, "scales")
    if sides == [] or (sides and min(sides) < 1):
        raise OptionError(f"scales={scales!r}: expected shorter sides in pixels.")
    skipped: dict[int, str] = {}
    sums: Tensor | None = None
    for network in models:
        task = _Task(network, data, preprocess, crops, sides, dense)
        total = task.run(batch_size, workers, skipped if on_error == "skip" else None, progress)
        if sums is not None and sums.shape != total.shape:
            raise ModelError(f"the networks have {sums.shape[1]} and {total.shape[1]} classes, expected as many each.")
        sums = total if sums is None else sums + total
    assert sums is not None
    first = open_images(models[0], data, preprocess)
    every = labels_of(models[0], first, labels)
    kept = [i for i in range(len(first)) if i not in skipped]
    if not kept:
        raise first.unreadable()
    numbers = class_numbers(models[0], every, sums.shape[1])
    return Evaluation(
        (sums[kept] / len(models)).float(),
        torch.tensor([numbers[i] for i in kept]),
        tuple(first.names[i] for i in kept),
        len(models),
        task.words,
        k,
        class_names(models[0], preprocess, None, sums.shape[1]),
        tuple(sorted(skipped.items())),
    )


class _Task:
    """One network over all images: at each scale, each image's views."""

    def __init__(
        self,
        network: nn.Module,
        data: Images,
        preprocess: object,
        crops: int,
        sides: list[int] | None,
        dense: str | None,
    ) -> None:
        self.network, self.dense = network, dense
        views, parts = CROPS[crops]
        self.views: Callable[[Tensor], Tensor] | None = None
        plain = crops == 1 and sides is None and dense is None
        usual = open_images(network, data, preprocess)
        if plain:
            self.sets = [usual]
            self.words = "1 crop"
            return
        known = preprocess_for(network, preprocess) if usual.are_pictures else usual.preprocess
        size: Size = input_size(network, known.size)[1:]
        self.size = size
        if dense is None:
            self.views = lambda image: views(image, size)
        if usual.are_pictures:
            self.sets = self._at(sides or _sides(known, size, parts if dense is None else (1.0,)), data, known)
        elif sides is not None:
            raise OptionError("scales= resizes pictures; images that are tensors are taken as they are. Leave it out.")
        else:
            self.sets = [usual]
        said = "" if not usual.are_pictures else f" at {', '.join(str(s.preprocess.resize) for s in self.sets)} pixels"
        self.words = f"{amount(crops, 'crop')}{said}" if dense is None else f"dense, {dense}{said}"

    def _at(self, sides: Sequence[int], data: Images, known: Any) -> list[ImageSet]:
        if isinstance(data, ImageSet):
            raise OptionError("crops=, scales= and dense= resize pictures: give the folder or the dataset itself.")
        if known.transform is not None:
            raise OptionError(
                "crops=, scales= and dense= need a preprocessing that is known; this one is a function of yours. Give "
                "deconvviz.images.Preprocess(size, resize, mean, std)."
            )
        hows = [dataclasses.replace(known, size=None, resize=side) for side in sides]
        return [open_images(self.network, data, how) for how in hows]

    def run(self, batch_size: Any, workers: int, skipped: dict[int, str] | None, progress: bool) -> Tensor:
        """Return (N, classes) float64: the mean probability over the views of each image, on the CPU."""
        first = self.sets[0]
        most = at_once(batch_size, first.batch_size)
        model = (
            self.network
            if self.dense is None
            else convolutional(self.network, fine=self.dense == "max", input_size=self.size)
        )
        total: Tensor | None = None
        device, dtype = placement(model)
        with untouched(model) as network:
            check_weights(network)
            counts = torch.zeros(len(first), 1, dtype=torch.float64)
            portions = Portions(most)

            def ask(some: Tensor) -> Tensor:
                return self._answers(network, some).cpu()

            reading = {"workers": workers, "device": device, "dtype": dtype, "skipped": skipped}
            with tqdm(total=len(first) * len(self.sets), unit=" images", desc="evaluate", disable=not progress) as bar:
                for images in self.sets:
                    done = 0
                    one_size = self.views is None and self.dense is None
                    for owners, views in self._batches(images, most if one_size else 1, most, reading):
                        answers = torch.cat(list(portions.run(ask, views)))
                        if total is None:
                            total = torch.zeros(len(first), answers.shape[1], dtype=torch.float64)
                        total.index_add_(0, owners, answers)
                        counts.index_add_(0, owners, torch.ones(len(owners), 1, dtype=torch.float64))
                        bar.update(int(owners[-1]) + 1 - done)
                        done = int(owners[-1]) + 1
        if total is None:
            raise first.unreadable()
        return total / counts.clamp_min(1)

    def _batches(
        self, images: ImageSet, read: int, most: int, reading: dict[str, Any]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (the images' numbers, their views); views of one image may be cut into several batches."""
        for number, batch in images.batches(read, **reading):
            if self.dense is not None:
                yield torch.tensor([number, number]), torch.cat([batch, batch.flip(3)])
            elif self.views is None:
                yield torch.arange(number, number + len(batch)), batch
            else:
                for part in self.views(batch[0]).split(most):
                    yield torch.full((len(part),), number), part

    def _answers(self, network: nn.Module, views: Tensor) -> Tensor:
        output = network(views.clone())  # the model may change its input; the caller's images stay
        dims = 2 if self.dense is None else 4
        if not isinstance(output, Tensor) or output.dim() != dims or len(output) != len(views):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(f"the model's output is {shape}, expected (N, classes): one number per class.")
        if not torch.isfinite(output).all():
            raise ModelError("the model's output is not finite. Look for a division by zero or an overflow.")
        scores = doubled(output)
        if self.dense == "mean":
            return scores.mean((2, 3)).softmax(1)
        return scores.softmax(1).amax((2, 3)) if self.dense == "max" else scores.softmax(1)


def _sides(known: Any, size: Size, parts: Sequence[float]) -> list[int]:
    """Return the shorter sides in proportion to what the preprocessing resizes to."""
    usual = known.resize if isinstance(known.resize, int) else max(size)
    return [round(usual * part) for part in parts]
