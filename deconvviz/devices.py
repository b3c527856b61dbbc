"""What is not the same on every device: how exact float32 is, what a lack of memory looks like, how copies are made."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

# Words by which the libraries below torch say that memory is lacking, in errors of no type of their own.
_LACKING = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "can't allocate memory")
# How errors of the device itself begin, which say nothing of the model.
_OF_THE_DEVICE = ("CUDA", "cuDNN", "CUDNN", "CUBLAS", "cuBLAS", "HIP", "MPS backend", "XPU", "Level")

_Result = TypeVar("_Result")

_lock = threading.Lock()
_inside = 0
_before: list[tuple[Any, str, Any]] = []


class _Matmul:
    """The switch for matrix products, on every device, as an attribute."""

    @property
    def precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Let float32 be float32: no TF32 in convolutions, which torch allows by itself, nor bfloat16 in products.

    The switches are the whole process's: the first thread that enters turns them, the last that leaves turns them back.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _before[:] = _turned()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _turn(_before)


def _turned() -> list[tuple[Any, str, Any]]:
    """Turn every switch to exact; return (owner, name, value before) of each."""
    backends: Any = torch.backends
    switches: list[tuple[Any, str, Any]] = [(_Matmul(), "precision", "highest"), (backends.cudnn, "allow_tf32", False)]
    if hasattr(backends.cudnn, "conv"):  # torch 2.9: one switch for each kind of operation, over the two above
        each = [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul]
        each += [backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul]
        switches += [(owner, "fp32_precision", "ieee") for owner in each]
    before = []
    for owner, name, _ in switches:
        with contextlib.suppress(RuntimeError):  # the old switch cannot be read where the new ones contradict it
            before.append((owner, name, getattr(owner, name)))
    _turn(switches)
    return before


def _turn(switches: list[tuple[Any, str, Any]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch warn that the old switches will go
        for owner, name, value in switches:
            setattr(owner, name, value)


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that the device has no memory left, whichever library says so."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _LACKING):
            return True
        error = error.__cause__
    return False


def of_the_device(error: BaseException) -> bool:
    """Whether an error is the device's own: the model and the images are not to blame."""
    return lacks_memory(error) or str(error).startswith(_OF_THE_DEVICE)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it; to the CPU always wait, for a copy that is on its way is garbage."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def doubled(tensor: Tensor) -> Tensor:
    """Return a tensor in float64: where it is, or on the CPU where its device has no such numbers."""
    return (tensor if tensor.device.type in ("cpu", "cuda") else tensor.cpu()).double()


def free_bytes(device: torch.device) -> int | None:
    """Return how much of the device's memory can be had, what torch holds unused included; None: not known."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


class Portions:
    """Runs work in portions of at most `most` items; where memory does not suffice they are halved, for good.

    One item that does not fit alone is the caller's to hear of: the error comes through.
    """

    def __init__(self, most: int) -> None:
        self.most = max(1, most)

    def run(self, work: Callable[[Tensor], _Result], items: Tensor) -> Iterator[_Result]:
        """Yield `work(some)` for all `items` (n,), in their order."""

        def one(some: Tensor) -> Iterator[_Result]:
            yield work(some)

        return self.steps(one, items)

    def steps(self, work: Callable[[Tensor], Iterator[_Result]], items: Tensor) -> Iterator[_Result]:
        """Yield each step of `work(some)` for all `items` (n,); the work on some begins again where it did not fit."""
        first = 0
        while first < len(items):
            some = items[first : first + self.most]
            if (yield from _fitting(work, some)):
                first += len(some)
            else:  # outside of the handler: the error holds on to the memory that it lacked
                self.most = len(some) // 2
                release()


def _fitting(work: Callable[[Tensor], Iterator[_Result]], items: Tensor) -> Generator[_Result, None, bool]:
    """Yield the steps; return whether memory sufficed. An error of one item, or another error, comes through."""
    steps = work(items)
    while True:
        try:
            step = next(steps)
        except StopIteration:
            return True
        except Exception as error:
            if len(items) == 1 or not lacks_memory(error):
                raise
            return False
        yield step


def fitting(work: Callable[[int], _Result], most: int) -> _Result:
    """Return `work(size)` for the largest of `most`, its half, its quarter … that memory suffices for."""
    while True:
        try:
            return work(most)
        except Exception as error:
            if most == 1 or not lacks_memory(error):
                raise
        most //= 2
        release()


def release() -> None:
    """Give back what torch holds of a device's memory without using it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
