"""The sample photos and their windows."""

import time

import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms

from deconvviz import zoo
from deconvviz.errors import ImageError, OptionError
from deconvviz.images import Preprocess, open_images, photos, preprocess_for, samples
from deconvviz.images.photos import PHOTOS, Photo


def test_every_photo_is_there_and_described():
    assert all(photo.path.is_file() for photo in PHOTOS)
    assert all(photo.title and photo.author and photo.licence and photo.source for photo in PHOTOS)
    assert len({photo.name for photo in PHOTOS}) == len(PHOTOS)


@pytest.mark.parametrize(
    ("size", "count", "low", "high"), [(32, None, 3000, 4000), (64, None, 3000, 4000), (224, 498, 498, 498)]
)
def test_counts(size, count, low, high):
    windows = samples(size, count)
    assert low <= len(windows) <= high and windows.take([0, len(windows) - 1]).shape == (2, 3, size, size)
    assert len(set(windows.names)) == len(windows)
    assert set(windows.labels) == {photo.name for photo in PHOTOS if size >= 128 or not photo.small}
    colour = {photo.name for photo in PHOTOS} - {"camera", "clock", "brick", "grass", "gravel"}
    assert sum(label in colour for label in windows.labels) > len(windows) / 2


def test_small_windows_are_quick():
    start = time.process_time()
    windows = samples(64)
    total = sum(len(batch) for _, batch in windows.batches(256))
    assert total == len(windows) and time.process_time() - start < 3


def test_windows_are_the_same_each_time_and_cover_the_photo():
    one, two = samples(64), samples(64)
    ids = range(0, len(one), 97)
    assert one.names == two.names and torch.equal(one.take(ids), two.take(list(reversed(ids))).flip(0))
    assert one.fingerprint() == two.fingerprint() != samples(64, 100).fingerprint()
    corners = [n for n in one.names if n.startswith("astronaut 256px")]
    assert corners[0].endswith("@ (0,0)") and corners[-1].endswith("@ (256,256)") and len(corners) == 9


def test_a_window_is_a_piece_of_its_photo():
    windows = samples(64)
    index = windows.names.index("astronaut 256px @ (128,128)")
    with Image.open(PHOTOS[0].path) as photo:
        piece = photo.crop((128, 128, 384, 384)).resize((64, 64), Image.Resampling.BILINEAR)
    difference = (windows.picture(index) - transforms.functional.to_tensor(piece)).abs()
    assert difference[:, 2:-2, 2:-2].max() < 0.02  # the borders see their surroundings


@pytest.mark.parametrize("size", [128, 227, 600])
def test_large_images_show_each_photo_once_and_whole(size):
    photos = samples(size)
    assert photos.names == photos.labels == [photo.name for photo in PHOTOS] and len(photos) == 72
    koala = next(photo for photo in PHOTOS if photo.name == "koala")
    with Image.open(koala.path) as picture:
        square = picture.crop((0, 54, 320, 374)).resize((size, size), Image.Resampling.BILINEAR)  # of 320×427 pixels
    difference = photos.picture(photos.names.index("koala")) - transforms.functional.to_tensor(square)
    assert difference.abs().mean() < 0.03


def test_the_photos_of_this_package_are_small_and_may_be_given_on():
    own = [photo for photo in PHOTOS if photo.small]
    assert len(own) == 60 and {p.path.name for p in own} == {p.name for p in own[0].path.parent.glob("*.jpg")}
    free = ("public domain", "CC0", "CC BY 4.0", "CDLA-Permissive-1.0", "released for unrestricted usage")
    for photo in own:
        with Image.open(photo.path) as picture:
            assert picture.format == "JPEG" and min(picture.size) >= 256
        assert photo.path.stat().st_size <= 60_000 and photo.licence in free


def test_imagenet_has_names_for_most_and_the_network_finds_them():
    model = zoo.create("squeezenet-1.1", weights="bundled")
    named = [photo for photo in PHOTOS if photo.classes]
    images = open_images(model, [photo.path for photo in named])
    with torch.no_grad():
        answers = model(images.take(range(len(named)))).topk(5).indices.tolist()
    found = [[model.card.classes[i] in photo.classes for i in row] for photo, row in zip(named, answers, strict=True)]
    assert len(named) >= 50 and {name for photo in named for name in photo.classes} <= set(model.card.classes)
    assert sum(row[0] for row in found) >= 40 and sum(map(any, found)) >= 45


def test_size_and_count():
    assert samples((48, 96)).take([0]).shape == (1, 3, 48, 96)
    few = samples(64, count=50)
    assert len(few) == 50 and len(set(few.labels)) == 12
    assert samples(1600).take([0]).shape == (1, 3, 1600, 1600)
    with pytest.raises(OptionError, match=r"must be at least 1"):
        samples(0)
    with pytest.raises(OptionError, match=r"count 0 must be at least 1"):
        samples(64, 0)


def test_none_opens_the_photos_in_the_models_space():
    model = torchvision.models.squeezenet1_1(weights=None)
    opened = open_images(model)
    known = preprocess_for(model)
    plain = samples(224)
    torch.testing.assert_close(opened.take([5]), known.normalize((plain.take([5]) * 255).round().byte()))
    torch.testing.assert_close(opened.picture(5), plain.picture(5))


def test_gray_networks_and_plain_functions():
    gray = samples(64, 20, preprocess=Preprocess((64, 64), 64, (0.5,), (0.5,)))
    assert gray.take([0]).shape == (1, 1, 64, 64)
    found = open_images(
        torch.nn.Conv2d(3, 2, 3), None, transforms.Compose([transforms.Resize(32), transforms.ToTensor()])
    )
    assert found.take([0, 1]).shape == (2, 3, 32, 32)


def test_missing_photos_are_named(monkeypatch):
    monkeypatch.setattr(photos, "PHOTOS", (Photo("gone", "gone.png", "t", "a", "l", "s"),))
    with pytest.raises(ImageError, match=r"the sample photo .*gone.png cannot be read.*Install skimage again"):
        samples(64)
