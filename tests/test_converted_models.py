"""Networks that were prepared, quantized, compiled, scripted or cast: right, or refused with the cause and the remedy."""

import copy

import pytest
import torch
from torch import nn

import deconvviz
from deconvviz.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU())
    return nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()


def prepared(observer="x86", calibrated=True):
    quantization = torch.ao.quantization
    model = network()
    model.qconfig = quantization.get_default_qconfig(observer)
    quantization.prepare(model, inplace=True)
    if calibrated:
        model(IMAGES[:1] / 10)  # so that later images take the observers another way
    return model


def trained_for_it():
    quantization = torch.ao.quantization
    model = network().train()
    model.qconfig = quantization.get_default_qat_qconfig("x86")
    quantization.prepare_qat(model, inplace=True)
    model(IMAGES)
    return model.eval()


def static():
    quantization = torch.ao.quantization
    model = nn.Sequential(quantization.QuantStub(), *network(), quantization.DeQuantStub()).eval()
    model.qconfig = quantization.get_default_qconfig("x86")
    quantization.prepare(model, inplace=True)
    model(IMAGES)
    return quantization.convert(model)


def within_the_model():
    model = network()
    model[3] = torch.compile(model[3], backend="eager")
    return model


CALLS = {
    "layers": lambda m, x: torch.tensor([layer.units for layer in deconvviz.layers(m, 16).numbered]),
    "audit": lambda m, x: torch.tensor(len(deconvviz.audit(m, x).unsupported)),
    "deconv": lambda m, x: deconvviz.deconv(m, x, layer=2, unit=1),
    "backprop": lambda m, x: deconvviz.deconv(m, x, layer=2, unit=1, rule="backprop"),
    "project": lambda m, x: deconvviz.project(m, x, layer=2, units=[1, 2], k=2, progress=False).projections,
    "top": lambda m, x: deconvviz.top(m, x, layers=[1, 2], k=2, progress=False)[2].values,
    "occlude": lambda m, x: deconvviz.occlude(m, x[:1], size=6, target=1, progress=False).logit,
    "evidence": lambda m, x: deconvviz.evidence(m, x, layer=1, units=[1], k=2, progress=False).maps,
    "response_std": lambda m, x: deconvviz.response_std(m, x, progress=False).std,
}
EVERY = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@EVERY
@pytest.mark.parametrize("calibrated", [True, False], ids=["calibrated", "not yet"])
def test_observers_change_nothing(call, calibrated):
    """A model that is prepared for quantization computes what it computed before."""
    model = prepared(calibrated=calibrated)
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(call(model, IMAGES), call(network(), IMAGES))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_occlusion_of_a_model_with_observers_stays_incremental():
    options = {"size": 6, "target": 1, "progress": False}
    result = deconvviz.occlude(prepared(), IMAGES[:1], **options)
    assert result.method == deconvviz.occlude(network(), IMAGES[:1], **options).method


def test_fake_quantization_keeps_its_ranges_meanwhile():
    model = trained_for_it()
    before = copy.deepcopy(model.state_dict())
    result = deconvviz.occlude(model, IMAGES[:1] * 3, size=6, stride=5, target=1, progress=False)
    fixed = copy.deepcopy(model).apply(torch.ao.quantization.disable_observer)
    with torch.no_grad():
        for row, top in enumerate(result.rows.tolist()):
            for col, left in enumerate(result.cols.tolist()):
                image = result.image.clone()
                image[:, top : top + 6, left : left + 6] = result.fill[:, top : top + 6, left : left + 6]
                assert fixed(image[None])[0, 1].item() == pytest.approx(result.logit[row, col].item(), abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


HIDDEN = {
    "scripted": (lambda: torch.jit.script(network()), "the model is scripted or traced"),
    "traced": (lambda: torch.jit.trace(network(), IMAGES), "the model is scripted or traced"),
    "compiled": (lambda: torch.compile(network(), backend="eager"), "the model is compiled"),
    "a compiled part": (within_the_model, "its module '3' is compiled"),
    "dynamically quantized": (
        lambda: torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, dtype=torch.qint8),
        "its module '7' is quantized",
    ),
    "statically quantized": (static, "its module '0' is quantized"),
}


@pytest.fixture(scope="module", params=HIDDEN)
def hidden(request):
    make, cause = HIDDEN[request.param]
    return make(), cause


@EVERY
def test_what_hides_its_operations_is_refused(call, hidden):
    model, cause = hidden
    with pytest.raises(ModelError, match=rf"{cause}.*: its operations cannot be seen. Give the plain eager model"):
        call(model, IMAGES)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_lower_precision_gives_what_it_can(call, dtype):
    found, exact = call(network().to(dtype), IMAGES), call(network(), IMAGES)
    assert found.shape == exact.shape
    assert (found.double() - exact.double()).norm() <= 16 * torch.finfo(dtype).eps * exact.double().norm()
