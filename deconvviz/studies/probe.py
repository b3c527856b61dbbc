"""How well a linear classifier does on the features of each layer."""

from __future__ import annotations

import dataclasses
import itertools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ranks
from ..calls import Call, called
from ..checks import whole
from ..errors import OptionError
from ..images import Images, open_images
from ..model.features import choose, labels_of, title
from ..model.table import Layer, Layers, images_of
from ..results.base import Result
from ..results.text import amount, skipped_lines
from ..scan.accumulator import Accumulator, Flaw, check_shapes
from ..scan.engine import Scan, first_pass
from ..scan.state import Progress
from .sift import SIZE, TITLE, Descriptors, Vocabulary, need_sklearn

_Rows = Callable[["NDArray[np.int64]"], "NDArray[np.float64]"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Probe(Result):
    """The cross-validated accuracy of a linear classifier on each of L layers.

    Attributes:
        layers: the L layers, and behind them "SIFT" where it was asked for.
        accuracy: (L, folds) float64, share of right answers on each held-out fold.
        features: how many numbers of each layer the classifier saw per image.
        grids: (rows, columns) that each layer's maps were averaged to.
        converged: (L, folds) bool, whether the classifier's training came to its end.
        classes: the labels, sorted.
        count: how many images.
        chance: share of the most frequent class: what a classifier that sees nothing gets.
        skipped: (image id, reason) of the images that could not be read, with `on_error="skip"`.
    """

    layers: tuple[str, ...]
    accuracy: Tensor
    features: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    converged: Tensor
    classes: tuple[str, ...]
    count: int
    chance: float
    skipped: tuple[tuple[int, str], ...] = ()
    drawn_by = "probe"

    @property
    def mean(self) -> Tensor:
        """(L,): the accuracy, mean over the folds."""
        return self.accuracy.mean(1)

    @property
    def std(self) -> Tensor:
        """(L,): its standard deviation over the folds (divided by the number of folds)."""
        return self.accuracy.std(1, correction=0)

    def plot(
        self,
        figure: Any = None,
        *,
        name: str = "this network",
        others: Mapping[str, Probe] | None = None,
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw the accuracy over the layers; see `deconvviz.plotting.probe.draw` and `Result.plot`."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw", figure, name=name, others=others, **look)

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each layer."""
        found: dict[str, Any] = {"layer": list(self.layers), "accuracy": self.mean, "std": self.std}
        return found | {"features": list(self.features), "converged": self.converged.all(1)}

    def describe(self) -> str:
        """Say how many layers, images and classes."""
        return f"{amount(len(self.layers), 'layer')}: {amount(self.count, 'image')}, {len(self.classes)} classes"

    def table(self) -> str:
        """Return one line per layer."""
        rows = zip(self.layers, self.mean.tolist(), self.std.tolist(), self.features, strict=True)
        lines = [f"{name}: {mean:.1%} ± {std:.1%} ({features} features)" for name, mean, std, features in rows]
        chance = f"chance: {self.chance:.1%} ({self.count} images, {len(self.classes)} classes)"
        return "\n".join([*lines, chance, *skipped_lines(self.skipped)])


@ranks.together
def probe(
    model: nn.Module,
    images: Images,
    *,
    labels: object = None,
    layers: Layers | None = None,
    folds: int = 5,
    most: int = 1024,
    strength: float = 1.0,
    sift: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    preprocess: object = None,
    call: Call | None = None,
    workers: int = 0,
    out: str | os.PathLike[str] | None = None,
    on_error: str = "raise",
    progress: bool = True,
) -> Probe:
    """Train a linear classifier on each layer's features and see how well it does on images it has not seen.

    Example:
        >>> import deconvviz, torch
        >>> model, images = deconvviz.zoo.create("zfnet64"), torch.randn(12, 3, 64, 64)
        >>> options = {"labels": [0, 1] * 6, "layers": [1, 5], "folds": 2, "progress": False}
        >>> deconvviz.probe(model, images, **options).accuracy.shape  # doctest: +SKIP
        torch.Size([2, 2])

    Each layer's maps are averaged down to the finest grid that leaves at most `most` numbers (adaptive average
    pooling; a layer of more units than that keeps one number per unit), so that layers of different sizes compete with
    about as many features. Then scikit-learn's standardization and logistic regression, both fitted to the training
    folds alone; the folds have the classes in equal shares.

    Args:
        model: The network; left as it was found.
        images: (N, C, H, W) in the model's input space, pictures, a folder, or a dataset.
        labels: One per image; None: the labels that come with the images, such as a folder's subfolders.
        layers: Numbers or module paths; None: the numbered ones up to 5 and the features before the last linear layer.
        folds: Parts of the cross-validation.
        most: Features per layer.
        strength: scikit-learn's C; smaller regularizes more.
        sift: Add one row of what images were classified by before: scikit-image's SIFT descriptors of keypoints, reduced
            to 64 principal components, as one Fisher vector over 16 Gaussians per image (2,064 numbers, of power 0.5 and
            length 1). Components and Gaussians are learnt from the training folds alone.
        seed: Of the division into folds, and of `sift`.
        batch_size: Images per forward pass; None: what a `DataLoader` says, else 64, or fewer where a CPU is faster so.
        preprocess: See `project`.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        workers: Processes that decode files.
        out: Path of a file that keeps the pass while it runs, to go on from after a stop, and at the end its result.
        on_error: "raise" at an image that cannot be read, or "skip" it; the result lists it.
        progress: Show a bar.

    Returns:
        A `Probe`: `accuracy` (L, folds), `mean` and `std` (L,), `features`, `grids`, `converged`, `classes`, `chance`.

    Raises:
        OptionError: Labels that do not fit, or fewer images of a class than folds.
        ModelError: scikit-learn is not installed: `pip install "deconvviz[studies]"`.
        LayerError, ImageError: As their names say; with `sift`, fewer than 64 keypoints in all.

    Source: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", section 5.2 and Table 7.
        For `sift`: Perronnin, Sánchez & Mensink, "Improving the Fisher Kernel for Large-Scale Image Classification",
        ECCV 2010, which the AlexNet paper compares itself with in Table 1.
    """
    need_sklearn("probe")
    folds, most = whole(folds, "folds", 2), whole(most, "most", 1)
    if not strength > 0:
        raise OptionError(f"strength={strength!r}: expected a number above 0.")
    model = called(model, call)
    opened = open_images(model, images, preprocess)
    texts = [str(label) for label in labels_of(model, opened, labels)]
    _counted(texts, folds)
    tape, rows = first_pass(model, opened, on_error, layers)
    features = Features(tuple(choose(rows, layers)), most)
    keypoints = Descriptors(images_of(tape), opened.invert) if sift else None
    measured: list[Accumulator] = [features] if keypoints is None else [features, keypoints]
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "on_error": on_error, "progress": progress}
    how = f"probe {texts} {folds} {strength} {seed}"
    scan = Scan(model, opened, measured, tape, name="probe", measured_for=how, **options)

    def finish(progress: Progress) -> Probe:
        tables = progress.accumulators[0].result()
        seen = [text for i, text in enumerate(texts) if i not in progress.skipped]
        counts = _counted(seen, folds)
        classes = tuple(counts)
        answers = torch.tensor([classes.index(text) for text in seen])
        readers = [_plain(table) for table in tables]
        if sift:
            readers.append(_fisher(progress.accumulators[1].result(), seed))
        scored = [_score(row, answers, folds, strength, seed) for row in readers]
        accuracy, converged = (torch.stack(column) for column in zip(*scored, strict=True))
        return Probe(
            (*(title(layer) for layer in features.layers), *[TITLE] * sift),
            accuracy,
            (*(table.shape[1] for table in tables), *[SIZE] * sift),
            (*(_grid(layer, most) for layer in features.layers), *[(1, 1)] * sift),
            converged,
            classes,
            len(seen),
            max(counts.values()) / len(seen),
            tuple(sorted(progress.skipped.items())),
        )

    return scan.run(finish, Probe, out)


def _counted(labels: list[str], folds: int) -> dict[str, int]:
    """Return how many images each class has, sorted by name, enough for the folds."""
    counts = {name: labels.count(name) for name in sorted(set(labels))}
    rarest = min(counts, key=lambda name: counts[name])
    if len(counts) < 2 or counts[rarest] < folds:
        raise OptionError(
            f"there are {len(counts)} classes, the rarest is {rarest!r} with {counts[rarest]} images; expected at "
            f"least 2 classes of at least {folds} images, one for each fold."
        )
    return counts


@dataclasses.dataclass(frozen=True)
class Features(Accumulator):
    """Each layer's features, its maps averaged to a grid that leaves at most `most` numbers: (images, numbers)."""

    read: tuple[Layer, ...]
    most: int
    tables: tuple[tuple[int, Tensor], ...] = ()  # per batch its first image, and the layers' numbers side by side

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers read."""
        return self.read

    def update(self, first: int, responses: Sequence[Tensor], output: Tensor | None) -> Features:
        """Take in a batch."""
        rows = [
            F.adaptive_avg_pool2d(x.float(), _grid(layer, self.most)).flatten(1)
            for layer, x in zip(self.read, responses, strict=True)
        ]
        return dataclasses.replace(self, tables=(*self.tables, (first, torch.cat(rows, 1).cpu())))

    def merge(self, other: Features) -> Features:
        """Return the features of both, in the images' order."""
        return dataclasses.replace(self, tables=tuple(sorted(self.tables + other.tables, key=lambda table: table[0])))

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return one table."""
        numbers = torch.cat([first + torch.arange(len(table)) for first, table in self.tables]) if self.tables else None
        return {}, {} if numbers is None else {"table": torch.cat([x for _, x in self.tables]), "images": numbers}

    def from_state(self, facts: dict[str, Any], arrays: dict[str, Tensor]) -> Features:
        """Take the table back."""
        if not arrays:
            return self
        check_shapes(arrays, {"table": (None, sum(self._sizes()))})
        table = arrays["table"].clone()
        numbers = arrays.get("images", torch.arange(len(table)))  # files of before have none
        # One table for each run of successive images, so that those of others fit between.
        cuts = [0, *((numbers.diff() != 1).nonzero()[:, 0] + 1).tolist(), len(numbers)]
        runs = itertools.pairwise(cuts)
        return dataclasses.replace(self, tables=tuple((int(numbers[a]), table[a:b]) for a, b in runs))

    def describe(self) -> str:
        """Say which layers, and how many numbers of each."""
        return f"features {[layer.name for layer in self.read]} {self.most}"

    def flaw(self) -> Flaw | None:
        """Look at the last batch."""
        if not self.tables or torch.isfinite(self.tables[-1][1]).all():
            return None
        first, table = self.tables[-1]
        row, column = (int(x) for x in (~torch.isfinite(table)).nonzero()[0])
        ends = torch.tensor(self._sizes()).cumsum(0)
        layer = self.read[int((ends <= column).sum())]
        return Flaw(layer.name, None, first + row)

    def _sizes(self) -> list[int]:
        grids = ((layer.units, *_grid(layer, self.most)) for layer in self.read)
        return [units * rows * columns for units, rows, columns in grids]

    def result(self) -> list[Tensor]:
        """Return each layer's features (N, at most `most`) float32."""
        return list(torch.cat([table for _, table in self.tables]).split(self._sizes(), 1))


def _grid(layer: Layer, most: int) -> tuple[int, int]:
    """Return the finest grid that leaves at most `most` numbers, near-square cells, at least 1 × 1."""
    best = (1, 1)
    for cells in range(1, max(layer.height, layer.width) + 1):
        grid = min(cells, layer.height), min(cells, layer.width)
        if layer.units * grid[0] * grid[1] <= most:
            best = grid
    return best


def _plain(table: Tensor) -> _Rows:
    x = table.double().numpy()
    return lambda train: x


def _fisher(tables: list[Tensor], seed: int) -> _Rows:
    return lambda train: Vocabulary([tables[i] for i in train], seed).encode(tables).numpy()


def _score(rows: _Rows, answers: Tensor, folds: int, strength: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the accuracy on each held-out fold, and whether the fit to the others converged.

    `rows` gives the images' features, given the numbers of the images that may be learnt from.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    y = answers.numpy()
    accuracy, converged = [], []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(y, y):
        x = rows(train)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            classifier.fit(x[train], y[train])
        converged.append(not any(issubclass(w.category, ConvergenceWarning) for w in caught))
        accuracy.append(float(classifier.score(x[test], y[test])))
    return torch.tensor(accuracy, dtype=torch.float64), torch.tensor(converged)
