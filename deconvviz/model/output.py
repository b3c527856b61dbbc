"""What a classifier returns: one number per class, and the classes' names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

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


def class_names(model: nn.Module, preprocess: Any, given: Sequence[str] | None, classes: int) -> tuple[str, ...] | None:
    """Return the names that were given, else those of the model's card or its weights; None if none fit."""
    if given is not None and len(given) != classes:
        raise OptionError(f"class_names holds {len(given)} names, the model has {classes} classes. Give one for each.")
    card = getattr(unwrapped(model), "card", None)
    found = given or getattr(card, "classes", None) or (getattr(preprocess, "meta", None) or {}).get("categories")
    return tuple(map(str, found)) if found and len(found) == classes else None
