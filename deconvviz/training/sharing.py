"""One batch on several processes: each has its part of the images, and all see the whole batch's statistics."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..ranks import Team

_DROPPING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Part:
    """This process's part of the batch that is being computed: `own` of its `count` images, from number `first` on.

    A process without an image runs one of the others', which counts nowhere.
    """

    def __init__(self, team: Team) -> None:
        self.team, self.count, self.first, self.own = team, 0, 0, 0

    def take(self, count: int) -> slice:
        """Begin a batch of so many images; return those of this process."""
        rank, size = self.team.rank, self.team.size
        self.count, self.first = count, rank * count // size
        self.own = (rank + 1) * count // size - self.first
        return slice(self.first, self.first + self.own) if self.own else slice(0, 1)

    def counted(self, each: Tensor) -> Tensor:
        """Return numbers (n,) of this process's images; those of an image that counts nowhere become zero."""
        return each if self.own else each * 0


@contextlib.contextmanager
def whole_batches(model: nn.Module, part: Part, device: torch.device) -> Iterator[nn.Module]:
    """Let a model in training mode compute a part of each batch as it would in the whole; yield what to call.

    Gradients are averaged by `DistributedDataParallel`. Batch normalization takes mean and variance of the whole
    batch; dropout draws the whole batch's masks and takes its own, so that all processes stay at the same random
    state.
    """
    if part.team.size == 1:
        yield model
        return
    replaced: dict[Any, Any] = {_BatchNorm: _normalize, _DROPPING: _drop}
    changed = [
        (module, functools.partial(function, module, type(module).forward, part))
        for module in model.modules()
        for kinds, function in replaced.items()
        if isinstance(module, kinds)
    ]
    try:
        for module, forward in changed:
            module.forward = forward
        with warnings.catch_warnings():
            # Blocks that are dropped and heads that are not read have no gradient in some steps, in others they have.
            warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
            ids = [device] if device.type == "cuda" else None
            yield nn.parallel.DistributedDataParallel(
                model,
                device_ids=ids,
                process_group=part.team.group(device),
                find_unused_parameters=True,
            )
    finally:
        for module, _ in changed:
            del module.forward


def _normalize(module: Any, usual: Any, part: Part, x: Tensor) -> Tensor:
    """Normalize by mean and variance over the whole batch, of which this process has a part."""
    if not module.training and module.running_mean is not None:
        return usual(module, x)
    axes = [0, *range(2, x.dim())]
    numbers = part.count * x[0, 0].numel()
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    shape = [1, -1, *[1] * (x.dim() - 2)]
    mean = part.team.add(values[: part.own].sum(axes)) / numbers
    centred = values - mean.view(shape)
    variance = part.team.add(centred[: part.own].square().sum(axes)) / numbers
    if module.training and module.track_running_stats:
        _remember(module, mean.detach(), variance.detach() * numbers / max(1, numbers - 1))
    found = centred * (variance + module.eps).rsqrt().view(shape)
    if module.affine:
        found = found * module.weight.view(shape) + module.bias.view(shape)
    return found.to(x.dtype)


def _remember(module: Any, mean: Tensor, variance: Tensor) -> None:
    module.num_batches_tracked.add_(1)
    share = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
    with torch.no_grad():
        module.running_mean.lerp_(mean.to(module.running_mean), share)
        module.running_var.lerp_(variance.to(module.running_var), share)


def _drop(module: Any, usual: Any, part: Part, x: Tensor) -> Tensor:
    """Drop what the whole batch's mask drops in this process's part."""
    if not module.training:
        return usual(module, x)
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if channels_last else torch.contiguous_format
    ones = torch.ones(part.count, *x.shape[1:], dtype=x.dtype, device=x.device)
    mask = usual(module, ones.contiguous(memory_format=order))
    return x * mask[part.first : part.first + len(x)] if part.own else x * mask[:1]
