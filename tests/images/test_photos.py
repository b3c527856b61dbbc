"""The sample photos and their windows."""

import time

import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms

from deconvviz.errors import ImageError, OptionError
from deconvviz.images import Preprocess, open_images, photos, preprocess_for, samples
from deconvviz.images.photos import PHOTOS, Photo


def test_every_photo_is_there_and_described():
    assert all(photo.path.is_file() for photo in PHOTOS)
    assert all(photo.title and photo.author and photo.licence and photo.source for photo in PHOTOS)
    assert len({photo.name for photo in PHOTOS}) == len(PHOTOS)


@pytest.mark.parametrize(
    ("size", "low", "high"), [(32, 3000, 4000), (64, 3000, 4000), (224, 400, 600), (299, 200, 600)]
)
def test_counts(size, low, high):
    windows = samples(size)
    assert low <= len(windows) <= high and windows.take([0, len(windows) - 1]).shape == (2, 3, size, size)
    assert len(set(windows.names)) == len(windows) and len(set(windows.labels)) == len(PHOTOS)
    colour = {p.name for p in PHOTOS[:7]}
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


def test_size_and_count():
    assert samples((48, 96)).take([0]).shape == (1, 3, 48, 96)
    few = samples(64, count=50)
    assert len(few) == 50 and len(set(few.labels)) == len(PHOTOS)
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
