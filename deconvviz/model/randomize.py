"""Networks whose weights are drawn again, layer by layer from the output down."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..checks import whole
from ..errors import ModelError
from ..guard import check_module
from ..tape.operations import Tape

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def randomize(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Return a copy of a model with all its weights drawn again, each at the scale it had.

    Example:
        >>> import deconvviz
        >>> model = deconvviz.zoo.create("zfnet64", weights="bundled")
        >>> options = {"layer": 2, "units": [3], "steps": 4, "progress": False}
        >>> trained = deconvviz.maximize(model, **options)
        >>> random = deconvviz.maximize(deconvviz.randomize(model), **options)
        >>> figure = trained.plot(beside=random)

    What a picture shows of this copy as well, the training did not put there: it comes from the architecture, or from
    how the picture is made. Weights and biases come from a normal distribution with the root mean square that each
    tensor has; the scales, shifts and statistics of a normalization change places among its channels.

    Args:
        model: The network; left as it was found.
        seed: Of the drawing.

    Returns:
        Another module, in the same mode and on the same device.

    Raises:
        ModelError: The model cannot be copied.
        OptionError: The seed is no whole number.

    Source:
        Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv:1810.03292).
    """
    check_module(model)
    generator = torch.Generator().manual_seed(whole(seed, "seed"))
    try:
        with torch.inference_mode(False):  # copies made in inference mode could not be changed
            network = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"the model cannot be copied: {error}") from error
    for module in network.modules():
        redraw(module, generator)
    return network


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
        if tensors and _is_norm(module):
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
