"""Files become the right bytes once, and windows are cut from them as by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from deconvviz.errors import ImageError, StoreError
from deconvviz.training import pixels as _pixels


def decoder(size=8, cache=None):
    return _pixels.Decoder(size, "bilinear", cache, 2, False)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i, mode in enumerate(("RGB", "L", "RGBA", "P")):
            pixels = random.integers(0, 256, (10, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / name / f"{i}.png")
    return root


def test_find_walks_sorts_and_passes_over_other_files(folder):
    (folder / "b" / "deep" / "er").mkdir(parents=True)
    (folder / "a" / "0.png").rename(folder / "b" / "deep" / "er" / "x.JPG")
    (folder / "a" / "notes.txt").touch()
    (folder / "empty").mkdir()
    (folder / ".hidden").mkdir()
    files = _pixels.find(folder)
    assert files.classes == ("a", "b")
    assert [p.name for p in files.paths] == [
        "1.png",
        "2.png",
        "3.png",
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        "x.JPG",
    ]
    assert files.labels == (0,) * 3 + (1,) * 5


def test_find_says_what_is_wrong(folder, tmp_path):
    with pytest.raises(ImageError, match="is not a folder"):
        _pixels.find(tmp_path / "none")
    with pytest.raises(ImageError, match="holds one class, 'data'; training needs at least two"):
        _pixels.find(tmp_path)
    with pytest.raises(ImageError, match=r"no images in subfolders, expected <class>/\*.jpg"):
        _pixels.find(folder / "a")


def test_bytes_are_the_centre_of_the_resized_image(folder):
    pixels, bad = decoder().decode(_pixels.find(folder), "train")
    assert bad == ()
    assert pixels.images.shape == (8, 8, 8, 3)
    assert pixels.labels.tolist() == [0] * 4 + [1] * 4
    expected = np.array(Image.open(folder / "a" / "0.png"))[1:9]  # 10 rows, 8 columns: no resize
    assert np.array_equal(pixels.images[0].numpy(), expected)
    gray = np.array(Image.open(folder / "a" / "1.png"))[1:9]
    assert np.array_equal(pixels.images[1].numpy(), np.repeat(gray[:, :, None], 3, 2))
    small, _ = decoder(4).decode(_pixels.find(folder), "train")
    resized = Image.open(folder / "a" / "0.png").resize((4, 5), Image.Resampling.BILINEAR)
    assert np.array_equal(small.images[0].numpy(), np.array(resized)[:4])


@pytest.mark.parametrize("cached", [False, True])
def test_bad_images_are_named_and_skipped(folder, tmp_path, cached):
    whole = (folder / "a" / "0.png").read_bytes()
    (folder / "a" / "0.png").write_bytes(whole[: len(whole) // 2])
    (folder / "b" / "0.png").write_bytes(b"")
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"skipped unreadable images: .*a/0.png, .*b/0.png$"):
            pixels, bad = decoder(cache=tmp_path / "cache" if cached else None).decode(_pixels.find(folder), "train")
        assert bad == (folder / "a" / "0.png", folder / "b" / "0.png")
        assert pixels.good.tolist() == [1, 2, 3, 5, 6, 7]
    for path in folder.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(ImageError, match="none of the 8 images could be read"):
        decoder().decode(_pixels.find(folder), "train")


def test_the_cache_is_used_until_the_files_change(folder, tmp_path, monkeypatch):
    files, plain = _pixels.find(folder), decoder().decode(_pixels.find(folder), "train")[0]
    cache = tmp_path / "cache"
    first, _ = decoder(cache=cache).decode(files, "train")
    assert torch.equal(first.images, plain.images)
    with monkeypatch.context() as patch:
        patch.setattr(_pixels, "_read", lambda *a: 1 / 0)
        again, _ = decoder(cache=cache).decode(files, "train")
    assert torch.equal(again.images, plain.images)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "a" / "0.png")
    changed, _ = decoder(cache=cache).decode(files, "train")
    assert changed.images[0].unique().tolist() == [1, 2, 3]
    assert torch.equal(again.images, plain.images)  # the old mapping still holds
    other, _ = decoder(4, cache).decode(files, "train")
    assert other.images.shape[1] == 4
    (cache / "train.pixels").write_bytes(b"something else")
    with pytest.raises(StoreError, match="not a file that deconvviz wrote"):
        decoder(cache=cache).decode(files, "train")


def test_split_is_seeded_and_complete():
    good = torch.tensor([0, 2, 3, 5, 8, 9, 11, 12, 13, 20])
    kept, held = _pixels.split(good, 0.3, 4)
    assert len(held) == 3
    assert sorted([*kept.tolist(), *held.tolist()]) == good.tolist()
    again = _pixels.split(good, 0.3, 4)
    assert torch.equal(kept, again[0]) and torch.equal(held, again[1])
    assert not torch.equal(held, _pixels.split(good, 0.3, 5)[1])
    assert len(_pixels.split(good, 0.001, 0)[1]) == 1


def test_one_image_cannot_be_split(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    (tmp_path / "b" / "0.png").write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(ImageError, match="1 images are too few to hold some out"):
        decoder().decode_both(_pixels.find(tmp_path), None, None, 0)


@pytest.mark.parametrize(("full", "size", "shift"), [(8, 8, 3), (10, 7, 0), (9, 9, 0), (9, 8, 2)])
def test_random_crops_are_windows_of_the_reflected_image(full, size, shift):
    images = torch.randint(0, 256, (40, full, full, 3), dtype=torch.uint8)
    windows = _pixels.Windows.draw(40, full, size, shift, torch.Generator().manual_seed(0))
    crops = _pixels.random_crops(images, windows, size)
    assert crops.shape == (40, 3, size, size)
    assert crops.is_contiguous(memory_format=torch.channels_last)
    places = set()
    for image, crop in zip(images, crops, strict=True):
        padded = np.pad(image.numpy(), ((shift, shift), (shift, shift), (0, 0)), mode="reflect")
        span = full + 2 * shift - size + 1
        found = [
            (top, left, flip)
            for top in range(span)
            for left in range(span)
            for flip in (False, True)
            if np.array_equal(
                padded[top : top + size, left : left + size][:, :: -1 if flip else 1],
                crop.permute(1, 2, 0).numpy(),
            )
        ]
        assert len(found) == 1
        places.add(found[0])
    assert {flip for _, _, flip in places} == {False, True}
    assert len(places) == 2 if span == 1 else len(places) > 5


def test_centre_crops_and_normalise():
    images = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 4, 3)
    crops = _pixels.centre_crops(images, 2)
    assert torch.equal(crops, images[:, 1:3, 1:3].permute(0, 3, 1, 2))
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 1 / 255)
    out = _pixels.normalise(crops, torch.tensor(mean), torch.tensor(std))
    expected = (crops.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-5)
    assert out.dtype == torch.float32
