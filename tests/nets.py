"""Random networks: one description, built as a torch module and read by `reference.py`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from reference import Step, pooled_size
from torch import nn
from torch.nn import functional as F

RELUS = ("module", "shared", "functional", "method", "torch", "clamp", "relu6-free")
IN_PLACE_RELUS = ("in-place module", "in-place functional", "method_", "torch_")


@dataclass
class Net:
    """A description with its image (N, C, H, W), and which unit and position to look at."""

    steps: list[Step]
    images: torch.Tensor
    unit: int
    position: tuple[int, int]
    shape: tuple[int, int, int]  # of the last value

    def module(self) -> nn.Module:
        return Module(self.steps).double()

    def __repr__(self) -> str:
        def brief(p: dict) -> str:
            return ", ".join(f"{k}={tuple(v.shape) if isinstance(v, np.ndarray) else v}" for k, v in p.items())

        lines = [f"{i}: {s.kind}{s.inputs} {brief(s.p)}" for i, s in enumerate(self.steps, 1)]
        return f"images {tuple(self.images.shape)}, unit {self.unit} at {self.position}\n" + "\n".join(lines)


class Module(nn.Module):
    """Runs the steps; each in the spelling that its settings ask for. Layer "out" is the last value."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps
        self.shared = nn.ReLU()
        self.layer = nn.ModuleDict()
        for number, step in enumerate(steps, 1):
            built = build(step)
            if built is not None:
                self.layer[str(number)] = built
        self.out = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values: list = [x]
        for number, step in enumerate(self.steps, 1):
            inputs = [values[i] for i in step.inputs]
            if str(number) in self.layer:
                values.append(self.layer[str(number)](*inputs))
            else:
                values.append(SPELLED[step.kind](self, inputs, step.p))
        return self.out(values[-1])


def build(step: Step) -> nn.Module | None:
    p = step.p
    if step.kind == "conv":
        weight = torch.from_numpy(p["weight"])
        filters, channels = weight.shape[:2]
        conv = nn.Conv2d(
            channels * p["groups"],
            filters,
            tuple(weight.shape[2:]),
            p["stride"],
            p["padding"],
            p["dilation"],
            p["groups"],
            p["bias"] is not None,
        )
        conv.weight.data = weight
        if p["bias"] is not None:
            conv.bias.data = torch.from_numpy(p["bias"])
        return conv
    if step.kind == "batch_norm":
        norm = nn.BatchNorm2d(len(p["mean"]), p["eps"])
        norm.weight.data, norm.bias.data = torch.from_numpy(p["weight"]), torch.from_numpy(p["bias"])
        norm.running_mean, norm.running_var = torch.from_numpy(p["mean"]), torch.from_numpy(p["var"])
        return norm
    if step.kind == "lrn":
        return nn.LocalResponseNorm(p["size"], p["alpha"], p["beta"], p["k"])
    if step.kind == "relu" and p["style"] == "module":
        return nn.ReLU()
    if step.kind == "relu" and p["style"] == "in-place module":
        return nn.ReLU(inplace=True)
    if step.kind == "max_pool":
        return nn.MaxPool2d(p["kernel"], p["stride"], p["padding"], p["dilation"], ceil_mode=p["ceil_mode"])
    return None


def relu(module: Module, inputs: list[torch.Tensor], p: dict) -> torch.Tensor:
    (x,) = inputs
    return {
        "shared": lambda: module.shared(x),
        "functional": lambda: F.relu(x),
        "method": lambda: x.relu(),
        "torch": lambda: torch.relu(x),
        "clamp": lambda: x.clamp(min=0),
        "relu6-free": lambda: F.threshold(x, 0, 0),
        "in-place functional": lambda: F.relu(x, inplace=True),
        "method_": lambda: x.relu_(),
        "torch_": lambda: torch.relu_(x),
    }[p["style"]]()


def plus(module: Module, inputs: list[torch.Tensor], p: dict) -> torch.Tensor:
    a, b = inputs
    if p["style"] == "+=":
        a += b
        return a
    if p["style"] == "out":
        return torch.add(a, b, out=torch.empty_like(a))
    return torch.add(a, b) if p["style"] == "torch" else a + b


def average(module: Module, inputs: list[torch.Tensor], p: dict) -> torch.Tensor:
    return F.avg_pool2d(inputs[0], p["kernel"], p["stride"], p["padding"], p["ceil_mode"], p["count_include_pad"])


SPELLED = {
    "relu": relu,
    "add": plus,
    "avg_pool": average,
    "global_pool": lambda module, xs, p: F.adaptive_avg_pool2d(xs[0], 1),
    "concat": lambda module, xs, p: torch.cat(xs, 1),
    "gate": lambda module, xs, p: xs[0] * torch.sigmoid(xs[1]),
    "scale": lambda module, xs, p: xs[0] * p["factor"],
    "dropout": lambda module, xs, p: F.dropout(xs[0], 0.5, module.training),
}


# ---- the strategies -------------------------------------------------------------------------------------------------

KINDS = (
    *("conv",) * 4,
    *("relu",) * 3,
    *("max_pool",) * 3,
    "avg_pool",
    "batch_norm",
    "lrn",
    "add",
    "concat",
    "gate",
    "scale",
    "dropout",
)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


class Builder:
    """Adds legal steps; `shapes[i]` is the shape of value i."""

    def __init__(self, draw, shape: tuple[int, int, int], whole: bool) -> None:
        self.draw, self.steps, self.shapes = draw, [], [shape]
        self.random = np.random.default_rng(draw(st.integers(0, 10**6)))
        self.whole = whole  # whole numbers: many ties

    def numbers(self, *shape: int) -> np.ndarray:
        if self.whole:
            return self.random.integers(-2, 3, shape).astype(np.float64)
        return self.random.standard_normal(shape)

    def add(self, kind: str, inputs: tuple[int, ...], shape: tuple[int, int, int], **p) -> int:
        self.steps.append(Step(kind, inputs, p))
        self.shapes.append(shape)
        return len(self.steps)

    def conv(self, source: int, same: bool = False, filters: int | None = None, point: bool = False) -> int:
        draw, (channels, *size) = self.draw, self.shapes[source]
        groups = draw(st.sampled_from([g for g in (1, 1, 2, channels) if channels % g == 0]))
        filters = filters or groups * draw(st.integers(1, 3))
        if filters % groups:
            groups = 1
        kernel, stride, dilation, padding = (
            draw(pairs),
            draw(pairs),
            draw(pairs),
            draw(st.tuples(*[st.integers(0, 2)] * 2)),
        )
        if same:
            kernel, stride, padding = ((1, 3)[k > 1] for k in kernel), (1, 1), None
            kernel = tuple(kernel)
            padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        if point:
            kernel, stride, dilation, padding = (1, 1), (1, 1), (1, 1), (0, 0)
        kernel, dilation, out = list(kernel), list(dilation), []
        for k in (0, 1):
            if size[k] + 2 * padding[k] < dilation[k] * (kernel[k] - 1) + 1:
                kernel[k] = dilation[k] = 1
            out.append((size[k] + 2 * padding[k] - dilation[k] * (kernel[k] - 1) - 1) // stride[k] + 1)
        bias = self.numbers(filters) if draw(st.booleans()) else None
        return self.add(
            "conv",
            (source,),
            (filters, *out),
            weight=self.numbers(filters, channels // groups, *kernel),
            bias=bias,
            stride=stride,
            padding=padding,
            dilation=tuple(dilation),
            groups=groups,
        )

    def pool(self, kind: str, source: int) -> int:
        draw, (channels, *size) = self.draw, self.shapes[source]
        kernel, stride, ceil_mode = draw(pairs), draw(pairs), draw(st.booleans())
        dilation = draw(st.tuples(*[st.integers(1, 2)] * 2)) if kind == "max_pool" else (1, 1)
        padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
        kernel, dilation, padding = list(kernel), list(dilation), list(padding)
        out = []
        for k in (0, 1):
            if size[k] + 2 * padding[k] < dilation[k] * (kernel[k] - 1) + 1:
                kernel[k], dilation[k], padding[k] = 1, 1, 0
            if size[k] < dilation[k]:  # a window might lie in the padding alone: its maximum is minus infinity
                padding[k] = 0
                kernel[k] = 1
            out.append(pooled_size(size[k], kernel[k], stride[k], padding[k], dilation[k], ceil_mode))
        p = {"kernel": tuple(kernel), "stride": stride, "padding": tuple(padding), "ceil_mode": ceil_mode}
        if kind == "max_pool":
            p["dilation"] = tuple(dilation)
        else:
            p["count_include_pad"] = draw(st.booleans())
        return self.add(kind, (source,), (channels, *out), **p)

    def step(self, kind: str) -> None:
        draw, last = self.draw, len(self.steps)
        channels = self.shapes[last][0]
        same = (last,), self.shapes[last]
        if kind == "conv":
            self.conv(last)
        elif kind in ("max_pool", "avg_pool"):
            self.pool(kind, last)
        elif kind == "relu":
            self.add(kind, *same, style=draw(st.sampled_from(RELUS + IN_PLACE_RELUS)))
        elif kind == "batch_norm":
            var = np.full(channels, 4.0) if self.whole else self.random.uniform(0.5, 2, channels)
            eps = 0.0 if self.whole else 1e-5
            n = self.numbers
            self.add(kind, *same, mean=n(channels), var=var, weight=n(channels), bias=n(channels), eps=eps)
        elif kind == "lrn":
            self.add(kind, *same, size=draw(st.integers(1, 5)), alpha=0.1, beta=0.75, k=2.0)
        elif kind in ("add", "gate", "concat"):
            branch = draw(st.sampled_from([i for i, s in enumerate(self.shapes) if s == self.shapes[last]]))
            if kind != "concat" or draw(st.booleans()):
                branch = self.conv(branch, same=True, filters=None if kind == "concat" else channels)
            order = (last, branch) if draw(st.booleans()) or kind == "gate" else (branch, last)
            total = sum(self.shapes[i][0] for i in order) if kind == "concat" else channels
            p = {"style": draw(st.sampled_from(("+", "torch", "+=", "out")))} if kind == "add" else {}
            self.add(kind, order, (total, *self.shapes[last][1:]), **p)
        elif kind == "scale":
            self.add(kind, *same, factor=draw(st.sampled_from((0.5, -2.0))))
        else:
            self.add(kind, *same)

    def finish(self) -> None:
        """Change in place only what nothing reads later, and never the images, which are others'."""
        readers = [sum(s.inputs.count(i) for s in self.steps) for i in range(len(self.shapes))]
        alive = {i for i, s in enumerate(self.steps, 1) if s.kind == "dropout"}  # returns its input itself
        for step in self.steps:
            taken = step.inputs[0] == 0 or readers[step.inputs[0]] > 1 or step.inputs[0] in alive
            if taken and step.p.get("style") in IN_PLACE_RELUS:
                step.p["style"] = "functional"
            if taken and step.p.get("style") == "+=":
                step.p["style"] = "+"


@st.composite
def nets(draw, kinds: tuple[str, ...] = KINDS, whole: bool | None = None, most: int = 6, largest: int = 12) -> Net:
    """Draw a network of up to `most` steps besides its branches, and images of 1 to `largest` pixels a side."""
    whole = draw(st.booleans()) if whole is None else whole
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, largest)), draw(st.integers(1, largest)))
    builder = Builder(draw, shape, whole)
    builder.conv(0)
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=most - 1)):
        builder.step(kind)
    builder.finish()
    images = torch.from_numpy(builder.numbers(draw(st.integers(1, 2)), *shape))
    units, height, width = builder.shapes[-1]
    position = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Net(builder.steps, images, draw(st.integers(0, units - 1)), position, builder.shapes[-1])
