"""The scripts of long trainings, at toy size: what they leave, and that they go on where they were stopped."""

import argparse
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import deconvviz
from deconvviz.training import render as _render

ROOT = Path(__file__).parents[2]
loop = importlib.import_module("deconvviz.training.loop")


@pytest.fixture
def script(monkeypatch):
    """Import a script by the name of its file."""

    def get(folder, name):
        monkeypatch.syspath_prepend(str(ROOT / folder))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return get


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root, noise = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for i in range(12):
        folder = root / ("train" if i < 8 else "val") / ("dark", "light")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.normal((60, 190)[i % 2], 40, (64, 64, 3)).clip(0, 255).astype(np.uint8)).save(
            folder / f"{i}.png"
        )
    return root


def test_the_paper_s_recipe_goes_on_and_is_recorded_and_drawn(script, data, tmp_path, monkeypatch):
    paper = script("gallery/scripts", "paper_recipe")
    monkeypatch.setattr(_render, "png", lambda figure: b"a picture")
    options = argparse.Namespace(
        data=data, out=tmp_path, epochs=2, batch_size=4, seed=0, amp=None, device="cpu", only=("zfnet64",)
    )
    step, count = loop._step, [0]

    def killed(*given):
        count[0] += 1
        if count[0] == 3:  # the first of the second epoch
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(loop, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        paper.run(options, "zfnet64", True)
    result = paper.run(options, "zfnet64", True)
    assert count[0] == 5  # two steps an epoch, one of them twice
    folder = tmp_path / "zfnet64-clamped"
    assert deconvviz.Recorder.load(folder / "recording.safetensors").epochs == (1, 2)
    assert result.page == folder / "grids" / "index.html"
    card = deconvviz.zoo.Card.read(result.card)
    assert card.training["recipe"] == "paper" and card.training["settings"]["clamp_rms"] == 0.1
    options.epochs = 1
    monkeypatch.setattr(_render.Rendering, "draw", lambda *_: None)
    free = paper.run(options, "zfnet64", False)
    assert deconvviz.zoo.Card.read(free.card).training["settings"].get("clamp_rms") is None
    assert paper.EPOCHS == (1, 2, 5, 10, 20, 30, 40, 64)


def test_the_table_of_ingredients_says_what_ran_and_goes_on(script, data, tmp_path, monkeypatch):
    ingredients = script("benchmarks", "ingredients")
    monkeypatch.setattr(ingredients, "TABLE", tmp_path / "table.md")
    monkeypatch.setattr(ingredients, "conditions", lambda threads: "here")
    words = ["x", "--data", str(data), "--out", str(tmp_path), "--epochs", "1", "--batch-size", "8", "--only", "tanh"]
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "1"])
    ingredients.main()
    monkeypatch.setattr(ingredients.deconvviz, "train", lambda *a, **o: pytest.fail("trained again"))
    ingredients.main()
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "2", "--budget", "0"])
    ingredients.main()
    rows = {line.split(" | ")[0][2:]: line for line in (tmp_path / "table.md").read_text().splitlines() if "|" in line}
    assert " | 1 | " in rows["tanh"] and " | 1 | " in rows["as it is"]
    assert "not run" in rows["response norm"] and "here" in (tmp_path / "table.md").read_text()


def test_the_spread_is_over_the_seeds(script):
    spread = script("benchmarks", "ingredients").spread
    assert spread([1.0, 3.0], 1) == "2.0 ± 1.4" and spread([1.0], 1) == "1.0" and spread([-1.0], 1, sign=True) == "-1.0"


def test_every_ingredient_builds_and_has_a_recipe(script):
    ingredients = script("benchmarks", "ingredients")
    options = argparse.Namespace(epochs=3, batch_size=16)
    for one in ingredients.INGREDIENTS:
        recipe = ingredients.recipe_of(one, options)
        with torch.device("meta"):
            deconvviz.zoo.create("alexnet64", dropout=recipe.dropout, **one.options)
        assert (recipe.epochs, recipe.batch_size) == (3, 16)
        assert all(getattr(recipe, name) == value for name, value in one.recipe.items())


def test_a_part_of_the_images_is_linked_and_no_picture_is_in_both_halves(script, data, tmp_path):
    ingredients = script("benchmarks", "ingredients")
    options = argparse.Namespace(data=data, out=tmp_path, classes=1, images=2, held=3)
    for _ in range(2):  # the second time all is there
        folder = ingredients.lay_out(options)
    names = {part: sorted(path.name for path in (folder / part / "dark").iterdir()) for part in ("train", "val")}
    assert names == {"train": ["0.png", "2.png"], "val": ["10.png", "4.png", "8.png"]}
    assert not (folder / "train" / "light").exists()
    assert all(path.samefile(data / "train" / "dark" / path.name) for path in (folder / "train" / "dark").iterdir())
    assert "its first 1 classes with 2 training and 3 validation images of each" in ingredients.part_of(options)
    whole = argparse.Namespace(data=data, out=tmp_path, classes=None, images=None, held=None)
    assert ingredients.lay_out(whole) == data and ingredients.part_of(whole) == ""
