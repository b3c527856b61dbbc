"""Folders, files, pictures and transforms that used to go wrong, each kind with its members."""

import multiprocessing
import os
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, random_split
from torchvision import transforms
from torchvision.transforms import functional as F

from deconvviz.errors import ImageError, UnreadableImage
from deconvviz.images import Preprocess, open_images, preprocess_for
from deconvviz.training import pixels

PIXELS = Preprocess((8, 8), 8, (0.0,) * 3, (1.0,) * 3)
COLOURS, GRAY, ALPHA = nn.Conv2d(3, 2, 3), nn.Conv2d(1, 2, 3), nn.Conv2d(4, 2, 3)


def noise(mode="RGB", width=20, height=14, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("a/1.png", "a/2.png", "b/3.png")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(seed=i).save(path)
    return tmp_path / "images"


# ---- folders


def test_links_to_what_is_there_add_nothing(folder):
    usual = open_images(COLOURS, folder, PIXELS).names
    (folder / "self").symlink_to(folder)
    (folder / "a" / "up").symlink_to("..")
    (folder / "0").symlink_to("b")
    (folder / "0.png").symlink_to("a/1.png")
    assert open_images(COLOURS, folder, PIXELS).names == usual == ["a/1.png", "a/2.png", "b/3.png"]


def test_links_to_what_is_elsewhere_are_followed_once(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    noise().save(other / "x.png")
    for name in ("c", "d"):
        (folder / name).symlink_to(other)
    assert open_images(COLOURS, folder, PIXELS).names[-1] == "c/x.png"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are a matter of POSIX")
def test_pipes_are_passed_over_and_never_waited_for(folder):
    os.mkfifo(folder / "a" / "pipe.png")
    assert len(open_images(COLOURS, folder, PIXELS)) == 3
    with pytest.raises(UnreadableImage, match=r"pipe.png: it is no regular file"):
        open_images(COLOURS, [folder / "a" / "pipe.png"], PIXELS).take([0])
    with pytest.raises(ImageError, match=r"neither a folder nor a regular file: .*pipe.png"):
        open_images(COLOURS, folder / "a" / "pipe.png", PIXELS)


def test_a_link_that_leads_nowhere_is_named(folder):
    (folder / "a" / "0.png").symlink_to("missing.png")
    opened = open_images(COLOURS, folder, PIXELS)
    assert opened.fingerprint()
    with pytest.raises(UnreadableImage, match=r"a/0.png: it is a link to missing.png, which is not there. Repair"):
        opened.take([0])
    assert torch.equal(opened.example("skip"), opened.take([1]))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8_can_be_shown(folder):
    noise().save(os.path.join(os.fsencode(folder), b"b", b"\xff.png"), format="PNG")
    opened = open_images(COLOURS, folder, PIXELS)
    assert opened.names[-1] == "b/\\xff.png" and opened.names[-1].encode() and opened.fingerprint()
    assert opened.take([3]).shape == (1, 3, 8, 8)


# ---- files that cannot be read


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_skipped_and_the_others_keep_their_numbers(folder, workers):
    (folder / "a" / "2.png").write_bytes(b"no picture")
    opened, skipped = open_images(COLOURS, folder, PIXELS), {}
    pairs = list(opened.batches(3, workers=workers, skipped=skipped))
    assert [(first, len(batch)) for first, batch in pairs] == [(0, 1), (2, 1)]
    assert torch.equal(pairs[1][1], opened.take([2]))
    assert list(skipped) == [1] and "a/2.png" in skipped[1]
    with pytest.raises(UnreadableImage, match=r'a/2.png: .*on_error="skip"'):
        list(opened.batches(3, workers=workers))


def test_unreadable_items_of_a_dataset_are_named_and_skipped():
    class Broken(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            if i in (0, 2):
                raise OSError("truncated")
            return noise(seed=i)

    opened, skipped = open_images(COLOURS, Broken(), PIXELS), {}
    assert [first for first, _ in opened.batches(4, skipped=skipped)] == [1, 3]
    assert sorted(skipped) == [0, 2] and skipped[2].startswith("cannot read item 2 of Broken: truncated")


def test_none_that_can_be_read(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"none of the 3 images can be read, the first is a/1.png"):
        open_images(COLOURS, folder, PIXELS).example("skip")


@pytest.mark.parametrize("size", [(1, 2_000_000), (2_000_000, 1)])
def test_a_picture_that_would_explode_is_refused(tmp_path, size):
    (tmp_path / "images").mkdir()
    Image.new("L", size).save(tmp_path / "images" / "long.png")
    preprocess = Preprocess((32, 32), 32, (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(UnreadableImage, match=r"long.png: the picture has .* its long one would have 64000000"):
        open_images(COLOURS, tmp_path / "images", preprocess).take([0])
    squashed = Preprocess((32, 32), (32, 32), (0.0,) * 3, (1.0,) * 3)
    assert open_images(COLOURS, tmp_path / "images", squashed).take([0]).shape == (1, 3, 32, 32)


def test_the_workers_end_with_the_iterator(folder):
    opened = open_images(COLOURS, folder, PIXELS)
    before = set(multiprocessing.active_children())
    batches = opened.batches(1, workers=2)
    next(batches)
    assert set(multiprocessing.active_children()) > before
    batches.close()
    assert set(multiprocessing.active_children()) == before


# ---- modes and colours


@pytest.mark.parametrize(
    ("mode", "model"), [("L", GRAY), ("RGBA", ALPHA), ("RGB", COLOURS), ("LA", nn.Conv2d(2, 2, 3))]
)
def test_a_transform_gets_the_pictures_own_mode(mode, model, tmp_path):
    seen = []

    def transform(picture):
        seen.append(picture.mode)
        return F.to_tensor(picture)

    noise(mode).save(tmp_path / "x.png")
    for images in (noise(mode), tmp_path / "x.png"):
        assert torch.equal(open_images(model, images, transform).take([0])[0], F.to_tensor(noise(mode)))
    assert set(seen) == {mode}


def test_a_transform_gets_sixteen_bits(tmp_path):
    values = np.arange(14 * 20, dtype=np.uint16).reshape(14, 20) * 200
    Image.fromarray(values).save(tmp_path / "x.png")

    def transform(picture):
        return torch.from_numpy(np.asarray(picture, np.float32) / 65535)[None]

    got = open_images(GRAY, tmp_path / "x.png", transform).take([0])[0, 0]
    assert torch.equal(got, torch.from_numpy(values.astype(np.float32) / 65535))
    with pytest.raises(UnreadableImage, match=r"x.png: the picture has mode 'I(;16)?', more than 8 bits.*preprocess"):
        open_images(COLOURS, tmp_path / "x.png", PIXELS).take([0])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_a_transform_for_colours_gets_colours(mode):
    picture = noise(mode)
    normalize = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    for transform in (normalize, transforms.ToTensor()):
        assert preprocess_for(COLOURS, transform)(picture).shape == (3, 14, 20)


def test_what_is_transparent_is_white():
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert torch.equal(PIXELS(picture), torch.ones(3, 8, 8))
    picture.putalpha(255)
    assert PIXELS(picture)[:, 0, 0].tolist() == [1, 0, 0]
    palette = Image.new("P", (8, 8))
    palette.info["transparency"] = 0
    assert torch.equal(PIXELS(palette), torch.ones(3, 8, 8))


def caffe(picture):
    return (F.to_tensor(picture) * 255)[[2, 1, 0]] - torch.tensor([104.0, 117.0, 123.0])[:, None, None]


@pytest.mark.parametrize(
    "transform",
    [
        caffe,
        transforms.Compose([transforms.ToTensor(), transforms.Lambda(lambda x: x[[2, 1, 0]] * 255)]),
        transforms.Compose(
            [
                transforms.ToTensor(),
                transforms.Lambda(lambda x: x.flip(0)),
                transforms.Normalize((0.4, 0.5, 0.6), (2,) * 3),
            ]
        ),
        transforms.Compose([transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float32)]),
        lambda picture: 1 - 2 * F.to_tensor(picture),
    ],
)
def test_transforms_are_shown_in_true_colours(transform):
    picture = noise()
    found = preprocess_for(COLOURS, transform)
    torch.testing.assert_close(found.invert(found(picture)), F.to_tensor(picture), atol=1e-4, rtol=0)
    red = open_images(COLOURS, Image.new("RGB", (32, 32), "red"), transform).picture(0)
    torch.testing.assert_close(red[:, 16, 16], torch.tensor([1.0, 0, 0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "transform",
    [
        lambda picture: F.to_tensor(picture).square(),
        lambda picture: F.to_tensor(picture)[[0, 0, 1]],
        lambda picture: torch.cat([F.to_tensor(picture)] * 2)[:4],
        lambda picture: (
            F.to_tensor(picture.crop((0, 0, 20, 14)).rotate(0)).clamp(max=1) if picture.width == 20 else 1 / 0
        ),
        transforms.Compose(
            [transforms.ToTensor(), lambda x: x.flip(0).square(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
        ),
    ],
)
def test_colours_that_cannot_be_told_are_not_claimed(transform):
    assert preprocess_for(COLOURS, transform).inverse.mean is None


def test_a_gray_transform_is_shown_gray():
    transform = transforms.Compose([transforms.Grayscale(), transforms.ToTensor(), transforms.Normalize(0.5, 0.25)])
    found = preprocess_for(GRAY, transform)
    shown = found.invert(found(noise()))
    expected = F.to_tensor(noise("L")).expand(3, -1, -1)
    torch.testing.assert_close(shown, expected, atol=0.01, rtol=0)


def test_measuring_leaves_random_numbers_alone():
    def transform(picture):
        return F.to_tensor(picture) * 0 + random.random() + np.random.rand() + torch.rand(1)

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert preprocess_for(COLOURS, transform).inverse.mean is None
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])


def test_a_transform_that_fails_is_said_to():
    with pytest.raises(
        ImageError, match=r"preprocess failed on a picture of mode RGB, 20×14 pixels: ZeroDivisionError"
    ):
        preprocess_for(GRAY, lambda picture: 1 / 0)(noise("1"))


# ---- datasets


def test_labels_of_parts_are_kept():
    class Labelled(Dataset):
        targets, classes = (0, 1, 1, 0), ("cat", "dog")

        def __len__(self):
            return 4

        def __getitem__(self, i):
            return torch.zeros(3, 8, 8), self.targets[i]

    data = Labelled()
    assert open_images(COLOURS, Subset(data, [2, 0])).labels == ["dog", "cat"]
    assert open_images(COLOURS, Subset(Subset(data, [2, 0, 1]), [1])).labels == ["cat"]
    part = random_split(data, [2, 2], generator=torch.Generator().manual_seed(0))[0]
    assert open_images(COLOURS, part).labels == [data.classes[data.targets[i]] for i in part.indices]
    assert open_images(COLOURS, ConcatDataset([data, Subset(data, [1])])).labels == ["cat", "dog", "dog", "cat", "dog"]


@pytest.mark.parametrize(
    ("shape", "hint"),
    [((2, 3, 4, 5, 6), "Volumes and videos"), ((2, 3), "of vectors"), ((3, 8, 8), r"images\[None\]")],
)
def test_other_numbers_of_dimensions(shape, hint):
    with pytest.raises(ImageError, match=hint):
        open_images(COLOURS, torch.zeros(shape))


@pytest.mark.parametrize(("layer", "shape"), [(nn.Conv1d(3, 4, 3), (2, 3, 40)), (nn.Conv3d(3, 4, 3), (2, 3, 8, 8, 8))])
def test_one_and_three_dimensional_networks_are_named(layer, shape):
    kind = type(layer).__name__
    with pytest.raises(ImageError, match=rf"The model's first convolution is a {kind}: only .* two-dimensional"):
        open_images(nn.Sequential(layer), torch.zeros(shape))


@pytest.mark.parametrize("images", [[], ()])
def test_an_empty_list_has_no_images(images):
    with pytest.raises(ImageError, match=r"no images: the list is empty"):
        open_images(COLOURS, images)


def test_training_refuses_what_would_explode(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        noise().save(tmp_path / name / "1.png")
    Image.new("L", (1, 2_000_000)).save(tmp_path / "a" / "long.png")
    decoder = pixels.Decoder(32, "bilinear", None, 1, False)
    with pytest.warns(UserWarning, match=r"long.png"):
        _, skipped = decoder.decode(pixels.find(tmp_path), "train")
    assert [path.name for path in skipped] == ["long.png"]
