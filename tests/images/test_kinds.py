"""Every kind of data that users bring gives the same images, names and labels, and its numbers are resumed."""

import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import deconvviz
from deconvviz import ImageError
from deconvviz.images import Keyed, Preprocess, open_images

HOW = Preprocess((12, 12), 12, (0.5,) * 3, (0.25,) * 3)
LABELS = ["cat", "dog", "dog", "cat", "eel", "eel", "cat"]
QUIET = {"progress": False}


def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (7, 14, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(pixels):
    return torch.stack([HOW(Image.fromarray(x)) for x in pixels])


def png(x):
    file = io.BytesIO()
    Image.fromarray(x).save(file, "PNG")
    return file.getvalue()


def put(shard, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    shard.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pixels):
    """The same pictures as tar shards, a zip file and single files."""
    root = tmp_path_factory.mktemp("data")
    for number, part in enumerate((range(0, 4), range(4, 7))):
        with tarfile.open(root / f"part-{number:03}.tar", "w") as shard:
            for i in part:
                put(shard, f"{i:05}.png", png(pixels[i]))
                if number == 0:
                    put(shard, f"{i:05}.cls", LABELS[i].encode())
                else:
                    put(shard, f"{i:05}.json", json.dumps({"label": LABELS[i], "width": 16}).encode())
                put(shard, f"{i:05}.txt", b"a caption")
    with zipfile.ZipFile(root / "all.zip", "w") as archive:
        for i in range(7):
            archive.writestr(f"{LABELS[i]}/{i}.png", png(pixels[i]))
        archive.writestr("README.txt", "no picture")
        archive.writestr("__MACOSX/cat/._0.png", "no picture")
    for i in range(7):
        (root / "files" / LABELS[i]).mkdir(parents=True, exist_ok=True)
        (root / "files" / LABELS[i] / f"{i}.png").write_bytes(png(pixels[i]))
    return root


def by_label():
    return sorted(range(7), key=lambda i: (LABELS[i], i))


def check(images, expected, order=range(7), labels=True):
    opened = open_images(model(), images, HOW)
    order = list(order)
    assert len(opened) == 7 and opened.are_pictures
    assert torch.equal(opened.take(range(7)), expected[order])
    assert torch.equal(opened.take([5, 2]), expected[[order[5], order[2]]])
    assert opened.labels == ([LABELS[i] for i in order] if labels else None)
    return opened


def test_an_array_of_bytes(pixels, expected):
    opened = check(pixels, expected, labels=False)
    assert opened.names[3] == "image 3"
    gray = open_images(model(), pixels[..., 0], HOW).take([0])
    assert torch.equal(gray[0], HOW(Image.fromarray(pixels[0, ..., 0])))
    other = pixels.copy()
    other[6, 0, 0, 0] ^= 1
    assert open_images(model(), other, HOW).fingerprint() != opened.fingerprint()
    for bad in (pixels / 255, pixels.transpose(0, 3, 1, 2), pixels[:0]):
        with pytest.raises(ImageError, match=r"expected pictures: uint8, \(N, H, W, 1, 3 or 4\)"):
            open_images(model(), bad, HOW)


@pytest.mark.parametrize("how", ["part-{000..001}.tar", "part-*.tar", "list"])
def test_tar_shards_are_numbered_by_shard_and_place(how, folder, expected):
    given = [folder / "part-000.tar", str(folder / "part-001.tar")] if how == "list" else str(folder / how)
    opened = check(given, expected)
    assert opened.names[:1] + opened.names[4:5] == ["part-000.tar/00000.png", "part-001.tar/00004.png"]


def test_tar_shards_are_read_by_workers_and_a_scan_goes_on_where_it_was_killed(folder, expected, tmp_path, monkeypatch):
    shards = str(folder / "part-{000..001}.tar")
    whole = deconvviz.top(model(), expected, layers=[1], k=3, **QUIET)[1]
    found = deconvviz.top(model(), shards, layers=[1], k=3, preprocess=HOW, workers=2, batch_size=2, **QUIET)[1]
    assert torch.equal(found.image_ids, whole.image_ids)
    from deconvviz.images.archives import Shards

    read, seen = Shards._bytes, []

    def failing(self, i):
        seen.append(i)
        if i == 5 and seen.count(5) == 1:
            raise KeyboardInterrupt
        return read(self, i)

    monkeypatch.setattr(Shards, "_bytes", failing)
    how = {"layers": [1], "k": 3, "preprocess": HOW, "batch_size": 2, "out": tmp_path / "scan", **QUIET}
    with pytest.raises(KeyboardInterrupt):
        deconvviz.top(model(), shards, **how)
    assert seen.count(2) == 1
    again = deconvviz.top(model(), shards, **how)[1]
    assert torch.equal(again.image_ids, whole.image_ids) and seen.count(2) == 1


def test_a_zip_file_and_a_pattern(folder, expected):
    opened = check(str(folder / "all.zip"), expected, by_label())
    assert opened.names[0] == "cat/0.png"
    assert torch.equal(pickle.loads(pickle.dumps(opened._source))[[1]], opened.take([1]))
    found = check(str(folder / "files" / "*" / "*.png"), expected, by_label())
    assert found.names == open_images(model(), folder / "files", HOW).names
    with pytest.raises(ImageError, match=r"the pattern .* finds no file"):
        open_images(model(), str(folder / "files" / "*" / "*.jpg"), HOW)


def test_a_dataset_of_hugging_face(pixels, expected):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["cat", "dog", "eel"])
    kinds = datasets.Features({"picture": datasets.Image(), "kind": names, "id": datasets.Value("int64")})
    rows = {"picture": [Image.fromarray(x) for x in pixels], "kind": LABELS, "id": list(range(7))}
    data = datasets.Dataset.from_dict(rows, features=kinds)
    check(data, expected)
    assert open_images(model(), data.select([4, 1]), HOW).labels == ["eel", "dog"]
    result = deconvviz.nearest(model(), data, query=2, layer=1, k=1, preprocess=HOW, **QUIET)
    assert result.names[0][0] in LABELS
    check(data.to_iterable_dataset(num_shards=2), expected)
    plain = data.cast_column("picture", datasets.Image(decode=False))
    check(Keyed(plain, image_key="picture", label_key="kind"), expected)


class Items(Dataset):
    def __init__(self, pixels, tensors=None):
        self.pixels, self.tensors = pixels, tensors

    def __len__(self):
        return 7

    def __getitem__(self, i):
        image = Image.fromarray(self.pixels[i]) if self.tensors is None else self.tensors[i]
        return {"image": image, "label": LABELS[i], "size": 16}


def test_items_that_are_mappings(pixels, expected):
    check(Items(pixels), expected, labels=False)
    check(Keyed(Items(pixels), label_key="label"), expected)
    check([{"jpg": x, "label": name} for x, name in zip(pixels, LABELS, strict=True)], expected)
    opened = open_images(model(), DataLoader(Items(pixels), batch_size=3), HOW)
    assert opened.batch_size == 3 and torch.equal(opened.take([6]), expected[6:])
    ready = open_images(model(), Items(pixels, expected), HOW)
    assert not ready.are_pictures and torch.equal(ready.take([3]), expected[3:4])
    two = [{"a": pixels[0], "b": pixels[1]}]
    with pytest.raises(ImageError, match=r"'a', 'b' hold images. Say which"):
        open_images(model(), two, HOW)
    assert torch.equal(open_images(model(), Keyed(two, image_key="b"), HOW).take([0]), expected[1:2])
    with pytest.raises(ImageError, match="image_key='c': the items have 'a', 'b'"):
        open_images(model(), Keyed(two, image_key="c"), HOW)
    with pytest.raises(ImageError, match="label_key='c': the items have 'a', 'b'"):
        open_images(model(), Keyed(two, image_key="a", label_key="c"), HOW)


class Stream(IterableDataset):
    def __init__(self, pixels, shuffled=False):
        self.pixels, self.shuffled, self.walks = pixels, shuffled, 0

    def __iter__(self):
        self.walks += 1
        order = range(7) if not self.shuffled or self.walks < 3 else range(6, -1, -1)
        for i in order:
            yield Image.fromarray(self.pixels[i]), LABELS[i]


def test_a_stream_is_counted_once_and_gone_through_in_order(pixels, expected):
    stream = Stream(pixels)
    opened = check(stream, expected)
    assert opened.names[2] == "item 2"
    walks = stream.walks
    assert torch.equal(torch.cat([batch for _, batch in opened.batches(2)]), expected)
    assert stream.walks == walks + 1
    best = deconvviz.project(model(), Stream(pixels), layer=1, units=[0, 3], k=3, preprocess=HOW, **QUIET)
    assert torch.equal(
        best.image_ids, deconvviz.project(model(), expected, layer=1, units=[0, 3], k=3, **QUIET).image_ids
    )
    with pytest.raises(ImageError, match="begins with another image each time"):
        open_images(model(), Stream(pixels, shuffled=True), HOW).take([0])
    with pytest.raises(ImageError, match="no images"):
        open_images(model(), Empty(), HOW)


class Empty(IterableDataset):
    def __iter__(self):
        return iter(())


def test_what_is_wrong_with_an_archive_is_named(tmp_path, pixels):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as shard:
        put(shard, "0.png", png(pixels[0]))
    with tarfile.open(tmp_path / "two.tar", "w") as shard:
        put(shard, "0.png", png(pixels[0]))
        put(shard, "0.seg.png", png(pixels[1]))
    with tarfile.open(tmp_path / "none.tar", "w") as shard:
        put(shard, "0.txt", b"no picture")
    (tmp_path / "bad.tar").write_bytes(b"no tar file at all" * 100)
    (tmp_path / "bad.zip").write_bytes(b"no zip file")
    for name, message in (
        ("a.tar.gz", "it is compressed.*gunzip it"),
        ("two.tar", "several pictures, 'png', 'seg.png'. Say which"),
        ("none.tar", "hold no file ending in"),
        ("bad.tar", "cannot read the tar file"),
        ("bad.zip", "cannot read the zip file"),
        ("part-{0..2}.tar", "no such file or folder: .*part-0.tar"),
        ("no.zip", "no such file or folder"),
    ):
        with pytest.raises(ImageError, match=message):
            open_images(model(), str(tmp_path / name), HOW)
    opened = open_images(model(), Keyed(str(tmp_path / "two.tar"), image_key="seg.png"), HOW)
    assert torch.equal(opened.take([0])[0], HOW(Image.fromarray(pixels[1])))


def test_a_damaged_picture_in_an_archive_is_skipped(tmp_path, pixels):
    with tarfile.open(tmp_path / "some.tar", "w") as shard, zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for i in range(3):
            data = png(pixels[i]) if i != 1 else b"no picture"
            put(shard, f"{i}.png", data)
            archive.writestr(f"{i}.png", data)
    for name in ("some.tar", "some.zip"):
        found = deconvviz.top(
            model(), str(tmp_path / name), layers=[1], k=3, preprocess=HOW, on_error="skip", batch_size=3, **QUIET
        )
        assert [number for number, _ in found.skipped] == [1]
        with pytest.raises(ImageError, match=r"1\.png"):
            deconvviz.top(model(), str(tmp_path / name), layers=[1], k=3, preprocess=HOW, batch_size=3, **QUIET)
