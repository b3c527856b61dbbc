"""Images that excite most: known optima, seeds, batches, kills, and a model left as it was."""

import copy
import math

import pytest
import torch
from torch import nn

import deconvviz
from deconvviz.errors import LayerError, ModelError, OptionError, UnitError
from deconvviz.images.preprocess import Preprocess
from deconvviz.jobs import draft
from deconvviz.optimization import maximize as module
from deconvviz.optimization.objectives import unit, whole
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


def test_many_images_of_one_class_are_kept_apart():
    def alike(diversity):
        found = run(layer=None, units=None, target=2, n=2, steps=30, diversity=diversity, robust=False)
        first, second = net()[:5]((found.images[0] - 0.5) / 0.5).detach().flatten(2)
        grams = [torch.nn.functional.normalize((r @ r.T).flatten(), dim=0) for r in (first, second)]
        return float(grams[0] @ grams[1])

    assert alike(5.0) < alike(0) - 0.01


def test_a_whole_layer_and_a_centre():
    model = net()
    dream = run(model, layer=None, units=None, target=whole(1), steps=30)
    with torch.no_grad():
        response = model[:2]((dream.images[:, 0] - 0.5) / 0.5)
    assert torch.allclose(dream.activations[0, 0, -1], response.square().mean(), rtol=1e-4)
    assert dream.activations[0, 0, -1] > 5 * dream.activations[0, 0, 0]
    centre = run(model, units=[5], at="center", steps=30)
    with torch.no_grad():
        response = model[:2]((centre.images[:, 0] - 0.5) / 0.5)
    assert torch.allclose(centre.activations[0, 0, -1], response[0, 5, 5, 5], rtol=1e-4)
    assert dict(centre.settings)["at"] == "center"


def test_what_a_pixel_matters_is_its_gradient():
    """The unit at the centre sees 5 × 5 pixels of 24 × 24; the others get no gradient."""
    found = run(units=[5], at="center", robust=False)
    assert found.transparency.shape == (1, 1, 24, 24) and found.transparency.max() == 1
    seen = torch.zeros(24, 24, dtype=torch.bool)
    seen[10:15, 10:15] = True
    assert (found.transparency[0, 0][~seen] == 0).all() and (found.transparency[0, 0][seen] > 0).all()


class Interrupted:
    """Raises in the middle of the third block of images."""

    def __init__(self, monkeypatch, error):
        self.blocks, self.error, climb = 0, error, module.climb

        def interrupted(*arguments):
            self.blocks += 1
            for step, gradient in enumerate(climb(*arguments)):
                if self.blocks == 3 and step == 2:
                    raise self.error
                yield gradient

        monkeypatch.setattr(module, "climb", interrupted)


def test_an_interrupt_keeps_what_is_done(monkeypatch):
    whole = run(units="all", batch_size=2)
    Interrupted(monkeypatch, KeyboardInterrupt())
    with pytest.warns(UserWarning, match="4 of 8 objectives are done"):
        part = run(units="all", batch_size=2)
    assert part.units.tolist() == [0, 1, 2, 3] and part.names == whole.names[:4]
    assert torch.equal(part.images, whole.images[:4]) and torch.equal(part.activations, whole.activations[:4])


def test_a_file_goes_on_where_a_job_stopped(monkeypatch, tmp_path):
    expected = run(units="all", batch_size=2)
    monkeypatch.setattr(draft, "EVERY", 0)
    with monkeypatch.context() as patch:
        Interrupted(patch, RuntimeError("the machine is gone"))
        with pytest.raises(RuntimeError, match="gone"):
            run(units="all", batch_size=2, out=tmp_path / "x.safetensors")
    again = Interrupted(monkeypatch, AssertionError("there are two blocks left"))
    found = run(units="all", batch_size=2, out=tmp_path / "x.safetensors")
    assert again.blocks == 2 and found == expected
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    "other",
    [
        {"negative": True},
        {"at": "center"},
        {"seed": 1},
        {"preprocess": Preprocess((24, 24), 24, (0.4,) * 3, (0.5,) * 3)},
        {"units": None, "directions": torch.eye(8)[[3, 0, 1, 2, 4, 5, 6, 7]]},
    ],
)
def test_a_file_of_another_job_is_not_gone_on_with(monkeypatch, tmp_path, other):
    monkeypatch.setattr(draft, "EVERY", 0)
    options = {"units": "all", "batch_size": 2, "out": tmp_path / "x.safetensors"}
    first = {"units": None, "directions": torch.eye(8)} if "directions" in other else {}
    with monkeypatch.context() as patch:
        Interrupted(patch, RuntimeError("the machine is gone"))
        with pytest.raises(RuntimeError, match="gone"):
            run(**{**options, **first})
    expected = run(**{**options, **other, "out": None})
    assert run(**{**options, **other}) == expected


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


def test_a_unit_whose_mean_says_nothing_is_excited_at_its_strongest_place():
    """The differences of neighbours add up to that of the ends: their mean has no gradient in between."""
    model = nn.Sequential(nn.Conv2d(1, 1, (1, 2), bias=False), nn.ReLU())
    model[0].weight.data = torch.tensor([[[[1.0, -1.0]]]])
    known = Preprocess((24, 24), 24, (0.0,), (1.0,))
    found = run(model, units=[0], preprocess=known, input_size=(1, 24, 24), steps=60, robust=False)
    assert found.activations[0, 0, -1] > 0.9  # the best there is: white beside black


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


def test_patches_stand_beside_with_what_excited_in_them():
    model, images = net(), torch.randn(6, 3, 24, 24)
    options = {"layer": 1, "units": [0, 5], "k": 4, "progress": False}
    found, projections = run(model, n=2), deconvviz.project(model, images, **options)
    evidence = deconvviz.evidence(model, images, **options)
    for beside, name in ((projections, "projections"), (evidence, "evidence")):
        figure = found.plot(beside=beside)
        titles = [axis.get_title(loc="left") for axis in figure.axes]
        assert len(figure.axes) == 8 and titles[2:4] == ["patches", name] and titles[6:] == ["", ""]
        shown = [torch.as_tensor(axis.images[0].get_array()) for axis in figure.axes]
        assert not torch.equal(shown[2], shown[3]) and not torch.equal(shown[2], shown[6])
    with pytest.raises(UnitError, match="units=\\[1\\]"):
        run(model, units=[1]).plot(beside=projections)
    with pytest.raises(OptionError, match=r"of layer '1'.*'4'"):
        run(model, layer=2).plot(beside=projections)


def test_random_weights_stand_beside():
    trained, random = run(), run(deconvviz.randomize(net()))
    titles = [axis.get_title(loc="left") for axis in trained.plot(beside=random).axes]
    assert len(titles) == 4 and titles[0].startswith("unit 0: ") and titles[1].startswith("beside: ")
    with pytest.raises(OptionError, match="other objectives"):
        trained.plot(beside=run(units=[1, 2]))


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
        ({"steps": 2.5}, OptionError, "steps=2.5"),
        ({"seed": "x"}, OptionError, "seed='x'"),
        ({"diversity": float("nan")}, OptionError, "diversity=nan"),
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
    with pytest.raises(ModelError, match="not finite, for unit 0, unit 5"):
        run(model, layer=2)


def test_whose_gradient_is_not_finite_is_named():
    with pytest.raises(ModelError, match=r"not finite, for 1e\+39 unit 5 of layer 1: "):
        run(layer=None, units=None, target=[unit(1, 0), 1e39 * unit(1, 5)])


def test_an_error_carries_the_units_before_it():
    """Without a file, too, nothing that was computed is lost."""
    goals = [unit(1, 0), unit(1, 3), unit(1, 4), 1e39 * unit(1, 5), unit(1, 6)]
    expected = run(layer=None, units=None, target=goals[:2], batch_size=2)
    with pytest.raises(
        ModelError, match=r"not finite.* 2 of 5 objectives are done: in this error's `done`\.$"
    ) as raised:
        run(layer=None, units=None, target=goals, batch_size=2)
    assert raised.value.done == expected
    with pytest.raises(ModelError) as raised:
        run(layer=None, units=None, target=goals[3:], batch_size=2)
    assert raised.value.done is None and str(raised.value).endswith("leave these out.")


def test_the_size_comes_from_the_preprocessing_or_is_asked_for():
    assert run(input_size=None).images.shape[-2:] == (24, 24)
    with pytest.raises(OptionError, match=r"images of this Sequential are is not known\. Give input_size"):
        run(input_size=None, preprocess=None)


class Mixing(nn.Module):
    """Compares each place with each other: its response is no map."""

    def forward(self, x):
        flat = x.flatten(2)
        return flat.mT @ flat


def test_a_layer_without_maps_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 4), Mixing(), nn.Flatten(), nn.Linear(36**2, 3))
    with pytest.raises(LayerError, match="channels can't be told"):
        run(model, layer="1")
