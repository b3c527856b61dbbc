"""Files that are damaged, cut off, or made to do harm: a StoreError, whatever is wrong with them."""

import json
import random
import struct

import pytest
import torch
from safetensors.torch import save_file
from saved_results import FOLDER, SAVED, saved

import deconvviz
from deconvviz import StoreError
from deconvviz.results import store
from deconvviz.results.base import Result


def written(name, folder):
    path = folder / f"{name}.safetensors"
    saved(name).save(path)
    return path


def attempts(data, seed, count):
    """Yield damaged copies: one bit flipped in the header, one anywhere, a byte replaced, a piece lost, a piece doubled."""
    rng = random.Random(seed)
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(count):
        for end in (header, len(data)):
            copy = bytearray(data)
            copy[rng.randrange(end)] ^= 1 << rng.randrange(8)
            yield bytes(copy)
        copy = bytearray(data)
        copy[rng.randrange(len(copy))] = rng.randrange(256)
        yield bytes(copy)
        first, second = sorted(rng.randrange(len(data)) for _ in range(2))
        yield data[:first]
        yield data[:first] + data[second:]
        yield data[:second] + data[first:]


@pytest.mark.parametrize("name", SAVED)
def test_damage_is_noticed(name, tmp_path):
    kind, path = SAVED[name][0], written(name, tmp_path)
    whole, data = saved(name), path.read_bytes()
    refused = 0
    for damaged in attempts(data, name, 40):
        path.write_bytes(damaged)
        try:
            assert kind.load(path) == whole  # one byte replaced by itself, or the word that announces the checksums
        except StoreError as error:
            refused += 1
            assert "damaged" in str(error) or "cannot read" in str(error) or "holds" in str(error)
    assert refused >= 230


@pytest.mark.parametrize("name", SAVED)
def test_damage_in_a_file_without_checksums_raises_nothing_else(name, tmp_path):
    kind, path = SAVED[name][0], tmp_path / "file"
    data = (FOLDER / f"{name}.safetensors").read_bytes()
    for damaged in attempts(data, name, 40):
        path.write_bytes(damaged)
        try:
            repr(kind.load(path))
        except StoreError:
            continue


@pytest.mark.parametrize("name", SAVED)
def test_a_hostile_header_is_refused(name, tmp_path):
    kind, path = SAVED[name][0], tmp_path / "file"
    for text in (b"[]", b"5", b"null", b'"x"', b"[" * 100_000, b"{" * 100_000, b'{"__metadata__": 5}', b"\xff\xfe"):
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        with pytest.raises(StoreError, match="is not a file that deconvviz wrote, or it is damaged"):
            kind.load(path)
    for facts in ([], 5, None, "x", {}, {"tree": []}, {"tree": {"result": "object"}}, {"layers": {}, "epochs": 5}):
        meta = {**facts, "kind": kind.file_kind} if isinstance(facts, dict) else facts
        save_file({"x": torch.zeros(2)}, path, {"deconvviz": json.dumps(meta)})
        with pytest.raises(StoreError):
            kind.load(path)


@pytest.mark.parametrize("name", SAVED)
def test_a_field_of_another_type_is_refused(name, tmp_path):
    path = written(name, tmp_path)
    kind = SAVED[name][0]
    arrays, meta = store.load(path, kind.file_kind)
    facts = meta["tree"]["fields"] if "tree" in meta else meta
    for field in [f for f in facts if f not in ("kind", "total", "deviation")]:
        for wrong in ({"a": 1}, [[["x"]]], 1e300, True):
            changed = dict(facts, **{field: wrong})
            changed = {**meta, "tree": {**meta["tree"], "fields": changed}} if "tree" in meta else changed
            store.save(path, arrays, changed)
            if wrong == 1e300 and field in ("value", "chance"):  # which may be any number
                continue
            with pytest.raises(StoreError, match="damaged"):
                print(field, wrong, kind.load(path))


def test_a_result_of_a_scan_names_only_images_that_were_seen(tmp_path):
    result, path = saved("topk"), tmp_path / "file"
    facts, arrays = result.header()
    for change in ({"count": 7}, {"count": -1, "total": 6}, {"k": 0}, {"k": 1}):
        store.save(path, arrays, {"kind": "topk", **facts, **change})
        with pytest.raises(StoreError, match="damaged"):
            deconvviz.TopK.load(path)
    for key in [name for name in arrays if name.endswith("image_ids")]:
        for wrong in (6, -2):
            store.save(
                path, {**arrays, key: torch.full_like(arrays[key], wrong)}, {"kind": "topk", **facts, "scan": "x"}
            )
            with pytest.raises(StoreError, match="names images that were not seen"):
                deconvviz.TopK.load(path)
    result.shifted(100).save(path)  # of a rank that scanned the images from 100 on
    assert deconvviz.TopK.load(path) == result.shifted(100)


def test_a_large_file_is_mapped_and_checked_when_asked_to(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_READ", 1000)
    path = written("projections", tmp_path)
    result = deconvviz.Projections.load(path)
    assert result == saved("projections")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert deconvviz.Projections.load(path) != saved("projections")
    with pytest.raises(StoreError, match="the checksum of 'projections' differs"):
        deconvviz.Projections.load(path, check=True)


def test_a_small_file_that_is_cut_while_its_result_is_in_use_does_no_harm(tmp_path):
    path = written("projections", tmp_path)
    result = deconvviz.Projections.load(path)
    with open(path, "r+b") as file:
        file.truncate(10)
    assert result == saved("projections")


@pytest.mark.parametrize("name", ["x.png", "x.PDF", "x.gif", "x.jpg"])
def test_save_writes_no_numbers_into_a_picture(name, tmp_path):
    with pytest.raises(deconvviz.OptionError, match=r"writes numbers, not a picture: call plot\(\)\.savefig"):
        saved("topk").save(tmp_path / name)
    assert not list(tmp_path.iterdir()) and isinstance(saved("topk"), Result)
