"""What can go wrong, one class per kind; every message says what was given, what was expected, what to do."""

from collections.abc import Mapping
from typing import Any


class DeconvvizError(Exception):
    """The base of every error that deconvviz raises on purpose.

    Attributes:
        done: what a call without `out=` had finished when a later part of it failed, in the form of its result: units of
            `maximize`, layers of `invert`; None where there is nothing, or where it is kept in the file `out`.
    """

    done: Any = None

    def keep(self, done: Any, text: str) -> None:
        """Carry what was finished before, and say so."""
        self.done = done
        self.args = (f"{self} {text} in this error's `done`.", *self.args[1:])


class UnsupportedOp(DeconvvizError, NotImplementedError):
    """An operation on the path has no rule; the message names the operation and its module."""


class LayerError(DeconvvizError, ValueError):
    """No such layer, or a name that fits several; the message lists the ones there are."""


class UnitError(DeconvvizError, ValueError):
    """A unit or a position outside the layer."""


class ImageError(DeconvvizError, ValueError):
    """Images of the wrong shape, channels or range, none at all, or a file that cannot be read."""


class UnreadableImage(ImageError):
    """One image that cannot be read, among others that may be: `on_error="skip"` goes on without it."""


class ModelError(DeconvvizError, ValueError):
    """A model whose operations cannot be seen, whose weights are not finite, or that does not fit the call."""


class ForwardError(ModelError, RuntimeError):
    """The model itself failed on these images; the cause is its own exception."""


class OptionError(DeconvvizError, ValueError):
    """An option that has no meaning."""


class StoreError(DeconvvizError, OSError):
    """A file that cannot be written, or that holds something else than expected."""


class RankError(DeconvvizError, RuntimeError):
    """Another of the processes that share a call failed, is gone, or makes another call."""


def form_of(found: Any) -> str:
    """Say what somebody gave or a model returned: the shape of a tensor, the parts of what holds several."""
    if isinstance(found, Mapping):
        return "{" + ", ".join(f"{key!r}: {_part(value)}" for key, value in found.items()) + "}"
    if isinstance(found, (list, tuple)):
        listed = ", ".join(map(_part, found[:4])) + (", …" if len(found) > 4 else "")
        return f"a {type(found).__name__} of {len(found)} ({listed})"
    return _part(found)


def _part(found: Any) -> str:
    if isinstance(found, Mapping):
        return "{" + ", ".join(f"{key!r}: …" for key in found) + "}"
    shape = getattr(found, "shape", None)
    return type(found).__name__ if shape is None else str(tuple(shape))
