"""The gradient rules are gradients, whatever the network is made of; the deconvnet keeps gates and statistics."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import deconvviz
from deconvviz import UnsupportedOp

EVERY = ("deconvnet", "guided", "backprop")


class Between(nn.Module):
    """conv → `middle` → conv, the last one's name is "last"."""

    def __init__(self, middle) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3), middle

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


def net(middle) -> nn.Module:
    return Between(middle).double().eval()


def response_norm(y):
    """ConvNeXt V2's, on (N, H, W, C)."""
    y = y.permute(0, 2, 3, 1)
    size = y.norm(p=2, dim=(1, 2), keepdim=True)
    scaled = y * (size / (size.mean(-1, keepdim=True) + 1e-6))
    return (y + torch.addcmul(torch.ones(8).to(y), torch.full((8,), 0.5).to(y), scaled)).permute(0, 3, 1, 2)


def layer_norm_by_hand(y):
    mean = y.mean(1, keepdim=True)
    return (y - mean) / torch.sqrt((y - mean).pow(2).mean(1, keepdim=True) + 1e-6)


# Everything here has a rule; the value says whether the deconvnet, which keeps it constant, differs from the gradient.
RULED = {
    "sigmoid gate": lambda y: y * torch.sigmoid(y),
    "scaled gate": lambda y: y * (2 * torch.sigmoid(y)),
    "shifted gate": lambda y: y * (1 + torch.sigmoid(y)),
    "hard swish by hand": lambda y: y * F.relu6(y + 3) / 6,
    "gate behind a dropout": lambda y: y * F.dropout(torch.sigmoid(y), 0.5, False),
    "upsampled gate": lambda y: y * F.interpolate(torch.sigmoid(F.avg_pool2d(y, 2)), scale_factor=2),
    "squeeze and excite": lambda y: y * torch.sigmoid(y.mean((2, 3), keepdim=True)),
    "alias": lambda y: torch.multiply(y, torch.sigmoid(y)),
    "group norm": lambda y: F.group_norm(y, 2),
    "layer norm": lambda y: F.layer_norm(y, y.shape[1:]),
    "RMS norm": lambda y: F.rms_norm(y.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2),
    "RMS norm by hand": lambda y: y * torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-5),
    "layer norm by hand": layer_norm_by_hand,
    "global response norm": response_norm,
    "local response norm": lambda y: F.local_response_norm(y, 3),
    "divided by its size": lambda y: y / y.abs().sum(1, keepdim=True),
    "tanh, a relative of the ReLU": torch.tanh,
}
PLAIN = {
    "squared ReLU": lambda y: F.relu(y) ** 2,
    "square of a ReLU": lambda y: F.relu(y).square(),
    "sum over a stack": lambda y: torch.stack([y, y.flip(2), 2 * y]).sum(0),
    "mean over a stack in the middle": lambda y: torch.stack([y, y.flip(2)], 1).mean(1),
    "picked from a stack": lambda y: torch.stack([y, y * 2, y * 3])[1] + torch.stack([y, y]).unbind(0)[1],
    "moved batch": lambda y: y.permute(1, 0, 2, 3).transpose(0, 1).contiguous(),
    "constants": lambda y: torch.divide(torch.subtract(torch.multiply(y, 3.0), 1.0), 2.0).negative(),
}
UNRULED = {
    "product": lambda y: torch.cat([y[:, :4] * y[:, 4:]] * 2, 1),
    "square": lambda y: y * y,
    "softmax": lambda y: y.softmax(1),
    "clamp": lambda y: y.clamp(-1, 1),
    "exp": torch.exp,
    "softmax over positions": lambda y: y.flatten(2).softmax(2).unflatten(2, y.shape[2:]),
}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", [*RULED, *PLAIN, *UNRULED])
def test_backprop_is_the_plain_gradient(name: str, count: int):
    model = net({**RULED, **PLAIN, **UNRULED}[name])
    images = torch.randn(count, 3, 8, 8, dtype=torch.float64)
    ours = deconvviz.deconv(model, images, layer="last", unit=1, position=(1, 2), rule="backprop")
    tracked = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad((model(tracked)[:, 1, 1, 2] ** 2).sum() / 2, tracked)
    assert (ours - expected).abs().max() <= 1e-12 * expected.abs().max()
    if "ReLU" not in name and name != "hard swish by hand":  # no rectifier: guided is the gradient, too
        guided = deconvviz.deconv(model, images, layer="last", unit=1, position=(1, 2), rule="guided")
        assert torch.equal(guided, ours)


@pytest.mark.parametrize("name", [*RULED, *UNRULED])
def test_projected_gradients_are_not_cut(name: str):
    """The gradient sees through gates and statistics, so the boxes do, too."""
    model = net({**RULED, **UNRULED}[name])
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    result = deconvviz.project(model, images, layer="last", units=[1], top=2, rule="backprop", progress=False)
    whole = deconvviz.deconv(model, images, layer="last", unit=1, rule="backprop")
    for place, image in enumerate(result.image_ids[0].tolist()):
        shown = result.projections[0, place].double().abs().sum().item()
        assert shown == pytest.approx(whole[image].abs().sum().item(), rel=1e-5)


@pytest.mark.parametrize("name", RULED)
def test_the_deconvnet_keeps_gates_and_statistics_constant(name: str):
    model = net(RULED[name])
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    ours = deconvviz.deconv(model, images, layer="last", unit=1, position=(1, 2))
    gradient = deconvviz.deconv(model, images, layer="last", unit=1, position=(1, 2), rule="backprop")
    assert ours.any() and not torch.allclose(ours, gradient)


@pytest.mark.parametrize("name", UNRULED)
def test_the_deconvnet_refuses_the_rest(name: str):
    with pytest.raises(UnsupportedOp):
        deconvviz.deconv(net(UNRULED[name]), torch.randn(2, 3, 8, 8).double(), layer="last", unit=1)


def test_a_dropout_that_is_off_changes_nothing():
    class Gated(nn.Module):
        def __init__(self, p):
            super().__init__()
            self.p = p

        def forward(self, y):
            gate = torch.sigmoid(y.mean((2, 3), keepdim=True))
            return y * (gate if self.p is None else F.dropout(gate, self.p, self.training))

    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for rule in EVERY:
        plain, dropped = (deconvviz.deconv(net(Gated(p)), images, layer="last", unit=2, rule=rule) for p in (None, 0.5))
        assert torch.equal(plain, dropped)


def test_a_power_of_what_may_be_negative_is_no_rectifier():
    with pytest.raises(UnsupportedOp, match="what goes in is no rectifier's result"):
        deconvviz.deconv(net(lambda y: y**2), torch.randn(1, 3, 8, 8).double(), layer="last", unit=0)


def test_a_squared_relu_is_one_rectifier():
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    squared, plain = net(lambda y: F.relu(y).pow(2)), net(F.relu)
    ours, expected = (deconvviz.deconv(m, images, layer="last", unit=1, position=(2, 3)) for m in (squared, plain))
    amounts = [m(images)[:, 1, 2, 3, None, None, None] for m in (squared, plain)]
    # The same but for the activation that is carried back, where its sign is the same.
    for i in range(2):
        if (amounts[0][i] * amounts[1][i]).item() > 0:
            assert torch.allclose(ours[i] / amounts[0][i], expected[i] / amounts[1][i])


SATURATING = {
    "relu6": F.relu6,
    "hardtanh": lambda y: F.hardtanh(y, 0.0, 1.0),
    "clamp": lambda y: y.clamp(0, 1),
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "hard sigmoid by hand": lambda y: F.relu6(y + 3) / 6,
    "relu6 and a dropout": lambda y: F.dropout(F.relu6(y), 0.5, False).contiguous(),
}


@pytest.mark.parametrize("rule", ["guided", "backprop"])
@pytest.mark.parametrize("name", SATURATING)
def test_the_gradient_starts_before_an_activation_that_saturates(name: str, rule: str):
    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.before, self.end = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Identity()

        def forward(self, x):
            return self.end(SATURATING[name](self.before(F.relu(self.first(x))) * 50))

    model = Ends().double().eval()
    images = torch.randn(2, 3, 9, 9, dtype=torch.float64) * 5
    with torch.no_grad():
        maps = model(images)
        unit = int(maps.amax((0, 2, 3)).argmax())
        row, col = ((maps[:, unit] == maps[:, unit].amax()).nonzero()[0, 1:]).tolist()
    options = {"unit": unit, "position": (row, col), "rule": rule}
    ours = deconvviz.deconv(model, images, layer="end", **options)
    before = deconvviz.deconv(model, images, layer="before", **options)
    assert ours.any()
    scale = (maps / model.before(F.relu(model.first(images))).detach() * 50)[:, unit, row, col]
    assert torch.allclose(ours, before * scale[:, None, None, None], atol=1e-9 * float(ours.abs().max()))


def test_folding_into_the_batch_is_refused_with_its_cause():
    def windows(y):
        n, c, h, w = y.shape
        folded = y.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
        back = (folded * 2).view(n, h // 2, w // 2, 2, 2, c)
        return back.permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)

    for rule in EVERY:
        for allowed in (False, True):
            with pytest.raises(UnsupportedOp, match=r"folds parts of each \(heads, windows\) into the batch"):
                deconvviz.deconv(
                    net(windows),
                    torch.randn(2, 3, 8, 8).double(),
                    layer="last",
                    unit=0,
                    rule=rule,
                    allow_gradient=allowed,
                )


@pytest.mark.parametrize("rule", EVERY)
def test_lower_precision_inside_gives_the_images_type(rule: str):
    class Cast(nn.Module):
        def __init__(self, how):
            super().__init__()
            torch.manual_seed(0)
            self.how, self.a, self.b = how, nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)
            if how == "cast":
                self.b.bfloat16()

        def forward(self, x):
            if self.how == "autocast":
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    return self.b(F.relu(self.a(x)))
            return self.b(F.relu(self.a(x)).to(self.b.weight.dtype))

    images = torch.randn(2, 3, 9, 9)
    exact = deconvviz.deconv(Cast(None), images, layer="b", unit=1, position=(2, 2), rule=rule)
    for how in ("cast", "autocast"):
        ours = deconvviz.deconv(Cast(how), images, layer="b", unit=1, position=(2, 2), rule=rule)
        assert ours.dtype == torch.float32
        assert (ours - exact).abs().max() < 0.05 * exact.abs().max()
