"""One pass over images: several accumulators, kills, files that cannot be read, memory that runs out."""

import gc
import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import deconvviz
from deconvviz import nearest, probe, response_std, top
from deconvviz.errors import DeconvvizError, ImageError, LayerError, OptionError, StoreError
from deconvviz.images import Preprocess, open_images
from deconvviz.results import store
from deconvviz.results.locks import locked
from deconvviz.scan import engine
from deconvviz.scan.engine import Scan, first_pass
from deconvviz.scan.state import StateFile
from deconvviz.studies.probe import Probe
from deconvviz.studies.responses import Moments, Responses
from deconvviz.topk.accumulator import Strongest
from deconvviz.topk.result import TopK

PIXELS = Preprocess((16, 16), 16, (0.0,) * 3, (1.0,) * 3)
LABELS = [i % 3 for i in range(24)]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(200, 3)
    ).eval()


@pytest.fixture
def images():
    return torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))


CALLS = {
    "top": lambda model, images, **how: top(model, images, layers=["1", "4"], k=4, **how),
    "response_std": response_std,
    "nearest": lambda model, images, **how: nearest(model, images, query=[3, 17], k=5, **how),
    "probe": lambda model, images, **how: probe(model, images, labels=LABELS, folds=2, **how),
}
KINDS = {"top": TopK, "response_std": Responses, "nearest": deconvviz.Neighbours, "probe": Probe}


class Stopping(nn.Module):
    """Raises at the n-th pass from now, as Ctrl-C would."""

    def __init__(self, network):
        super().__init__()
        self.network, self.left = network, 10**9

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.network(x)


def same(a, b):
    return type(a) is type(b) and a == b


# ---- several accumulators


def parts(model, opened):
    """Return two accumulators and the tape that they were made for."""
    tape, rows = first_pass(model, opened)
    rows = {layer.name: layer for layer in rows}
    return [Strongest(rows["4"], 4), Moments(("0", "3"), (rows["0"], rows["3"]))], tape


def test_two_in_one_pass_find_what_two_passes_find(images):
    model = network()
    opened = open_images(model, images)
    both, tape = parts(model, opened)
    one, two = Scan(model, opened, both, tape, batch_size=5, progress=False).walk().accumulators
    alone = [Scan(model, opened, [x], tape, batch_size=5, progress=False).walk().accumulators[0] for x in both]
    assert same(one.result(), alone[0].result()) and same(two.result(), alone[1].result())
    assert same(one.result(), top(model, images, layers="4", k=4, batch_size=5, progress=False)["4"])
    assert same(two.result(), response_std(model, images, batch_size=5, progress=False))


@pytest.mark.parametrize("stops", [[1], [2, 1, 1]])
def test_two_in_one_pass_go_on_after_a_stop(images, tmp_path, stops):
    inner = network()
    model = Stopping(inner)
    opened = open_images(model, images)

    def run():
        tape, rows = first_pass(model, opened)
        rows = {layer.name: layer for layer in rows}
        names = "network.4", ("network.0", "network.3")
        each = [Strongest(rows[names[0]], 4), Moments(names[1], tuple(rows[n] for n in names[1]))]
        scan = Scan(model, opened, each, tape, batch_size=5, progress=False)
        return scan.walk(tmp_path / "state").accumulators

    whole = [
        x.result() for x in Scan(inner, opened, *parts(inner, opened), batch_size=5, progress=False).walk().accumulators
    ]
    for number, stop in enumerate(stops):
        model.left = stop + 1 + (number == 0)
        with pytest.raises(KeyboardInterrupt):
            run()
    model.left = 10**9
    strong, moments = (x.result() for x in run())
    assert torch.equal(strong.values, whole[0].values) and torch.equal(strong.image_ids, whole[0].image_ids)
    assert torch.equal(moments.unit_mean, whole[1].unit_mean) and torch.equal(moments.std, whole[1].std)
    model.left = 1  # what is finished is read: only the layers are looked for
    assert same(run()[0].result(), strong)


# ---- resuming each function


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("stops", [[1], [3], [2, 1]])
def test_stopped_and_resumed_is_the_same_to_the_byte(images, tmp_path, name, stops):
    model, call = Stopping(network()), CALLS[name]
    how = {"batch_size": 4, "progress": False}
    if name == "top":
        call = lambda model, images, **how: top(model, images, layers=["network.1", "network.4"], k=4, **how)  # noqa: E731
    expected = call(model, images, **how)
    assert same(call(model, images, out=tmp_path / "whole", **how), expected) or name == "top"
    before = 1 + (2 if name == "nearest" else 0)  # passes that find layers and queries
    for number, stop in enumerate(stops):
        model.left = before + stop + (number == 0)
        with pytest.raises(KeyboardInterrupt):
            call(model, images, out=tmp_path / "parts", **how)
        with pytest.raises(StoreError, match=r"parts is a scan that saw \d+ of 24 images. Make the same call again"):
            KINDS[name].load(tmp_path / "parts")
    model.left = 10**9
    resumed = call(model, images, out=tmp_path / "parts", **how)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert same(resumed, KINDS[name].load(tmp_path / "whole"))
    model.left = before
    assert same(call(model, images, out=tmp_path / "parts", **how), resumed)  # finished: nothing runs
    model.left = 10**9
    with pytest.raises(StoreError, match=r"parts holds another scan"):
        call(model, images + 1, out=tmp_path / "parts", **how)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", CALLS)
def test_killed_at_any_time_it_goes_on(images, tmp_path, name):
    model, how = network(), {"batch_size": 1, "progress": False}
    torch.save(images, tmp_path / "images.pt")
    whole, out = tmp_path / "whole", tmp_path / "parts"
    expected = CALLS[name](model, images, out=whole, **how)
    for _ in range(2):
        child = multiprocessing.get_context("fork").Process(target=_slowly, args=(name, tmp_path / "images.pt", out))
        child.start()
        deadline = time.monotonic() + 60
        while not _seen(out) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert 0 < _seen(out) <= 24
    assert same(CALLS[name](model, images, out=out, **how), expected)
    assert out.read_bytes() == whole.read_bytes()


def _slowly(name, images, out):
    engine.SAVE_EVERY = -1e9
    torch.set_num_threads(1)
    model = network()
    seen = _seen(out)
    model.register_forward_hook(lambda *_: time.sleep(0.03 if _seen(out) <= seen + 2 else 60))
    CALLS[name](model, torch.load(images), out=out, batch_size=1, progress=False)


def _seen(out):
    """Return how many images the state file at `out` says it saw."""
    return int(store.load(out, store.SCAN)[1]["count"]) if out.exists() else 0


def test_a_file_that_another_process_wrote_stays(images, tmp_path):
    model = Stopping(network())
    model.left = 2

    def replace(self, start):
        StateFile.write(self, start)
        (tmp_path / "other").write_bytes(self.path.read_bytes())
        (tmp_path / "other").replace(self.path)
        return start

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StateFile, "read", replace)
        with pytest.raises(KeyboardInterrupt):
            top(model, images, layers="network.1", batch_size=4, out=tmp_path / "file", progress=False)
    assert (tmp_path / "file").exists()


def test_a_second_writer_is_refused(images, tmp_path):
    with locked(tmp_path / "file"), pytest.raises(StoreError, match=r"file"):
        response_std(network(), images, out=tmp_path / "file", progress=False)
    assert response_std(network(), images, out=tmp_path / "file", progress=False).count == 24
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_damaged_state_is_refused(images, tmp_path):
    model = Stopping(network())
    how = {"batch_size": 4, "layers": ["network.0"], "out": tmp_path / "file", "progress": False}
    model.left = 4
    with pytest.raises(KeyboardInterrupt):
        response_std(model, images, **how)
    model.left = 10**9
    whole = (tmp_path / "file").read_bytes()
    for place in range(len(whole) - 100, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        (tmp_path / "file").write_bytes(damaged)
        with pytest.raises(StoreError, match=r"damaged"):
            response_std(model, images, **how)


# ---- images that cannot be read


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    for i in range(12):
        path = folder / f"{'abc'[i % 3]}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(values).save(path)
    return folder


SKIPPING = {
    "top": lambda model, images, **how: top(model, images, layers=["4"], k=20, **how),
    "response_std": response_std,
    "nearest": lambda model, images, **how: nearest(model, images, query=torch.ones(1, 3, 16, 16), k=20, **how),
    "probe": lambda model, images, **how: probe(model, images, folds=2, **how),
}


@pytest.mark.parametrize("name", SKIPPING)
@pytest.mark.parametrize("bad", [[0], [4, 5], [11]])
def test_what_cannot_be_read_is_skipped_and_listed(folder, tmp_path, name, bad):
    model, call = network(), SKIPPING[name]
    files = sorted(folder.rglob("*.png"), key=lambda p: p.relative_to(folder).parts)
    for i in bad:
        files[i].write_bytes(b"no picture")
    how = {"preprocess": PIXELS, "batch_size": 4, "progress": False}
    with pytest.raises(ImageError, match=r'cannot read the image .*on_error="skip"'):
        call(model, folder, **how)
    result = call(model, folder, on_error="skip", out=tmp_path / "out", **how)
    assert [i for i, _ in result.skipped] == bad and all("cannot read" in reason for _, reason in result.skipped)
    assert result.table().splitlines()[-1].startswith(f"skipped image {bad[-1]}: cannot read the image")
    assert same(KINDS[name].load(tmp_path / "out"), result)
    good = [path for i, path in enumerate(files) if i not in bad]
    if name == "top":
        numbers = [i for i in range(12) if i not in bad]
        usual = call(model, good, **how)["4"]
        kept = torch.where(usual.mask, torch.tensor(numbers)[usual.image_ids.clamp(min=0)], -1)
        assert torch.equal(kept, result["4"].image_ids) and torch.equal(usual.values, result["4"].values)
    if name == "response_std":
        torch.testing.assert_close(call(model, good, **how).std, result.std)
    if name == "nearest":
        assert not set(bad) & set(result.image_ids.flatten().tolist()) and result.image_ids.shape == (1, 12 - len(bad))
    if name == "probe":
        assert result.count == 12 - len(bad)


def test_none_that_can_be_read_is_an_error(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"none of the 12 images can be read"):
        top(network(), folder, preprocess=PIXELS, on_error="skip", progress=False)
    with pytest.raises(OptionError, match=r"on_error='ignore' has no meaning here. Give 'raise' or 'skip'"):
        top(network(), folder, preprocess=PIXELS, on_error="ignore", progress=False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, DeconvvizError])
def test_the_workers_end_with_the_call(folder, error, monkeypatch):
    def fail(self, *_):
        raise error("stop")

    before = set(multiprocessing.active_children())
    monkeypatch.setattr(Scan, "_measured", fail)
    gc.disable()
    try:
        top(network(), folder, preprocess=PIXELS, batch_size=1, workers=2, progress=False)
    except error as caught:
        sys.last_exc = caught  # as a notebook keeps it
        assert set(multiprocessing.active_children()) == before
    else:
        pytest.fail("nothing was raised")
    finally:
        gc.enable()
        del sys.last_exc


# ---- batches


def test_batch_size_is_the_loaders_own_or_a_usual_one(images):
    sizes = []

    class Noting(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            sizes.append(len(x))
            return self.network(x)

    model = Noting(network())
    loader = DataLoader(TensorDataset(images), batch_size=7)
    for call in (
        lambda: top(model, loader, layers="network.1", progress=False),
        lambda: response_std(model, loader, progress=False),
        lambda: nearest(model, loader, query=[0], layer="network.1", progress=False),
    ):
        sizes.clear()
        call()
        assert sizes[-4:] == [7, 7, 7, 3]
    sizes.clear()
    top(model, loader, layers="network.1", batch_size=5, progress=False)
    assert sizes[-5:] == [5, 5, 5, 5, 4]
    sizes.clear()
    top(model, images, layers="network.1", progress=False)
    assert sizes[-1] == 24


def test_large_images_come_in_small_batches_on_a_cpu(images):
    model = network()
    assert engine.usual_batch_size(first_pass(model, open_images(model, images))[0], torch.device("cpu")) == 64
    model = nn.Conv2d(3, 64, 3, padding=1).eval()
    for side, expected in ((32, 64), (64, 32), (128, 16), (1024, 4)):  # 64 maps of 128 × 128 float32 are 4 MiB
        tape, _ = first_pass(model, open_images(model, torch.zeros(1, 3, side, side)))
        assert engine.usual_batch_size(tape, torch.device("cpu")) == expected
    assert engine.usual_batch_size(tape, torch.device("cuda")) == 64


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried", "CUBLAS_STATUS_ALLOC_FAILED when calling", "typed"])
def test_memory_that_runs_out_makes_batches_smaller(images, text):
    class Small(nn.Module):
        """Takes at most three images."""

        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            if len(x) > 3:
                raise torch.cuda.OutOfMemoryError("x") if text == "typed" else RuntimeError(text)
            return self.network(x)

    inner = network()
    whole = top(inner, images, layers="4", batch_size=3, progress=False)["4"]
    found = top(Small(inner), images, layers="network.4", batch_size=16, progress=False)["network.4"]
    assert torch.equal(found.image_ids, whole.image_ids)
    torch.testing.assert_close(found.values, whole.values)


def test_errors_of_the_model_come_through_once(images):
    calls = []

    class Failing(nn.Module):
        def forward(self, x):
            calls.append(len(x))
            if len(calls) == 3:
                raise RuntimeError("something else")
            return x.relu()

    with pytest.raises(deconvviz.errors.ForwardError, match="something else"):
        top(Failing(), images, layers=":relu", batch_size=4, progress=False)
    assert len(calls) == 3


class Statistics(nn.Module):
    """Normalizes with the statistics of the whole batch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.relu(self.conv((x - x.mean()) / x.std()))


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_images_that_see_each_other_run_one_by_one(images, batch_size, tmp_path):
    torch.manual_seed(0)
    model = Statistics().eval()
    images = images * torch.arange(1, 25).view(-1, 1, 1, 1)
    with torch.no_grad():
        alone = torch.cat([model(x[None]) for x in images]).amax((2, 3))
    found = top(model, images, layers=":relu", k=3, batch_size=batch_size, out=tmp_path / "out", progress=False)
    torch.testing.assert_close(found[":relu"].values, alone.topk(3, 0).values.T)
    assert torch.equal(found[":relu"].image_ids, alone.topk(3, 0).indices.T)


class Twice(nn.Module):
    """Shows the network each image and its mirror image."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        y = self.last(torch.relu(self.conv(torch.cat([x, x.flip(3)]))).mean((2, 3)))
        return y.view(2, len(x), -1).mean(0)


@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_responses_that_are_not_the_images_are_refused(batch_size):
    model, layer, images = Twice(), "conv", torch.randn(6, 3, 16, 16)
    for call in (
        lambda: top(model.eval(), images, layers=[layer], batch_size=batch_size, progress=False),
        lambda: response_std(model.eval(), images, layers=[layer], batch_size=batch_size, progress=False),
        lambda: nearest(model.eval(), images, query=0, layer=layer, batch_size=batch_size, progress=False),
    ):
        with pytest.raises(
            LayerError,
            match=r"layer 'conv' returns \d+ responses for \d images: its first dimension",
        ):
            call()
