"""Torch's modes: stacks left as they were found, a mode that keeps a kernel from going wrong, modules that only watch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.overrides as overrides
import torch.utils._python_dispatch as dispatch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


@contextlib.contextmanager
def modes_as_before() -> Iterator[None]:
    """Leave torch's stacks of modes as they were, wherever an interrupt falls, and hand the interrupt on.

    Python code runs where torch enters and leaves a mode; an interrupt there leaves the mode behind, or takes one away.
    """
    functions, dispatches = overrides._get_current_function_mode_stack(), dispatch._get_current_dispatch_mode_stack()
    flags = {name: getattr(dispatch, name) for name in _FLAGS if hasattr(dispatch, name)}
    earlier = sys.exc_info()[1]  # what the caller is handling already
    try:
        yield
    except Exception as error:
        found: BaseException | None = error
        while isinstance(found, Exception) and found is not earlier:
            found = found.__context__
        if isinstance(found, (KeyboardInterrupt, SystemExit)) and found is not earlier:
            raise found from None
        raise
    finally:
        vars(dispatch).update(flags)
        _restore(functions, overrides._get_current_function_mode_stack, overrides._push_mode, overrides._pop_mode)
        _restore(dispatches, dispatch._get_current_dispatch_mode_stack, dispatch._push_mode, dispatch._pop_mode)


_FLAGS = (
    "_is_in_torch_dispatch_mode",
    "_is_in_non_infra_torch_dispatch_mode",
    "_is_in_any_mode_without_ignore_compile_internals",
)


def _restore(
    before: list[Any], now: Callable[[], list[Any]], push: Callable[[Any], Any], pop: Callable[[], Any]
) -> None:
    while now()[len(before) :]:
        pop()
    for mode in before[len(now()) :]:
        push(mode)


@contextlib.contextmanager
def sound_gradients() -> Iterator[None]:
    """Compute gradients inside, with torch's autograd, that are right whatever the strides.

    On a CPU the backward of batch and instance normalization confuses rows, columns and channels where the signal lies
    in another order than the input and a dimension has size 1, so that two orders look alike (seen in torch 2.6 to 2.14).
    """
    with modes_as_before(), _PlainNorms():
        yield


class _PlainNorms(TorchDispatchMode):
    """Gives the backward of batch normalization its tensors in the plain order."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _NORMS:
            args = (*map(_plain, args[:2]), *args[2:])
        return func(*args, **(kwargs or {}))


_NORMS = frozenset({torch.ops.aten.native_batch_norm_backward.default, torch.ops.aten.batch_norm_backward.default})


def _plain(x: Tensor) -> Tensor:
    if x.device.type != "cpu" or 1 not in x.shape:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def is_observer(module: nn.Module, base: str = "ObserverBase") -> bool:
    """Whether a module watches what passes by, and passes it on, in a model that is prepared for quantization."""
    return any(kind.__name__ == base and "quantization" in kind.__module__ for kind in type(module).__mro__)
