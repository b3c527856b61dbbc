"""Gradients by torch's autograd are right whatever the strides; torch's own backward of normalizations is not."""

import ast
import itertools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import deconvviz
from deconvviz.modes import sound_gradients


def laid(x, order):
    """The same numbers, in memory in another order of the dimensions."""
    return x.permute(order).contiguous().permute([order.index(i) for i in range(4)])


def by_hand(x, mean, var):
    return (x - mean[..., None, None]) / (var[..., None, None] + 1e-5).sqrt()


MEAN, VAR = torch.linspace(-1, 1, 4).double(), torch.linspace(0.5, 2, 4).double()
NORMS = {
    "evaluation": (
        lambda x: F.batch_norm(x, MEAN, VAR, eps=1e-5),
        lambda x: by_hand(x, MEAN, VAR),
    ),
    "training": (
        lambda x: F.batch_norm(x, None, None, training=True, eps=1e-5),
        lambda x: by_hand(x, x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)),
    ),
    "instances": (
        lambda x: F.instance_norm(x, eps=1e-5),
        lambda x: by_hand(x, x.mean((2, 3)), x.var((2, 3), unbiased=False)),
    ),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("shape", [(1, 4, 5, 6), (3, 4, 1, 6), (3, 4, 5, 1), (2, 4, 5, 6)])
def test_gradients_of_normalizations_do_not_depend_on_strides(name, shape):
    ours, written = NORMS[name]
    values, signal = torch.randn(shape).double(), torch.randn(shape).double()
    x = values.clone().requires_grad_()
    (expected,) = torch.autograd.grad(written(x), x, signal)
    orders = [(0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2), (2, 3, 0, 1), (1, 0, 2, 3)]
    for a, b in itertools.product(orders, repeat=2):
        x = laid(values, a).detach().requires_grad_()
        with sound_gradients():
            (found,) = torch.autograd.grad(ours(x), x, laid(signal, b))
        assert (found - expected).abs().max() < 1e-12 * expected.abs().max().clamp_min(1), (a, b)


class Tokens(nn.Module):
    """Batch normalization before tokens (T, N, C), as attention takes them: signals come back rows and columns first."""

    def __init__(self, written):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.norm.running_mean.copy_(MEAN), self.norm.running_var.copy_(VAR)
        self.first, self.mix, self.written = nn.Conv2d(3, 3, 1), nn.Linear(4, 4), written

    def forward(self, x):
        y = self.conv(self.first(x)).contiguous()
        norm = self.norm
        if self.written:  # the same in plain arithmetic
            if norm.training:
                y = by_hand(y, y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False))
            else:
                y = by_hand(y, norm.running_mean, norm.running_var)
            y = y * norm.weight[:, None, None] + norm.bias[:, None, None]
        else:
            y = norm(y)
        tokens = self.mix(torch.tanh(y.flatten(2).permute(2, 0, 1).contiguous()))
        return self.head((tokens * torch.linspace(0, 1, len(tokens))[:, None, None].to(tokens)).mean(0))


def models():
    return (Tokens(written).double().eval() for written in (False, True))


IMAGE = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(3)).double()


def differ(function):
    """How far apart the results with torch's normalization and with the written one are, and how large they are."""
    found, expected = (function(model) for model in models())
    return float((found - expected).abs().max()), float(expected.abs().max())


def maximized(model):
    return deconvviz.maximize(model, target=1, steps=3, input_size=(3, 6, 7), robust=False, progress=False).images


def inverted(model):
    return deconvviz.invert(model, IMAGE, layer="head", steps=3, progress=False).images


def explained(model):
    options = {"methods": ["gradient", "integrated"], "own": {"mine": mine}, "stages": 0, "steps": 3, "progress": False}
    return torch.stack(list(deconvviz.compare_methods(model, IMAGE, target=1, **options).maps))


def mine(network, image, number):
    leaf = image.clone().requires_grad_()
    return torch.autograd.grad(number(leaf).sum(), leaf)[0]


def deviations(model):
    options = {"labels": [1, 2, 0], "layers": ["first"], "iterations": 3, "batch_size": 1, "progress": False}
    return deconvviz.gradient_std(model.train(), torch.cat([IMAGE, IMAGE.flip(2), IMAGE.flip(3)]), **options).std


@pytest.mark.parametrize("function", [maximized, inverted, explained, deviations])
def test_every_function_that_follows_gradients_has_them_right(function, monkeypatch):
    error, scale = differ(function)
    assert error < 1e-5 * scale
    monkeypatch.setattr("deconvviz.modes._NORMS", frozenset())
    assert differ(function)[0] > 1e-3 * scale  # torch's own: when this fails, the guard can go


def test_backprop_through_instance_norm_of_one_image():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1)
    model = nn.Sequential(conv, nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 3)).double().eval()
    images = torch.randn(1, 3, 7, 8, dtype=torch.float64)
    ours = deconvviz.deconv(model, images, layer="2", unit=1, position=(1, 2), rule="backprop")
    x = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad((model(x)[:, 1, 1, 2] ** 2).sum() / 2, x)
    assert (ours - expected).abs().max() < 1e-12 * expected.abs().max()


# Here one rectifier or one pool is derived, with nothing behind it.
ALONE = {"rules/saving.py", "rules/whole.py"}


def gradients(node, guarded=False):
    """Yield for each call of autograd in a file whether it is guarded."""
    if isinstance(node, ast.With):
        guarded = guarded or any("sound_gradients" in ast.dump(item.context_expr) for item in node.items)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        called = ast.unparse(node.func)
        if called.endswith(".backward") or called == "torch.autograd.grad":
            yield guarded
    for child in ast.iter_child_nodes(node):
        yield from gradients(child, guarded)


def test_every_gradient_of_the_package_is_guarded():
    root, count = Path(deconvviz.__file__).parent, 0
    for path in root.rglob("*.py"):
        if path.relative_to(root).as_posix() not in ALONE:
            text = path.read_text(encoding="utf-8")
            found = list(gradients(ast.parse(text))) if ".backward(" in text or "autograd.grad(" in text else []
            assert all(found), path
            count += len(found)
    assert count >= 4


def test_an_interrupt_leaves_no_mode_behind(monkeypatch):
    def interrupted(self, *exception):
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.utils._python_dispatch.TorchDispatchMode.__exit__", interrupted)
    with pytest.raises(KeyboardInterrupt), sound_gradients():
        pass
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()
