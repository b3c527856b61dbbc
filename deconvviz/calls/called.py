"""A network that takes images alone, whatever the one inside it takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OptionError, form_of
from .detectors import is_detector, run_detector
from .marks import mark

Call = Callable[[nn.Module, Tensor], Any]
"""How a model is called with a batch of images (N, C, H, W); it returns what the model returns."""

Target = Callable[[Any], Tensor]
"""What a model returns for N images -> one number for each, (N,)."""


def called(model: Any, call: Call | None = None, targets: Sequence[Target] = ()) -> Any:
    """Return a network that takes images alone: the model itself, or one that calls it as `call` says.

    Example:
        >>> import torch
        >>> model = torch.nn.Bilinear(3, 2, 4)
        >>> network = called(model, lambda model, x: model(x.mean((2, 3)), torch.ones(len(x), 2)))
        >>> network(torch.zeros(5, 3, 8, 8)).shape, [name for name, _ in network.named_parameters()]
        (torch.Size([5, 4]), ['weight', 'bias'])

    None is `model(images)`; torchvision's detectors get their images as a list, resized all at once, so that they can be
    followed. A mapping with scores named "logits", as the models of Hugging Face return, becomes these scores. With
    `targets` the network returns their numbers (N, T), in a module of its own that is called "target".
    """
    if not isinstance(model, nn.Module):
        return model  # refused where a module is expected
    if call is not None and not callable(call):
        raise OptionError(
            f"call={call!r}: expected a function, such as lambda model, images: model(images, scale=1.0)."
        )
    inner = model
    while isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = inner.module
    if isinstance(inner, torch.jit.ScriptModule) or hasattr(inner, "_orig_mod"):
        return model  # refused with its reason where operations are to be seen
    if call is None and not targets and (isinstance(inner, Called) or not (_is_hugging(inner) or is_detector(inner))):
        return model
    # The errors name the model, and its preprocessing is found by the module that its class comes from.
    kind = type(type(inner).__name__, (Called,), {"__module__": type(inner).__module__})
    return kind(inner, call, targets)


def _is_hugging(model: nn.Module) -> bool:
    return any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__)


class Called(nn.Module):
    """Shares everything with `inner`: parameters, buffers, modules by their names, modes; and calls it for images alone.

    `asked` is the name of the module whose response the targets are, "" without targets; `picked` says that the last
    pass picked scores out of a mapping.
    """

    inner: nn.Module
    asked: str
    picked: bool
    _called_by: Call

    def __init__(self, inner: nn.Module, call: Call | None, targets: Sequence[Target] = ()) -> None:
        """Wrap a network; it keeps its mode."""
        mode = inner.training
        vars(self).update(inner=inner, picked=False)  # no submodule: names would change
        super().__init__()
        self.training = mode
        self._parameters, self._buffers = inner._parameters, inner._buffers
        self._modules = dict(inner._modules)
        given = vars(inner).get("_called_by") if isinstance(inner, Called) else None
        head = next(name for name in ("target", "target_", "target__") if name not in inner._modules) if targets else ""
        # Past nn.Module's own way of setting attributes: a call that is a module is none of this one's.
        vars(self).update(_called_by=call or given or (run_detector if is_detector(inner) else _plain), asked=head)
        if head:
            self._modules[head] = _Head(targets)

    def forward(self, images: Tensor) -> Any:
        """Call the network, and pick its scores or measure the targets."""
        found = self._called_by(_innermost(self), images)
        if head := self._modules.get(self.asked):
            vars(head)["images"] = len(images)
            return head(found)
        scores = found.get("logits") if isinstance(found, Mapping) else None
        vars(self)["picked"] = isinstance(scores, Tensor)
        return scores if isinstance(scores, Tensor) else found

    @property
    def training(self) -> bool:
        """The mode, which is the inner network's."""
        return self.inner.training

    @training.setter
    def training(self, mode: bool) -> None:
        self.inner.training = mode

    @property
    def names(self) -> tuple[str, ...]:
        """How results call the targets."""
        return tuple(map(name_of, getattr(self._modules.get(self.asked), "targets", ())))

    def get_extra_state(self) -> Tensor:
        """Return a hash of the call and the targets, so that a state that is hashed differs where these do."""
        head = self._modules.get(self.asked)
        digest = mark(self._called_by, getattr(head, "targets", ()))
        return torch.tensor(list(digest), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Take nothing back: how a network is called is no weight."""

    def __getattr__(self, name: str) -> Any:
        """Look for what only the network has, such as a card or a configuration."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or "inner" not in vars(self):
                raise
            return getattr(self.inner, name)


def _innermost(network: nn.Module) -> nn.Module:
    while isinstance(network, Called):
        network = network.inner
    return network


def _plain(model: nn.Module, images: Tensor) -> Any:
    return model(images)


class _Head(nn.Module):
    """Measures the targets: whatever a model returns for N images -> (N, T)."""

    def __init__(self, targets: Sequence[Target]) -> None:
        super().__init__()
        self.targets, self.images = tuple(targets), 0

    def forward(self, found: Any) -> Tensor:
        """Return one number per image and target."""
        return torch.stack([self._number(target, found) for target in self.targets], 1)

    def _number(self, target: Target, found: Any) -> Tensor:
        value = target(found)
        if not isinstance(value, Tensor) or value.shape != (self.images,):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise OptionError(
                f"target {name_of(target)!r} gave {got} for {self.images} images, expected ({self.images},): one number "
                f"for each. The model returns {form_of(found)}."
            )
        if not value.is_floating_point():
            raise OptionError(f"target {name_of(target)!r} gave {value.dtype}, expected floating-point numbers.")
        return value


def name_of(target: Any) -> str:
    """Return how results and errors call a target."""
    return str(getattr(target, "__name__", None) or getattr(target, "name", None) or type(target).__name__)
