"""What is not the same on every device: how exact float32 is, what a lack of memory looks like, how copies are made."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Words by which the libraries below torch say that memory is lacking, in errors of no type of their own.
_LACKING = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "can't allocate memory")
# How errors of the device itself begin, which say nothing of the model.
_OF_THE_DEVICE = ("CUDA", "cuDNN", "CUDNN", "CUBLAS", "cuBLAS", "HIP", "MPS backend", "XPU", "Level")

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


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that the device has no memory left, whichever library says so."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LACKING)


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
