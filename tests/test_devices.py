"""Exact float32, lack of memory, copies: what is not the same on every device, on a simulated one."""

import pytest
import torch
from simulated_device import simulated
from torch import nn

import deconvviz
from deconvviz.devices import exact_float32, free_bytes, lacks_memory, of_the_device, sent
from deconvviz.errors import ForwardError, ModelError
from deconvviz.guard import check_weights, untouched


def switches():
    """Every switch of torch that can make float32 less than it is, as far as it can be read."""
    found = [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32]
    if hasattr(torch.backends.cudnn, "conv"):
        owners = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
        found += [owner.fp32_precision for owner in (*owners, torch.backends.mkldnn.matmul)]
    return found


@pytest.fixture
def medium():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("raises", [False, True])
def test_float32_is_exact_inside_and_as_before_afterwards(medium, raises):
    before = switches()
    assert before[:2] == ["medium", True]
    with pytest.raises(KeyError), untouched(nn.Linear(1, 1)), exact_float32():  # one inside the other
        assert switches()[:2] == ["highest", False] and not torch.backends.cuda.matmul.allow_tf32
        assert not {"tf32", "bf16"} & set(map(str, switches()))
        with torch.backends.cudnn.flags(enabled=False):  # what a model may do in its forward
            pass
        if not raises:
            assert switches()[:2] == ["highest", False]
        raise KeyError
    assert switches() == before


def network():
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 5))


@pytest.mark.parametrize("layer", ["3", "6"])
def test_no_tf32_in_what_calls_itself_exact(medium, layer):
    model, images = network(), torch.randn(2, 3, 16, 16)
    expected = deconvviz.deconv(model, images, layer=layer, unit=1)
    with simulated(tf32=True):
        model.to("cuda")
        found = deconvviz.deconv(model, images.to("cuda"), layer=layer, unit=1)
        assert torch.equal(found.cpu(), expected)
        with torch.no_grad():
            off = (model(images.to("cuda")).cpu() - model.cpu()(images)).abs().max()
        assert off > 1e-5  # the model's own passes keep the precision that its user has chosen


ERRORS = {
    "CUDA out of memory. Tried to allocate 2.00 GiB": True,
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": True,
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED": True,
    "MPS backend out of memory (MPS allocated: 1 GB)": True,
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.": True,
    "CUDA error: an illegal memory access was encountered": False,
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED": False,
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_of_the_device_stay_what_they_are(message, monkeypatch):
    error = RuntimeError(message)
    assert lacks_memory(error) == ERRORS[message] and of_the_device(error)
    assert not lacks_memory(ValueError(message)) and lacks_memory(torch.OutOfMemoryError("no room"))

    class Failing(nn.Module):
        def forward(self, x):
            raise error

    with pytest.raises(RuntimeError) as raised:
        deconvviz.deconv(Failing(), torch.zeros(1, 3, 8, 8), layer="0", unit=0)
    assert raised.value is error

    class Exponential(nn.Module):
        def forward(self, x):
            return x.exp()

    def failing(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.autograd, "grad", failing)  # an operation's own way back
    with pytest.raises(RuntimeError) as raised:
        model = nn.Sequential(nn.Conv2d(3, 2, 3), Exponential(), nn.Conv2d(2, 2, 1))
        deconvviz.deconv(model, torch.zeros(1, 3, 8, 8), layer="2", unit=0, allow_gradient=True)
    assert raised.value is error


def test_an_error_of_the_model_names_the_images():
    with pytest.raises(ForwardError, match="failed on images of shape"):
        deconvviz.deconv(nn.Conv2d(2, 3, 3), torch.zeros(1, 3, 8, 8), layer="0", unit=0)


def test_copies_to_the_cpu_are_waited_for():
    with simulated() as device:
        x = sent(torch.ones(3), torch.device("cuda"))
        assert not device.waits and x.is_cuda
        assert sent(x, torch.device("cpu")).tolist() == [1, 1, 1]
        assert device.waits.total() == 1


def test_memory_that_torch_holds_unused_is_free(monkeypatch):
    with simulated(free=1000):
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: 700)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: 200)
        assert free_bytes(torch.device("cuda")) == 1500
    assert free_bytes(torch.device("cpu")) is None and free_bytes(torch.device("mps")) is None


def test_weights_are_checked_with_one_wait():
    with simulated() as device:
        model = deconvviz.zoo.create("resnet-20").to("cuda")
        device.clear()
        check_weights(model)
        assert device.waits.total() == 1
        with torch.no_grad():
            list(model.parameters())[7].view(-1)[3] = torch.nan
        with pytest.raises(ModelError, match=r"the weights are not finite: '.*' holds NaN"):
            check_weights(model)


def test_buffers_are_compared_with_one_wait():
    with simulated() as device:
        model = deconvviz.zoo.create("resnet-20").to("cuda")
        with untouched(model):
            device.clear()
        assert device.waits.total() == 1
        before = {name: b.cpu() for name, b in model.named_buffers()}
        with untouched(model):
            list(model.buffers())[4].mul_(2)
            list(model.buffers())[-2].data.add_(1)
        assert all(torch.equal(b.cpu(), before[name]) for name, b in model.named_buffers())
