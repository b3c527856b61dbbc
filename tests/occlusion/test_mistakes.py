"""Occlusion leaves everything as it was, and refuses by name what has no meaning."""

import math

import pytest
import torch
from occlusion_helpers import Net, build, occlude, photo
from torch import nn

import deconvviz
from deconvviz.errors import ImageError, LayerError, ModelError, OptionError, UnitError
from deconvviz.images.preprocess import Preprocess
from deconvviz.occlusion import scan as _scan

METHODS = ["full", "incremental"]


@pytest.fixture
def net():
    return build()


@pytest.fixture
def image():
    return photo()


class Explodes(Net):
    """Raises at its nth call."""

    calls, limit, error = 0, 10**9, RuntimeError

    def forward(self, x):
        Explodes.calls += 1
        if Explodes.calls > Explodes.limit:
            raise Explodes.error("boom")
        return super().forward(x)


def state_of(net, image):
    return (
        [(n, p.clone(), p.requires_grad, p.grad) for n, p in net.named_parameters()],
        [(n, b.clone()) for n, b in net.named_buffers()],
        [(n, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in net.named_modules()],
        torch.get_rng_state(),
        image.clone(),
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "limit", "error", "raised"),
    [
        ({}, 10**9, RuntimeError, None),
        ({"fill": "noise", "refine": 2}, 10**9, RuntimeError, None),
        ({"target": 9}, 10**9, RuntimeError, OptionError),
        ({"size": 99}, 10**9, RuntimeError, OptionError),
        ({"layer": "nowhere"}, 10**9, RuntimeError, LayerError),
        ({}, 0, RuntimeError, RuntimeError),
        ({}, 1, KeyboardInterrupt, KeyboardInterrupt),
        ({"target": lambda output: 1 / 0}, 10**9, RuntimeError, ZeroDivisionError),
    ],
)
def test_the_model_and_the_images_are_left_as_they_were(image, method, options, limit, error, raised):
    torch.manual_seed(0)
    net = Explodes().double().train()
    net.drop.eval()
    net.first.weight.requires_grad_(False)
    image = image.clone().requires_grad_()
    before = state_of(net, image)
    Explodes.calls, Explodes.limit, Explodes.error = 0, limit, error
    try:
        if raised is None:
            occlude(net, image, method=method, **options)
        else:
            with pytest.raises(raised, match=r"boom|out of range|larger|no layer|division"):
                occlude(net, image, method=method, **options)
    finally:
        Explodes.limit = 10**9
    assert same(before, state_of(net, image)) and image.grad is None


def test_an_interrupt_during_the_scan_leaves_the_model(net, image, monkeypatch):
    def interrupted(self, *_):
        raise KeyboardInterrupt("stop")

    monkeypatch.setattr(_scan.Meter, "receive", interrupted)
    before = state_of(net, image)
    with pytest.raises(KeyboardInterrupt, match="stop"):
        occlude(net, image, size=5)
    assert same(before, state_of(net, image))


# ---- mistakes ----


class Returns(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.conv, self.what = nn.Conv2d(3, 5, 3), what

    def forward(self, x):
        return self.what(self.conv(x))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"size": 21}, OptionError, r"the occluder is 21×21, larger than the image, 20×17"),
        ({"stride": 0}, OptionError, r"stride=0: give a number of pixels"),
        ({"target": 5}, OptionError, r"target 5 is out of range: the model has 5 classes, 0 to 4"),
        ({"target": -1}, OptionError, r"target -1 is out of range"),
        ({"target": [0, 7]}, OptionError, r"target 7 is out of range"),
        ({"target": []}, OptionError, r"target is an empty list"),
        ({"target": "cat"}, OptionError, r"target='cat': the names of this model's classes are not known"),
        ({"target": True}, OptionError, r"target=True has no meaning here"),
        ({"target": lambda y: y}, OptionError, r"gave \(1, 5\) for 1 images, expected \(1,\)"),
        ({"target": lambda y: 3.0}, OptionError, r"gave float for 1 images"),
        ({"target": (3, 99)}, UnitError, r"unit 99 is out of range: layer .* has units 0 to 7"),
        ({"target": (3, 1), "layer": 2}, OptionError, r"one layer can be measured in one scan"),
        ({"layer": 9}, LayerError, r"there is no layer 9"),
        ({"edge": "wrap"}, OptionError, r"edge='wrap' has no meaning here"),
        ({"method": "fast"}, OptionError, r"method='fast' has no meaning here"),
        ({"memory": 0}, OptionError, r"memory=0: expected a whole number of at least 1"),
        ({"dtype": torch.float64}, OptionError, r"dtype=torch.float64: give torch.bfloat16"),
        ({"refine": 1}, OptionError, r"refine=1: expected a whole number of at least 2"),
        ({"fill": "grey"}, OptionError, r"fill='grey' has no meaning here"),
        ({"masks": torch.zeros(2, 17, 20)}, OptionError, r"masks have shape \(2, 17, 20\), expected \(P, 20, 17\)"),
        ({"masks": torch.zeros(2, 20, 17), "size": 4}, OptionError, r"leave size= and stride= out"),
        ({"masks": torch.eye(20, 17)[None], "method": "incremental"}, OptionError, r"'incremental' needs boxes"),
        ({"masks": torch.eye(20, 17)[None], "refine": 2}, OptionError, r"refine= needs a grid"),
        ({"class_names": ["a"]}, OptionError, r"class_names holds 1 names, the model has 5 classes"),
    ],
)
def test_a_mistake_is_refused_by_name(net, image, options, kind, message):
    with pytest.raises(kind, match=message):
        occlude(net, image, **options)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda y: y, r"the model's output for one image is \(1, 5, 18, 15\), expected \(1, classes\)"),
        (lambda y: y.mean((2, 3))[0], r"is \(5,\), expected \(1, classes\)"),
        (lambda y: {"logits": y}, r"the model's output is \{'logits': \(1, 5, 18, 15\)\}, not a tensor"),
        (lambda y: y.mean((2, 3)) / 0, r"output for the unoccluded image holds NaN or infinity"),
        (lambda y: y.mean((2, 3)).argmax(1, keepdim=True), r"expected \(1, classes\)"),
        (lambda y: y.mean((1, 2, 3))[:, None], r"the model has one output, which has no probability among classes"),
    ],
)
def test_outputs_that_are_no_scores_are_refused(image, what, message):
    with pytest.raises(ModelError, match=message):
        occlude(Returns(what), image.float(), size=6)


def test_one_output_goes_with_a_function(image):
    model = Returns(lambda y: y.mean((1, 2, 3))[:, None])
    result = occlude(model, image.float(), size=6, target=lambda y: y[:, 0])
    assert result.logit.isfinite().all() and result.probability.isnan().all()
    assert torch.equal(result.attribution(), result.attribution("logit"))


@pytest.mark.parametrize("method", METHODS)
def test_an_output_that_overflows_under_the_occluder_is_refused(image, method):
    model = Returns(lambda y: y.mean((2, 3)))
    with pytest.raises(ModelError, match=r"the logit is NaN or infinite at \d+ positions"):
        occlude(model, image.float(), size=6, fill=3e38, method=method)


def test_unfit_images_and_weights_are_refused(net, image):
    bad = image.clone()
    bad[0, 3, 3] = math.nan
    with pytest.raises(ImageError, match="image 0 holds NaN"):
        occlude(net, bad)
    with pytest.raises(ImageError, match="no image: give a tensor"):
        occlude(net, None)
    with pytest.raises(ImageError, match="no such file"):
        occlude(net, "/no/where.png", preprocess=Preprocess((20, 17)))
    with torch.no_grad():
        net.head.bias[0] = math.nan
    with pytest.raises(ModelError, match="the weights are not finite"):
        occlude(net, image)


def test_the_bar_shows_the_rate(net, image, capsys):
    deconvviz.occlude(net, image, size=9)
    shown = capsys.readouterr().err
    assert "occlude: 100%" in shown and "positions/s" in shown
