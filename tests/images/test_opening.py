"""Images from everywhere, preprocessing and its inverse, and what is refused."""

import os
import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
)
from torchvision import transforms

from deconvviz.errors import ImageError, ModelError, OptionError
from deconvviz.images import Preprocess, open_images, open_one, preprocess_for
from deconvviz.zoo.card import Card

PIXELS = Preprocess((8, 8), 8, (0.0,) * 3, (1.0,) * 3)
UNKNOWN = nn.Conv2d(3, 2, 3)


def noise(width=20, height=14, sigma=60):
    generator = np.random.default_rng(width * height + sigma)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Two classes, one of them nested, and things that are no images."""
    for i, name in enumerate(("b/2.png", "b/10.png", "a/deep/er/x.JPG", "a/y.png")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(sigma=20 * i).save(path)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    (tmp_path / "images" / "a" / "._y.png").write_text("what macOS leaves behind")
    return tmp_path / "images"


class Pictures(Dataset):
    def __init__(self, labelled=False):
        self.pictures = [noise(sigma=10 * i) for i in range(5)]
        self.labelled = labelled
        if labelled:
            self.targets, self.classes = [0, 1, 1, 0, 1], ["cat", "dog"]

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        return (self.pictures[i], self.targets[i]) if self.labelled else self.pictures[i]


# ---- preprocessing


@pytest.mark.parametrize("weights", ["ResNet18_Weights.IMAGENET1K_V1", "EfficientNet_B0_Weights.IMAGENET1K_V1"])
def test_equals_torchvision_presets(weights):
    weights = torchvision.models.get_weight(weights)
    ours, theirs = preprocess_for(UNKNOWN, weights), weights.transforms()
    for picture in (noise(), noise(400, 300), noise(300, 500)):
        assert torch.equal(ours(picture), theirs(picture))
    assert preprocess_for(UNKNOWN, theirs) == ours


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "vit_tiny_patch16_224"])
def test_equals_timm(name):
    model = timm.create_model(name)
    config = timm.data.resolve_model_data_config(model)
    theirs = timm.data.create_transform(**config, is_training=False)
    picture = noise(400, 300)
    torch.testing.assert_close(preprocess_for(model)(picture), theirs(picture), rtol=0, atol=1e-6)


def test_known_models():
    class Carded(nn.Module):
        card = Card("x", "y", input_size=(64, 48), resize=70, mean=(0.5,), std=(0.25,), interpolation="bicubic")

    found = preprocess_for(Carded())
    assert (found.size, found.resize, found.mean, found.interpolation) == ((64, 48), 70, (0.5,), "bicubic")
    assert found(noise()).shape == (1, 64, 48)
    alexnet = torchvision.models.alexnet(weights=None)
    assert (preprocess_for(alexnet).size, preprocess_for(alexnet).resize) == ((224, 224), 256)
    inception = torchvision.models.inception_v3(weights=None, init_weights=False)
    assert (preprocess_for(inception).size, preprocess_for(inception).resize) == ((299, 299), 342)
    assert preprocess_for(nn.DataParallel(alexnet)) == preprocess_for(alexnet)
    assert preprocess_for(nn.Sequential(nn.Identity(), alexnet, nn.Softmax(1))) == preprocess_for(alexnet)


def test_a_wrapper_that_normalizes_wants_pixels():
    inner = torchvision.models.alexnet(weights=None)
    usual = preprocess_for(inner)
    wrapped = nn.Sequential(transforms.Normalize(usual.mean, usual.std), inner)
    x = preprocess_for(wrapped)(noise())
    torch.testing.assert_close(wrapped[0](x), usual(noise()))
    assert x.min() >= 0 and x.max() <= 1
    with pytest.raises(ImageError, match=r"how Sequential wants its images is not known. Give preprocess="):
        preprocess_for(nn.Sequential(nn.Conv2d(3, 3, 1), inner))


def test_unknown_or_changed_models_are_refused():
    with pytest.raises(ImageError, match=r"how Conv2d wants its images is not known. Give preprocess=: a torchvision"):
        preprocess_for(UNKNOWN)
    changed = torchvision.models.resnet18(weights=None)
    changed.conv1 = nn.Conv2d(1, 64, 7)
    with pytest.raises(ImageError, match=r"ResNet takes 1 channels, the torchvision ImageNet preset has 3"):
        preprocess_for(changed)
    with pytest.raises(ImageError, match=r"FCN wants its images"):
        preprocess_for(torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None))
    with pytest.raises(OptionError, match=r"preprocess is a int, which cannot be called"):
        preprocess_for(UNKNOWN, 224)
    with pytest.raises(OptionError, match=r"preprocess is the class Normalize"):
        preprocess_for(UNKNOWN, transforms.Normalize)
    with pytest.raises(OptionError, match=r"one number per channel"):
        Preprocess((8, 8), 8, (0.5,) * 3, (0.5,))
    with pytest.raises(OptionError, match=r"must be positive"):
        Preprocess((8, 8), 8, (0.5,), (0.0,))


def test_compose_is_inverted_by_its_normalize():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    compose = transforms.Compose([transforms.CenterCrop(8), transforms.ToTensor(), transforms.Normalize(mean, std)])
    found = preprocess_for(UNKNOWN, compose)
    picture = noise(8, 8)
    expected = transforms.functional.to_tensor(picture)
    torch.testing.assert_close(found.invert(found(picture)), expected)


def test_a_function_that_has_no_inverse_is_shown_from_minimum_to_maximum():
    found = preprocess_for(UNKNOWN, lambda p: transforms.functional.to_tensor(p).square() * 7 - 3)
    shown = found.invert(found(noise()))
    assert found.inverse.mean is None and shown.min() == 0 and shown.max() == 1
    with pytest.raises(ImageError, match=r"gave a torch.uint8 tensor \(3, 14, 20\), expected a float tensor"):
        preprocess_for(UNKNOWN, transforms.functional.pil_to_tensor)(noise())
    with pytest.raises(ImageError, match=r"gave str"):
        preprocess_for(UNKNOWN, lambda p: "picture")(noise())


def test_inverse_shapes():
    x = torch.rand(2, 5, 3, 8, 8)
    assert torch.equal(PIXELS.invert(x), x)
    gray = Preprocess((8, 8), 8, (0.5,), (0.5,))
    assert gray.invert(torch.zeros(4, 1, 8, 8)).shape == (4, 3, 8, 8)
    assert Preprocess(None).invert(torch.rand(6, 4, 4)).shape == (3, 4, 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_colours(mode):
    picture = noise().convert("P").convert("RGBA").convert("PA") if mode == "PA" else noise().convert(mode)
    assert PIXELS(picture).shape == (3, 8, 8)


def test_palette_with_transparency_and_deep_pictures(tmp_path):
    picture = noise().convert("P")
    picture.save(tmp_path / "p.png", transparency=bytes(range(256)))
    with Image.open(tmp_path / "p.png") as opened:
        assert PIXELS(opened).shape == (3, 8, 8)
    with pytest.raises(ImageError, match=r"mode 'I;16', more than 8 bits"):
        PIXELS(Image.new("I;16", (8, 8)))


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (8, 8))
    picture.putpixel((0, 0), (255, 0, 0))
    exif = picture.getexif()
    exif[0x0112] = 6  # turn clockwise for display
    picture.save(tmp_path / "x.png", exif=exif)
    red = open_images(UNKNOWN, tmp_path / "x.png", PIXELS).take([0])[0, 0]
    assert red[0, 7] == 1 and red.sum() == 1


# ---- what images may be


def test_tensor_is_taken_as_it_is():
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    opened = open_images(UNKNOWN, x)
    assert len(opened) == 5 and opened.take([3, 1]).dtype == torch.float64 and opened.labels is None
    assert torch.equal(opened.take([3, 1]), x[[3, 1]]) and torch.equal(opened.take(torch.tensor([2, 3])), x[2:4])
    shown = opened.invert(x)
    assert shown.min() == 0 and shown.max() == 1 and opened.picture(0).shape == (3, 8, 8)
    pixels = torch.rand(2, 3, 8, 8)
    assert torch.equal(open_images(UNKNOWN, pixels).picture(1), pixels[1])
    assert open_images(UNKNOWN, opened) is opened


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"images are torch.uint8, expected floating point.*PIL"),
        (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\), expected \(N, C, H, W\).*images\[None\]"),
        (torch.zeros(0, 3, 8, 8), "no images: the tensor has shape"),
        (
            torch.tensor([0.0, float("nan")]).view(2, 1, 1, 1).expand(2, 3, 8, 8),
            "image 1 holds NaN or infinity",
        ),
        (torch.zeros(1, 1, 8, 8), r"images have 1 channels in shape \(1, 1, 8, 8\), the model takes 3"),
        (
            torch.rand(2, 3, 8, 8) * 255,
            "look like raw pixels; the model's input space is pixels / 255, minus",
        ),
        ([], "no images"),
        ([torch.zeros(3, 8, 8)], "images is a list, expected .*torch.stack"),
        (42, "images is a int, expected a tensor"),
        ("/no/such/folder", "no such file or folder: /no/such/folder"),
    ],
)
def test_unfit_images_are_refused(images, message):
    with pytest.raises(ImageError, match=message):
        open_images(torchvision.models.squeezenet1_1(weights=None), images)


def test_values_that_may_be_right_are_accepted():
    model = torchvision.models.squeezenet1_1(weights=None)
    open_images(model, torch.rand(1, 3, 8, 8) * 200 - 100)
    open_images(UNKNOWN, torch.rand(1, 3, 8, 8) * 255)


def test_pictures_and_files(folder):
    pictures = [noise(), noise(9, 30)]
    opened = open_images(UNKNOWN, pictures, PIXELS)
    assert torch.equal(opened.take([1])[0], PIXELS(pictures[1])) and opened.names == ["image 0", "image 1"]
    assert len(open_images(UNKNOWN, pictures[0], PIXELS)) == 1
    assert len(open_images(UNKNOWN, [str(folder / "a/y.png"), folder / "b/2.png"], PIXELS)) == 2


def test_folder_is_walked_sorted_and_labelled(folder):
    opened = open_images(UNKNOWN, folder, PIXELS)
    assert opened.names == ["a/deep/er/x.JPG", "a/y.png", "b/10.png", "b/2.png"]
    assert opened.labels == ["a", "a", "b", "b"]
    with Image.open(folder / "b/2.png") as picture:
        assert torch.equal(opened.take([3])[0], PIXELS(picture))
    assert open_images(UNKNOWN, str(folder / "b"), PIXELS).labels is None
    for workers in (1, 2):
        pairs = list(opened.batches(3, workers=workers))
        assert [i for i, _ in pairs] == [0, 3] and torch.equal(torch.cat([x for _, x in pairs]), opened.take(range(4)))


def test_batches_start_anywhere_and_follow_the_model():
    opened = open_images(UNKNOWN, torch.randn(7, 3, 8, 8))
    pairs = list(opened.batches(3, start=3, dtype=torch.float64))
    assert [(i, len(x)) for i, x in pairs] == [(3, 3), (6, 1)] and pairs[0][1].dtype == torch.float64


def test_batches_leave_the_random_state_alone(folder):
    opened = open_images(UNKNOWN, folder, PIXELS)
    before = torch.get_rng_state()
    list(opened.batches(2, workers=1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_file_is_named(folder, workers):
    whole = (folder / "b/2.png").read_bytes()
    (folder / "b/2.png").write_bytes(whole[: len(whole) // 2])
    opened = open_images(UNKNOWN, folder, PIXELS)
    with pytest.raises(ImageError, match=r"^cannot read the image .*b/2.png: .*Repair it or take it away"):
        list(opened.batches(2, workers=workers))


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(ImageError, match=r"holds no file ending in .bmp"):
        open_images(UNKNOWN, tmp_path, PIXELS)


def test_datasets():
    opened = open_images(UNKNOWN, Pictures(labelled=True), PIXELS)
    assert opened.labels == ["cat", "dog", "dog", "cat", "dog"] and opened.take([1, 2]).shape == (2, 3, 8, 8)
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(open_images(UNKNOWN, TensorDataset(x, torch.arange(5))).take([4, 0]), x[[4, 0]])
    with pytest.raises(ImageError, match=r"not known. Give preprocess="):
        open_images(UNKNOWN, Pictures())
    with pytest.raises(ImageError, match=r"gave a torch.uint8 tensor"):
        open_images(UNKNOWN, TensorDataset(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))).take([0])
    with pytest.raises(ImageError, match=r"TensorDataset is empty"):
        open_images(UNKNOWN, TensorDataset(torch.zeros(0, 3, 8, 8)))


def test_loaders_give_their_dataset_in_order():
    x = torch.randn(5, 3, 8, 8)
    loader = DataLoader(TensorDataset(x), batch_size=2, shuffle=True)
    opened = open_images(UNKNOWN, loader)
    assert opened.batch_size == 2 and torch.equal(opened.take(range(5)), x)
    doubling = DataLoader(
        TensorDataset(x), batch_size=2, collate_fn=lambda items: torch.stack([i[0] for i in items]) * 2
    )
    assert torch.equal(open_images(UNKNOWN, doubling).take([1, 3]), x[[1, 3]] * 2)
    for sampler in (SubsetRandomSampler([0, 2]), RandomSampler(x, num_samples=3)):
        with pytest.raises(ImageError, match=r"picks its images with .*RandomSampler.*Subset"):
            open_images(UNKNOWN, DataLoader(TensorDataset(x), sampler=sampler))


def test_a_dataset_without_a_length_is_refused():
    class Endless(Dataset):
        def __getitem__(self, i):
            return torch.zeros(3, 8, 8)

    with pytest.raises(ImageError, match=r"Endless has no length"):
        open_images(UNKNOWN, Endless())


def test_scripted_models_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is on its way out, its models are still about
        scripted = torch.jit.trace(UNKNOWN, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ModelError, match=r"scripted or traced"):
        open_images(scripted, torch.zeros(1, 3, 8, 8))


def test_fingerprints_tell_sets_apart(folder):
    x = torch.randn(5, 3, 8, 8)

    def mark(images, preprocess=PIXELS):
        return open_images(UNKNOWN, images, preprocess).fingerprint()

    assert mark(x) == mark(x.clone()) and mark(folder) == mark(str(folder))
    data = Pictures()
    assert mark(data) == mark(data) != mark(torch.utils.data.Subset(data, [0, 1]))
    marks = [mark(x), mark(x + 1), mark(x[:4]), mark(x.double()), mark(folder), mark([noise()]), mark(data)]
    assert len(set(marks)) == len(marks)
    assert mark(folder, Preprocess((8, 8), 9, (0.0,) * 3, (1.0,) * 3)) != mark(folder)
    before = mark(folder)
    os.utime(folder / "b/2.png", (1, 1))
    assert mark(folder) != before


def test_a_tensor_that_requires_gradients_is_taken_without_them():
    images = (4 * torch.rand(2, 3, 8, 8) - 2).requires_grad_()
    opened = open_images(torch.nn.Conv2d(3, 2, 3), images)
    assert not opened.take([0, 1]).requires_grad and torch.equal(opened.take([0, 1]), images.detach())


def test_one_image_may_be_a_tensor_without_a_batch():
    x = torch.rand(3, 8, 9, requires_grad=True)
    for given in (x, x[None]):
        opened = open_one(nn.Conv2d(3, 1, 1), given)
        assert torch.equal(opened.take([0])[0], x) and not opened.take([0]).requires_grad
    with pytest.raises(ImageError, match=r"no image: give a tensor, a PIL image or a path"):
        open_one(nn.Conv2d(3, 1, 1), None)
