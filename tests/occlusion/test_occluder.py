"""The occluder: grids, masks and what covers the image."""

import math

import pytest
import torch
from pictures import noise
from PIL import Image
from torch import nn
from torchvision import transforms

from deconvviz.errors import ImageError, OptionError
from deconvviz.images import open_images
from deconvviz.images.preprocess import Preprocess
from deconvviz.occlusion import occluder as _occluder
from deconvviz.occlusion.fill import Filling

MEAN, STD = (0.2, 0.4, 0.6), (0.5, 0.25, 0.1)
NET = nn.Conv2d(3, 2, 3)
KNOWN = Preprocess((12, 10), None, MEAN, STD)


def filled(fill, images, preprocess=None, size=(4, 4), seed=0):
    source = open_images(NET, images, preprocess)
    filling = Filling(fill, NET, source, preprocess, seed)
    return filling.on(source.take([0])[0], size)


def picture():
    return noise((10, 12), 80).convert("RGB")


@pytest.mark.parametrize(("length", "window", "stride"), [(64, 9, 4), (64, 16, 8), (10, 10, 3), (11, 3, 5), (7, 1, 1)])
def test_the_grid_is_captums_and_the_aligned_one_has_whole_windows(length, window, stride):
    clipped, aligned = (_occluder.starts(length, window, stride, edge) for edge in ("clip", "align"))
    count = math.ceil((length - window) / stride) + 1
    assert clipped.tolist() == [i * stride for i in range(count)]
    assert len(aligned) == count and (aligned + window <= length).all() and aligned[-1] == length - window
    assert clipped[-1] + window >= length and (aligned.diff() > 0).all()


def test_boxes_are_row_by_row_and_cut_at_the_edge():
    occluder = _occluder.grid((10, 7), (4, 3), (3, 2), "clip")
    assert occluder.shape == (3, 3)
    assert occluder.boxes[0].tolist() == [0, 0, 4, 3] and occluder.boxes[1].tolist() == [0, 2, 4, 5]
    assert occluder.boxes[-1].tolist() == [6, 4, 10, 7]
    assert _occluder.grid((11, 8), 4, 5, "clip").boxes[-1].tolist() == [10, 5, 11, 8]


def test_the_usual_size_is_a_seventh_and_the_stride_half_of_it():
    occluder = _occluder.grid((224, 300), None, None, "clip")
    assert occluder.size == (32, 32) and occluder.stride == (16, 16)
    assert _occluder.grid((3, 3), None, None, "clip").size == (1, 1)
    assert _occluder.grid((64, 64), (20, 8), None, "clip").stride == (10, 4)


@pytest.mark.parametrize(
    ("size", "stride", "edge", "message"),
    [
        (20, 1, "clip", r"the occluder is 20×20, larger than the image, 16×16"),
        ((4, 17), 1, "clip", r"the occluder is 4×17, larger"),
        (4, 0, "clip", r"stride=0: give a number of pixels or \(height, width\), each at least 1"),
        (0, 1, "clip", r"size=0: give"),
        ((4, 4, 4), 1, "clip", r"size=\(4, 4, 4\): give"),
        (4.5, 1, "clip", r"size=4.5: give"),
        (4, True, "clip", r"stride=True: give"),
        (4, 1, "wrap", r"edge='wrap' has no meaning here"),
    ],
)
def test_a_grid_without_meaning_is_refused(size, stride, edge, message):
    with pytest.raises(OptionError, match=message):
        _occluder.grid((16, 16), size, stride, edge)


def test_masks_that_are_boxes_are_found():
    boxes = torch.tensor([[0, 0, 2, 3], [4, 1, 8, 2], [7, 5, 8, 6], [0, 0, 8, 6]])
    masks = torch.zeros(4, 8, 6, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes.tolist(), strict=True):
        mask[top:bottom, left:right] = True
    assert torch.equal(_occluder.boxes_of(masks), boxes)
    assert torch.equal(_occluder.boxes_of(masks.float()), boxes)
    holed = masks.clone()
    holed[3, 4, 4] = False
    assert _occluder.boxes_of(holed) is None
    assert _occluder.boxes_of(masks.float() * 0.5) is None
    assert _occluder.boxes_of(torch.zeros_like(masks)) is None
    assert _occluder.of_masks(masks, (8, 6)).shape == (4, 1)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.zeros(3, 6, 8), r"masks have shape \(3, 6, 8\), expected \(P, 8, 6\)"),
        (torch.zeros(8, 6), r"masks have shape \(8, 6\)"),
        (torch.zeros(0, 8, 6), r"masks have shape \(0, 8, 6\)"),
        (torch.full((1, 8, 6), 1.5), r"masks must be finite and lie between 0"),
        (torch.full((1, 8, 6), math.nan), r"masks must be finite and lie between 0"),
    ],
)
def test_unfit_masks_are_refused(masks, message):
    with pytest.raises(OptionError, match=message):
        _occluder.of_masks(masks, (8, 6))


def test_gray_is_mid_gray_in_pixels_whatever_the_normalization():
    gray = torch.tensor([(0.5 - m) / s for m, s in zip(MEAN, STD, strict=True)])
    for images in (picture(), torch.randn(1, 3, 12, 10)):
        fill, name = filled("gray", images, KNOWN)
        assert name == "mid-gray" and fill.shape == (3, 12, 10)
        assert torch.allclose(fill, gray.view(3, 1, 1).expand_as(fill))
    # A function that cannot be looked into is shown a gray picture; 128 is the gray nearest to a half.
    odd = transforms.Compose([transforms.PILToTensor(), lambda x: (x.float() - 127) / 128])
    fill, _ = filled("gray", picture(), odd)
    assert torch.allclose(fill, torch.full_like(fill, 1 / 128))


def test_gray_is_zero_and_says_so_where_the_preprocessing_is_not_known():
    fill, name = filled("gray", torch.randn(1, 3, 12, 10))
    assert name == "0 in input space" and (fill == 0).all()


def test_a_number_is_in_the_images_own_space():
    images = torch.randn(1, 3, 12, 10)
    assert (filled(-3, images, KNOWN)[0] == -3).all()
    fill, name = filled((1.0, 0.0, 0.5), picture(), KNOWN)
    wanted = torch.tensor([(p - m) / s for p, m, s in zip((1, 0, 0.5), MEAN, STD, strict=True)])
    assert torch.allclose(fill[:, 3, 4], wanted) and name == "(1, 0, 0.5)"
    assert filled([1, 2, 3], images)[0][:, 0, 0].tolist() == [1, 2, 3]


def test_mean_blur_and_noise_come_from_the_image():
    images = torch.randn(1, 3, 12, 10, generator=torch.Generator().manual_seed(1)) * 2 + 5
    mean, _ = filled("mean", images)
    assert torch.allclose(mean[:, 0, 0], images[0].mean((1, 2)))
    blur, _ = filled("blur", images)
    assert blur.shape == (3, 12, 10) and blur.std() < images.std() / 2
    state = torch.get_rng_state()
    noise, name = filled("noise", images, seed=7)
    assert torch.equal(torch.get_rng_state(), state) and name == "noise (seed 7)"
    assert torch.equal(noise, filled("noise", images, seed=7)[0])
    assert not torch.equal(noise, filled("noise", images, seed=8)[0])
    assert abs(noise.mean() - images.mean()) < 0.5 and abs(noise.std() - images.std()) < 0.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2)])
def test_blur_works_on_the_smallest_images(shape):
    assert filled("blur", torch.randn(1, 3, *shape), size=(1, 1))[0].shape == (3, *shape)


def test_another_image_covers(tmp_path):
    images, other = torch.randn(1, 3, 12, 10), torch.randn(3, 12, 10)
    assert torch.equal(filled(other, images)[0], other)
    path = tmp_path / "other.png"
    picture().save(path)
    for fill in (path, str(path)):
        assert torch.equal(filled(fill, picture(), KNOWN)[0], KNOWN(Image.open(path)))


@pytest.mark.parametrize(
    ("fill", "images", "kind", "message"),
    [
        ("grey", torch.zeros(1, 3, 12, 10), OptionError, r"fill='grey' has no meaning here. Give 'gray', 'mean'"),
        ((1, 2), torch.zeros(1, 3, 12, 10), OptionError, r"one number for each of the 3 channels"),
        (math.nan, torch.zeros(1, 3, 12, 10), OptionError, r"fill=nan: give finite numbers"),
        (128, picture(), OptionError, r"fill=128: for a picture give numbers from 0 \(black\) to 1 \(white\)"),
        (torch.zeros(3, 9, 9), torch.zeros(1, 3, 12, 10), ImageError, r"fill has shape \(3, 9, 9\), expected"),
        (torch.full((3, 12, 10), math.nan), torch.zeros(1, 3, 12, 10), ImageError, r"holds NaN"),
    ],
)
def test_a_fill_without_meaning_is_refused(fill, images, kind, message):
    with pytest.raises(kind, match=message):
        filled(fill, images, KNOWN if isinstance(images, Image.Image) else None)
