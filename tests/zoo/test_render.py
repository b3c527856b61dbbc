"""Train, then render, for every network of the zoo at small size: each numbered layer has its grid, and the page."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import SMALL

import deconvviz
from deconvviz import zoo
from deconvviz.errors import ModelError
from deconvviz.training import render
from deconvviz.training.train import train

OWN = {"efficientnet-lite0": ({}, 64), "zfnet64": ({}, 64), "alexnet64": ({}, 64)}
CIFAR = {name: ({}, 32) for name in zoo.names() if name not in SMALL and name not in OWN}
EVERY = {**SMALL, **OWN, **CIFAR}
QUICK = ("lenet-5", "nin-cifar")  # the others are the whole's


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in EVERY])
def test_it_trains_and_is_drawn(name, tmp_path, monkeypatch):
    options, side = EVERY[name]
    noise = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for i in range(count):
            folder = tmp_path / "data" / part / ("dark", "light")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = noise.normal((60, 190)[i % 2], 40, (side, side, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    # The drawings are others' tests; they take longer than all else here.
    monkeypatch.setattr(render.Rendering, "_picture", lambda self, name, plot: (self.folder / name).touch())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.create(name, num_classes=2, **options)
    kept = {"out": tmp_path / "run", "render": tmp_path / "grids", "image_size": side, "device": "cpu"}
    how = {"recipe": "digits" if len(model.card.mean) == 1 else "modern", "epochs": 1, "batch_size": 4, "lr": 1e-3}
    if name == "plain-110":
        how["lr"] = 1e-30  # of 110 plain layers the gradient explodes: one step of any size, and responses overflow
    if name == "preresnet-1202":  # the way back through 400 sums of signals leaves float32, and that is said
        with pytest.raises(ModelError, match="a projection is not finite"):
            train(model, tmp_path / "data", **kept, **how, progress=False)
        return
    result = train(model, tmp_path / "data", **kept, **how, progress=False)
    linked = set(re.findall(r'src="([^"]+)"', result.page.read_text()))
    numbers = [row.number for row in deconvviz.layers(model, (len(model.card.mean), side, side)).numbered]
    wanted = {f"layer-{number}.png" for number in numbers if number <= 5}
    assert wanted and wanted <= linked and {"training.png", "responses.png"} <= linked
    for number in (n for n in numbers if n <= 5):
        found = deconvviz.Projections.load(tmp_path / "grids" / f"layer-{number}.safetensors")
        assert found.count == 2 and found.projections.isfinite().all()


def test_every_network_is_there():
    assert set(EVERY) == set(zoo.names()) and set(QUICK) <= set(EVERY)
