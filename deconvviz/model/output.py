"""What a classifier returns: one number per class, and the classes' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..calls import Called, called
from ..checks import is_whole
from ..errors import ModelError, OptionError, form_of
from ..guard import unwrapped
from ..targets import class_number, named, score

ASK = (
    "Give target= a function of it with one number per image, such as one of deconvviz.targets, or call= a function that "
    "returns the scores: lambda model, images: model(images)[0]."
)


def check_output(output: Any) -> Tensor:
    """Return the output for one image if it is (1, classes) and finite."""
    shape = form_of(output)
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 1 or not output.is_floating_point():
        raise ModelError(f"the model's output for one image is {shape}, expected (1, classes). {ASK}")
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


def classification_losses(
    scores: Sequence[Tensor], labels: Tensor, auxiliary: float, *, smoothing: float = 0.0
) -> Tensor:
    """Return (N,): the cross entropy of the first scores plus `auxiliary` times that of each of the others."""
    wide = [one.to(torch.promote_types(one.dtype, torch.float32)) for one in scores]
    first, *heads = (cross_entropy(one, labels, label_smoothing=smoothing, reduction="none") for one in wide)
    return first + auxiliary * sum(heads) if heads and auxiliary else first


def class_names(model: nn.Module, preprocess: Any, given: Sequence[str] | None, classes: int) -> tuple[str, ...] | None:
    """Return the names that were given, else those of the model's card or its weights; None if none fit."""
    if given is not None and len(given) != classes:
        raise OptionError(f"class_names holds {len(given)} names, the model has {classes} classes. Give one for each.")
    found = known_names(model, preprocess, given)
    return found if found and len(found) == classes else None


def known_names(model: nn.Module, preprocess: Any, given: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the names that were given, else those of the model's card, its configuration or its weights."""
    network = unwrapped(model)
    found = given or getattr(getattr(network, "card", None), "classes", None) or _configured(network)
    found = found or (getattr(preprocess, "meta", None) or {}).get("categories")
    return tuple(map(str, found)) if found else None


def measuring(model: nn.Module, target: Any, names: Sequence[str] | None) -> Called:
    """Return a network whose output, of the module `asked`, is the numbers (N, T) of one target or several.

    A target is a class by number or name, or a function of what the model returns.
    """
    wanted = list(target) if isinstance(target, (list, tuple)) else [target]
    if not wanted:
        raise OptionError("target is an empty list: give a class, or a function of what the model returns.")
    functions = [named(one if callable(one) else score(one), names) for one in wanted]
    network: Called = called(model, None, functions)
    return network


def _configured(network: nn.Module) -> tuple[str, ...] | None:
    """Return the classes of a Hugging Face model's configuration, unless they are the numbers that it invents."""
    names = getattr(getattr(network, "config", None), "id2label", None)
    if not isinstance(names, Mapping) or sorted(names) != list(range(len(names))):
        return None
    return (
        None if all(name == f"LABEL_{i}" for i, name in names.items()) else tuple(names[i] for i in range(len(names)))
    )


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
