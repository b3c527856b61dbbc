"""Writing: where links, devices and rights are kept, disks fill up, processes are killed, and two write one file."""

import contextlib
import dataclasses
import os
import stat
import subprocess
import sys
import threading
import time

import pytest
import torch
from safetensors.torch import save_file
from saved_results import saved

import deconvviz
from deconvviz import StoreError
from deconvviz.results import locks, store
from deconvviz.training.recording import add

THING = {"kind": "thing"}


def write(path, number=1.0):
    store.save(path, {"a": torch.full((3,), number)}, THING)


def read(path):
    return store.load(path, "thing")[0]["a"].tolist()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "file")
    (tmp_path / "link").symlink_to("deep/file")
    write(tmp_path / "link", 2.0)
    assert (tmp_path / "link").is_symlink() and read(tmp_path / "deep" / "file") == [2.0] * 3
    (tmp_path / "to nothing").symlink_to("deep/new")
    write(tmp_path / "to nothing", 3.0)
    assert read(tmp_path / "deep" / "new") == [3.0] * 3


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444 | 0o200])
def test_a_file_keeps_its_rights(mode, tmp_path):
    write(tmp_path / "file")
    (tmp_path / "file").chmod(mode)
    write(tmp_path / "file", 2.0)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode and read(tmp_path / "file") == [2.0] * 3


def test_a_new_file_has_the_rights_that_the_umask_leaves(tmp_path):
    code = "import os, sys, torch\nos.umask(0o027)\nfrom deconvviz.results import store\n"
    code += "store.save(sys.argv[1], {'a': torch.zeros(1)}, {'kind': 'thing'})"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], check=True, timeout=120)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_the_umask_of_the_process_is_never_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("it is the whole process's"))
    write(tmp_path / "file")


def test_what_is_no_file_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write(tmp_path / "pipe")
    reader.join(20)
    write(tmp_path / "file")
    assert received == [(tmp_path / "file").read_bytes()]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and names(tmp_path) == ["file", "pipe"]
    write("/dev/null")
    assert not stat.S_ISREG(os.stat("/dev/null").st_mode)


def test_what_cannot_be_written_is_noticed_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "below", tmp_path):
        with pytest.raises(StoreError, match=r"cannot write .*Give a path in a folder you may write to"):
            store.check_writable(path)
    store.check_writable(tmp_path / "new" / "file")
    assert names(tmp_path / "new") == []


@pytest.mark.parametrize("writer", ["numpy", "torch", "safetensors"])
def test_a_full_disk_says_so(writer, tmp_path):
    """A disk of one megabyte, where it can be mounted; else a limit on the size of a file, which fails alike."""
    big = torch.zeros(1 << 20)
    writers = {
        "numpy": lambda path: path.write_bytes(big.numpy().tobytes()),
        "torch": lambda path: torch.save({"a": big}, path),
        "safetensors": lambda path: save_file({"a": big}, path),
    }
    with small_disk(tmp_path) as folder:
        with pytest.raises(StoreError, match=r"cannot write .*: (No space left on device|File too large)"):
            with store.replacing(folder / "file") as temporary:
                writers[writer](temporary)
        assert names(folder) == []


@contextlib.contextmanager
def small_disk(folder):
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_an_error_of_what_is_written_stays_itself(tmp_path):
    for error in (FileNotFoundError(2, "No such file", "photo.jpg"), RuntimeError("of the model"), ValueError("x")):
        with pytest.raises(type(error)) as caught, store.replacing(tmp_path / "file"):
            raise error
        assert caught.value is error and names(tmp_path) == []


HOLD = """
import sys, time
from deconvviz.results import store
with store.replacing(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


def start(code, path):
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def end(process):
    process.kill()
    process.wait(20)
    process.stdout.close()


def test_what_a_killed_process_left_goes_with_the_next_writing_and_a_living_ones_stays(tmp_path):
    killed, living = start(HOLD, tmp_path / "file"), start(HOLD, tmp_path / "file")
    try:
        (tmp_path / ".file.original").write_text("of the user")
        (tmp_path / ".file2.01234567.part").write_text("of another file")
        end(killed)
        assert len(names(tmp_path)) == 4
        write(tmp_path / "file")
        left = [name for name in names(tmp_path) if name.startswith(".file.") and name.endswith(".part")]
        assert len(left) == 1 and len(names(tmp_path)) == 4
    finally:
        end(living)
    write(tmp_path / "file")
    assert names(tmp_path) == [".file.original", ".file2.01234567.part", "file"]


LOCK = """
import sys, time
from deconvviz.results import locks
with locks.locked(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_has_ended_or_was_killed(tmp_path):
    other = start(LOCK, tmp_path / "file")
    try:
        with pytest.raises(StoreError, match=r"another process or thread is writing .*file"):
            with locks.locked(tmp_path / "file"):
                pass
        with locks.locked(tmp_path / "other"):
            pass
    finally:
        end(other)
    with locks.locked(tmp_path / "file"):
        with pytest.raises(StoreError, match="another process or thread"), locks.locked(tmp_path / "file"):
            pass
    assert names(tmp_path) == []


def test_writers_that_wait_take_turns(tmp_path):
    inside, most, wrong = [], [], []

    def work():
        try:
            for _ in range(5):
                with locks.locked(tmp_path / "file", wait=True):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.002)
                    inside.pop()
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == [] and most == [1] * 20 and names(tmp_path) == []


def test_two_recorders_of_one_file_lose_no_epoch(tmp_path):
    path = tmp_path / "recording.safetensors"
    one = saved("recording")
    parts = [_epochs(one, first, 6) for first in (1, 11)]

    def work(recordings):
        for new in recordings:
            add(path, new)

    threads = [threading.Thread(target=work, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert deconvviz.Recording.load(path).epochs == (*range(1, 7), *range(11, 17))


def _epochs(recording, first, count):
    for epoch in range(first, first + count):
        layers = tuple(
            dataclasses.replace(
                track,
                epochs=(epoch,),
                **{f: getattr(track, f)[:1] for f in ("activations", "image_ids", "positions", "boxes", "patches")},
                projections=track.projections[:1],
            )
            for track in recording.layers
        )
        yield dataclasses.replace(recording, epochs=(epoch,), layers=layers, filters=recording.filters[:1])
