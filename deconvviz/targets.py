"""Ready functions of what a model returns: one number per image, for every `target=`.

Each takes what the model returns for N images, whatever that is, and gives (N,). A function of your own does as well.
"""

from __future__ import annotations

import dataclasses
import difflib
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import OptionError

__all__ = ["detection", "region", "score", "similarity"]

_SCORES = ("logits", "out", "scores")
_EMBEDDINGS = ("image_embeds", "embeddings", "pooler_output", "logits", "out")


def score(wanted: int | str, names: Sequence[str] | None = None) -> Score:
    """Return the target of one class: its score, before any softmax the model does not do itself.

    Example:
        >>> import torch
        >>> from deconvviz import targets
        >>> targets.score(2)({"logits": torch.tensor([[1.0, 2.0, 3.0]])})
        tensor([3.])

    Args:
        wanted: The class, by number or name.
        names: The classes' names, where the model does not say.

    The scores (N, classes) are the output itself, or what a mapping calls "logits", "out" or "scores", or the first
    tensor of a tuple.
    """
    return Score(_class(wanted), _texts(names))


def region(wanted: int | str, where: Any = None, names: Sequence[str] | None = None) -> Region:
    """Return the target of one class inside a region of a segmentation map (N, classes, height, width): its mean score.

    Example:
        >>> import torch
        >>> from deconvviz import targets
        >>> output = {"out": torch.arange(8.0).view(1, 2, 2, 2)}
        >>> targets.region(1, (0, 0, 1, 2))(output)
        tensor([4.5000])

    Args:
        wanted: The class, by number or name.
        where: A box (top, left, bottom, right), half-open, or a mask (height, width), both in the map's pixels; None:
            the whole map.
        names: The classes' names, where the model does not say.
    """
    place: Any = where
    if where is not None and not isinstance(where, tuple):
        place = torch.as_tensor(where)
        if place.dim() != 2 or not bool((place != 0).any()):
            raise OptionError(
                f"where has shape {tuple(place.shape)}: expected a mask (height, width) that is not empty, or a box "
                "(top, left, bottom, right)."
            )
        place = place.detach().cpu() != 0
    elif where is not None and (len(where) != 4 or not (0 <= where[0] < where[2] and 0 <= where[1] < where[3])):
        raise OptionError(f"where={where!r}: expected (top, left, bottom, right) with top < bottom and left < right.")
    return Region(_class(wanted), _texts(names), place)


def detection(
    box: Sequence[float], label: int | str | None = None, *, least: float = 0.0, names: Sequence[str] | None = None
) -> Detection:
    """Return the target of a detector: the score of the detection that overlaps a box most, 0 where none does.

    Example:
        >>> import torch
        >>> from deconvviz import targets
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])  # x first, as torchvision has them
        >>> found = [{"boxes": boxes, "scores": torch.tensor([0.5, 0.25]), "labels": torch.tensor([1, 2])}]
        >>> targets.detection((18, 20, 30, 30))(found)
        tensor([0.2500])

    Args:
        box: (top, left, bottom, right) in the image's pixels, as everywhere in this package.
        label: Of the detections that count, by number or name; None: all do.
        least: The intersection over union from which on a detection counts.
        names: The labels' names, where the model does not say.

    It takes what torchvision's detectors return: for each image a mapping with "boxes" (n, 4), "scores" and "labels".
    """
    edges = tuple(float(x) for x in box)
    if len(edges) != 4 or not (edges[0] < edges[2] and edges[1] < edges[3]):
        raise OptionError(
            f"box={tuple(box)!r}: expected (top, left, bottom, right) with top < bottom and left < right."
        )
    if not 0 <= least <= 1:
        raise OptionError(f"least={least!r}: expected a share from 0 to 1.")
    return Detection(edges, None if label is None else _class(label), float(least), _texts(names))


def similarity(embedding: Any) -> Similarity:
    """Return the target of likeness to another image: the cosine of the embeddings.

    Example:
        >>> import torch
        >>> from deconvviz import targets
        >>> targets.similarity(torch.tensor([3.0, 4.0]))(torch.tensor([[4.0, 3.0], [-3.0, -4.0]]))
        tensor([ 0.9600, -1.0000])

    Args:
        embedding: What the model returns for the other image, or a tensor.

    An embedding is the output itself, what a mapping calls "image_embeds", "embeddings", "pooler_output", "logits" or
    "out", or the first tensor of a tuple; maps count with all their positions.
    """
    other = _part(embedding, _EMBEDDINGS, "an embedding").detach().flatten()
    if not len(other) or not torch.isfinite(other).all() or not other.any():
        raise OptionError("the other image's embedding is empty, all zero, or not finite.")
    return Similarity(other)


def named(target: Any, names: Sequence[str] | None) -> Any:
    """Return a target whose class has a number: a ready one that was given a name gets it from the model's `names`."""
    if isinstance(target, (Score, Region, Detection)) and isinstance(target.wanted, str):
        return dataclasses.replace(target, wanted=class_number(target.wanted, target.names or names))
    return target


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """See `score`."""

    wanted: int | str
    names: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """How results call it."""
        return _called(self.wanted, self.names)

    def __call__(self, output: Any) -> Tensor:
        """Return (N,) scores."""
        scores = _part(output, _SCORES, "scores (N, classes)")
        if scores.dim() != 2:
            raise OptionError(f"targets.score: the scores have shape {tuple(scores.shape)}, expected (N, classes).")
        return scores[:, _checked(self.wanted, self.names, scores.shape[1])]


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """See `region`."""

    wanted: int | str
    names: tuple[str, ...] | None = None
    where: tuple[int, int, int, int] | Tensor | None = None

    @property
    def name(self) -> str:
        """How results call it."""
        inside = "" if self.where is None else " in the mask" if isinstance(self.where, Tensor) else f" in {self.where}"
        return _called(self.wanted, self.names) + inside

    def __call__(self, output: Any) -> Tensor:
        """Return (N,) mean scores inside the region."""
        scores = _part(output, _SCORES, "a segmentation map (N, classes, height, width)")
        if scores.dim() != 4:
            raise OptionError(
                f"targets.region: the map has shape {tuple(scores.shape)}, expected (N, classes, height, width)."
            )
        one = scores[:, _checked(self.wanted, self.names, scores.shape[1])]
        height, width = one.shape[1:]
        if self.where is None:
            return one.mean((1, 2))
        if isinstance(self.where, Tensor):
            if tuple(self.where.shape) != (height, width):
                raise OptionError(
                    f"targets.region: the mask has {tuple(self.where.shape)} pixels, the map {(height, width)}."
                )
            share = self.where.to(one) / self.where.sum().to(one)
            return (one * share).sum((1, 2))
        top, left, bottom, right = self.where
        if bottom > height or right > width:
            raise OptionError(f"targets.region: the box {self.where} is not inside the map of {height}×{width} pixels.")
        return one[:, top:bottom, left:right].mean((1, 2))


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
    """See `detection`."""

    box: tuple[float, ...]
    wanted: int | str | None = None
    least: float = 0.0
    names: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """How results call it."""
        what = "score" if self.wanted is None else _called(self.wanted, self.names)
        return f"{what} at ({', '.join(f'{x:g}' for x in self.box)})"

    def __call__(self, output: Any) -> Tensor:
        """Return (N,) scores."""
        given = output[0] if isinstance(output, tuple) and output and isinstance(output[0], list) else output
        if not isinstance(given, (list, tuple)) or not all(_is_found(one) for one in given):
            raise OptionError(
                "targets.detection: the model returns no list of mappings with 'boxes' and 'scores', one for each image, "
                "as torchvision's detectors do. Give target= a function of your own."
            )
        return torch.stack([self._one(one) for one in given])

    def _one(self, found: Mapping[str, Tensor]) -> Tensor:
        boxes, scores = found["boxes"], found["scores"]
        if self.wanted is not None:
            if "labels" not in found:
                raise OptionError("targets.detection: the detections have no 'labels'. Leave label= out.")
            number = class_number(self.wanted, self.names) if isinstance(self.wanted, str) else self.wanted
            right = found["labels"] == number
            boxes, scores = boxes[right], scores[right]
        if not len(boxes):
            return scores.new_zeros(())
        overlap = _overlaps(boxes.detach(), self.box)
        best = overlap.argmax()
        counts = (overlap[best] > 0) & (overlap[best] >= self.least)
        return torch.where(counts, scores[best], torch.zeros_like(scores[best]))


@dataclasses.dataclass(frozen=True, eq=False)
class Similarity:
    """See `similarity`."""

    other: Tensor
    name = "similarity"

    def __call__(self, output: Any) -> Tensor:
        """Return (N,) cosines."""
        own = _part(output, _EMBEDDINGS, "an embedding").flatten(1)
        if own.shape[1] != len(self.other):
            raise OptionError(
                f"targets.similarity: the model's embedding has {own.shape[1]} numbers, the other image's "
                f"{len(self.other)}."
            )
        other = self.other.to(own)
        lengths = own.square().sum(1).sqrt() * other.square().sum().sqrt()
        return (own * other).sum(1) / lengths.clamp_min(torch.finfo(own.dtype).tiny)


def _is_found(one: Any) -> bool:
    return isinstance(one, Mapping) and isinstance(one.get("boxes"), Tensor) and isinstance(one.get("scores"), Tensor)


def _overlaps(boxes: Tensor, box: Sequence[float]) -> Tensor:
    """Return (n,): the intersection over union of boxes (n, 4: left, top, right, bottom) with one."""
    top, left, bottom, right = box
    wide = (boxes[:, 2].clamp(max=right) - boxes[:, 0].clamp(min=left)).clamp(min=0)
    high = (boxes[:, 3].clamp(max=bottom) - boxes[:, 1].clamp(min=top)).clamp(min=0)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    both = wide * high
    return both / (areas + (bottom - top) * (right - left) - both)


def _part(output: Any, keys: Sequence[str], what: str) -> Tensor:
    """Return the tensor that a target is about, of whatever a model returned."""
    found = output
    if isinstance(output, Mapping):
        found = next((output[key] for key in keys if isinstance(output.get(key), Tensor)), None)
    elif isinstance(output, (tuple, list)):
        found = next((x for x in output if isinstance(x, Tensor)), None)
    if not isinstance(found, Tensor):
        held = f" with {', '.join(map(repr, output))}" if isinstance(output, Mapping) else ""
        raise OptionError(
            f"the model returns a {type(output).__name__}{held}, expected {what}: a tensor, a tuple that holds one, or a "
            f"mapping with one of {', '.join(map(repr, keys))}. Give target= a function of your own."
        )
    return found


def _class(wanted: Any) -> int | str:
    """Return a class's number as an int, or its name."""
    if isinstance(wanted, str):
        return wanted
    try:
        if not isinstance(wanted, bool):
            return operator.index(wanted)
    except TypeError:
        pass
    raise OptionError(f"class {wanted!r}: expected a number, 0 or more, or a name.")


def _texts(names: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(map(str, names))


def _called(wanted: int | str, names: Sequence[str] | None) -> str:
    if isinstance(wanted, str):
        return wanted
    return names[wanted] if names and 0 <= wanted < len(names) else f"class {wanted}"


def _checked(wanted: int | str, names: Sequence[str] | None, classes: int) -> int:
    number = class_number(wanted, names) if isinstance(wanted, str) else wanted
    if not 0 <= number < classes:
        raise OptionError(f"class {number} is out of range: the model has {classes} classes, 0 to {classes - 1}.")
    return number


def class_number(name: str, names: Sequence[str] | None) -> int:
    """Return the number of a class by its name, or by one of the words between its commas; upper case is lower case.

    Raises:
        OptionError: The names are not known, or none or several fit.
    """
    if names is None:
        raise OptionError(f"target={name!r}: the names of this model's classes are not known. Give the class's number.")
    wanted = name.strip().lower()
    spellings = [{whole.lower(), *(part.strip().lower() for part in whole.split(","))} for whole in names]
    found = [number for number, whole in enumerate(names) if whole.lower() == wanted]
    found = found or [number for number, words in enumerate(spellings) if wanted in words]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{number} ({names[number]})" for number in found)
        raise OptionError(f"target={name!r} is the name of several classes: {listed}. Give the number.")
    close = difflib.get_close_matches(wanted, sorted(set().union(*spellings)), 3)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise OptionError(f"target={name!r} is the name of no class of this model, which has {len(names)}.{hint}")
