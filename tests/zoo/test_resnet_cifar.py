"""The CIFAR networks are the ResNet papers' networks, the deconvnet runs through them, and so do the recipes."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import deconvviz
from deconvviz import zoo
from deconvviz.errors import ModelError, OptionError
from deconvviz.training import pixels as _pixels
from deconvviz.training import recipe as _recipe
from deconvviz.training.recipe import RECIPES
from deconvviz.training.run import describe_recipe
from deconvviz.training.train import train
from deconvviz.zoo.networks import resnet_cifar

FAMILIES = ("plain", "resnet", "preresnet")


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def random(name, seed=0, **options):
    """A network in float64 whose norms do something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = zoo.create(name, **options).double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize(
    ("layers", "count", "millions"),
    [(20, 269_722, "0.27"), (56, 853_018, "0.85"), (110, 1_727_962, "1.7"), (1202, 19_421_274, "19.4")],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_the_paper_s(family, layers, count, millions):
    with torch.device("meta"):
        model = resnet_cifar.build(f"{family}-{layers}")
    assert parameters(model) == count
    assert f"{count / 1e6:.{len(millions.split('.')[1])}f}" == millions
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == layers
    assert [m for m in model.modules() if isinstance(m, nn.Dropout)] == []


def test_names_lists_the_usual_ones_and_create_takes_more():
    assert {"plain-20", "plain-110", "resnet-20", "resnet-1202", "preresnet-110"} <= set(zoo.names())
    assert "resnet-26" not in zoo.names()
    model = zoo.create("resnet-26", num_classes=7)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert not model.training
    assert (model.card.name, model.card.input_size, model.card.resize) == ("resnet-26", (32, 32), 32)
    assert zoo.create("plain-8").fc.out_features == 10
    assert "Identity Mappings" in zoo.create("preresnet-8").card.paper


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet-21", "resnet-20"),
        ("resnet-54", "resnet-56"),
        ("plain-1208", "plain-1202"),
        ("preresnet-2", "preresnet-8"),
        ("resnet-020", "resnet-20"),
        ("resnet20", "resnet-20"),
    ],
)
def test_a_wrong_number_of_layers(name, near):
    text = f"no network named '{name}' in the zoo: .*N = 6n \\+ 2 layers, from .*-8 to .*-1202. Did you mean '{near}'"
    with pytest.raises(ModelError, match=text):
        zoo.create(name)
    with pytest.raises(ModelError, match="Did you mean 'resnet-20'"):
        zoo.create("resnett-20")


@pytest.mark.parametrize("init", ["kaiming", "paper"])
def test_first_weights_are_kaiming_s(init):
    torch.manual_seed(0)
    for m in zoo.create("resnet-20", init=init).modules():
        if isinstance(m, nn.Conv2d):
            assert m.weight.std().item() == pytest.approx((2 / (9 * m.in_channels)) ** 0.5, rel=0.15)
        if isinstance(m, nn.BatchNorm2d):
            assert (m.weight == 1).all() and (m.bias == 0).all()


def transcribed(family, blocks, model, x):
    """The papers' text, line by line: weights are taken in the order of execution."""
    convs = (m.weight for m in model.modules() if isinstance(m, nn.Conv2d))
    norms = iter([m for m in model.modules() if isinstance(m, nn.BatchNorm2d)])

    def conv(x, stride=1):
        return F.conv2d(x, next(convs), None, stride, 1)

    def norm(x):
        m = next(norms)
        return F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps)

    def option_a(x, stride):
        """Identity with zeros for the new channels, every second row and column."""
        if stride == 1:
            return x
        out = x.new_zeros(len(x), 2 * x.shape[1], x.shape[2] // 2, x.shape[3] // 2)
        for row, col in itertools.product(range(out.shape[2]), range(out.shape[3])):
            out[:, : x.shape[1], row, col] = x[:, :, 2 * row, 2 * col]
        return out

    x = norm(conv(x)).relu()
    for i in range(3 * blocks):
        stride = 2 if i in (blocks, 2 * blocks) else 1
        if family == "preresnet":
            y = norm(x).relu() if i else x  # the first unit's activation came before the branches parted
            y = conv(norm(conv(y, stride)).relu())
            x = y + option_a(x, stride)
        else:
            y = norm(conv(norm(conv(x, stride)).relu()))
            x = (y + option_a(x, stride) if family == "resnet" else y).relu()
    if family == "preresnet":
        x = norm(x).relu()
    assert next(convs, None) is None and next(norms, None) is None
    return F.linear(x.mean((2, 3)), model.fc.weight, model.fc.bias)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_pass_is_the_paper_s(family):
    model = random(f"{family}-14")
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(x), transcribed(family, 2, model, x))


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_have_the_right_receptive_fields_and_strides(family):
    """Against the pixels that change an output, in a network whose weights are all positive."""
    model = random(f"{family}-14")
    with torch.no_grad():
        for p in model.parameters():
            p.abs_()
        for name, buffer in model.named_buffers():
            buffer.fill_(0.0 if "mean" in name else 1)
    table = deconvviz.layers(model, 64)
    assert [(r.stride[0], r.height, r.units) for r in table.numbered] == [(1, 64, 16), (2, 32, 32), (4, 16, 64)]
    assert [table[f"layer{i}"].receptive_field for i in (1, 2, 3)] == [(11, 11), (25, 25), (53, 53)]
    names = ["conv1", "layer1", "layer2.0.conv1", "layer2.0", "layer2.1.conv1", "layer3.0", "layer3"]
    for name in [*names, *(["layer2.0.shortcut", "layer3.0.shortcut"] if family != "plain" else [])]:
        check_field(model, table[name])


def check_field(model, row):
    place = row.height // 2
    found = deconvviz.deconv(
        model, torch.ones(1, 3, 64, 64).double(), layer=row.name, unit=0, position=(place, place), rule="backprop"
    )
    rows = found[0].abs().sum((0, 2)).nonzero()[:, 0]
    assert (int(rows[-1] - rows[0]) + 1) == row.receptive_field[0], row.name
    box = row.reach.boxes(np.array([place, place]))
    assert box[[0, 2]].tolist() == [int(rows[0]), int(rows[-1]) + 1], row.name


class Convolved(nn.Module):
    """Option A as a 1×1 convolution, which has a rule of its own."""

    def __init__(self, shortcut, inputs):
        super().__init__()
        weight = torch.eye(inputs + shortcut.missing, inputs, dtype=torch.float64)
        self.weight, self.stride = nn.Parameter(weight[..., None, None]), shortcut.stride

    def forward(self, x):
        return F.conv2d(x, self.weight, None, self.stride)


@pytest.mark.parametrize("family", ["resnet", "preresnet"])
@pytest.mark.parametrize("rule", ["deconvnet", "guided", "backprop"])
def test_the_way_back_through_option_a_is_that_of_an_equal_convolution(family, rule):
    model, twin = random(f"{family}-14"), random(f"{family}-14")
    for stage, inputs in ((twin.layer2, 16), (twin.layer3, 32)):
        stage[0].shortcut = Convolved(stage[0].shortcut, inputs)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for layer, unit in ((2, 20), (3, 40)):
        a, b = (deconvviz.deconv(m, images, layer=layer, unit=unit, rule=rule) for m in (model, twin))
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b)
    options = {"layer": 3, "units": [3, 60], "top": 2, "rule": rule, "progress": False}
    a, b = (deconvviz.project(m, images, **options) for m in (model, twin))
    torch.testing.assert_close(a.projections, b.projections)


@pytest.mark.parametrize("family", FAMILIES)
def test_backprop_is_autograd_s(family):
    model = random(f"{family}-14")
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = deconvviz.deconv(model, images, layer="layer3", unit=33, rule="backprop")
    kept = []
    hook = model.layer3.register_forward_hook(lambda _m, _i, out: kept.append(out))
    x = images.clone().requires_grad_()
    model(x)
    hook.remove()
    peak = kept[0][:, 33].flatten(1).amax(1)
    (gradient,) = torch.autograd.grad(peak.sum(), x)
    torch.testing.assert_close(found, gradient * peak.detach()[:, None, None, None])


def test_the_cifar_recipe_is_the_paper_s():
    cifar = RECIPES["cifar"]
    assert (cifar.lr, cifar.momentum, cifar.weight_decay, cifar.batch_size) == (0.1, 0.9, 1e-4, 128)
    assert cifar.epochs == round(64_000 / 391) and cifar.steps == (round(32_000 / 391), round(48_000 / 391))
    rates = [_recipe.rate(cifar, step * 391, 391, []) for step in range(164)]
    assert rates == pytest.approx([0.1] * 82 + [0.01] * 41 + [0.001] * 41)
    warm = RECIPES["cifar-warm"]
    assert [_recipe.rate(warm, s, 391, []) for s in (0, 399, 400, 31_999, 32_100)] == pytest.approx(
        [0.01, 0.01, 0.1, 0.1, 0.01]
    )
    short = RECIPES["cifar-short"]
    assert short.schedule == "cycle" and max(_recipe.rate(short, s, 10, []) for s in range(300)) == 0.1
    with pytest.raises(OptionError, match="schedule='linear': expected 'cycle', 'plateau', 'steps' or 'decay'"):
        _recipe.choose(dataclasses.replace(cifar, schedule="linear"))
    with pytest.raises(OptionError, match="border='wrap': expected 'reflect' or 'mean'"):
        _recipe.choose(dataclasses.replace(cifar, border="wrap"))


def test_recipes_without_the_later_fields_sign_checkpoints_as_before():
    assert set(dataclasses.asdict(RECIPES["modern"])) - set(describe_recipe(RECIPES["modern"])) == {
        *("border", "steps", "warm_up", "decay", "auxiliary", "mirrored", "scales", "area", "aspect", "colour"),
        "jitter",
    }
    assert describe_recipe(RECIPES["cifar"])["steps"] == (82, 123)


def test_windows_padded_by_the_mean():
    """Each window is a window of the padded image, or its mirror image."""
    images = torch.randint(0, 256, (40, 6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fill = torch.tensor([7, 8, 9], dtype=torch.uint8)
    windows = _pixels.Windows.draw(40, 6, 6, 2, torch.Generator().manual_seed(1))
    crops, plain = (_pixels.random_crops(images, windows, 6, border) for border in (fill, None))
    assert crops.dtype == torch.uint8 and not torch.equal(crops, plain)
    padded = fill[:, None, None].expand(3, 10, 10).repeat(40, 1, 1, 1)
    padded[:, :, 2:-2, 2:-2] = images.permute(0, 3, 1, 2)
    for crop, image in zip(crops, padded, strict=True):
        windows = [image[:, y : y + 6, x : x + 6] for y in range(5) for x in range(5)]
        assert any(torch.equal(crop, w) or torch.equal(crop, w.flip(2)) for w in windows)


@pytest.mark.parametrize("recipe", ["cifar", "cifar-warm", "cifar-short"])
def test_training_runs(recipe, tmp_path):
    noise = np.random.default_rng(0)
    for label, shade in (("dark", 40), ("light", 200)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(10):
            pixels = noise.normal(shade, 20, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{i}.png")
    options = {"recipe": recipe, "epochs": 2, "device": "cpu", "progress": False}
    result = train("resnet-8", tmp_path / "data", out=tmp_path / "out", **options)
    assert zoo.create("resnet-8", weights=result.weights).card.training["recipe"] == recipe
    assert result.history[-1].lr <= 0.1
