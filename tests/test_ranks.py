"""Several processes find what one finds, whatever their number, and end together when one of them cannot go on."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rank_work
import torch
from PIL import Image
from rank_processes import run_ranks

import deconvviz
from deconvviz.errors import RankError

pytestmark = [
    pytest.mark.skipif(
        not torch.distributed.is_available() or not hasattr(os, "fork"),
        reason="this build of torch has no process groups",
    ),
    pytest.mark.usefixtures("one_thread"),
]
pytest.importorskip("sklearn")


def good(found):
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found


@pytest.fixture(scope="module")
def one():
    return {
        "scans": rank_work.scans(),
        "jobs": rank_work.jobs(),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return folder, good(run_ranks(tmp_path_factory.mktemp("store"), 2, rank_work.everything, folder))


def close(a, b):
    """Compare moments: equal but for the order in which float64 numbers were added."""
    bound = 64 * torch.finfo(torch.float64).eps
    assert (a.names, a.count, a.values.tolist()) == (b.names, b.count, b.values.tolist())
    for x, y in ((a.unit_mean, b.unit_mean), (a.unit_squares, b.unit_squares)):
        assert torch.allclose(x, y, rtol=bound, atol=bound * float(y.abs().max()))


@pytest.mark.parametrize("name", ["top", "nearest", "probe", "project", "evidence", "maximize"])
def test_two_ranks_find_the_same_to_the_bit_on_each_of_them(name, one, two):
    expected = (one["scans"] | one["jobs"])[name]
    for found in two[1]:
        if name == "top":  # its file says which scan it is of
            assert found[name] == dataclasses.replace(expected, scan=found[name].scan)
        else:
            assert found[name] == expected
            assert found.get(f"{name} from its file", expected) == expected


def test_moments_are_equal_up_to_rounding_and_the_same_on_both_ranks(one, two):
    close(two[1][0]["response_std"], one["scans"]["response_std"])
    assert two[1][0]["response_std"] == two[1][1]["response_std"]


def test_files_are_those_of_one_process_to_the_byte(two, tmp_path):
    rank_work.scans(tmp_path)
    rank_work.jobs(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in two[0].iterdir()}
    for path in tmp_path.iterdir():
        assert (two[0] / path.name).read_bytes() == path.read_bytes(), path.name


def test_ranks_end_together_and_say_why(two):
    first, second = (found["mistakes"] for found in two[1])
    assert first[0] == second[0] and first[0][0] == "LayerError"
    assert "given other weights" in first[1][1] and "given other weights" in second[1][1]
    assert first[2][0] == "ImageError" and second[2][0] == "RankError"
    assert "rank 0 failed: ImageError: no images" in second[2][1]
    assert "response_std on rank 0, top on rank 1" in first[3][1] == second[3][1]
    assert first[4][0] == second[4][0] == "StoreError" and "Is a directory" in second[4][1]
    assert second[5] == ("KeyboardInterrupt", "") and first[5][0] == "RankError"
    assert "a rank is gone" in first[5][1]


def test_afterwards_ranks_go_on_and_one_may_work_alone(two):
    first, second = two[1]
    assert first["after all"] == second["after all"] == first["alone"]


def test_a_rank_without_images_images_that_see_each_other_and_some_that_cannot_be_read(tmp_path):
    damaged = rank_work.damaged(tmp_path)
    assert [number for number, _ in damaged.skipped] == [0, 10]
    found = good(run_ranks(tmp_path, 3, rank_work.few, tmp_path))
    expected = rank_work.scans(images=rank_work.IMAGES[:6])
    mixed = deconvviz.top(rank_work.Mixing(), rank_work.IMAGES, layers=["body.1"], batch_size=4, progress=False)
    for rank, ((scans, mix, made, skipping), refused) in enumerate(found):
        if rank < 2:
            assert refused[0] == "RankError" and f"top was called on rank {rank} of 3, but not on all" in refused[1]
            assert "with deconvviz.alone()" in refused[1]
        assert skipping == damaged
        assert scans["top"] == expected["top"] and scans["nearest"] == expected["nearest"]
        close(scans["response_std"], expected["response_std"])
        assert mix == mixed
        assert made == deconvviz.maximize(rank_work.network(), layer="4", units=[1], steps=1, **rank_work.MADE)


def test_a_killed_rank_ends_the_others_and_nothing_is_lost(tmp_path):
    """A scan, a job and a training, each with a rank killed in the middle of three; two others go on with all."""
    folder = tmp_path / "all"
    folder.mkdir()
    rank_work.write_photos(folder / "data")
    for call in ("scan", "project", "train"):
        (tmp_path / call).mkdir()
        start = time.monotonic()
        found = run_ranks(tmp_path / call, 3, rank_work.killed, folder, call)
        assert found[1] == -signal.SIGKILL, (call, found)
        assert time.monotonic() - start < 60
        for other in (found[0], found[2]):
            assert isinstance(other, RankError) and "the same call goes on" in str(other), (call, other)
    before = deconvviz.results.store.kind_of(folder / "top.safetensors")
    assert before == "scan" and (folder / ".project.draft.log").read_text().count("\n") > 1
    (tmp_path / "store").mkdir()
    left = good(run_ranks(tmp_path / "store", 2, rank_work.resumed, folder))
    (tmp_path / "whole").mkdir()
    rank_work.scans(tmp_path / "whole", batch_size=1)
    deconvviz.project(rank_work.network(), rank_work.IMAGES, out=tmp_path / "whole" / "project", **rank_work.PROJECT)
    for name in ("top.safetensors", "project"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    whole = rank_work.train(folder / "data", tmp_path / "run", epochs=3).history
    for _, history in left:
        same_history(history, whole)


def same_history(a, b):
    """Compare histories: equal up to the rounding of float32 sums, which training carries on from step to step."""
    bound = 2048 * torch.finfo(torch.float32).eps
    assert [e.epoch for e in a] == [e.epoch for e in b]
    for x, y in zip(a, b, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "top1", "top5", "lr"):
            assert getattr(x, name) == pytest.approx(getattr(y, name), rel=bound, abs=bound), name


def test_training_is_that_of_one_process_with_the_whole_batch(tmp_path):
    rank_work.write_photos(tmp_path / "data")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "data").symlink_to(tmp_path / "data")
    history, weights, _ = rank_work.trained(0, tmp_path / "one")
    found = good(run_ranks(tmp_path, 3, rank_work.trained, tmp_path))
    bound = 4096 * torch.finfo(torch.float32).eps
    for other, state, seen in found:
        same_history(other, history)
        assert seen == [1, 2] and [e.seconds for e in other] == [e.seconds for e in found[0][0]]
        for name, value in weights.items():
            assert torch.allclose(state[name].double(), value.double(), rtol=bound, atol=bound), name
            assert torch.equal(state[name], found[0][1][name]), name
    names = {"cache", "data", "record", "run"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    assert {p.name for p in (tmp_path / "run").iterdir()} == {p.name for p in (tmp_path / "one" / "run").iterdir()}
    assert deconvviz.Recording.load(tmp_path / "record").epochs == (1, 2)


COMMAND = ["top", "zfnet64", "--images", "photos", "--layers", "1", "--k", "2", "--out", "top.safetensors"]


def write_squares(folder):
    (folder / "photos").mkdir()
    for i in range(5):
        Image.new("RGB", (64, 64), (50 * i, 90, 200 - 40 * i)).save(folder / "photos" / f"{i}.png")


def check_command(folder, said):
    assert said.count("64 units") == said.count("wrote top.safetensors") == 1
    model = deconvviz.zoo.create("zfnet64", weights="bundled")
    expected = deconvviz.top(model, str(folder / "photos"), layers=[1], k=2, progress=False)
    assert deconvviz.TopK.load(folder / "top.safetensors")[1] == expected[1]


def test_two_processes_of_the_command_line_write_one_file_and_speak_once(tmp_path):
    """They are told of each other as torchrun tells them, whose store has any free port."""
    write_squares(tmp_path)
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    found = good(run_ranks(tmp_path, 2, rank_work.command, tmp_path, store.port, COMMAND, grouped=False))
    assert [code for code, *_ in found] == [0, 0] and found[1][1:] == ("", "")
    check_command(tmp_path, found[0][1])
    wrong = [*COMMAND[:-4], "--k", "0", *COMMAND[-2:]]
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    found = good(run_ranks(tmp_path, 2, rank_work.command, tmp_path, store.port, wrong, grouped=False))
    assert [code for code, *_ in found] == [2, 2] and "k=0" in found[0][2] and "Traceback" not in found[1][2]


@pytest.mark.full
def test_torchrun_runs_a_command(tmp_path):
    write_squares(tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "deconvviz"]
    environment = {**os.environ, "PYTHONPATH": str(Path(deconvviz.__file__).parents[1])}
    environment |= {"OMP_NUM_THREADS": "1", "TORCHELASTIC_ERROR_FILE": str(tmp_path / "error")}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([*launch, *COMMAND], **options)
    assert done.returncode == 0, done.stderr
    check_command(tmp_path, done.stdout)


def test_what_is_not_shared_is_refused_under_torchrun(monkeypatch, capsys):
    from deconvviz.cli.main import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["layers", "zfnet64"]) == 2
    assert "layers is the work of one process, torchrun started 2" in capsys.readouterr().err
