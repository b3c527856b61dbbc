"""Whole runs that die in the middle of the work (SIGKILL) and go on: each result is an undisturbed run's, bit by bit."""

import os
import random
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import deconvviz
from deconvviz.jobs import draft
from deconvviz.scan import engine

pytestmark = pytest.mark.usefixtures("one_thread")
IMAGES = torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(1))
QUIET = {"progress": False}


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()


def trained(out, data):
    given = {"image_size": 12, "batch_size": 4, "device": "cpu", "epochs": 4, "recipe": "modern", **QUIET}
    result = deconvviz.train(network(), data, out=out, **given)
    return result.weights.read_bytes(), [(e.train_loss, e.val_loss, e.top1) for e in result.history]


def reported(out, data):
    page = out / "page.html"
    options = {"layers": ["1", "4"], "k": 2, "most": 2, "occlusion": 1, "batch_size": 2, **QUIET}
    return deconvviz.report(network(), IMAGES, **options, out=page).read_text()


def kept(call):
    def run(out, data):
        call(out / "result")
        return (out / "result").read_bytes()

    return run


# Each has units of work that are kept one by one.
RUNS = {
    "top": kept(lambda out: deconvviz.top(network(), IMAGES, layers=["1", "4"], k=3, batch_size=2, out=out, **QUIET)),
    "response_std": kept(
        lambda out: deconvviz.response_std(network(), IMAGES, layers=["0", "3"], batch_size=2, out=out, **QUIET)
    ),
    "project": kept(lambda out: deconvviz.project(network(), IMAGES, layer="4", k=2, batch_size=1, out=out, **QUIET)),
    "evidence": kept(
        lambda out: deconvviz.evidence(network(), IMAGES, layer="4", units=[0, 1], k=2, size=5, out=out, **QUIET)
    ),
    "maximize": kept(
        lambda out: deconvviz.maximize(
            network(), layer="4", units="all", steps=4, batch_size=1, input_size=(3, 12, 12), out=out, **QUIET
        )
    ),
    "report": reported,
    "train": trained,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, noise = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for i in range(16):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Keep what is done at every chance, as a long run does every few seconds."""
    monkeypatch.setattr(engine, "SAVE_EVERY", -1e9)
    monkeypatch.setattr(draft, "EVERY", -1.0)


class Passes:
    """Counts the convolutions that run; at the one with number `last` the process is gone."""

    def __init__(self, last=None):
        self.count, self.last = 0, last

    def __enter__(self):
        self.forward = forward = nn.Conv2d.forward

        def counted(module, x):
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            return forward(module, x)

        nn.Conv2d.forward = counted
        return self

    def __exit__(self, *error):
        nn.Conv2d.forward = self.forward


def die(run, out, data, last):
    """Run in a process of its own, which dies at its convolution number `last`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from 3.12 on: threads of this process are not copied; none is needed
        child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            with Passes(last):
                run(out, data)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """What each run gives undisturbed, and its number of convolutions."""
    known = {}

    def of(name):
        if name not in known:
            with Passes() as passes:
                known[name] = RUNS[name](tmp_path_factory.mktemp("whole"), data), passes.count
        return known[name]

    return of


def goes_on(name, share, whole, data, out: Path):
    """Kill the run when this share of its work is done, let it go on, and return the share that was done again."""
    expected, count = whole(name)
    die(RUNS[name], out, data, max(1, int(share * count)))
    with Passes() as passes:
        assert RUNS[name](out, data) == expected
    left = {"train": {"card.json", "checkpoint.pt", "weights.safetensors"}, "report": {"page.html"}}
    assert {path.name for path in out.iterdir()} == left.get(name, {"result"})
    return passes.count / count


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_killed_goes_on_to_the_same_bits(name, whole, data, tmp_path):
    assert goes_on(name, 0.8, whole, data, tmp_path) < 0.95  # not all is done again


@pytest.mark.full
@pytest.mark.parametrize("name", RUNS)
def test_killed_anywhere_it_goes_on_to_the_same_bits(name, whole, data, tmp_path):
    rng = random.Random(name)
    for number in range(25):
        out = tmp_path / str(number)
        out.mkdir()
        goes_on(name, rng.random(), whole, data, out)
        shutil.rmtree(out)
