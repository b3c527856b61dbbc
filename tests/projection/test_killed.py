"""A job that is killed goes on where it was, ends with the same bytes, and never mixes two jobs."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import deconvviz
from deconvviz.errors import StoreError
from deconvviz.jobs import draft as _draft
from deconvviz.projection import bulk as _bulk

IMAGES = torch.randn(24, 2, 20, 20, generator=torch.Generator().manual_seed(1))
# Blocks of 2 images; after a given number of them the process is gone, as if the machine had lost it.
KILLED = """
import os, signal, sys, torch
import deconvviz.jobs.draft as draft
sys.path.insert(0, sys.argv[1])
from test_killed import call, model
count, mark = [int(sys.argv[3])], draft.Draft.mark
def mark_and_die(self, block):
    mark(self, block)
    count[0] -= 1
    if count[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
draft.Draft.mark, draft.EVERY = mark_and_die, 0
call(sys.argv[2], model())
"""


def model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()
        )


def call(out: Path | str | None, network: nn.Module, images: object = IMAGES, **options: object):
    given = {"layer": 2, "units": "all", "top": 3, "batch_size": 2, "progress": False, **options}
    return deconvviz.project(network, images, out=out, **given)


def kill(out: Path, after: int) -> None:
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(out), str(after)]
    environment = {**os.environ, "PYTHONPATH": str(Path(deconvviz.__file__).parents[1])}
    died = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert died.returncode == -signal.SIGKILL, died.stderr


def count_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of images of each block that is projected from now on."""
    seen, record = [], _bulk._record
    monkeypatch.setattr(
        _bulk, "_record", lambda net, batch, *rest: (seen.append(len(batch)), record(net, batch, *rest))[1]
    )
    return seen


@functools.cache
def images_used() -> int:
    ids = call(None, model()).image_ids
    return len(ids[ids >= 0].unique())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "result"
    call(path, model())
    return path.read_bytes()


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a job leaves that was killed after three blocks."""
    folder = tmp_path_factory.mktemp("left")
    kill(folder / "result", 3)
    assert not (folder / "result").exists()
    return folder


def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(left, whole, tmp_path, monkeypatch):
    out = shutil.copytree(left, tmp_path / "folder") / "result"
    seen = count_blocks(monkeypatch)
    call(out, model())
    assert out.read_bytes() == whole
    assert sum(seen) == images_used() - 6
    assert [p.name for p in out.parent.iterdir()] == ["result"]


def test_a_job_that_is_killed_again_goes_on(left, whole, tmp_path):
    out = shutil.copytree(left, tmp_path / "folder") / "result"
    kill(out, 2)
    call(out, model())
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    "other", [{"network": model(1)}, {"rule": "guided"}, {"units": [3, 1]}, {"top": 2}, {"batch_size": 3}]
)
def test_another_job_begins_anew(other, left, tmp_path):
    out = shutil.copytree(left, tmp_path / "folder") / "result"
    given = {"network": model(), **other}
    found, expected = call(out, **given), call(None, **given)
    assert torch.equal(found.projections, expected.projections) and torch.equal(found.image_ids, expected.image_ids)
    assert [p.name for p in out.parent.iterdir()] == ["result"]


def test_an_interrupt_keeps_what_is_done(whole, tmp_path, monkeypatch):
    out, carry, count = tmp_path / "result", _bulk.carry, [0]

    def interrupted(*arguments):
        count[0] += 1
        if count[0] == 6:
            raise KeyboardInterrupt
        return carry(*arguments)

    with monkeypatch.context() as patch:
        begun = count_blocks(patch)
        patch.setattr(_bulk, "carry", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call(out, model())
    assert not out.exists() and list(tmp_path.iterdir())
    done, seen = len(begun) - 1, count_blocks(monkeypatch)
    call(out, model())
    assert done > 0 and sum(seen) == images_used() - 2 * done
    assert out.read_bytes() == whole


def test_what_was_cut_off_in_the_log_does_not_count(left, whole, tmp_path):
    out = shutil.copytree(left, tmp_path / "folder") / "result"
    log = out.parent / ".result.draft.log"
    log.write_bytes(log.read_bytes()[:-1])
    call(out, model())
    assert out.read_bytes() == whole


def test_two_jobs_on_one_file_are_refused(tmp_path):
    with (
        _draft.Draft(tmp_path / "result"),
        pytest.raises(StoreError, match=r"another process or thread is writing"),
    ):
        call(tmp_path / "result", model())
    call(tmp_path / "result", model())


@pytest.mark.parametrize(("place", "message"), [("folder", "it is a folder"), ("file/result", "File exists|Not a dir")])
def test_a_path_that_cannot_be_written_is_refused_before_the_work(place, message, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        sys.modules["deconvviz.projection.strongest"], "scan_top", lambda *_, **__: pytest.fail("scanned")
    )
    with pytest.raises(StoreError, match=f"cannot write .*{message}"):
        call(tmp_path / place, model())


class Counted(Dataset):
    """The images, counting how often each is read; at one of them the user interrupts, once."""

    def __init__(self, interrupt: int) -> None:
        self.interrupt, self.reads = interrupt, [0] * len(IMAGES)

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.interrupt:
            self.interrupt = -1
            raise KeyboardInterrupt
        self.reads[index] += 1
        return IMAGES[index]


def test_an_interrupted_scan_goes_on(tmp_path):
    out, images = tmp_path / "result", Counted(interrupt=15)
    with pytest.raises(KeyboardInterrupt):
        call(out, model(), images=images)
    assert [p.name for p in tmp_path.iterdir()] == [".result.draft.scan"]
    before = list(images.reads)
    found = call(out, model(), images=images)
    expected = call(None, model())
    used = set(expected.image_ids.flatten().tolist())
    assert torch.equal(found.projections, expected.projections)
    # The images of the batches before are not scanned again; those that unit's nine show are read once more.
    again = [images.reads[i] - before[i] for i in range(1, 14) if i not in (8, 12)]  # those tell the set from others
    assert again == [int(i in used) for i in range(1, 14) if i not in (8, 12)]
    assert [p.name for p in tmp_path.iterdir()] == ["result"]
