"""What goes into a layer's activation is found behind pools and joints, and is what the network computes there."""

import torch
from torch import nn
from torch.nn import functional as F

from deconvviz.optimization.reading import reading


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.drop = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3), nn.Dropout(0.5)
        self.join, self.pool = nn.Identity(), nn.MaxPool2d(2)

    def forward(self, x):
        both = torch.cat([F.relu(self.a(x)), F.gelu(self.b(x))], 1)
        return self.pool(self.join(self.drop(both)))


def test_what_goes_into_activations_behind_joints_and_pools():
    torch.manual_seed(0)
    model, x = Joined().eval(), torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        before = torch.cat([model.a(x), model.b(x)], 1)
        expected = {"join": before, "pool": F.max_pool2d(before, 2), "a": model.a(x)}
        with reading(model, None, (3, 12, 12)) as network:
            sources = {name: network.find(name) for name in expected}
            readings = network.read(x, list(sources.values()))
            for name, source in sources.items():
                assert torch.allclose(readings.before(source), expected[name], atol=1e-6), name
            assert sources["a"].before is None and len(sources["pool"].before.layers) == 2


def test_a_gradient_reaches_the_image_through_a_dead_activation_behind_a_pool():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)).eval()
    with torch.no_grad():
        model[0].bias.fill_(-50)
    x = torch.rand(1, 3, 12, 12, requires_grad=True)
    with reading(model, None, (3, 12, 12)) as network, torch.enable_grad():
        source = network.find("2")
        readings = network.read(x, [source])
        assert not readings.response(source).any()
        (gradient,) = torch.autograd.grad(readings.before(source)[0, 1].sum(), x)
    assert gradient.any()
