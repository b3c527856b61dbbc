"""An accelerator simulated in Python: a device on a machine that has none, so that mistakes about devices show.

    with simulated() as device:  # this thread only
        model.to("cuda"), torch.zeros(3, device="cuda")  # work; the values are computed on the CPU
    device.kernels.total(), device.waits.total()

An `OnDevice` tensor wraps one on the CPU. Python sees it on the device; for C++ it lies on `meta`, the only device
besides the CPU for which autograd needs neither a driver nor streams. Refused as CUDA refuses it: tensors of two
devices in one operation (but for single numbers and the CPU's indices), `numpy()`, pinning. A copy to the CPU with
`non_blocking=True` holds garbage until something waits for the device. Every kernel and every wait of the host is
counted for the line of the package that caused it.

Not simulated: time, streams, the sum of the memory in use, a kernel's own rounding, kernels that are missing.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = "/deconvviz/"
CPU, META = torch.device("cpu"), torch.device("meta")


@dataclass
class Device:
    """The simulated device: how it behaves, and what it was asked to do."""

    type: str = "cuda"
    limit: int = 0  # bytes of the largest tensor that fits; 0: any
    largest: int = 0  # bytes of the largest tensor that was made
    tf32: bool = False  # whether products of float32 lose 13 bits where torch's flags allow it, as on an H100
    float64: bool = True  # not on MPS
    free: int = 60 << 30
    kernels: Counter[str] = field(default_factory=Counter)  # by operation
    lines: Counter[str] = field(default_factory=Counter)  # kernels by line of the package
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)  # by line of the package, and why
    garbage: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (what the host sees, what will arrive)

    @property
    def device(self) -> torch.device:
        """The device as Python sees it."""
        return torch.device(self.type, 0)

    def wait(self, reason: str) -> None:
        """Let the host wait for all that it has asked for: everything arrives."""
        self.waits[_line(), reason] += 1
        for seen, value in self.garbage:
            seen.data.copy_(value)
        self.garbage.clear()

    def clear(self) -> None:
        """Count from zero."""
        for counter in (self.kernels, self.lines, self.waits):
            counter.clear()


HERE = Device()  # the one that is simulated now, or was last


def _line() -> str:
    frame = sys._getframe(2)
    while frame is not None and PACKAGE not in frame.f_code.co_filename:
        frame = frame.f_back
    return "elsewhere" if frame is None else f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"


class OnDevice(Tensor):
    """A tensor on the simulated device; `value` is the same on the CPU."""

    value: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: HERE.device)
    is_cuda = property(lambda self: HERE.type == "cuda")
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, value: Tensor) -> OnDevice:
        like = {"strides": value.stride(), "storage_offset": value.storage_offset(), "dtype": value.dtype}
        self = Tensor._make_wrapper_subclass(cls, value.shape, **like, device=META)
        self.value = value
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def get_device(self) -> int:
        return 0

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {HERE.device} device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        HERE.wait("tolist")
        return self.value.tolist()

    def type(self, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return super().type(*args, **kwargs)
        return self.value.type().replace("torch", f"torch.{HERE.type}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        with torch.no_grad():
            new: Tensor = OnDevice(self.value.detach().clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            new = torch.nn.Parameter(new, self.requires_grad)
        return memo.setdefault(id(self), new)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.value.detach().__reduce_ex__(protocol)  # a file holds a tensor of the CPU

    def __repr__(self, **kwargs: Any) -> str:
        return f"{self.value!r} on {HERE.device}"


# ---- one operation ---------------------------------------------------------------------------------------------------


def _leaves(args: Any, kwargs: dict[str, Any]) -> list[Any]:
    """The arguments of an operation of ATen in a row: no deeper than a list of tensors, so no tree need be walked."""
    found: list[Any] = []
    for x in (*args, *kwargs.values()):
        if isinstance(x, (list, tuple)):
            found.extend(x)
        else:
            found.append(x)
    return found


def _each(function: Callable[[Any], Any], x: Any) -> Any:
    """The same arguments or results with each changed."""
    if isinstance(x, dict):
        return {key: _each(function, value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)([_each(function, value) for value in x])
    return function(x)


_KNOWN_TO_HOST = frozenset(
    "_local_scalar_dense nonzero equal is_nonzero _unique2 unique_dim unique_consecutive masked_select bincount".split()
)
_ANY_DEVICES = frozenset("copy_ _to_copy set_ record_stream _has_compatible_shallow_copy_type is_same_size".split())
_INDEXED = frozenset("index index_put index_put_ _index_put_impl_ _unsafe_index _unsafe_index_put".split())
_WITH_NUMBERS = frozenset(
    "where masked_fill masked_fill_ fill_ lerp clamp clamp_min clamp_max index_fill index_fill_ addcmul".split()
)
_CONVOLUTIONS = frozenset(("convolution", "convolution_backward"))
_PRODUCTS = frozenset(("mm", "addmm", "bmm", "baddbmm"))


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation of ATen: on the CPU's values, with the device's manners."""
    name = func._schema.name.split("::")[-1]
    there = any(isinstance(x, OnDevice) for x in _leaves(args, kwargs))
    if there and name not in _ANY_DEVICES:
        _refuse_strays(func, name, args, kwargs)
    named = kwargs.get("device")
    arrives = there if named is None else torch.device(named).type in (HERE.type, "meta")
    if name in ("copy_", "set_") and there:
        arrives = isinstance(args[0], OnDevice)
    if not (there or arrives):
        return func(*args, **kwargs)
    if name == "_fused_sdp_choice":
        return 0
    if name in ("_pin_memory", "is_pinned"):
        raise RuntimeError(f"cannot pin 'torch.{HERE.type}.FloatTensor' only dense CPU tensors can be pinned")
    blocking = not kwargs.get("non_blocking", name == "copy_" and args[2:3] == (True,))
    _count(name, args, kwargs, leaves=there and not arrives, arrives=arrives, blocking=blocking)
    result = _on_values(func, name, args, kwargs)
    if not arrives:
        return _handed_over(name, args, result, blocking)
    if any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments):
        # What is changed or filled in place is the same object afterwards.
        known = {id(x.value): x for x in _leaves(args, kwargs) if isinstance(x, OnDevice)}
        return _each(lambda x: known.get(id(x), x) if isinstance(x, Tensor) else x, result)
    return _each(lambda x: OnDevice(x) if isinstance(x, Tensor) else x, result)


def _refuse_strays(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> None:
    """Refuse tensors of the CPU where CUDA refuses them."""
    flat = [x for x in _leaves(args, kwargs) if isinstance(x, Tensor)]
    if name in _INDEXED:
        indices = [x for x in args[1] if x is not None]
        if isinstance(args[0], OnDevice):
            for x in indices:
                if not isinstance(x, OnDevice):
                    HERE.wait("an index of the CPU is copied to the device")
        elif any(isinstance(x, OnDevice) for x in indices):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        flat = [args[0], *(x for x in args[2:] if isinstance(x, Tensor))]
        if any(isinstance(x, OnDevice) and x.dtype in (torch.bool, torch.uint8) for x in indices):
            HERE.wait("a mask as an index")
    numbers = torch.Tag.pointwise in func.tags or name in _WITH_NUMBERS or name in _INDEXED
    strays = [x for x in flat if not isinstance(x, OnDevice) and not (numbers and x.dim() == 0 and x is not flat[0])]
    if strays and not (numbers and all(x.dim() == 0 for x in strays) and not name.endswith("_")):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {HERE.device} and cpu! "
            f"({func})"
        )


def _count(name: str, args: Any, kwargs: dict[str, Any], *, leaves: bool, arrives: bool, blocking: bool) -> None:
    if name in _KNOWN_TO_HOST or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        HERE.wait(name)
    if leaves and blocking:
        HERE.wait("a copy to the CPU")
    elif arrives and blocking and name in _ANY_DEVICES:
        if any(isinstance(x, Tensor) and not isinstance(x, OnDevice) and x.dim() for x in _leaves(args, {})):
            HERE.wait("a copy to the device")
    HERE.kernels[name] += 1
    HERE.lines[_line()] += 1


def _on_values(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    args, kwargs = (_each(lambda x: x.value if isinstance(x, OnDevice) else x, given) for given in (args, kwargs))
    plain = {key: x for key, x in kwargs.items() if key not in ("pin_memory", "non_blocking")}
    if plain.get("device") is not None:
        plain["device"] = CPU
    result = func(*(_each(rounded, args) if _loses_bits(name) else args), **plain)
    made = [x for x in _leaves((result,), {}) if isinstance(x, Tensor)]
    views = any(a.alias_info for a in func._schema.returns)
    if not views:
        if HERE.limit and any(x.nbytes > HERE.limit for x in made):
            raise _lacking(f"{func} wants more than {HERE.limit} bytes")
        HERE.largest = max([HERE.largest, *(x.nbytes for x in made)])
    if not HERE.float64 and any(x.dtype == torch.float64 for x in made):
        raise TypeError(f"Cannot convert a {HERE.type} Tensor to float64 dtype as the framework doesn't support it.")
    return result


def _lacking(what: str) -> RuntimeError:
    if HERE.type == "mps":
        return RuntimeError(f"MPS backend out of memory (simulated): {what}")
    return torch.OutOfMemoryError(f"CUDA out of memory (simulated): {what}")


def _loses_bits(name: str) -> bool:
    if not HERE.tf32:
        return False
    if name in _CONVOLUTIONS:
        return torch.backends.cudnn.allow_tf32
    return name in _PRODUCTS and torch.backends.cuda.matmul.allow_tf32


def rounded(x: Any) -> Any:
    """Round float32 to TF32: the nearest of ten bits of mantissa, ties to even."""
    if not (isinstance(x, Tensor) and x.dtype == torch.float32):
        return x
    bits = x.detach().contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32).view(x.shape)


def _handed_over(name: str, args: Any, result: Any, blocking: bool) -> Any:
    """Return what the host sees of a copy: garbage until it waits, if it did not."""
    if blocking or not isinstance(result, Tensor):
        return args[0] if name == "copy_" else result
    seen = args[0] if name == "copy_" else result.clone()
    HERE.garbage.append((seen, result.clone()))
    return seen.fill_(torch.nan if seen.is_floating_point() else 1)


# ---- the device's name, and autocast ---------------------------------------------------------------------------------


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


_CAST = {getattr(F, name) for name in "conv1d conv2d conv3d conv_transpose2d linear bilinear".split()}
_CAST |= {torch.matmul, torch.mm, torch.bmm, torch.baddbmm, torch.addmm, Tensor.matmul, Tensor.__matmul__}
_FLOAT32 = {getattr(F, name) for name in "softmax log_softmax cross_entropy nll_loss layer_norm".split()}
_CAST_OR_FLOAT32 = _CAST | _FLOAT32


class _Function(TorchFunctionMode):
    """Gives the device the name that C++ knows, and casts as autocast does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.is_pinned:
            return False
        if func in _CAST_OR_FLOAT32 and torch.is_autocast_enabled(HERE.type):
            to = torch.get_autocast_dtype(HERE.type) if func in _CAST else torch.float32
            with torch.autocast(HERE.type, enabled=False):
                args, kwargs = (_each(lambda x: x.to(to) if _is_cast(x) else x, given) for given in (args, kwargs))
                return func(*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            named = kwargs.pop("device", args[0].device if func is Tensor.new_tensor else None)
            if func is Tensor.new_tensor:
                func, args = torch.tensor, args[1:]
            return func(*args, **kwargs) if named is None else func(*args, **kwargs).to(_for_c(named))
        if func is Tensor.cuda:
            func, args = Tensor.to, (args[0], HERE.device)
        if func in (Tensor.to, Tensor.cpu) or "device" in kwargs:
            args, kwargs = tuple(map(_for_c, args)), {key: _for_c(x) for key, x in kwargs.items()}
        return func(*args, **kwargs)


def _is_cast(x: Any) -> bool:
    return isinstance(x, OnDevice) and x.is_floating_point() and x.dtype != torch.float64


def _for_c(x: Any) -> Any:
    named = (isinstance(x, str) and x.split(":")[0] == HERE.type) or (
        isinstance(x, torch.device) and x.type == HERE.type
    )
    return META if named else x


# ---- the device comes and goes ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def simulated(type: str = "cuda", **options: Any) -> Iterator[Device]:
    """Let a device of this type exist in this thread; `options` are those of `Device`."""
    global HERE
    HERE = here = Device(type, **({"float64": False} if type == "mps" else {}) | options)
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch, _Dispatch(), _Function():
        if type == "cuda":
            for name, value in _cuda(here).items():
                patch.setattr(torch.cuda, name, value)
            for name in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
                patch.setattr(torch.optim.Optimizer, name, lambda self: None, raising=False)
        torch.__future__.set_swap_module_params_on_conversion(True)  # CUDA keeps a parameter's identity
        try:
            yield here
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swaps)


def _cuda(here: Device) -> dict[str, Callable[..., Any]]:
    """What torch.cuda answers; its random numbers are a generator's of the CPU."""
    random = torch.Generator().manual_seed(0)
    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "device": contextlib.nullcontext,
        "get_device_name": lambda device=None: "simulated",
        "is_bf16_supported": lambda *args, **kwargs: True,
        "synchronize": lambda device=None: here.wait("synchronize"),
        "mem_get_info": lambda device=None: (here.free, 80 << 30),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "empty_cache": lambda: None,
        "get_rng_state": lambda device=None: random.get_state(),
        "set_rng_state": lambda state, device=None: random.set_state(state),
        "manual_seed": random.manual_seed,
        "manual_seed_all": random.manual_seed,
    }
