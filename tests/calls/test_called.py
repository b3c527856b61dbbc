"""Models that take more than images, or return more than scores, through `call=` and `target=`, against plain torch."""

import copy

import pytest
import torch
from torch import nn

import deconvviz
from deconvviz import ModelError, OptionError, targets
from deconvviz.calls import called
from deconvviz.calls.marks import mark

QUIET = {"progress": False}


class TwoInputs(nn.Module):
    """Images and five numbers beside them."""

    def __init__(self, keyword=False):
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.deep = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)
        self.beside, self.fc = nn.Linear(5, 6), nn.Linear(12, 7)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images, beside):
        self.calls = self.calls + 1
        x = self.deep(self.conv(images).relu()).relu().mean((2, 3))
        return {"features": x, "scores": (self.fc(torch.cat([x, self.beside(beside)], 1)),)}


BESIDE = torch.randn(1, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def scores(model, images):
    return model(images, beside=BESIDE.expand(len(images), -1))["scores"][0]


def everything(model, images):
    return model(images, BESIDE.expand(len(images), -1))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        return TwoInputs().double().eval()


@pytest.fixture
def images():
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def brute_force(model, image, size, number):
    """Cover with zeros at each place of a grid and ask the model, one image at a time."""
    found = torch.zeros(16 // size, 16 // size, dtype=torch.float64)
    for row in range(16 // size):
        for col in range(16 // size):
            covered = image.clone()
            covered[:, :, row * size : (row + 1) * size, col * size : (col + 1) * size] = 0
            with torch.no_grad():
                found[row, col] = number(model, covered)
    return found


def test_occlusion_of_a_model_with_two_inputs_is_exact_and_fast(model, images):
    how = {"call": scores, "size": 4, "stride": 4, "fill": 0.0, **QUIET}
    found = deconvviz.occlude(model, images[:1], target=[2, 5], **how)
    assert found.method == "incremental"
    for place, number in enumerate((2, 5)):
        expected = brute_force(model, images[:1], 4, lambda m, x, n=number: scores(m, x)[0, n])
        assert torch.allclose(found.logit[place], expected, rtol=0, atol=1e-12)


def test_a_function_gets_whatever_the_model_returns(model, images):
    def feature(output):
        return output["features"][:, 1] - output["scores"][0][:, 0]

    found = deconvviz.occlude(
        model, images[:1], target=feature, call=everything, size=4, stride=4, fill=0.0, layer=2, **QUIET
    )
    expected = brute_force(model, images[:1], 4, lambda m, x: feature(everything(m, x))[0])
    assert torch.allclose(found.logit, expected, rtol=0, atol=1e-12)
    assert found.method == "incremental" and found.target == "feature"
    assert found.probability.isnan().all() and (found.label == -1).all() and found.name_of(-1) == "no classes"
    full = deconvviz.occlude(
        model, images[:1], target=[feature], call=everything, size=4, stride=4, fill=0.0, method="full", **QUIET
    )
    assert torch.allclose(full.logit[0], expected, rtol=0, atol=1e-12)
    titles = [axes.get_title("left") for axes in found.plot().axes]
    assert "(e)  mean drop where covered" in titles


def test_every_function_takes_the_call(model, images):
    maps = model.deep(model.conv(images).relu()).relu().detach()
    how = {"call": scores, **QUIET}
    best = deconvviz.top(model, images, layers=[2], k=2, **how)[2]
    assert torch.allclose(best.values, maps.amax((2, 3)).T.sort(1, descending=True).values[:, :2], rtol=0, atol=1e-12)
    by_deconv = deconvviz.deconv(model, images, layer="deep", unit=3, call=scores)
    plain = deconvviz.deconv(nn.Sequential(model.conv, nn.ReLU(), model.deep), images, layer="2", unit=3)
    assert torch.allclose(by_deconv, plain, rtol=0, atol=1e-12)
    assert deconvviz.layers(model, 16, call=scores)[2].units == 6
    assert [row.name for row in deconvviz.layers(model, 16, call=scores).numbered] == [":relu#1", ":relu#2"]
    assert deconvviz.evidence(model, images, layer=2, units=[1], k=2, **how).maps.shape[:2] == (1, 2)
    assert deconvviz.project(model, images, layer=2, units=[1], k=2, **how).projections.any()
    assert len(deconvviz.response_std(model, images, **how).names)
    assert len(deconvviz.audit(model, images, call=scores))
    assert deconvviz.maximize(model, layer=2, units=[1], steps=2, input_size=16, **how).images.isfinite().all()
    assert model.calls == 0 and "calls" in model._buffers


def test_evidence_of_a_target_covers_whole_images(model, images):
    target = targets.similarity(everything(model, images[3:4])["features"].detach())

    def like(output):
        return target(output["features"])

    found = deconvviz.evidence(model, images, target=[like], k=2, call=everything, size=4, stride=4, fill=0.0, **QUIET)
    with torch.no_grad():
        values = like(everything(model, images))
    order = values.argsort(descending=True)[:2]
    assert found.image_ids.tolist() == [order.tolist()] and order[0] == 3
    assert torch.allclose(found.activations[0].double(), values[order], rtol=0, atol=1e-6)
    drop = values[3] - brute_force(model, images[3:4], 4, lambda m, x: like(everything(m, x))[0])
    assert torch.allclose(found.maps[0, 0].double(), drop, rtol=0, atol=1e-6)


def test_maximize_climbs_a_target_as_plain_gradient_ascent_would(model):
    def one(output):
        return output["scores"][0][:, 4] - output["features"][:, 0]

    how = {"input_size": 16, "steps": 3, "robust": False, "parametrization": "pixels", **QUIET}
    found = deconvviz.maximize(model, target=one, call=everything, **how)
    other = deconvviz.maximize(Plain(model, one), target=0, **how)
    assert torch.allclose(found.images, other.images, rtol=0, atol=1e-6)
    assert found.names == ("one",) and found.activations[0, 0, -1] > found.activations[0, 0, 0]
    both = deconvviz.maximize(
        model, target=[one, targets.similarity(torch.ones(6))], call=features, **how | {"steps": 1}
    )
    assert both.names == ("one", "similarity")


class Plain(nn.Module):
    """The target's number as the only class."""

    def __init__(self, model, target):
        super().__init__()
        self.model, self.target = copy.deepcopy(model), target

    def forward(self, x):
        return self.target(everything(self.model, x))[:, None]


def features(model, images):
    found = everything(model, images)
    return {"pooler_output": found["features"], **found}


def test_methods_are_compared_on_a_target(model, images):
    pytest.importorskip("captum")

    def one(output):
        return output["features"].square().sum(1)

    found = deconvviz.compare_methods(
        model, images[:1], target=one, call=everything, methods=["gradient", "occlusion"], stages=0, size=4, **QUIET
    )
    x = images[:1].clone().requires_grad_()
    (expected,) = torch.autograd.grad(one(everything(model, x)).sum(), x)
    assert torch.allclose(found["gradient"].double(), expected[0], rtol=0, atol=1e-12)
    assert found.target == "one"


def test_the_inner_network_is_shared_and_left_as_found(model):
    network = called(model.train(), scores)
    assert network.training and [n for n, _ in network.named_modules()] == [n for n, _ in model.named_modules()]
    network.eval()
    assert not model.training and dict(network.named_parameters()) == dict(model.named_parameters())
    twin = copy.deepcopy(network)
    assert twin.inner is not model and twin.conv is twin.inner.conv and twin.conv is not model.conv
    assert type(network).__name__ == "TwoInputs" and called(network) is network and called("no model") == "no model"


def test_a_hash_of_a_call_sees_its_code_and_its_numbers():
    def make(number):
        return lambda model, images: model(images, number)

    assert mark(make(2)) == mark(make(2)) != mark(make(3))
    assert mark(make(torch.ones(2))) == mark(make(torch.ones(2))) != mark(make(torch.zeros(2)))
    assert mark(targets.score(1)) == mark(targets.score(1)) != mark(targets.score(2))
    assert mark(lambda m, x: m(x)) != mark(lambda m, x: m(x + 1))


def test_a_scan_goes_on_with_the_same_call_alone(model, images, tmp_path):
    how = {"layers": [1], "k": 1, "out": tmp_path / "scan", **QUIET}
    deconvviz.top(model, images, call=scores, **how)
    deconvviz.top(model, images, call=scores, **how)
    with pytest.raises(deconvviz.StoreError, match="another scan"):
        deconvviz.top(model, images, call=everything, **how)


def test_mistakes_are_named(model, images):
    with pytest.raises(OptionError, match="call=3: expected a function"):
        deconvviz.top(model, images, call=3, **QUIET)
    with pytest.raises(ModelError, match=r"\{'features': \(1, 6\), 'scores': tuple\}, not a tensor.*target="):
        deconvviz.occlude(model, images[:1], call=everything, size=4, **QUIET)
    with pytest.raises(OptionError, match=r"target '<lambda>' gave \(1, 6\) for 1 images, expected \(1,\)"):
        deconvviz.occlude(model, images[:1], target=lambda y: y["features"], call=everything, size=4, **QUIET)
    with pytest.raises(ModelError, match=r"takes something else than images alone.*call="):
        deconvviz.occlude(model, images[:1], size=4, **QUIET)
    with pytest.raises(OptionError, match="functions of the output and objectives"):
        objective = deconvviz.optimization.objectives.unit(1, 0)
        deconvviz.maximize(model, target=[objective, len], call=scores, input_size=16, **QUIET)
    with pytest.raises(OptionError, match="either layer="):
        deconvviz.evidence(model, images, call=scores, **QUIET)
