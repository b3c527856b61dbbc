"""Every public function leaves the model, the random numbers and the caller's tensors as it found them.

One table of functions × {works, bad argument, module that raises}. A new public function is one line in `CALLS`.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import deconvviz


class Counting(nn.Module):
    """Counts its own calls in buffers, in both ways there are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("replaced", torch.zeros(()))
        self.register_buffer("nothing", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.replaced = self.replaced + 1
        return x


class Raising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.armed = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.armed:
            raise Boom("on purpose")
        return x


class Boom(Exception):
    pass


class Noisy(nn.Module):
    """Draws random numbers and normalizes with the batch, which moves its running statistics."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.rand(3)
        return x


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            Counting(),
            Noisy(),
            nn.Conv2d(6, 4, 3, padding=1),
            nn.Dropout(0.5),
            nn.ReLU(),
        )
        self.raising = Raising()
        self.classifier = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x -= 0.5  # changes its input in place
        return self.classifier(F.adaptive_avg_pool2d(self.raising(self.features(x)), 1).flatten(1))


SMALL = deconvviz.images.Preprocess((24, 20), 24, (0.0,) * 3, (1.0,) * 3)

# name -> (a call that works, a bad argument)
Call = tuple[Any, dict[str, Any]]
CALLS: dict[str, Call] = {
    "accentuate": (
        lambda m, x, **o: deconvviz.accentuate(
            m, x[:1].sigmoid(), **{"layer": 1, "unit": 1, "steps": 2, "progress": False, **o}
        ),
        {"unit": 99},
    ),
    "audit": (lambda m, x, **o: deconvviz.audit(m, **{"images": x, **o}), {"images": torch.zeros(2)}),
    "compare_methods": (
        lambda m, x, **o: deconvviz.compare_methods(m, x[:1], **{"stages": 1, "size": 8, "progress": False, **o}),
        {"target": 99},
    ),
    "convolutional": (
        lambda m, x, **o: deconvviz.convolutional(m, **{"input_size": (24, 20), **o}),
        {"input_size": (1, 2, 3, 4)},
    ),
    "cost": (lambda m, x, **o: deconvviz.cost(m, **{"input_size": (24, 20), **o}), {"input_size": (1, 2, 3, 4)}),
    "deconv": (lambda m, x, **o: deconvviz.deconv(m, x, **{"layer": 2, "unit": 1, **o}), {"unit": 99}),
    "deconv guided": (
        lambda m, x, **o: deconvviz.deconv(m, x, **{"layer": 2, "unit": 1, "rule": "guided", **o}),
        {"position": (99, 0)},
    ),
    "deconv of the classifier": (
        lambda m, x, **o: deconvviz.deconv(m, x, **{"layer": "classifier", "unit": 1, **o}),
        {"layer": "classifiers"},
    ),
    "evaluate": (
        lambda m, x, **o: deconvviz.evaluate(m, x, **{"labels": [0, 1, 2], "progress": False, **o}),
        {"crops": 7},
    ),
    "evidence": (
        lambda m, x, **o: deconvviz.evidence(m, x, **{"layer": 1, "units": [0], "k": 2, "progress": False, **o}),
        {"units": [99]},
    ),
    "gradient_std": (
        lambda m, x, **o: deconvviz.gradient_std(
            m, x, **{"labels": [0, 1, 2], "iterations": 2, "batch_size": 2, "progress": False, **o}
        ),
        {"iterations": 0},
    ),
    "invert": (
        lambda m, x, **o: deconvviz.invert(m, x[:1].sigmoid(), **{"layer": 1, "steps": 2, "progress": False, **o}),
        {"starts": 0},
    ),
    "layers": (lambda m, x, **o: deconvviz.layers(m, **{"input_size": (24, 20), **o}), {"input_size": (1, 2, 3, 4)}),
    "maps": (
        lambda m, x, **o: deconvviz.maps(m, x[:1], **{"layers": [1, 2], "changes": ["noise"], **o}),
        {"changes": ["louder"]},
    ),
    "maximize": (
        lambda m, x, **o: deconvviz.maximize(
            m, **{"layer": 2, "units": [0, 1], "steps": 2, "input_size": (24, 20), "progress": False, **o}
        ),
        {"units": [99]},
    ),
    "occlude": (
        lambda m, x, **o: deconvviz.occlude(m, x[:1], **{"size": 8, "stride": 8, "progress": False, **o}),
        {"size": 999},
    ),
    "project": (lambda m, x, **o: deconvviz.project(m, x, **{"layer": 2, "progress": False, **o}), {"units": [-1]}),
    "randomize": (lambda m, x, **o: deconvviz.randomize(m, **o), {"seed": "x"}),
    "response_std": (lambda m, x, **o: deconvviz.response_std(m, x, **{"progress": False, **o}), {"layers": ["none"]}),
    "top by a call": (
        lambda m, x, **o: deconvviz.top(m, x, **{"call": lambda m, x: m(x - 1), "progress": False, **o}),
        {"call": "a call"},
    ),
    "occlude a target": (
        lambda m, x, **o: deconvviz.occlude(
            m,
            x[:1],
            **{"target": lambda y: y["y"].sum(1), "call": lambda m, x: {"y": m(x)}, "size": 8, "progress": False, **o},
        ),
        {"target": lambda y: y["y"]},
    ),
    "top_regions": (
        lambda m, x, **o: deconvviz.top_regions(
            m, x, **{"layer": 2, "boxes": [[[0, 0, 9, 9]]] * 3, "k": 1, "preprocess": SMALL, "progress": False, **o}
        ),
        {"units": [99]},
    ),
    "top": (lambda m, x, **o: deconvviz.top(m, x, **{"layers": [1, 2], "progress": False, **o}), {"k": 0}),
}
CALLS = {name: call for name, call in CALLS.items() if hasattr(deconvviz, name.split()[0])}


def network() -> Network:
    """A model in a state that is nobody's default."""
    model = Network().train()
    model.features[1].eval()
    model.features[6].eval()
    model.features[0].weight.requires_grad_(False)
    model.features[6].weight.grad = torch.ones_like(model.features[6].weight)
    with torch.no_grad():
        model.features[1].running_mean.uniform_(-1, 1)
    model.seen = []
    model.features[3].register_forward_hook(lambda module, inputs, output: model.seen.append("after"))
    model.features[3].register_forward_pre_hook(lambda module, inputs: model.seen.append("before"))
    model.features[0].register_full_backward_hook(lambda module, inputs, outputs: None)
    model.register_forward_hook(lambda module, inputs, output: None)
    return model


HOOKS = [name for name in vars(nn.Module()) if "hooks" in name]


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that has to stay, by identity where the object is the caller's, with copies of the values."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            (name, kind): list(getattr(module, kind).items())
            for name, module in model.named_modules()
            for kind in HOOKS
            if isinstance(getattr(module, kind), dict)
        },
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "objects": {name: id(tensor) for name, tensor in tensors.items()},
        "values": {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()},
        "requires_grad": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "grads": {
            name: None if p.grad is None else (id(p.grad), p.grad.numpy().tobytes())
            for name, p in model.named_parameters()
        },
        "random": (torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "threads": torch.get_num_threads(),
    }


def outcome(call: Any, model: nn.Module, images: torch.Tensor, options: dict[str, Any]) -> BaseException | None:
    before, pixels = state(model), images.clone()
    try:
        call(model, images, **options)
        error = None
    except Exception as caught:
        error = caught
    after = state(model)
    for key, expected in before.items():
        assert after[key] == expected, key
    assert torch.equal(images, pixels) and not images.requires_grad and images.grad is None
    return error


def pictures() -> torch.Tensor:
    return torch.rand(3, 3, 24, 20, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CALLS)
def test_after_a_call_that_works(name: str):
    error = outcome(CALLS[name][0], network(), pictures(), {})
    if error is not None:
        raise error


@pytest.mark.parametrize("name", CALLS)
def test_after_a_bad_argument(name: str):
    call, bad = CALLS[name]
    assert isinstance(outcome(call, network(), pictures(), bad), deconvviz.DeconvvizError)


@pytest.mark.parametrize("name", sorted(CALLS.keys() - {"randomize"}))  # it runs nothing
def test_after_a_module_that_raises(name: str):
    model = network()
    model.raising.armed = True
    error = outcome(CALLS[name][0], model, pictures(), {})
    assert isinstance(error, Boom)


@pytest.mark.parametrize("name", CALLS)
def test_inside_inference_mode(name: str):
    model = network()
    with torch.inference_mode():
        error = outcome(CALLS[name][0], model, pictures(), {})
    if error is not None:
        raise error


def test_the_users_hooks_run_and_their_changes_count():
    model, images = network(), pictures()
    expected = deconvviz.deconv(model, images, layer=2, unit=1)
    assert model.seen[:2] == ["before", "after"]
    model.features[6].register_forward_hook(lambda module, inputs, output: output * 3)
    bound = 64 * torch.finfo(torch.float32).eps * 9 * float(expected.abs().max())  # of sums of up to 64 terms
    assert torch.allclose(deconvviz.deconv(model, images, layer=2, unit=1), 9 * expected, rtol=0, atol=bound)


def test_a_result_file_that_fails_leaves_nothing(tmp_path: Path):
    model = network()
    model.raising.armed = True
    with pytest.raises(Boom):
        deconvviz.project(model, pictures(), layer=2, out=tmp_path / "result", progress=False)
    assert not list(tmp_path.iterdir())


def test_the_table_has_every_function_that_takes_a_model():
    import inspect

    functions = {name for name in deconvviz.__all__ if inspect.isfunction(getattr(deconvviz, name))}
    model_first = {f for f in functions if "model" in list(inspect.signature(getattr(deconvviz, f)).parameters)[:1]}
    assert model_first - {name.split()[0] for name in CALLS} <= ELSEWHERE


# These have the same test beside their own.
ELSEWHERE = {
    "correspondence",
    "filters",
    "invariance",
    "nearest",
    "occlude",
    "probe",
    "report",
    "residual_share",
    "response_std",
    "train",
}
