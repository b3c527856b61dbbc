"""Objectives: their sums, and their gradients against finite differences."""

import pytest
import torch
from torch import nn

from deconvviz.errors import OptionError, UnitError
from deconvviz.optimization.objectives import direction, output, unit, whole
from deconvviz.optimization.reading import reading


class Net(nn.Module):
    """Two convolutions, a concatenation of two activations and a classifier, in float64."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, dtype=torch.float64)
        self.left, self.right = (nn.Conv2d(6, 4, 3, padding=1, dtype=torch.float64) for _ in range(2))
        self.joined = nn.Identity()
        self.head = nn.Linear(8, 5, dtype=torch.float64)

    def forward(self, x):
        x = torch.tanh(self.first(x)) if x.shape[-1] == 1 else torch.relu(self.first(x))
        x = self.joined(torch.cat([torch.relu(self.left(x)), torch.relu_(self.right(x))], 1))
        return self.head(x.mean((2, 3)))


OBJECTIVES = {
    "mean": unit("joined", 6),
    "center": unit("joined", 1, "center"),
    "direction": direction("joined", [1.0, -1, 0, 2, 0, 1, 1, 3]),
    "whole": whole("joined"),
    "class": output(3),
    "sum": unit("joined", 2) + 2 * output(1) - 0.5 * unit("first", 4),
    "least": -unit("joined", 5),
}


def value(network, objective, pixels):
    sources = {layer: network.find(layer) for layer in objective.layers if layer is not None}
    with torch.enable_grad():
        readings = network.read(pixels, list(sources.values()), None in objective.layers)
        return objective.score(lambda layer, how: readings.take(sources.get(layer), how)[0])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_equal_finite_differences(name):
    pixels = torch.rand(1, 3, 9, 9, dtype=torch.float64, requires_grad=True)
    with reading(Net(), None, (3, 9, 9)) as network:
        value(network, OBJECTIVES[name], pixels).backward()
        for _ in range(5):
            way = torch.randn_like(pixels)
            step = 1e-6
            with torch.no_grad():
                up, down = (value(network, OBJECTIVES[name], pixels + s * step * way) for s in (1, -1))
            expected = (up - down) / (2 * step)
            assert abs(float((pixels.grad * way).sum() - expected)) < 1e-6 * max(1, abs(float(expected)))


def test_what_goes_into_joined_activations_is_read():
    net, pixels = Net(), torch.rand(2, 3, 9, 9, dtype=torch.float64)
    with reading(net, None, (3, 9, 9)) as network:
        source = network.find("joined")
        readings = network.read(pixels, [source])
        before, response = readings.before(source), readings.response(source)
    first = torch.relu(net.first(pixels))
    assert torch.allclose(before, torch.cat([net.left(first), net.right(first)], 1), atol=1e-12)
    assert torch.allclose(response, before.clamp(min=0), atol=1e-12) and (before < 0).any()


def test_a_dead_unit_has_a_gradient():
    net = Net()
    nn.init.constant_(net.left.bias, -100)
    pixels = torch.rand(1, 3, 9, 9, dtype=torch.float64, requires_grad=True)
    with reading(net, None, (3, 9, 9)) as network:
        value(network, unit("joined", 2), pixels).backward()
    assert pixels.grad.abs().max() > 0


def test_errors_name_what_was_given():
    with pytest.raises(OptionError, match="at='top'"):
        unit(1, 2, "top")
    with pytest.raises(OptionError, match="not all zero"):
        direction(1, torch.zeros(4))
    pixels = torch.rand(1, 3, 9, 9, dtype=torch.float64)
    with reading(Net(), None, (3, 9, 9)) as network:
        with pytest.raises(UnitError, match="unit 8 is out of range: layer 'joined' has units 0 to 7"):
            value(network, unit("joined", 8), pixels)
        with pytest.raises(UnitError, match="3 numbers, layer 'joined' has 8 units"):
            value(network, direction("joined", [1.0, 2, 3]), pixels)
        with pytest.raises(OptionError, match="class 5 is out of range"):
            value(network, output(5), pixels)
