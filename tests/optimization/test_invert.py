"""Images rebuilt from responses, and images changed."""

import copy

import pytest
import torch
from torch import nn

import deconvviz
from deconvviz.errors import DeconvvizError, ImageError, LayerError, ModelError, OptionError, UnitError
from deconvviz.images import Preprocess
from deconvviz.optimization import invert as module
from deconvviz.optimization.result import Accentuated, Inversion

PIXELS = Preprocess((20, 20), 20, (0.5,) * 3, (0.5,) * 3)


def net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 8, 3), nn.ReLU()
    ).eval()


def image():
    rows, cols = torch.meshgrid(torch.linspace(0, 1, 20), torch.linspace(0, 1, 20), indexing="ij")
    return torch.stack([rows, cols, (rows - cols).abs()]) * 2 - 1


def rebuild(**options):
    given = {"layer": [1, 2], "steps": 60, "preprocess": PIXELS, "progress": False}
    return deconvviz.invert(net(), image(), **{**given, **options})


@pytest.mark.parametrize("parametrization", ["fourier", "pixels"])
def test_a_layer_that_keeps_everything_gives_the_image_back(parametrization):
    found = rebuild(layer=1, parametrization=parametrization, steps=300, total_variation=0.0, alpha_norm=0.0)
    assert found.distances.max() < 0.05
    assert (found.images[0, 0] - found.image).abs().mean() < 0.08


def test_distances_are_those_of_the_images():
    model, found = net(), rebuild()
    assert found.layers == ("1", "4") and found.numbers == (1, 2) and found.images.shape == (2, 1, 3, 20, 20)
    for number, depth in enumerate((2, 5)):
        with torch.no_grad():
            goal, own = model[:depth](image()[None]), model[:depth]((found.images[number] - 0.5) / 0.5)
        expected = (own - goal).square().sum() / goal.square().sum()
        assert abs(float(found.distances[number, 0] - expected)) < 1e-4


def test_starts_differ_and_seeds_repeat():
    found = rebuild(layer=2, starts=3, steps=30)
    assert found.images.shape == (1, 3, 3, 20, 20)
    assert not torch.allclose(found.images[0, 0], found.images[0, 1], atol=1e-2)
    assert torch.allclose(rebuild(layer=2, steps=30).images[0, 0], found.images[0, 0], atol=1e-4)


def test_what_starts_do_not_agree_on_is_drawn():
    found = rebuild(layer=[1, 2], starts=3, steps=20)
    by_hand = [[torch.stack([*image]).std(0) for image in one.movedim(0, 1)] for one in found.images]
    expected = torch.stack([torch.stack(row).square().mean(0).sqrt() for row in by_hand])
    assert torch.allclose(found.spread(), expected, atol=1e-6)
    axes = found.plot(spread=True).axes
    assert len(axes) == 9 and axes[6].texts[0].get_text() == "how they differ"
    shown = torch.as_tensor(axes[5].images[0].get_array()).movedim(-1, 0)
    assert torch.allclose(shown, found.images[1].mean(0), atol=1e-6)
    with pytest.raises(OptionError, match="one start differs from no other"):
        rebuild(layer=1, steps=2).plot(spread=True)


def test_priors_smooth():
    rough, smooth = (rebuild(layer=2, parametrization="pixels", total_variation=w) for w in (0.0, 300.0))

    def variation(result):
        return float(result.images.diff(dim=-1).square().mean())

    assert variation(smooth) < 0.5 * variation(rough)


def change(**options):
    given = {"layer": 2, "unit": 3, "steps": 30, "preprocess": PIXELS, "progress": False}
    return deconvviz.accentuate(net(), image(), **{**given, **options})


def test_an_image_is_changed_to_excite_more_and_less():
    found, model = change(strength=3.0), net()
    seen, more, less = found.activations.tolist()
    assert less < seen < more
    with torch.no_grad():
        images = torch.stack([found.image, found.more, found.less])
        own = model((images - 0.5) / 0.5)[:, 3].amax((1, 2))
    assert torch.allclose(own, found.activations, rtol=1e-3, atol=1e-4)
    assert torch.allclose(found.image, image() / 2 + 0.5, atol=1e-6)


def test_what_costs_more_changes_less():
    weak, strong = change(strength=0.3), change(strength=10.0)
    assert weak.distances[0] < strong.distances[0] and weak.activations[1] < strong.activations[1]
    assert change(strength=0.0).distances.max() < 1e-3


def test_an_interrupt_keeps_the_layers_that_are_done(monkeypatch):
    expected, layers = rebuild(layer=1), []

    def interrupted(*arguments):
        layers.append(arguments)
        if len(layers) == 2:
            raise KeyboardInterrupt
        return climb(*arguments)

    climb = module.climb
    monkeypatch.setattr(module, "climb", interrupted)
    with pytest.warns(UserWarning, match="1 of 2 layers are done"):
        assert rebuild() == expected


def test_an_error_carries_the_layers_before_it(monkeypatch):
    expected, layers = rebuild(layer=1), []

    def overflowing(*arguments):
        layers.append(arguments)
        if len(layers) == 2:
            raise ModelError("the gradient is not finite.")
        return climb(*arguments)

    climb = module.climb
    monkeypatch.setattr(module, "climb", overflowing)
    with pytest.raises(ModelError, match=r"not finite\. 1 of 2 layers are done: in this error's `done`\.$") as raised:
        rebuild()
    assert raised.value.done == expected


@pytest.mark.parametrize(("make", "kind"), [(rebuild, Inversion), (change, Accentuated)])
def test_results_are_saved_and_drawn(tmp_path, make, kind):
    found = make(steps=4)
    found.save(tmp_path / "x.safetensors")
    assert kind.load(tmp_path / "x.safetensors") == found
    assert "\n" not in repr(found) and len(found.plot().axes) >= 3


def test_the_model_is_left_as_it_was():
    model = net().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    deconvviz.invert(model, image(), layer=1, steps=3, preprocess=PIXELS, progress=False)
    deconvviz.accentuate(model, image(), layer=1, unit=0, steps=3, preprocess=PIXELS, progress=False)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: rebuild(parametrization="maco"), OptionError, "'fourier' or 'pixels'"),
        (lambda: rebuild(starts=0), OptionError, "starts=0"),
        (lambda: rebuild(total_variation=-1), OptionError, "total_variation=-1"),
        (lambda: rebuild(alpha_norm=float("nan")), OptionError, "alpha_norm=nan"),
        (lambda: change(rate=0), OptionError, "rate=0"),
        (lambda: rebuild(layer=9), LayerError, "there is no layer 9"),
        (lambda: change(unit=8), UnitError, "unit 8 is out of range"),
        (lambda: change(strength=-1), OptionError, "strength=-1"),
        (lambda: deconvviz.invert(net(), None, layer=1), ImageError, "no image"),
        (lambda: deconvviz.invert(net(), torch.rand(2, 3, 20, 20), layer=1), ImageError, "2 images"),
        (lambda: deconvviz.invert(net(), torch.rand(3, 20, 20) * 9, layer=1), ImageError, "0 to 1"),
        (lambda: deconvviz.accentuate(net(), "nowhere.png", layer=1, unit=0), DeconvvizError, "nowhere.png|not known"),
    ],
)
def test_mistakes_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_a_layer_that_is_silent_is_named():
    model = net()
    nn.init.constant_(model[0].bias, -100)
    with pytest.raises(LayerError, match="is zero for this image"):
        deconvviz.invert(model, image(), layer=1, preprocess=PIXELS, progress=False)
