"""A run goes on with the same data alone, from a file that is whole, and says what stands in its way."""

from __future__ import annotations

import copy
import errno
import io
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from deconvviz.errors import StoreError
from deconvviz.jobs.journal import Journal
from deconvviz.training import checkpoint as _checkpoint
from deconvviz.training.train import train


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for part, count in (("train", 6), ("val", 2)):
        for number in range(2 * count):
            draw(root / part / "ab"[number % 2] / f"{number}.png", number)
    return root


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))


def run(data: Path, out: Path, epochs: int = 2, **options: object):
    given = {"image_size": 12, "batch_size": 4, "device": "cpu", "progress": False, **options}
    return train(net(), data, out=out, epochs=epochs, **given)


def stop(model: nn.Module, epoch: int) -> None:
    if epoch == 2:
        raise KeyboardInterrupt


@pytest.fixture
def begun(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the images, and the folder of a run over them that was interrupted after an epoch."""
    data, out = shutil.copytree(folder, tmp_path / "data"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(data, out, on_epoch=stop)
    return data, out


def test_the_same_data_elsewhere_is_the_same_data(begun, tmp_path):
    data, out = begun
    seen: list[int] = []
    run(data.rename(tmp_path / "elsewhere"), out, on_epoch=lambda model, epoch: seen.append(epoch))
    assert seen == [2]


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("change", ["other pixels", "labels swapped", "another name", "one more", "touched"])
def test_other_data_are_refused(begun, part, change):
    data, out = begun
    top, one = data / part, next((data / part / "a").iterdir())
    if change == "other pixels":
        draw(one, 99)
    elif change == "labels swapped":
        for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
            (top / old).rename(top / new)
    elif change == "another name":
        one.rename(one.with_name("z.png"))
    elif change == "one more":
        draw(top / "b" / "more.png", 99)
    else:
        os.utime(one, ns=(1, 1))
    with pytest.raises(StoreError, match=r"the checkpoint of another run: its images was '.*', now it is '"):
        run(data, out)


def test_other_class_names_are_refused(begun):
    data, out = begun
    for part in ("train", "val"):
        (data / part / "b").rename(data / part / "q")
    with pytest.raises(StoreError, match=r"another run: its classes was \['a', 'b'\], now it is \['a', 'q'\]"):
        run(data, out)


def test_a_flipped_bit_is_noticed_wherever_it_is(begun):
    data, out = begun
    path = out / "checkpoint.pt"
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 40):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="or damaged"):
            run(data, out)
    path.write_bytes(whole)
    run(data, out)


def saved(state: object) -> bytes:
    held = io.BytesIO()
    torch.save(state, held)
    return held.getvalue()


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"deconvviz",
        b"PK\x03\x04",
        pickle.dumps([1]),
        saved([]),
        saved({"signature": 5, "history": []}),
        saved({"signature": {}, "history": [{"epoch": 1}], "model": {}, "optimizer": {}, "scaler": {}}),
        saved({"signature": {}, "history": 5, "model": {}, "optimizer": {}, "scaler": {}}),
        saved({"signature": {}, "history": []}),
    ],
)
def test_what_is_no_checkpoint_is_refused(contents, folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(contents)
    with pytest.raises(StoreError, match=r"no checkpoint of deconvviz, or damaged. Try resume=False"):
        run(folder, tmp_path / "run")


def parts_of(model: nn.Module) -> dict[str, object]:
    """A model, an optimizer that has made a step, and a scaler."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 3, 12, 12)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "scaler": torch.amp.GradScaler("cpu", enabled=False)}


def leaves(tree: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    yield path
    if isinstance(tree, (dict, list)):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from leaves(tree[key], (*path, key))


def test_a_checkpoint_with_another_value_anywhere_changes_nothing(tmp_path):
    path, signature = tmp_path / "checkpoint.pt", {"images": "x", "recipe": {"lr": 0.1}}
    rows = [_checkpoint.Epoch(number, 1.0, 0.5, 1.0, 0.5, 0.9, 0.1, 2.0) for number in (1, 2)]
    _checkpoint.write(path, signature, rows, parts_of(net()))
    state = torch.load(io.BytesIO(_checkpoint._contents(path)), weights_only=True)
    huge = torch.zeros(1).expand(1 << 20, 1 << 20)  # of four bytes
    wrong = [None, 5, -1.5, "x", [], {}, {"a": 1}, torch.zeros(2, 3), huge, torch.zeros((), dtype=torch.complex64)]
    parts, refused, tried = parts_of(net()), 0, 0
    before = copy.deepcopy({name: part.state_dict() for name, part in parts.items()})
    for number, place in enumerate(leaves(state)):
        for value in wrong[number % 10 :: 10]:
            changed = copy.deepcopy(state) if place else value
            at = changed
            for key in place[:-1]:
                at = at[key]
            if place:
                at[place[-1]] = value
            path.write_bytes(_checkpoint.sealed(changed))
            tried += 1
            try:
                _checkpoint.read(path, signature, parts)
                for name, part in parts.items():
                    part.load_state_dict(before[name])
            except StoreError as error:
                refused += 1
                assert str(path) in str(error)
                now = {name: part.state_dict() for name, part in parts.items()}
                assert all(torch.equal(now["model"][name], x) for name, x in before["model"].items())
                assert now["optimizer"]["param_groups"] == before["optimizer"]["param_groups"]
    assert 0.6 < refused / tried < 1


def test_a_checkpoint_without_a_checksum_still_loads(begun):
    data, out = begun
    path = out / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[: -_checkpoint._SUM - len(_checkpoint._MARK)])
    seen: list[int] = []
    run(data, out, on_epoch=lambda model, epoch: seen.append(epoch))
    assert seen == [2]


@pytest.mark.parametrize("name", ["checkpoint.pt", "epoch-001.safetensors", "weights.safetensors"])
def test_a_full_disk_is_named_and_spoils_nothing(name, folder, tmp_path, monkeypatch):
    written, wrote = Path.open, Path.write_bytes

    def full(path: Path) -> None:
        if name in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, *a, **k: (full(self), written(self, *a, **k))[1])
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: (full(self), wrote(self, data))[1])
    with pytest.raises(StoreError, match=rf"cannot write .*{name}: No space left on device"):
        run(folder, tmp_path / "run", keep_epochs=(1,))
    assert not [path.name for path in (tmp_path / "run").iterdir() if name in path.name]


def test_a_folder_that_cannot_be_written_is_noticed_before_the_work(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("deconvviz.training.pixels.Decoder.decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(StoreError, match=r"cannot write .*file/run: (File exists|Not a directory)"):
        run(folder, tmp_path / "file" / "run")


def test_two_runs_into_one_folder_are_refused(folder, tmp_path):
    out = tmp_path / "run"
    with Journal(out / ".lock", out), pytest.raises(StoreError, match=r"another process or thread is writing .*run"):
        run(folder, out)
    run(folder, out)
    assert sorted(p.name for p in out.iterdir()) == ["card.json", "checkpoint.pt", "weights.safetensors"]
