"""What recipes are made of, one at a time: heads, gray images, frozen parts, a start, crops, colours, schedules."""

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from pictures import noise
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from deconvviz import zoo
from deconvviz.errors import ModelError, OptionError, StoreError
from deconvviz.training import augment, pixels
from deconvviz.training.recipe import RECIPES, choose, rate
from deconvviz.training.train import train

loop = importlib.import_module("deconvviz.training.loop")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, noise = tmp_path_factory.mktemp("shades"), np.random.default_rng(0)
    for i in range(16):
        name = ("dark", "light")[i % 2]
        (root / name).mkdir(exist_ok=True)
        colours = noise.normal((60, 190)[i % 2], 40, (16, 16, 3)) * (1, 0.8, 0.5)
        Image.fromarray(colours.clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def tiny(channels=3, classes=2, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
            nn.Linear(16, classes),
        )


def run(model, data, out, **options):
    options = {"epochs": 1, "batch_size": 8, "image_size": 16, "device": "cpu", "progress": False, **options}
    return train(model, data, out=out, **options)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- several outputs ----


class Headed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last, self.head = nn.Linear(768, 5), nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x):
        x = self.first(x.flatten(1))
        return (self.last(x), None, self.head(x)) if self.training else self.last(x)


def test_heads_count_by_the_recipe_s_weight(folder, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, seen, step = Headed(), {}, loop._step
    before = state(model)

    def spy(run, crops, labels, lr):
        seen.update(x=pixels.normalise(crops, run.mean, run.std), labels=labels)
        return step(run, crops, labels, lr)

    monkeypatch.setattr(loop, "_step", spy)
    recipe = dataclasses.replace(
        RECIPES["modern"], schedule="steps", momentum=0.0, nesterov=False, weight_decay=0.0, auxiliary=0.5, lr=0.1
    )
    recipe = dataclasses.replace(recipe, label_smoothing=0.0)
    run(model, folder, tmp_path, recipe=recipe, batch_size=64)
    wanted = Headed()
    wanted.load_state_dict(before)
    last, _, head = wanted(seen["x"])
    (cross_entropy(last, seen["labels"]) + 0.5 * cross_entropy(head, seen["labels"])).backward()
    for name, parameter in wanted.named_parameters():
        torch.testing.assert_close(model.state_dict()[name], parameter.detach() - 0.1 * parameter.grad)


def test_a_head_of_another_number_of_classes_is_refused(folder, tmp_path):
    model = Headed()
    model.head = nn.Linear(5, 3)
    with pytest.raises(ModelError, match=r"output is \(8, 3\), expected \(N, 2\)"):
        run(model, folder, tmp_path)


# ---- gray images ----


def test_a_network_of_one_channel_reads_gray_images_and_digits_are_not_mirrored(folder, tmp_path, monkeypatch):
    drawn, seen = [], []
    draw_epoch = pixels.Windows.draw_epoch
    monkeypatch.setattr(loop, "changed", lambda *a: seen.append(a[0]) or augment.changed(*a))
    monkeypatch.setattr(pixels.Windows, "draw_epoch", lambda *a: drawn.extend(draw_epoch(*a)) or draw_epoch(*a))
    result = run("lenet-5", folder, tmp_path, recipe="digits", image_size=None)
    assert seen[0].shape[1:] == (32, 32, 1) and not torch.cat([w.mirrored for w in drawn]).any()
    model = zoo.create("lenet-5", weights=result.weights)
    assert model.card.classes == ("dark", "light") and len(model.card.mean) == 1
    assert run(tiny(1), folder, tmp_path / "own").history[0].val_loss > 0
    with pytest.raises(OptionError, match="recipe 'alexnet' changes colours, and the images are gray"):
        run(tiny(1), folder, tmp_path / "gray", recipe="alexnet")


def test_gray_is_pil_s_gray(tmp_path):
    (tmp_path / "a").mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8))
    picture.save(tmp_path / "a" / "0.png")
    files = pixels.find(tmp_path, ["a"])
    found, _ = pixels.Decoder(8, "bilinear", None, 1, False, 1).decode(files, "train")
    assert np.array_equal(found.images[0, :, :, 0].numpy(), np.array(picture.convert("L")))
    cached, _ = pixels.Decoder(8, "bilinear", tmp_path / "cache", 1, False, 1).decode(files, "train")
    colour, _ = pixels.Decoder(8, "bilinear", tmp_path / "cache", 1, False).decode(files, "train")
    assert torch.equal(cached.images, found.images) and colour.images.shape[3] == 3


# ---- frozen parts, a start, blocks left out ----


def test_frozen_modules_stay_with_their_statistics_and_are_given_back(folder, tmp_path):
    model = tiny()
    before = state(model)
    run(model, folder, tmp_path, freeze=["0", "1"], epochs=2)
    after = state(model)
    assert all(torch.equal(before[n], after[n]) for n in before if n[0] in "01")
    assert not torch.equal(before["5.weight"], after["5.weight"])
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(StoreError, match="another run: its frozen modules was"):
        run(tiny(), folder, tmp_path, epochs=2)
    for freeze, match in ((["7"], "no module '7'. There are: 0, 1"), ("0", "expected a list of module paths")):
        with pytest.raises(OptionError, match=match):
            run(tiny(), folder, tmp_path / "other", freeze=freeze)


def test_a_training_begins_with_the_tensors_of_a_file(folder, tmp_path):
    first = run(tiny(seed=1), folder, tmp_path / "first")
    held = load_file(first.weights)
    seen = {}
    three, more = tiny(classes=3), tmp_path / "three"
    drawn = state(three)
    for kind, name in enumerate(("a", "b", "c")):
        (more / name).mkdir(parents=True)
        for i in range(4):
            noise((16, 16), 30, 4 * kind + i).convert("RGB").save(more / name / f"{i}.png")
    options = {"start_from": first.weights, "freeze": ["0"], "lr": 1e-9}
    result = run(three, more, tmp_path / "next", on_epoch=lambda m, n: seen.update(state(m)), **options)
    assert torch.equal(seen["0.weight"].half(), held["0.weight"])
    torch.testing.assert_close(seen["5.weight"], drawn["5.weight"], rtol=0, atol=1e-6)  # of another number of classes
    command = zoo.Card.read(result.card).training["command"]
    assert "--freeze 0 --start-from weights.safetensors" in command
    with pytest.raises(StoreError, match="another run: its start was 'weights"):
        run(tiny(classes=3), more, tmp_path / "next", **{**options, "start_from": None})
    with pytest.raises(
        StoreError, match=r"does not fit the network: 0.weight is \(4, 3, 3, 3\), expected \(4, 1, 3, 3\)"
    ):
        run(tiny(1), folder, tmp_path / "gray", start_from=first.weights)
    (tmp_path / "no").write_text("no")
    with pytest.raises(StoreError, match="is not a safetensors file"):
        run(tiny(), folder, tmp_path / "bad", start_from=tmp_path / "no")


def test_blocks_that_are_left_out_are_the_same_ones_after_a_kill(folder, tmp_path):
    def network():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return zoo.create("stochastic-depth-110", layers=14, last=0.2, num_classes=2)

    def kill(model, epoch):
        if epoch == 2:
            raise KeyboardInterrupt

    options = {"epochs": 2, "image_size": None}
    whole = run(network(), folder, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(network(), folder, tmp_path / "killed", on_epoch=kill, **options)
    assert equal(load_file(whole.weights), load_file(run(network(), folder, tmp_path / "killed", **options).weights))


# ---- recipes ----


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(folder, tmp_path, name):
    result = run(tiny(), folder, tmp_path, recipe=name)
    assert np.isfinite(result.history[0].val_loss)
    settings = zoo.Card.read(result.card).training["settings"]
    assert settings["name"] == name and settings["lr"] == RECIPES[name].lr


def test_recipes_are_the_papers():
    facts = {
        "alexnet": {
            "batch_size": 128,
            "lr": 0.01,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "dropout": 0.5,
            "colour": 0.1,
        },
        "vgg": {"batch_size": 256, "epochs": 74, "weight_decay": 5e-4, "scales": (256 / 224, 512 / 224)},
        "googlenet": {"area": (0.08, 1.0), "aspect": (3 / 4, 4 / 3), "decay": (0.96, 8), "auxiliary": 0.3},
        "resnet": {
            "batch_size": 256,
            "lr": 0.1,
            "weight_decay": 1e-4,
            "dropout": 0.0,
            "scales": (256 / 224, 480 / 224),
        },
        "preresnet": {"batch_size": 128, "lr": 0.1, "steps": (82, 123), "warm_up": 400, "weight_decay": 1e-4},
        "digits": {"mirrored": False, "epochs": 20},
    }
    for name, values in facts.items():
        assert {key: getattr(RECIPES[name], key) for key in values} == values, name
    decayed = [rate(RECIPES["googlenet"], step, 10, []) / RECIPES["googlenet"].lr for step in (0, 79, 80, 160, 800)]
    assert decayed == pytest.approx([1, 1, 0.96, 0.96**2, 0.96**10])


def test_what_a_recipe_cannot_mean_is_refused():
    modern = RECIPES["modern"]
    for change, match in (
        ({"scales": (0.5, 2)}, r"scales=\(0.5, 2\): expected two numbers that do not fall, from 1"),
        ({"area": (0.5, 0.1)}, "area="),
        ({"area": (0.1, 1.0), "scales": (1.0, 2.0)}, "two ways to cut a window"),
        ({"colour": -0.1}, "colour=-0.1: expected a number of at least 0"),
        ({"schedule": "up"}, "schedule='up'"),
    ):
        with pytest.raises(OptionError, match=match):
            choose(dataclasses.replace(modern, **change))


# ---- crops ----


def coordinates(count, side):
    """Images whose first two channels say their row and column."""
    line = torch.arange(side, dtype=torch.uint8)
    blue = torch.zeros(side, side, dtype=torch.uint8)
    image = torch.stack([line[:, None].expand(side, side), line.expand(side, side), blue], 2)
    return image.expand(count, side, side, 3)


def windows(count, mirrored=False):
    return pixels.Windows(*torch.zeros(2, count, dtype=torch.long), torch.full((count,), mirrored))


def change(images, recipe, size, mirrored=False):
    count = len(images)
    return augment.changed(images, recipe, windows(count, mirrored), size, None, None, range(count))


def test_area_crops_have_the_area_and_the_shape_that_the_recipe_says():
    torch.manual_seed(0)
    recipe = dataclasses.replace(RECIPES["modern"], area=(0.08, 1.0))
    crops = change(coordinates(300, 120), recipe, 40).float()
    assert crops.shape == (300, 3, 40, 40)
    # Between the centres of the outermost pixels lie 39 of 40 parts of the window.
    heights, widths = (((crops[:, c].amax((1, 2)) - crops[:, c].amin((1, 2))) * 40 / 39) for c in (0, 1))
    areas, ratios = heights * widths / 120**2, widths / heights
    assert 0.06 < areas.min() < 0.12 and 0.85 < areas.max() <= 1.05
    assert 0.70 < ratios.min() < 0.80 and 1.25 < ratios.max() < 1.42
    assert (crops[:, 0, 0] <= crops[:, 0, -1]).all() and (crops[:, 1, :, 0] <= crops[:, 1, :, -1]).all()
    turned = change(coordinates(9, 120), recipe, 40, True).float()
    assert (turned[:, 1, :, 0] >= turned[:, 1, :, -1]).all()


def test_scale_jitter_cuts_windows_of_images_of_every_size_between():
    torch.manual_seed(0)
    recipe = dataclasses.replace(RECIPES["modern"], scales=(2.0, 2.0))
    images = torch.randint(0, 256, (6, 24, 24, 3), dtype=torch.uint8)
    for image, crop in zip(images, change(images, recipe, 12), strict=True):
        places = [image[y : y + 12, x : x + 12].permute(2, 0, 1) for y in range(13) for x in range(13)]
        assert sum(torch.equal(crop, place) for place in places) == 1  # as it is stored, nothing is resized
    recipe = dataclasses.replace(recipe, scales=(1.25, 4.0))
    crops = change(coordinates(200, 120), recipe, 30).float()
    sides = (crops[:, 0].amax((1, 2)) - crops[:, 0].amin((1, 2))) * 30 / 29
    assert 28 < sides.min() < 33 and 90 < sides.max() < 98  # 120 / 4 and 120 / 1.25 stored pixels


def test_the_validation_sees_the_card_s_size_however_large_images_are_stored(folder, tmp_path, monkeypatch):
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    seen = pixels.centre_crops(images, 14, 16)  # the middle 28 of 32
    middle = images[:, 2:30, 2:30].permute(0, 3, 1, 2)
    assert torch.equal(seen, v2.functional.resize(middle, [14, 14], antialias=True))
    assert torch.equal(pixels.centre_crops(images, 28, 32), middle)
    result = run(tiny(), folder, tmp_path, recipe="vgg")
    card = zoo.Card.read(result.card)
    assert (card.input_size, card.resize) == ((16, 16), 18)


# ---- colours ----


def test_colours_move_along_the_principal_components_by_one_draw_an_image():
    noise = np.random.default_rng(0)
    mixed = noise.normal(0, 1, (40 * 64, 3)) @ np.array([[30, 25, 20], [8, 0, -8], [2, -4, 2]]) + 128
    images = torch.from_numpy(mixed.clip(0, 255).astype(np.uint8)).view(40, 8, 8, 3)
    colours = augment.Colours.of(pixels.Pixels(images, torch.zeros(40).long(), torch.arange(40)))
    cov = np.cov(images.reshape(-1, 3).numpy().T / 255, bias=True)
    assert np.allclose((colours.vectors * colours.values) @ colours.vectors.T, cov, atol=1e-12)
    recipe = dataclasses.replace(RECIPES["modern"], colour=0.1)
    flat, state = torch.full((2000, 2, 2, 3), 100, dtype=torch.uint8), torch.get_rng_state()
    moved = augment.changed(flat, recipe, windows(2000), 2, None, colours, range(2000)) - 100
    assert torch.equal(torch.get_rng_state(), state)
    again = augment.changed(flat[:5], recipe, windows(5), 2, None, colours, range(7, 12))
    assert torch.equal(again - 100, moved[7:12])  # by the seed alone, whatever is beside
    assert torch.allclose(moved, moved[:, :, :1, :1].expand_as(moved))  # one draw for an image
    along = (moved[:, :, 0, 0].double() / 255) @ colours.vectors
    assert torch.allclose(along.std(0), 0.1 * colours.values, rtol=0.1)
    assert along.mean(0).abs().max() < 0.1 * 0.1 * colours.values.max()


def test_jitter_changes_each_image_by_itself():
    flat, recipe = torch.full((2, 4, 4, 3), 100, dtype=torch.uint8), dataclasses.replace(RECIPES["modern"], jitter=0.4)
    found = augment.changed(flat, recipe, windows(2), 4, None, None, [1, 2])
    assert found.dtype == torch.uint8 and not torch.equal(found[0], found[1])
    assert (augment.changed(flat, RECIPES["modern"], windows(2), 4, None, None, [1, 2]) == 100).all()
