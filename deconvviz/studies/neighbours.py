"""The images nearest to a query in the features of a layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import is_whole, whole
from ..devices import doubled
from ..errors import ImageError, OptionError
from ..images import Images, ImageSet, open_images
from ..model.features import Reader, reading, title
from ..results.base import Result
from ..results.text import amount

METRICS = ("l2", "cosine")
_SHOWN = 16  # queries whose pictures are kept
_CHUNK = 1 << 24  # differences at once


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Neighbours(Result):
    """The k images nearest to each of Q queries, nearest first.

    Attributes:
        layer: whose features were compared.
        metric: "l2" or "cosine".
        image_ids: (Q, k) int64, index into the images given.
        distances: (Q, k) float64.
        query_ids: (Q,) int64, the queries' own index among the images, -1 for queries from elsewhere.
        names: k captions for each query: the nearest images' labels, or else their names.
        pictures: (S, 1 + k, 3, H, W) uint8, query and nearest images of the first S ≤ 16 queries.
    """

    layer: str
    metric: str
    image_ids: Tensor
    distances: Tensor
    query_ids: Tensor
    names: tuple[tuple[str, ...], ...]
    pictures: Tensor
    drawn_by = "neighbours"

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
        return "\n".join(lines)


def nearest(
    model: nn.Module,
    images: Images = None,
    *,
    query: object,
    layer: int | str | None = None,
    k: int = 6,
    metric: str = "l2",
    batch_size: int | None = None,
    preprocess: object = None,
    workers: int = 0,
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
        k: How many neighbours; fewer where there are fewer images.
        metric: "l2", or "cosine": 1 − cosine, 1 for features that are all zero.
        batch_size: Images per forward pass; None: what a `DataLoader` says, else 64.
        preprocess: See `project`.
        workers: Processes that decode files.
        progress: Show a bar.

    Returns:
        A `Neighbours`: `image_ids` (Q, k), `distances` (Q, k), `query_ids` (Q,), `names`, `pictures`.

    Raises:
        OptionError: A k or a metric that has no meaning.
        ImageError: No queries, indices outside the images, or images of different sizes.
        LayerError, ModelError: As their names say.

    Source: Krizhevsky, Sutskever & Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
        section 6.1 and Fig. 4 (right).
    """
    k = whole(k, "k", 1)
    if metric not in METRICS:
        raise OptionError(f"metric={metric!r}: expected one of {', '.join(map(repr, METRICS))}.")
    opened = open_images(model, images, preprocess)
    asked, ids = _queries(model, opened, query, preprocess)
    with reading(model, opened, None if layer is None else [layer], usual="none") as reader:
        places = range(len(asked)) if ids is None else ids
        targets = torch.cat(
            [_features(reader, asked.take([i]).to(reader.device, reader.dtype), metric) for i in places]
        )
        none = doubled(targets.new_empty(len(targets), 0))
        own = torch.tensor([-1] * len(asked) if ids is None else ids, device=none.device)
        best = none, own.new_empty(len(targets), 0)
        for first, batch in reader.batches(batch_size, workers, progress, "nearest"):
            best = _closer(best, targets, _features(reader, batch, metric), own, first, k, metric)
    there = len(opened) - (ids is not None)  # the query itself, at an infinite distance, is the last
    distances, found = (x[:, :there].cpu() for x in best)
    texts = tuple(tuple(_caption(opened, i) for i in row) for row in found.tolist())
    name = title(reader.layers[0])
    return Neighbours(name, metric, found, distances, own.cpu(), texts, _pictures(opened, asked, places, found))


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


def _features(reader: Reader, batch: Tensor, metric: str) -> Tensor:
    """Return float32 or wider (n, D); for the cosine of length 1, or zero."""
    rows = reader.read(batch)[0].flatten(1)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30) if metric == "cosine" else rows


def _closer(
    best: tuple[Tensor, Tensor], targets: Tensor, rows: Tensor, own: Tensor, first: int, k: int, metric: str
) -> tuple[Tensor, Tensor]:
    """Merge a batch of features `rows` (n, D), images `first`, …, into the nearest so far (Q, ≤ k)."""
    step = max(1, _CHUNK // rows.numel())
    distance = torch.cat([_distances(part, rows, metric) for part in targets.split(step)])
    numbers = torch.arange(first, first + len(rows), device=distance.device)
    distance = distance.masked_fill(numbers == own[:, None], torch.inf)
    every = torch.cat([best[0], distance], 1)
    ids = torch.cat([best[1], numbers.expand(len(targets), -1)], 1)
    # A stable sort: later images, which lie behind, lose ties.
    every, order = every.sort(dim=1, stable=True)
    return every[:, :k], ids.gather(1, order)[:, :k]


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
