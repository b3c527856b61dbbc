"""What a classifier returns: one number per class, and the classes' names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..checks import is_whole
from ..errors import ModelError, OptionError
from ..guard import unwrapped


def check_output(output: Any) -> Tensor:
    """Return the output for one image if it is (1, classes) and finite."""
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 1 or not output.is_floating_point():
        raise ModelError(f"the model's output for one image is {shape}, expected (1, classes). Wrap it to return that.")
    if not torch.isfinite(output).all():
        raise ModelError("the model's output for the unoccluded image holds NaN or infinity.")
    return output


def scores_of(output: Any, classes: int | None = None) -> tuple[Tensor, ...]:
    """Return what a classifier returns: its scores (N, classes), then those of auxiliary heads where it has some.

    Raises:
        ModelError: It is something else.
    """
    parts = output if isinstance(output, (tuple, list)) else (output,)
    found = tuple(part for part in parts if part is not None)
    columns = "classes" if classes is None else classes
    for part in found:
        if not isinstance(part, Tensor) or part.dim() != 2 or part.shape[1] != (classes or found[0].shape[1]):
            given = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise ModelError(f"the model's output is {given}, expected (N, {columns}): one logit per class.")
    if not found:
        raise ModelError(
            f"the model's output is {type(output).__name__}, expected (N, {columns}): one logit per class."
        )
    return found


def classification_loss(
    scores: Sequence[Tensor], labels: Tensor, auxiliary: float, *, smoothing: float = 0.0
) -> Tensor:
    """Return the mean cross entropy of the first scores plus `auxiliary` times that of each of the others."""
    wide = [one.to(torch.promote_types(one.dtype, torch.float32)) for one in scores]
    first, *heads = (cross_entropy(one, labels, label_smoothing=smoothing) for one in wide)
    return first + auxiliary * sum(heads) if heads and auxiliary else first


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


def class_names(model: nn.Module, preprocess: Any, given: Sequence[str] | None, classes: int) -> tuple[str, ...] | None:
    """Return the names that were given, else those of the model's card or its weights; None if none fit."""
    if given is not None and len(given) != classes:
        raise OptionError(f"class_names holds {len(given)} names, the model has {classes} classes. Give one for each.")
    card = getattr(unwrapped(model), "card", None)
    found = given or getattr(card, "classes", None) or (getattr(preprocess, "meta", None) or {}).get("categories")
    return tuple(map(str, found)) if found and len(found) == classes else None


def find_class(target: Any, names: Sequence[str] | None, classes: int) -> int:
    """Return the number of the class that `target` means: its number, or its name as `class_number` takes it.

    Raises:
        OptionError: There is no such class, or more than one.
    """
    if is_whole(target):
        number = int(target)
        if not 0 <= number < classes:
            raise OptionError(f"class {number} is out of range: the model has {classes} classes, 0 to {classes - 1}.")
        return number
    if not isinstance(target, str):
        raise OptionError(f"target={target!r}: expected a class's number or name.")
    return class_number(target, names)
