"""Networks whose weights are drawn again, layer by layer from the output down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..tape.operations import Tape

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def steps_of(network: nn.Module, tape: Tape) -> list[tuple[str, ...]]:
    """Return the modules with weights of their own, grouped into steps from the output down to the input.

    A step is one such module, named last, behind the normalizations that follow it in the run. Modules that the tape
    does not show, such as those whose weights another module reads, join the last step: at the end nothing trained is
    left.
    """
    order = dict.fromkeys(op.module for op in tape.ops)
    groups: list[list[str]] = []
    for path in order:
        module = network.get_submodule(path)
        if not _tensors(module):
            continue
        if groups and _is_norm(module):
            groups[-1].append(path)
        else:
            groups.append([path])
    rest = [path for path, m in network.named_modules() if _tensors(m) and path not in order]
    if rest:
        groups[:1] = [[*(groups[0] if groups else []), *rest]]
    return [tuple(reversed(group)) for group in reversed(groups)]


def stages_of(count: int, most: int) -> list[int]:
    """Return after how many steps to look: 1, …, all of them, at most `most`, spread evenly."""
    if count <= most:
        return list(range(1, count + 1))
    if most == 1:
        return [count]
    return [1 + round(i * (count - 1) / (most - 1)) for i in range(most)]


def redraw(module: nn.Module, generator: torch.Generator) -> None:
    """Draw a module's own weights again, each tensor at the scale it has.

    Weights and biases come from a normal distribution of mean 0 with the tensor's root mean square. A normalization's
    scale, shift and statistics stay together and change places among the channels: drawn one by one, a small variance
    would meet a large scale, and one channel drown the others.
    """
    tensors = _tensors(module)
    with torch.no_grad():
        if _is_norm(module):
            count = len(tensors[0])
            order = torch.randperm(count, generator=generator)
            for tensor in tensors:
                if tensor.dim() and len(tensor) == count:
                    tensor.copy_(tensor[order.to(tensor.device)])
            return
        for tensor in tensors:
            scale = tensor.cpu().double().square().mean().sqrt()  # some accelerators have no float64
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)


def cascade(
    network: nn.Module, steps: Sequence[Sequence[str]], stages: Sequence[int], generator: torch.Generator
) -> Iterator[int]:
    """Redraw `network` in place, step by step; pause at each stage and yield its number."""
    done = 0
    for number, stage in enumerate(stages):
        for step in steps[done:stage]:
            for path in step:
                redraw(network.get_submodule(path), generator)
        done = stage
        yield number


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) or hasattr(module, "running_var")


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return what a module holds itself: parameters, and for a normalization its statistics."""
    own: list[Tensor] = [p for p in module._parameters.values() if p is not None]
    if _is_norm(module):
        own += [b for b in module._buffers.values() if b is not None and b.is_floating_point()]
    return own
