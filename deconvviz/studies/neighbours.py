"""The images nearest to a query in the features of a layer."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ranks
from ..calls import Call, called
from ..checks import is_whole, whole
from ..devices import doubled
from ..errors import ImageError, OptionError
from ..guard import untouched
from ..images import Images, ImageSet, open_images
from ..model.features import Reader, choose, title
from ..model.table import Layer, images_of
from ..results.base import Result
from ..results.text import amount, skipped_lines
from ..scan.accumulator import Accumulator, Flaw, check_shapes
from ..scan.engine import Scan, first_pass
from ..scan.state import Progress
from .sift import TITLE, Descriptors, Vocabulary, describe, need_sklearn

METRICS = ("l2", "cosine")
_SHOWN = 16  # queries whose pictures are kept
_CHUNK = 1 << 24  # differences at once


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Neighbours(Result):
    """The k images nearest to each of Q queries, nearest first.

    Attributes:
        layer: whose features were compared, "SIFT" for those.
        metric: "l2" or "cosine".
        image_ids: (Q, k) int64, index into the images given.
        distances: (Q, k) float64.
        query_ids: (Q,) int64, the queries' own index among the images, -1 for queries from elsewhere.
        names: k captions for each query: the nearest images' labels, or else their names.
        pictures: (S, 1 + k, 3, H, W) uint8, query and nearest images of the first S ≤ 16 queries.
        skipped: (image id, reason) of the images that could not be read, with `on_error="skip"`.
    """

    layer: str
    metric: str
    image_ids: Tensor
    distances: Tensor
    query_ids: Tensor
    names: tuple[tuple[str, ...], ...]
    pictures: Tensor
    skipped: tuple[tuple[int, str], ...] = ()
    drawn_by = "neighbours"

    def columns(self) -> dict[str, Any]:
        """Return a table's columns: a row for each image near a query; `own` is the query's number, -1 from elsewhere."""
        queries, k = self.image_ids.shape
        query, rank = torch.meshgrid(torch.arange(queries), torch.arange(k), indexing="ij")
        found: dict[str, Any] = {"query": query.flatten(), "own": self.query_ids.repeat_interleave(k)}
        found |= {"rank": rank.flatten(), "image_id": self.image_ids.flatten(), "distance": self.distances.flatten()}
        return found | {"name": [name for row in self.names for name in row]}

    def describe(self) -> str:
        """Say of which layer, how many queries and images."""
        queries, k = self.image_ids.shape
        return f"{self.layer}: {queries} {'query' if queries == 1 else 'queries'} × {amount(k, 'image')}, {self.metric}"

    def table(self) -> str:
        """Return one line per query: the nearest images and their distances."""
        lines = [f"nearest in layer {self.layer}, {self.metric}"]
        for number, (own, row) in enumerate(zip(self.query_ids.tolist(), self.names, strict=True)):
            what = f"query {number}" if own < 0 else f"image {own}"
            near = zip(self.image_ids[number].tolist(), row, self.distances[number].tolist(), strict=True)
            lines.append(f"{what}: " + ", ".join(f"{i} {name} ({distance:.4g})" for i, name, distance in near))
        return "\n".join([*lines, *skipped_lines(self.skipped)])


@ranks.together
def nearest(
    model: nn.Module,
    images: Images = None,
    *,
    query: object,
    layer: int | str | None = None,
    sift: bool = False,
    k: int = 6,
    metric: str = "l2",
    batch_size: int | None = None,
    preprocess: object = None,
    call: Call | None = None,
    workers: int = 0,
    out: str | os.PathLike[str] | None = None,
    on_error: str = "raise",
    progress: bool = True,
) -> Neighbours:
    """Find the images that are nearest to each query in the features of a layer.

    Example:
        >>> import deconvviz, torch
        >>> model, images = deconvviz.zoo.create("zfnet64"), torch.randn(8, 3, 64, 64)
        >>> result = deconvviz.nearest(model, images, query=[0, 5], k=3, progress=False)
        >>> result.image_ids.shape, result.distances.shape
        (torch.Size([2, 3]), torch.Size([2, 3]))

    The search is exact and takes one pass over the images: only the queries' features and the k nearest so far are
    kept, so any number of images fits. An index would have to see all features once as well, and pays only when it is
    asked again and again. Ties go to the smaller image index.

    Args:
        model: The network; left as it was found.
        images: What is searched: (N, C, H, W) in the model's input space, pictures, a folder, a dataset, or None: the
            sample photos.
        query: Images in any of these forms, or a list of indices into `images`; an image is not its own neighbour.
        layer: Number or module path; None: the features before the last linear layer, as in the paper.
        sift: Compare by what images were searched by before, in place of a layer: scikit-image's SIFT descriptors as one
            Fisher vector of 2,064 numbers per image, see `probe`; its Gaussians are learnt from `images`, whose
            descriptors are all held (about 6 kB for 64 pixels, 100 kB for 224).
        k: How many neighbours; fewer where there are fewer images.
        metric: "l2", or "cosine": 1 − cosine, 1 for features that are all zero.
        batch_size: Images per forward pass; None: what a `DataLoader` says, else 64, or fewer where a CPU is faster so.
        preprocess: See `project`.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        workers: Processes that decode files.
        out: Path of a file that keeps the pass while it runs, to go on from after a stop, and at the end its result.
        on_error: "raise" at an image that cannot be read, or "skip" it; the result lists it.
        progress: Show a bar.

    Returns:
        A `Neighbours`: `image_ids` (Q, k), `distances` (Q, k), `query_ids` (Q,), `names`, `pictures`.

    Raises:
        OptionError: A k or a metric that has no meaning, or `sift` beside a layer.
        ImageError: No queries, indices outside the images, or images of different sizes.
        LayerError, ModelError: As their names say; `sift` without scikit-learn.

    Source: Krizhevsky, Sutskever & Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
        section 6.1 and Fig. 4 (right).
    """
    k = whole(k, "k", 1)
    if metric not in METRICS:
        raise OptionError(f"metric={metric!r}: expected one of {', '.join(map(repr, METRICS))}.")
    if sift:
        need_sklearn("sift=True")
        if layer is not None:
            raise OptionError(f"layer={layer!r} and sift=True are two kinds of features: give one of them.")
    model = called(model, call)
    opened = open_images(model, images, preprocess)
    asked, ids = _queries(model, opened, query, preprocess)
    tape, rows = first_pass(model, opened, on_error, None if layer is None else [layer])
    places = range(len(asked)) if ids is None else ids
    own = torch.tensor([-1] * len(asked) if ids is None else ids)
    measured: Accumulator
    if sift:
        name, how = TITLE, f"nearest {metric} {k} {list(places)} {ids} {asked.fingerprint()}"
        measured = Descriptors(images_of(tape), opened.invert)
    else:
        (found,) = choose(rows, None if layer is None else [layer], "none")
        name, how = title(found), ""
        targets = _targets(model, asked, places, found, metric)
        measured = Closest(found, metric, k, targets, own.to(targets.device))
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "on_error": on_error, "progress": progress}
    scan = Scan(model, opened, [measured], tape, name="nearest", measured_for=how, **options)

    def finish(progress: Progress) -> Neighbours:
        walked = progress.accumulators[0]
        if isinstance(walked, Descriptors):
            distances, near = _by_sift(walked, asked, places, own, metric, k)
        else:
            distances, near = walked.result()
        # The query itself, at an infinite distance, is the last.
        there = len(opened) - len(progress.skipped) - (ids is not None)
        distances, near = distances[:, :there], near[:, :there]
        texts = tuple(tuple(_caption(opened, i) for i in row) for row in near.tolist())
        seen = _pictures(opened, asked, places, near)
        skipped = tuple(sorted(progress.skipped.items()))
        return Neighbours(name, metric, near, distances, own, texts, seen, skipped)

    return scan.run(finish, Neighbours, out)


def _by_sift(
    described: Descriptors, asked: ImageSet, places: Sequence[int], own: Tensor, metric: str, k: int
) -> tuple[Tensor, Tensor]:
    """Return distances (Q, k) and ids (Q, k) of the images whose Fisher vectors are nearest to the queries'."""
    numbers, tables = torch.tensor([number for number, _ in described.found]), described.result()
    words = Vocabulary(tables)
    queries = words.encode([describe(asked.invert(asked.take([i]))[0]) for i in places])
    positions = (numbers == own[:, None]).int()  # of the queries among the images that could be read
    at = torch.where(positions.any(1), positions.argmax(1), -1)
    closest = Closest(described.pixels, metric, k, _features(queries, metric), at)
    step = max(1, _CHUNK // max(1, queries.numel()))
    for first in range(0, len(tables), step):
        closest = closest.update(first, [words.encode(tables[first : first + step])], None)
    distances, near = closest.result()
    return distances, numbers[near]


def _targets(model: nn.Module, asked: ImageSet, places: Sequence[int], layer: Layer, metric: str) -> Tensor:
    """Return the queries' features (Q, D)."""
    with untouched(model) as network:
        reader = Reader(network, asked, [layer])
        rows = [_features(reader.read(asked.take([i]).to(reader.device, reader.dtype))[0], metric) for i in places]
    return torch.cat(rows)


@dataclasses.dataclass(frozen=True)
class Closest(Accumulator):
    """The k nearest to each of Q queries, whose features are `targets` (Q, D) and whose own ids `own` (Q,).

    `distances` (Q, ≤ k) and `ids` (Q, ≤ k) are the nearest so far; `bad` is the first image whose features were not
    finite, -1 if there was none.
    """

    layer: Layer
    metric: str
    k: int
    targets: Tensor
    own: Tensor
    distances: Tensor | None = None
    ids: Tensor | None = None
    bad: Tensor | None = None

    @property
    def layers(self) -> Sequence[Layer]:
        """The layer that is compared."""
        return (self.layer,)

    def update(self, first: int, responses: Sequence[Tensor], output: Tensor | None) -> Closest:
        """Take in a batch."""
        rows = _features(responses[0], self.metric)
        step = max(1, _CHUNK // rows.numel())
        distance = torch.cat([_distances(part, rows, self.metric) for part in self.targets.split(step)])
        numbers = torch.arange(first, first + len(rows), device=distance.device)
        wrong = ~torch.isfinite(distance).all(0)
        bad = torch.where(wrong, numbers, torch.iinfo(torch.int64).max).amin()
        own = self.own.to(distance.device)
        distance = distance.masked_fill(numbers == own[:, None], torch.inf)
        new = dataclasses.replace(self, distances=distance, ids=numbers.expand(len(own), -1), bad=bad)
        return self.merge(new)

    def merge(self, other: Closest) -> Closest:
        """Return the nearest of both; of equal ones those with the smaller id."""
        if self.distances is None or self.ids is None or self.bad is None:
            return other._cut(other.distances, other.ids, other.bad)
        if other.distances is None or other.ids is None or other.bad is None:
            return self
        distances, ids = torch.cat([self.distances, other.distances], 1), torch.cat([self.ids, other.ids], 1)
        return self._cut(distances, ids, torch.minimum(self.bad, other.bad))

    def _cut(self, distances: Tensor | None, ids: Tensor | None, bad: Tensor | None) -> Closest:
        if distances is None or ids is None:
            return self
        order = ids.argsort(dim=1, stable=True)
        order = order.gather(1, distances.gather(1, order).argsort(dim=1, stable=True))[:, : self.k]
        return dataclasses.replace(self, distances=distances.gather(1, order), ids=ids.gather(1, order), bad=bad)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the nearest."""
        found = {"distances": self.distances, "ids": self.ids, "bad": self.bad}
        return {}, {name: x for name, x in found.items() if x is not None}

    def from_state(self, facts: dict[str, Any], arrays: dict[str, Tensor]) -> Closest:
        """Take the nearest back."""
        if arrays:
            row = len(self.targets), arrays["ids"].shape[1]
            check_shapes(arrays, {"distances": row, "ids": row, "bad": ()})
        device = doubled(self.targets[:0]).device
        distances, ids, bad = (arrays[n].to(device, copy=True) if arrays else None for n in ("distances", "ids", "bad"))
        return dataclasses.replace(self, distances=distances, ids=ids, bad=bad)

    def describe(self) -> str:
        """Say which layer, which queries, and how they are compared."""
        queries = hashlib.blake2b(self.targets.cpu().contiguous().view(torch.uint8).numpy().data, digest_size=16)
        return f"closest {self.layer.name} {self.metric} {self.k} {self.own.tolist()} {queries.hexdigest()}"

    def flaw(self) -> Flaw | None:
        """Look whether features were not finite."""
        if self.bad is None or int(self.bad) == torch.iinfo(torch.int64).max:
            return None
        return Flaw(self.layer.name, None, int(self.bad))

    def result(self) -> tuple[Tensor, Tensor]:
        """Return distances (Q, k) and ids (Q, k)."""
        assert self.distances is not None and self.ids is not None
        return self.distances.cpu(), self.ids.cpu()


def _queries(model: nn.Module, images: ImageSet, query: Any, preprocess: object) -> tuple[ImageSet, list[int] | None]:
    """Return the set that the queries are in, and which of it they are: None for all."""
    if is_whole(query):
        query = [query]
    if isinstance(query, Sequence) and not isinstance(query, str) and all(map(is_whole, query)):
        if not query or any(not 0 <= i < len(images) for i in query):
            raise ImageError(f"query={query!r:.60}: expected indices of images, 0 to {len(images) - 1}, or images.")
        if len(images) < 2:
            raise ImageError("there is 1 image and it is the query, expected at least 2.")
        return images, [int(i) for i in query]
    return open_images(model, query, preprocess), None


def _features(response: Tensor, metric: str) -> Tensor:
    """Return float32 or wider (n, D); for the cosine of length 1, or zero."""
    rows = response.flatten(1)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30) if metric == "cosine" else rows


def _distances(queries: Tensor, rows: Tensor, metric: str) -> Tensor:
    """Return (q, n) float64. Differences, not |a|² + |b|² − 2ab: equal features have distance 0, not its rounding."""
    difference = doubled(queries[:, None] - rows).square().sum(-1)
    if metric == "l2":
        return difference.sqrt()
    some = ((queries != 0).any(1)[:, None] & (rows != 0).any(1)).to(difference.device)
    return torch.where(some, difference / 2, 1.0)  # |a − b|² = 2 − 2 cos for unit vectors


def _caption(images: ImageSet, number: int) -> str:
    return str(images.labels[number]) if images.labels is not None else images.names[number]


def _pictures(images: ImageSet, asked: ImageSet, places: Sequence[int], found: Tensor) -> Tensor:
    rows = []
    for place, ids in zip(places[:_SHOWN], found[:_SHOWN].tolist(), strict=True):
        seen = torch.cat([asked.invert(asked.take([place])), images.invert(images.take(ids))])
        rows.append(seen.mul(255).round().byte())
    return torch.stack(rows)
