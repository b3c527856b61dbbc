"""What autograd would make of a recorded pass: where it passes nothing back, and functions with a backward of their own.

A pass is recorded without a graph. For the gradient rules the model sees gradients switched on, so that its own
`no_grad` blocks show, and each `torch.autograd.Function` is one operation, whose backward is its own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, FunctionMeta

from .operations import short_name

# Called for each custom function: (its class, what it is applied to, run) -> what it returns.
Seen = Callable[[Any, "tuple[Any, ...]", Callable[[], Any]], Any]

# Their results are none of autograd's business, whatever the mode.
_DETACHED = frozenset("detach data".split())


def cut(
    name: str, tensors: Sequence[Tensor], made: Sequence[Tensor], changed: Sequence[Tensor], *, on: bool
) -> Cut | None:
    """Say where autograd goes on from what an operation returned that just ran; None: by the operation's derivative.

    `on`: gradients are. For each result the number of the tracked tensor that takes its signal as it is, or None where
    none does. A tensor that is changed in place where gradients are off keeps its history: autograd does not notice.
    """
    if short_name(name) not in _DETACHED and on and not torch.is_inference_mode_enabled():
        return None
    if name.endswith(".detach_"):
        return (None,) * len(made)
    kept = [next((i for i, x in enumerate(tensors) if x is y), None) for y in made]
    return tuple(
        i if any(y is x for x in changed) and y.is_floating_point() else None for i, y in zip(kept, made, strict=True)
    )


Cut = tuple[int | None, ...]


@contextlib.contextmanager
def gradients_on(network: nn.Module) -> Iterator[None]:
    """Let the network run as if gradients were wanted; its weights take none meanwhile, so that no graph is kept."""
    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


_here = threading.local()
_lock = threading.Lock()
_count = 0  # passes, of all threads, that look for custom functions now


@contextlib.contextmanager
def functions_seen(by: Seen) -> Iterator[None]:
    """Hand the runs of custom functions in this thread to `by`; where torch takes them from is put back afterwards.

    Models keep `apply` under other names, so it is too late to replace it; torch looks up `forward` at each call.
    """
    global _count
    before = getattr(_here, "seen", None)
    try:
        with _lock:
            _count += 1
            FunctionMeta.__getattribute__ = _looked_up  # type: ignore[method-assign]
        _here.seen = by
        yield
    finally:
        _here.seen = before
        with _lock:
            _count -= 1
            if not _count:
                del FunctionMeta.__getattribute__


def _looked_up(cls: Any, name: str) -> Any:
    found = type.__getattribute__(cls, name)
    seen = getattr(_here, "seen", None) if name == "forward" else None
    return found if seen is None else partial(_forward, seen, cls, found)


def _forward(seen: Seen, cls: Any, forward: Callable[..., Any], *args: Any) -> Any:
    given = args[1:] if args and isinstance(args[0], FunctionCtx) else args
    return seen(cls, given, lambda: forward(*args))
