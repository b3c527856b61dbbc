"""Models that cannot be seen into are refused; what is restored is tested in test_hygiene.py."""

import threading
import time
import warnings

import pytest
import torch
from torch import nn

import deconvviz
from deconvviz import ModelError
from deconvviz.guard import check_weights, placement, untouched, unwrapped


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(net())


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(net(), torch.zeros(1, 1, 5, 5))


def compiled() -> nn.Module:
    return torch.compile(net())


def compiled_in_place() -> nn.Module:
    model = net()
    model[0].compile()
    return model


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(torch.ao.nn.quantized.Conv2d(1, 2, 3), nn.ReLU())


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.LazyConv2d(2, 3))


OPAQUE = {
    "scripted": (scripted, r"the model is scripted or traced \(torch.jit\): its operations cannot be seen"),
    "traced": (traced, r"scripted or traced"),
    "compiled": (compiled, r"the model is compiled \(torch.compile\).*Give the plain eager model"),
    "compiled inside": (compiled_in_place, r"its module '0' is compiled"),
    "quantized": (quantized, r"its module '0' is quantized"),
    "lazy": (lazy, r"its module '0' is lazy and has no weights before its first run"),
    "scripted inside": (lambda: nn.Sequential(scripted()), r"its module '0' is scripted"),
    "no module": (lambda: torch.relu, r"expected a torch.nn.Module, got"),
}


@pytest.mark.parametrize("kind", OPAQUE)
def test_models_that_cannot_be_seen_into(kind: str):
    build, message = OPAQUE[kind]
    with pytest.raises(ModelError, match=message):
        unwrapped(build())


@pytest.mark.parametrize("call", ["layers", "audit", "deconv", "project", "top"])
def test_every_function_refuses_them(call: str):
    options = {
        "layers": {"input_size": 8},
        "audit": {"images": torch.zeros(1, 1, 8, 8)},
        "deconv": {"images": torch.zeros(1, 1, 8, 8), "layer": 1, "unit": 0},
        "project": {"images": torch.zeros(1, 1, 8, 8), "layer": 1},
        "top": {"images": torch.zeros(1, 1, 8, 8), "layers": 1},
    }[call]
    with pytest.raises(ModelError, match="compiled"):
        getattr(deconvviz, call)(compiled(), **options)


@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.running_var"])
def test_weights_that_are_not_finite_are_named(name: str):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    check_weights(model)
    with torch.no_grad():
        model.state_dict()[name].view(-1)[-1] = torch.nan
    with pytest.raises(ModelError, match=f"'{name}' holds NaN or infinity"):
        check_weights(model)


def test_modes_of_submodules_come_back_even_if_forward_changes_them():
    class Stubborn(nn.Sequential):
        def forward(self, x):
            self[0].train()
            return super().forward(x)

    model = Stubborn(nn.Conv2d(1, 1, 1), nn.Dropout())
    model[1].eval()
    with untouched(model) as network:
        assert not network.training and not network[1].training
        network(torch.zeros(1, 1, 2, 2))
    assert [m.training for m in model.modules()] == [True, True, False]


def test_batch_statistics_in_a_users_graph_survive():
    """Restoring buffers that did not change would break a backward pass that is still to come."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    loss = model(torch.randn(1, 1, 5, 5)).sum()
    deconvviz.layers(model, (1, 8, 8))
    loss.backward()


def test_placement():
    assert placement(net().double()) == (torch.device("cpu"), torch.float64)
    assert placement(nn.ReLU()) == (torch.device("cpu"), torch.float32)


def test_threads_with_the_same_model_wait_for_each_other():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    images = torch.randn(4, 3, 8, 8)
    expected = deconvviz.deconv(model, images, layer="2", unit=1)
    found, inside, most = [], [], []

    class Slow(nn.Module):
        def forward(self, x):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            inside.pop()
            return x

    slow = nn.Sequential(Slow(), model)
    threads = [
        threading.Thread(target=lambda: found.append(deconvviz.deconv(slow, images, layer="1.2", unit=1)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(x, expected) for x in found)
    assert max(most) == 1
    assert all(module.training for module in slow.modules())


def test_a_part_of_a_model_in_use_waits_and_another_model_does_not():
    whole, other = nn.Sequential(net(), net()), net()
    order = []

    def part():
        with untouched(whole[1]):
            order.append("part")

    with untouched(whole):
        thread = threading.Thread(target=part)
        thread.start()
        with untouched(whole[0]):  # the same thread comes through
            pass
        beside = threading.Thread(target=lambda: untouched(other).__enter__() and order.append("other"))
        beside.start()
        beside.join()
        time.sleep(0.02)
        assert order == ["other"]
    thread.join()
    assert order == ["other", "part"]


def test_nothing_is_held_after_an_error_or_a_failed_entry():
    model = net()
    with pytest.raises(ZeroDivisionError), untouched(model):
        raise ZeroDivisionError
    passed = []

    def enter():
        with untouched(model):
            passed.append(1)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(5)
    assert passed
