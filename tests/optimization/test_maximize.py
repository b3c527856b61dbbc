"""Images that excite most: known optima, seeds, batches, kills, and a model left as it was."""

import copy
import math

import pytest
import torch
from torch import nn

import deconvviz
from deconvviz.errors import ModelError, OptionError, UnitError
from deconvviz.images.preprocess import Preprocess
from deconvviz.optimization.objectives import unit
from deconvviz.optimization.result import Maximized
from deconvviz.optimization.robustness import Robustness

PIXELS = Preprocess((24, 24), 24, (0.5,) * 3, (0.5,) * 3)


def net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4)
    ).eval()


def run(model=None, **options):
    given = {"layer": 1, "units": [0, 5], "steps": 6, "preprocess": PIXELS, "input_size": 24, "progress": False}
    return deconvviz.maximize(model or net(), **{**given, **options})


def test_a_linear_unit_ends_at_its_known_optimum():
    """With the whole image in the field of one filter, the best pixels are 1 where it is positive and 0 elsewhere."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 2, 12), nn.ReLU())
    small = Preprocess((12, 12), 12, (0.5,) * 3, (0.5,) * 3)
    found = deconvviz.maximize(
        model, layer=1, units=[1], steps=300, rate=0.3, parametrization="pixels", robust=False, preprocess=small,
        input_size=12, progress=False,
    )  # fmt: skip
    weights = model[0].weight[1].detach()
    best = weights.abs().sum() + model[0].bias[1].item()
    assert found.activations[0, 0, -1] > 0.97 * best
    wanted = (weights > 0).float()
    clear = weights.abs() > 0.2 * weights.abs().max()
    assert (found.images[0, 0] - wanted)[clear].abs().max() < 0.1


def gabor(angle, side=15, period=6.0):
    place = torch.arange(side) - side // 2
    rows, cols = torch.meshgrid(place, place, indexing="ij")
    along = cols * math.cos(angle) + rows * math.sin(angle)
    wave = torch.cos(2 * math.pi * along / period) * torch.exp(-(rows**2 + cols**2) / 400.0)
    return wave - wave.mean()


# In the Fourier parametrization Adam makes frequencies that hardly matter grow as fast as the filter's own.
@pytest.mark.parametrize(("parametrization", "least"), [("fourier", 0.7), ("pixels", 0.9)])
def test_a_unit_that_sees_one_orientation_gets_it(parametrization, least):
    filters = torch.stack([gabor(angle) for angle in (0.0, 0.8, 1.6)])
    model = nn.Sequential(nn.Conv2d(3, 3, 15, padding=0), nn.ReLU())
    model[0].weight.data = filters[:, None].expand(-1, 3, -1, -1).contiguous()
    model[0].bias.data.zero_()
    known = Preprocess((15, 15), 15, (0.5,) * 3, (0.5,) * 3)
    found = deconvviz.maximize(
        model, layer=1, units="all", steps=60, parametrization=parametrization, robust=False, preprocess=known,
        input_size=15, progress=False,
    )  # fmt: skip
    seen = found.images[:, 0].mean(1).flatten(1)
    correlation = torch.corrcoef(torch.cat([seen, filters.flatten(1)]))[:3, 3:]
    assert correlation.diagonal().min() > least
    assert (correlation.argmax(1) == torch.arange(3)).all()


@pytest.mark.parametrize("parametrization", ["fourier", "maco", "pixels"])
def test_activations_rise_and_are_the_units_own(parametrization):
    model = net()
    found = run(model, parametrization=parametrization, steps=60)
    assert found.images.shape == (2, 1, 3, 24, 24) and found.activations.shape == (2, 1, 61)
    assert 0 <= found.images.min() and found.images.max() <= 1
    assert (found.activations[..., -1] > found.activations[..., 0]).all()
    with torch.no_grad():
        response = model[:2]((found.images[:, 0] - 0.5) / 0.5)
    own = response[[0, 1], [0, 5]].amax((1, 2))
    assert torch.allclose(found.activations[:, 0, -1], own, rtol=1e-4, atol=1e-5)


def test_a_seed_gives_an_image_whatever_travels_with_it():
    both, alone = run(), run(units=[5], batch_size=1)
    assert torch.allclose(both.images[1], alone.images[0], atol=1e-4)
    assert torch.equal(run().images, both.images)
    assert not torch.allclose(run(seed=1).images, both.images, atol=1e-3)


def test_many_images_of_one_unit_are_kept_apart():
    def alike(found):
        flat = torch.nn.functional.normalize(found.images[0].flatten(1) - 0.5, dim=1)
        return float((flat @ flat.T).fill_diagonal_(0).sum()) / 6

    assert run(units=[0], n=3).images.shape == (1, 3, 3, 24, 24)
    assert alike(run(units=[0], n=3, steps=40, diversity=3.0)) < alike(run(units=[0], n=3, steps=40, diversity=0))


def test_what_a_unit_likes_least_is_the_opposite():
    most, least = run(units=[5], steps=30), run(units=[5], steps=30, negative=True)
    assert least.activations[0, 0, -1] < most.activations[0, 0, -1]


def test_classes_directions_and_sums():
    model = net()
    vector = torch.zeros(8)
    vector[3] = 2.0
    one, same = run(model, units=[3]), run(model, units=None, directions=vector)
    assert same.units.tolist() == [-1] and same.names == ("direction 0",) and one.names == ("unit 3",)
    classes = run(model, layer=None, units=None, target=[2, 0], steps=30)
    assert classes.units.tolist() == [2, 0] and classes.layer == ""
    with torch.no_grad():
        output = model((classes.images[:, 0] - 0.5) / 0.5)
    assert torch.allclose(classes.activations[:, 0, -1], output[[0, 1], [2, 0]], rtol=1e-4, atol=1e-5)
    both = run(model, layer=None, units=None, target=unit(1, 0) - unit(1, 5))
    assert both.names == ("unit 0 of layer 1 - unit 5 of layer 1",)


def test_a_dead_unit_comes_alive():
    model = net()
    with torch.no_grad():
        gray = model[0](torch.zeros(1, 3, 24, 24))[0, 5].max()
        model[0].bias[5] -= gray + 0.05  # silent on gray
    found = run(model, units=[5], steps=60)
    assert found.activations[0, 0, 0] == 0 and found.activations[0, 0, -1] > 0.1


def test_photos_are_compared_with():
    model, photos = net(), torch.rand(20, 3, 24, 24) * 2 - 1
    best = deconvviz.top(model, photos, layers=[1], k=3, progress=False)
    found = run(model, top=best, steps=100, robust=False)
    assert torch.equal(found.best_photo, best[1].values[[0, 5], 0])
    assert found.stronger().all()


def test_moves_can_be_switched_off_one_by_one():
    still = run(robust=False)
    assert torch.equal(run(robust=Robustness(0, 0, 0)).images, still.images)
    for moves in (Robustness(0.1, 0, 0), Robustness(0, 0.1, 0), Robustness(0, 0, 20), Robustness(padding=False)):
        assert not torch.allclose(run(robust=moves).images, still.images, atol=1e-4)


def test_the_model_is_left_as_it_was():
    model = net().train()
    model[0].weight.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    run(model, n=2)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert model.training and [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_half_precision_comes_near():
    full, half = run(steps=20), run(steps=20, dtype=torch.bfloat16)
    assert half.activations[..., -1].allclose(full.activations[..., -1], rtol=0.2)


def test_results_are_saved_and_drawn(tmp_path):
    found = run(n=2)
    found.save(tmp_path / "x.safetensors")
    assert Maximized.load(tmp_path / "x.safetensors") == found
    assert "\n" not in repr(found) and found.plot().axes


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"units": [8]}, UnitError, "unit 8 is out of range"),
        ({"parametrization": "cppn"}, OptionError, "'fourier', 'maco', 'pixels'"),
        ({"target": 1}, OptionError, "either layer=, with units= or directions=, or target="),
        ({"layer": None, "units": None}, OptionError, "either layer="),
        ({"layer": None, "units": None, "target": 9}, OptionError, "class 9"),
        ({"layer": None, "units": None, "target": "cat"}, OptionError, "names of this model's classes are not known"),
        ({"units": None, "directions": torch.ones(3)}, OptionError, r"expected \(n, 8\)"),
        ({"steps": 0}, OptionError, "steps=0"),
        ({"n": 0}, OptionError, "n=0"),
        ({"rate": -1.0}, OptionError, "rate=-1.0"),
        ({"robust": "yes"}, OptionError, "robust='yes'"),
        ({"dtype": torch.int8}, OptionError, "dtype=torch.int8"),
        ({"batch_size": 0}, OptionError, "batch_size=0"),
    ],
)
def test_mistakes_are_named(options, error, text):
    with pytest.raises(error, match=text):
        run(**options)


def test_an_overflow_is_named():
    model = net()
    model[0].weight.data *= 1e30
    model[3].weight.data *= 1e30
    with pytest.raises(ModelError, match="not finite"):
        run(model, layer=2)
