"""Context managers that leave a model, and the random numbers, as they were found."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from .devices import exact_float32
from .errors import ModelError
from .modes import is_observer


class Digest(Protocol):
    """A hash of `hashlib`."""

    def update(self, data: memoryview | bytes, /) -> None:
        """Take more bytes."""


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[nn.Module]:
    """Run `model` in eval mode, in exact float32, without gradients; afterwards all is as before.

    That is every mode, buffer and random state, and torch's switches for lower precision.

    Yields the network itself: the module inside a `DataParallel` wrapper, whose replicas run in threads where
    nothing can be seen. Hooks are the caller's to close. A `forward` that writes to its own buffers is undone. Another
    thread that comes with the same model, or with a part of it, waits.
    """
    network = unwrapped(model)
    with _alone(model):
        yield from _untouched(model, network)


def _untouched(model: nn.Module, network: nn.Module) -> Iterator[nn.Module]:
    modes = {module: module.training for module in model.modules()}
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    # Inference mode would leave tensors without the version counters that show changes in place.
    forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with torch.inference_mode(False), forked, exact_float32():
        buffers = _buffers(network)
        try:
            # train(False) may be overridden; the flag alone is what `eval` promises.
            for module in modes:
                module.training = False
            with torch.no_grad():
                for module in modes:
                    if is_observer(module, "FakeQuantizeBase"):  # as torch.ao.quantization.disable_observer does
                        module.get_buffer("observer_enabled").zero_()
                yield network
        finally:
            with torch.no_grad():
                _undo(buffers)
            for module, training in modes.items():
                module.training = training


_Claims = list[tuple[int, frozenset[int]]]
_claims: _Claims = []  # which thread is inside `untouched` with which modules
_changed = threading.Condition()


@contextlib.contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """Wait until no other thread holds any of the model's modules, and hold them."""
    claim = threading.get_ident(), frozenset(map(id, model.modules()))

    def free() -> bool:
        return all(thread == claim[0] or modules.isdisjoint(claim[1]) for thread, modules in _claims)

    try:
        with _changed:
            _changed.wait_for(free)
            _claims.append(claim)
        yield
    finally:
        with _changed:
            _claims[:] = [other for other in _claims if other is not claim]
            _changed.notify_all()


def _forget() -> None:
    # A forked process has this thread alone, and its lock may have been held by another.
    global _changed
    _claims.clear()
    _changed = threading.Condition()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


# Per module: its buffers by name, each with its version and a copy of its values.
_Buffers = list[tuple[nn.Module, dict[str, tuple[Tensor, int, Tensor] | None]]]


def _buffers(network: nn.Module) -> _Buffers:
    with torch.no_grad():
        return [
            (module, {name: b if b is None else (b, _version(b), b.clone()) for name, b in module._buffers.items()})
            for module in network.modules()
        ]


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _undo(saved: _Buffers) -> None:
    for module, buffers in saved:
        # A forward may also put another tensor in a buffer's place: self.calls = self.calls + 1.
        if any(module._buffers.get(name) is not (entry and entry[0]) for name, entry in buffers.items()):
            module._buffers.update({name: entry and entry[0] for name, entry in buffers.items()})
    # What is on the meta device has no numbers to compare.
    kept = [entry for _, buffers in saved for entry in buffers.values() if entry and entry[0].device.type != "meta"]
    # A batch norm in training mode writes its statistics without counting it as a change.
    same = [_version(buffer) == version and buffer.shape == copy.shape for buffer, version, copy in kept]
    told = iter(_told([(buffer == copy).all() for (buffer, _, copy), s in zip(kept, same, strict=True) if s]))
    for (buffer, _, copy), s in zip(kept, same, strict=True):
        if not (s and next(told)):
            buffer.copy_(copy)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the CPU and `device`; give the caller's random states back afterwards, also after an error."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach every other device's, too
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def check_module(model: object) -> None:
    """Refuse what is no module."""
    if not isinstance(model, nn.Module):
        what = (
            f"the class {model.__name__}: give one of its objects" if isinstance(model, type) else type(model).__name__
        )
        raise ModelError(f"expected a torch.nn.Module, got {what}. Wrap a function in a module whose forward calls it.")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside `DataParallel` wrappers, after checking that its operations can be seen."""
    check_module(model)
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    for path, module in model.named_modules():
        reason = _opaque(module)
        if reason:
            where = f"its module {path!r}" if path else "the model"
            raise ModelError(f"{where} is {reason}: its operations cannot be seen. Give the plain eager model.")
    return model


def _opaque(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted or traced (torch.jit)"
    if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
        return "compiled (torch.compile)"
    if ".quantized" in type(module).__module__:
        return "quantized"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "lazy and has no weights before its first run"
    if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
        return "a DataParallel over several devices, whose replicas run in threads"
    return None


def check_weights(model: nn.Module) -> None:
    """Refuse a model that has a NaN or an infinity among its parameters or buffers, or no numbers at all."""
    watching = tuple(f"{path}." for path, module in model.named_modules() if is_observer(module))
    named = (*model.named_parameters(), *model.named_buffers())
    # Observers begin with ranges from infinity to minus infinity.
    tensors = {n: t.detach() for n, t in named if not watching or not n.startswith(watching)}
    if hollow := next((name for name, tensor in tensors.items() if tensor.device.type == "meta"), None):
        raise ModelError(
            f"{hollow!r} is on the meta device: it has a shape and no numbers. Give it some: model.to_empty(device='cpu') "
            "and load_state_dict."
        )
    tensors = {name: t for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    # One pass over each without temporaries; NaN comes through. The device is waited for once.
    for name, finite in zip(tensors, _told([_finite(t) for t in tensors.values()]), strict=True):
        if not finite:
            raise ModelError(f"the weights are not finite: {name!r} holds NaN or infinity. Load sound weights.")


def _finite(tensor: Tensor) -> Tensor:
    return torch.stack(tensor.aminmax()).isfinite().all()


def _told(answers: list[Tensor]) -> list[bool]:
    """Bring answers of one number each to the host, with one wait for each device."""
    devices = {answer.device for answer in answers}
    told = {d: iter(torch.stack([a for a in answers if a.device == d]).tolist()) for d in devices}
    return [next(told[answer.device]) for answer in answers]


def hash_weights(network: nn.Module, digest: Digest) -> None:
    """Feed the names and the bits of all parameters and buffers to a hash of `hashlib`."""
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device and the floating-point type that the model's first parameter has (CPU, float32 if none)."""
    check_module(model)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32
