"""Files: written whole or not at all, read lazily, refused if they are not ours."""

import json
import os
import stat
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from deconvviz import StoreError
from deconvviz.results import store as _store


def arrays() -> dict[str, torch.Tensor]:
    return {
        "a": torch.randn(2, 3, 4),
        "b": torch.arange(5),
        "empty": torch.zeros(0, 3, dtype=torch.float64),
        "small": torch.tensor([True, False]),
    }


def test_what_is_written_is_read(tmp_path: Path):
    path = tmp_path / "deep" / "er" / "file.safetensors"
    given = arrays()
    _store.save(path, given, {"kind": "thing", "n": 3, "name": "ä"})
    read, meta = _store.load(path, "thing")
    assert meta == {"kind": "thing", "n": 3, "name": "ä"}
    for name, array in given.items():
        assert torch.equal(read[name], array) and read[name].dtype == array.dtype
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()


def umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


def test_others_read_it_too(tmp_path: Path):
    given = arrays()
    _store.save(tmp_path / "file", given, {"kind": "thing"})
    for name, array in load_file(tmp_path / "file").items():
        assert np.array_equal(array, given[name].numpy())


def test_what_was_read_can_be_changed_without_changing_the_file(tmp_path: Path):
    _store.save(tmp_path / "file", arrays(), {"kind": "thing"})
    before = (tmp_path / "file").read_bytes()
    read, _ = _store.load(tmp_path / "file", "thing")
    read["a"].zero_()
    assert (tmp_path / "file").read_bytes() == before


def test_an_error_leaves_the_old_file(tmp_path: Path):
    _store.save(tmp_path / "file", arrays(), {"kind": "thing"})
    before = (tmp_path / "file").read_bytes()
    with pytest.raises(KeyboardInterrupt), _store.replacing(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "file").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreError, match=r"cannot write .* \(0 MB\): No space left on device. Free some space"):
        _store.save(tmp_path / "file", arrays(), {"kind": "thing"})
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*: .*Give a path in a folder you may write to"):
        _store.save(tmp_path / "file" / "below", arrays(), {"kind": "thing"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match=r"Permission denied.*Give a path in a folder you may write to"):
        _store.save(tmp_path / "file", arrays(), {"kind": "thing"})
    tmp_path.chmod(0o700)


def test_files_that_are_not_ours(tmp_path: Path):
    path = tmp_path / "file"
    with pytest.raises(StoreError, match=r"cannot read .*: No such file or directory"):
        _store.load(path, "thing")
    foreign = json.dumps({"x": 1}).encode()
    lengths = [struct.pack("<Q", n) for n in (1 << 40, 5, len(foreign))]
    for content in (b"", b"short", lengths[0], lengths[1] + b"words", lengths[2] + foreign):
        path.write_bytes(content)
        with pytest.raises(StoreError, match="is not a file that deconvviz wrote, or it is damaged"):
            _store.load(path, "thing")
    _store.save(path, arrays(), {"kind": "other"})
    with pytest.raises(StoreError, match="holds 'other', expected 'thing'"):
        _store.load(path, "thing")


def test_a_file_cut_short(tmp_path: Path):
    path = tmp_path / "file"
    _store.save(path, {"a": torch.randn(100, 100)}, {"kind": "thing"})
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(StoreError, match="damaged"):
        _store.load(path, "thing")


@pytest.mark.parametrize("small", [True, False])
def test_a_file_that_is_replaced_while_it_is_read_is_the_one_that_was_opened(tmp_path, monkeypatch, small):
    _store.save(tmp_path / "a", {"x": torch.arange(9.0)}, {"kind": "one"})
    _store.save(tmp_path / "b", {"x": torch.arange(9.0) + 5}, {"kind": "one"})
    header = _store._header

    def late(file):
        text = header(file)
        (tmp_path / "b").replace(tmp_path / "a")
        return text

    monkeypatch.setattr(_store, "_header", late)
    if not small:
        monkeypatch.setattr(_store, "_READ", 0)  # mapped
    assert torch.equal(_store.load(tmp_path / "a", "one", check=True)[0]["x"], torch.arange(9.0))
