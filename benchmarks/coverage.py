"""Holds deconvnet and backprop against an independent autograd reference, over torchvision's and timm's models.

    python benchmarks/coverage.py [--size 64] [--names resnet18 timm/convnext_atto ...] > benchmarks/coverage.md

Random weights in float64, one image, a middle and a last layer of each model (modules that run once and have units),
the strongest unit at its strongest place. The reference runs the model under autograd: for backprop as it is, for the
deconvnet with rectifiers that rectify the gradient, and with gates, statistics of normalizations and response norms
that are constants. A cell is the largest difference as a share of the reference's largest value, or the operation that
has no rule, by name. Torchvision's models of over 60 million parameters are left out. A difference above 1e-8, or
another error, is marked BUG and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import deconvviz
from deconvviz.model.table import Layer, LayerTable

BOUND = 1e-8
# They compute a part in float32, whatever their own type.
FLOAT32, FLOAT32_BOUND = ("timm/efficientvit_b0",), 1e-6
MOST = 60_000_000  # parameters: in float64 a larger model says nothing new for its memory and time
SHORT = ("resnet18", "mobilenet_v3_small", "squeezenet1_1", "timm/test_byobnet", "timm/test_convnext", "timm/test_vit")
RECTIFIERS = (  # a power behind a rectifier is one as well
    "pow __pow__ square relu relu_ relu6 leaky_relu leaky_relu_ prelu elu elu_ selu celu silu gelu hardswish mish "
    "softplus".split()
)
GATES = "sigmoid sigmoid_ hardsigmoid hardsigmoid_ softmax".split()
ENDS = "relu6 hardtanh hardsigmoid sigmoid tanh clamp".split()


class Rectified(torch.autograd.Function):
    """The identity for values; rectifies the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        """Return the rectifier's own result `y` of `x`."""
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Rectify."""
        return grad.clamp_min(0), None


class Contiguous(torch.autograd.Function):
    """The identity; its gradient is contiguous.

    Torch's backward of a batch normalization in evaluation mode reads a gradient that lies as in channels_last in the
    wrong order on a CPU (seen in 2.6 and 2.14), which transformers behind a convolutional stem run into.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return a copy."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Lay the gradient out anew."""
        return grad.contiguous()


class Reference(TorchFunctionMode):
    """Autograd with the deconvnet's backward passes, written without the package; also notes what went into ends."""

    def __init__(self, deconvnet: bool) -> None:
        super().__init__()
        self.deconvnet = deconvnet
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # result of a saturating activation -> (it, its input)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        first = args[0] if args else kwargs.get("input")
        result = self._deconvnet(func, name, first, args, kwargs) if self.deconvnet else func(*args, **kwargs)
        if name == "batch_norm":
            result = Contiguous.apply(result)
        if name in ENDS and isinstance(result, Tensor) and isinstance(first, Tensor):
            self.before[id(result)] = (result, first)
        return result

    def _deconvnet(self, func: Any, name: str, x: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        # In place, autograd would pass the gradient through the rectifier's own backward as well.
        y = func(x.clone(), *args[1:], **kwargs) if name in RECTIFIERS and args else func(*args, **kwargs)
        if name in RECTIFIERS or (name in ("hardtanh", "clamp", "clamp_") and _cuts_at_zero(args, kwargs)):
            return Rectified.apply(x, y.detach())
        if name in GATES:
            return y.detach()
        if name in ("layer_norm", "group_norm", "instance_norm", "rms_norm"):
            return _constant_scale(x, y, name, args, kwargs)
        if name == "local_response_norm":
            return x + (y - x).detach()
        if name in ("mul", "__mul__", "multiply") and isinstance(args[1], Tensor) and args[1].requires_grad:
            return _gated(x, args[1])
        return y


def _cuts_at_zero(args: Any, kwargs: dict[str, Any]) -> bool:
    low = args[1] if len(args) > 1 else kwargs.get("min_val", kwargs.get("min"))
    return low is not None and float(low) == 0


def _constant_scale(x: Tensor, y: Tensor, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """Return y with a gradient to x that is the normalization's scale alone."""
    if name in ("layer_norm", "rms_norm"):
        weight = args[2] if len(args) > 2 else kwargs.get("weight")
        shape = args[1] if len(args) > 1 else kwargs["normalized_shape"]
        dims = tuple(range(-len(shape), 0))
        spread = x.var(dims, unbiased=False, keepdim=True) if name == "layer_norm" else x.square().mean(dims, True)
        eps = kwargs.get("eps", args[-1] if isinstance(args[-1], float) else 1e-5)
    else:
        groups = (args[1] if len(args) > 1 else kwargs["num_groups"]) if name == "group_norm" else x.shape[1]
        place = 2 if name == "group_norm" else 3
        weight = args[place] if len(args) > place else kwargs.get("weight")
        spread = x.reshape(x.shape[0], groups, -1).var(-1, unbiased=False).repeat_interleave(x.shape[1] // groups, 1)
        spread = spread.view(*spread.shape, *[1] * (x.dim() - 2))
        weight = None if weight is None else weight.view(-1, *[1] * (x.dim() - 2))
        eps = kwargs.get("eps", args[-1] if isinstance(args[-1], float) else 1e-5)
    scale = (spread + eps).rsqrt() if weight is None else weight * (spread + eps).rsqrt()
    return (x * scale.detach()) + (y - x * scale).detach()


def _gated(x: Tensor, gate: Tensor) -> Tensor:
    """Return a product where one number per channel beside a map is a constant."""
    if not isinstance(x, Tensor) or x.shape == gate.shape:
        return Tensor.mul(x, gate)
    return x * gate.detach() if gate.numel() < x.numel() else x.detach() * gate


def models(names: list[str] | None) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yield each model's name and what makes it; those of timm are called "timm/…"."""
    import timm
    import torchvision

    chosen = names
    if chosen is None:
        listed = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").split()
        known = torchvision.models.list_models(module=torchvision.models)
        sizes = {name: torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] for name in known}
        chosen = [*(name for name in known if sizes[name] <= MOST), *(f"timm/{name}" for name in listed)]
    for name in chosen:
        if name.startswith("timm/"):
            yield name, functools.partial(timm.create_model, name[5:], pretrained=False)
        else:
            yield name, functools.partial(torchvision.models.get_model, name, weights=None)


def sized(model: nn.Module, size: int) -> tuple[int, int, int]:
    """Return an input size that the model takes: `size`, or its own where that is fixed."""
    config = getattr(model, "default_cfg", None) or {}
    own = config.get("input_size") or (3, 224, 224)
    for side in (size, own[-1], 224):
        try:
            deconvviz.layers(model, (own[0], side, side))
        except deconvviz.ModelError:
            continue
        return own[0], side, side
    raise ValueError(f"neither {size} nor {own[-1]} px suit the model")


def chosen(table: LayerTable) -> list[tuple[Layer, str]]:
    """Return a middle and a last layer, each with the name of the module that returns it."""
    told = []
    for row in table:
        names = [name for name in row.aliases if not re.search(r"[:#\[]", name)]
        if names and row.units and row.reach.dims is not None and row.height * row.width > 1:
            told.append((row, names[0]))
    return [told[len(told) // 2], told[-1]] if told else []


def reference(
    model: nn.Module, name: str, image: Tensor, layer: Layer, rule: str
) -> tuple[Tensor, int, tuple[int, int]]:
    """Return the reference's result, and the unit and place that it is of."""
    caught: list[tuple[Tensor, Tensor]] = []  # the response, and as it was before the model changed it in place

    def catch(module: nn.Module, inputs: Any, output: Any) -> None:
        response = _first(output)
        caught.append((response, response.clone()))

    handle = model.get_submodule(name).register_forward_hook(catch)
    x = image.clone().requires_grad_()
    try:
        with Reference(rule == "deconvnet") as mode, torch.enable_grad():
            model(x)
    finally:
        handle.remove()
    response, kept = caught[0]
    maps = layer.as_maps(kept)[0]
    unit, row, col = (int(i) for i in (maps == maps.max()).nonzero()[0])
    amount, start = maps[unit, row, col].detach(), maps
    if rule == "backprop" and id(response) in mode.before:  # the gradient starts before an activation that saturates
        start = layer.as_maps(mode.before[id(response)][1])[0]
    (grad,) = torch.autograd.grad(start[unit, row, col] * amount, x, allow_unused=True)
    return torch.zeros_like(x) if grad is None else grad, unit, (row, col)


def _first(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


def outcome(model: nn.Module, layer: Layer, name: str, image: Tensor, rule: str, bound: float = BOUND) -> str:
    """Compare one layer by one rule and say how it went."""
    try:
        expected, unit, position = reference(model, name, image, layer, rule)
        ours = deconvviz.deconv(model, image, layer=name, unit=unit, position=position, rule=rule)
    except deconvviz.UnsupportedOp as error:
        return "`" + str(error).split(" in ")[0].rsplit(".", 1)[-1] + "`"
    except deconvviz.LayerError:  # responses that are not one row per image
        return "`LayerError`"
    except Exception as error:
        return f"BUG {type(error).__name__}: {error}"[:120]
    share = float((ours - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    return f"{share:.0e}" if share <= bound else f"BUG {share:.1e}"


def row(name: str, make: Callable[[], nn.Module], size: int) -> list[str]:
    """Return one line of the table: model, side, then for each layer its name and the two rules' outcomes."""
    torch.manual_seed(0)
    model = make().double().eval()
    for part in model.modules():
        if getattr(part, "inplace", False) is True:
            setattr(part, "inplace", False)  # noqa: B010  (whatever the module's type says)
    shape = sized(model, size)
    image = torch.randn(1, *shape, dtype=torch.float64)
    cells = []
    for layer, module in chosen(deconvviz.layers(model, shape)):
        bound = FLOAT32_BOUND if name in FLOAT32 else BOUND
        cells.append(f"`{module}`")
        cells += [outcome(model, layer, module, image, rule, bound) for rule in ("deconvnet", "backprop")]
    return [name, str(shape[-1]), *(cells or ["no layer with units", "", "", "", "", ""])]


def main() -> int:
    """Print the table; say whether something was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--names", nargs="+", help="'short': a few small ones")
    parser.add_argument("--done", type=Path, help="a file of finished lines, to go on from")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    done = {}
    if options.done and options.done.exists():
        done = {line[0]: line for line in map(json.loads, options.done.read_text(encoding="utf-8").splitlines())}
    rows = []
    for name, make in models(list(SHORT) if options.names == ["short"] else options.names):
        if name not in done:
            try:
                done[name] = row(name, make, options.size)
            except Exception as error:
                done[name] = [name, "", f"BUG {type(error).__name__}: {error}"[:120], "", "", "", "", ""]
            if options.done:
                with options.done.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(done[name]) + "\n")
        rows.append(done[name])
    print(text(rows))
    return int(any("BUG" in cell for line in rows for cell in line))


HEADINGS = ("model", "px", "middle layer", "deconvnet", "backprop", "last layer", "deconvnet", "backprop")


def text(rows: list[list[str]]) -> str:
    """Lay the table out, under its figures."""
    cells = [cell for line in rows for cell in (line[3], line[4], line[6], line[7]) if cell]
    equal = sum(bool(re.fullmatch(r"\d+e[+-]\d+", cell)) for cell in cells)
    refused, wrong = sum("`" in cell for cell in cells), sum("BUG" in cell for line in rows for cell in line)
    first = (
        f"# Coverage\n\n{len(rows)} models, {len(cells)} comparisons: {equal} equal to the reference, {refused} refused by "
        f"name, {wrong} wrong. torch {torch.__version__}, float64; see `coverage.py` for what is compared.\n"
    )
    lines = ["| " + " | ".join(line).replace("\n", " ") + " |" for line in (HEADINGS, ["---"] * len(HEADINGS), *rows)]
    return first + "\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
