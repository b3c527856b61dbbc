"""What users give, checked in one place: whole numbers, and devices that are there."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
import torch

from .errors import DeconvvizError, OptionError


def is_whole(value: Any) -> bool:
    """Say whether a value is one whole number: an int, numpy's, or an integer tensor or array without dimensions.

    True and False are none, nor is 2.0.

    Example:
        >>> import numpy, torch
        >>> [is_whole(x) for x in (3, numpy.int64(3), torch.tensor(3), True, 3.0)]
        [True, True, True, False, False]
    """
    if isinstance(value, Integral):
        return not isinstance(value, bool)
    if isinstance(value, torch.Tensor):
        return value.dim() == 0 and not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    return getattr(value, "shape", None) == () and getattr(getattr(value, "dtype", None), "kind", "") in ("i", "u")


def whole(value: Any, name: str, least: int | None = None, *, error: type[DeconvvizError] = OptionError) -> int:
    """Return a whole number as an int.

    Raises:
        OptionError: It is none, or it is below `least`; or the `error` that the caller names.
    """
    if not is_whole(value) or (least is not None and int(value) < least):
        bound = "" if least is None else f" of at least {least}"
        raise error(f"{name}={value!r}: expected a whole number{bound}.")
    return int(value)


def wholes(values: Iterable[Any], name: str, *, error: type[DeconvvizError] = OptionError) -> list[int]:
    """Return several whole numbers as ints: of a list, a range, or a tensor or array with one dimension.

    Raises:
        OptionError: One of them is none, or the `error` that the caller names.
    """
    try:
        given = list(values)
    except TypeError as problem:
        raise error(f"{name}={values!r}: expected whole numbers in a list.") from problem
    return [whole(value, name, error=error) for value in given]


def is_flag(value: Any) -> bool:
    """Say whether a value is one True or False, in any of the forms that `is_whole` knows."""
    if isinstance(value, torch.Tensor):
        return value.dim() == 0 and value.dtype == torch.bool
    return isinstance(value, (bool, np.bool_))


def numbers_of(values: Any, size: int, name: str, *, error: type[DeconvvizError] = OptionError) -> list[int]:
    """Return several whole numbers as ints; a mask of `size` flags stands for the places where it is True.

    Raises:
        OptionError: They are no whole numbers, there are none, or a mask has another length; or the caller's `error`.
    """
    given = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else None
    if given and all(map(is_flag, given)):
        if len(given) != size:
            raise error(f"{name} is a mask of {len(given)} flags, expected {size}: one for each.")
        given = [place for place, flag in enumerate(given) if flag]
    if given is not None and not given:
        raise error(f"{name} holds no number; give some.")
    return wholes(values if given is None else given, name, error=error)


def at_once(batch_size: Any, own: int | None, usual: int = 64) -> int:
    """Return how many images go through the network at once: as asked, else as the data's own loader, else the usual.

    Raises:
        OptionError: What is asked is no whole number of at least 1.
    """
    return (own or usual) if batch_size is None else whole(batch_size, "batch_size", 1)


def find_device(name: str | torch.device) -> torch.device:
    """Return a device that is there; "auto" is the accelerator where there is one, else the CPU.

    Example:
        >>> find_device("cpu")
        device(type='cpu')

    Raises:
        OptionError: There is no such device; the message names those there are.
    """
    if name == "auto":
        return torch.device(_kinds()[0])
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        # A kind that torch was built without is an AssertionError, a missing driver or index a RuntimeError.
        raise OptionError(f"device={str(name)!r} is not there. There are: {', '.join(_kinds())}; or 'auto'.") from error
    return device


def _kinds() -> list[str]:
    kinds = [kind for kind in ("cuda", "xpu", "mps") if (m := getattr(torch, kind, None)) and m.is_available()]
    return [*kinds, "cpu"]


def check_on_error(on_error: str) -> None:
    """Refuse an `on_error` that says neither to raise nor to skip."""
    if on_error not in ("raise", "skip"):
        raise OptionError(f"on_error={on_error!r} has no meaning here. Give 'raise' or 'skip'.")
