"""The gradient rules are gradients, whatever the network is made of; the deconvnet keeps gates and statistics."""

import threading
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import deform_conv2d

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
    "deformable convolution": lambda y: deform_conv2d(
        y, (y[:, :2] / 3).repeat(1, 9, 1, 1), torch.linspace(-1, 1, 576).view(8, 8, 3, 3).to(y), padding=1
    ),
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


# ---- what autograd does not pass through ----


class Straight(torch.autograd.Function):
    """Rounds; its backward passes the gradient on."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Reversed(torch.autograd.Function):
    """Changes nothing; its backward turns the gradient round, by a number that is no tensor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x

    @staticmethod
    def backward(ctx, grad):
        return -ctx.factor * grad, None


class Swish(torch.autograd.Function):
    """The swish that saves memory, of two results."""

    @staticmethod
    def forward(x):
        return x * torch.sigmoid(x), x > 0

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, grad, _):
        (x,) = ctx.saved_tensors
        return grad * (torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x))))


class Doubled(torch.autograd.Function):
    """Works in place; its backward takes half."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


reverse = Reversed.apply  # as models keep it


def without_gradients(function):
    def run(y):
        with torch.no_grad():
            return function(y)

    return run


def clipped_quietly(y):
    y = y * 2
    with torch.no_grad():
        y.clamp_(-1, 1)
    return y


def replaced(y):
    z = y * 2
    z.data = y.detach().clamp(-1, 1)
    return z


def cut_in_place(y):
    z = y * 3
    z.detach_()
    return y + z


@torch.inference_mode()
def statistics(y):
    return y.mean((2, 3), keepdim=True)


def written_into(y):
    z = torch.zeros_like(y)
    z[:, :4] = y[:, :4]
    with torch.no_grad():
        z[:, 4:] = y[:, 4:] * 2
    return z


def once_more_enabled(y):
    with torch.no_grad():
        a = y.sin()
        with torch.enable_grad():
            b = y.sin()
    return a + 2 * b


DETACHED = {
    "detach": lambda y: y + torch.sin(y).detach(),
    "data": lambda y: y * 2 + torch.sin(y).data,
    "detached in place": cut_in_place,
    "no_grad": lambda y: y * without_gradients(torch.sigmoid)(y),
    "no_grad, in place": clipped_quietly,
    "no_grad, a part in place": written_into,
    "other data": replaced,
    "gradients on inside no_grad": once_more_enabled,
    "inference mode": lambda y: y - statistics(y).clone(),
    "a copy": lambda y: y - y.new_tensor(y.detach()) * 0.5,
    "straight through": lambda y: y + (y.clamp(-0.5, 0.5) - y).detach(),
    "stopped switch": lambda y: torch.where(y.detach() > 0, y, y.detach() * 0.1),
    "a norm that is a constant": lambda y: y / y.norm(dim=1, keepdim=True).detach(),
}
FUNCTIONS = {
    "straight through": Straight.apply,
    "gradient reversal": lambda y: reverse(y, 3.0) + y,
    "swish": lambda y: Swish.apply(y)[0],
    "where gradients are off": lambda y: y + without_gradients(Straight.apply)(y),
    "checkpoint": lambda y: checkpoint(lambda z: torch.sin(z) * 2, y, use_reentrant=False),
    "reentrant checkpoint": lambda y: checkpoint(lambda z: torch.sin(z) * 2, y, use_reentrant=True),
    "reentrant checkpoint of nothing": lambda y: checkpoint(nn.Identity(), y, use_reentrant=True),
}
# torch says so where it is run without gradients, whoever runs it.
QUIET = "ignore:None of the inputs have requires_grad|To copy construct from a tensor"


@pytest.mark.filterwarnings(QUIET)
@pytest.mark.parametrize("middle", [*DETACHED.values(), *FUNCTIONS.values()], ids=[*DETACHED, *FUNCTIONS])
def test_backprop_stops_where_autograd_does(middle):
    model = net(middle)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    options = {"layer": "last", "unit": 1, "position": (1, 2)}
    ours = deconvviz.deconv(model, images, rule="backprop", **options)
    tracked = images.clone().requires_grad_()
    ((model(tracked)[:, 1, 1, 2] ** 2).sum() / 2).backward()
    expected = tracked.grad
    assert expected.any() and (ours - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert torch.equal(deconvviz.deconv(model, images, rule="guided", **options), ours)  # there is no rectifier
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted and all(wanted)
    assert "__getattribute__" not in vars(torch.autograd.function.FunctionMeta)
    assert torch.is_grad_enabled()


@pytest.mark.filterwarnings(QUIET)
@pytest.mark.parametrize("middle", [*DETACHED.values(), *FUNCTIONS.values()], ids=[*DETACHED, *FUNCTIONS])
def test_projected_gradients_stop_there_too(middle):
    model = net(middle)
    images = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    result = deconvviz.project(model, images, layer="last", units=[1], k=2, rule="backprop", progress=False)
    whole = deconvviz.deconv(model, images, layer="last", unit=1, rule="backprop")
    for place, image in enumerate(result.image_ids[0].tolist()):
        top, left, bottom, right = result.boxes[0, place].tolist()
        assert whole[image].any()
        shown = result.projections[0, place].double().abs().sum().item()
        assert shown == pytest.approx(whole[image, :, top:bottom, left:right].abs().sum().item(), rel=1e-5)
        assert shown == pytest.approx(whole[image].abs().sum().item(), rel=1e-5)


@pytest.mark.parametrize("rule", EVERY)
def test_a_function_that_works_in_place_is_refused(rule: str):
    """torch counts the change where the recorder cannot see it."""
    model, images = net(lambda y: Doubled.apply(y * 1)), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(UnsupportedOp, match="an in-place change through a view in module 'last'"):
        deconvviz.deconv(model, images, layer="last", unit=1, rule=rule)


def test_the_deconvnet_goes_by_what_ran_forward():
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plain, detached = net(lambda y: y + F.relu(y)), net(lambda y: y + without_gradients(F.relu)(y.detach()).data)
    options = {"layer": "last", "unit": 1}
    assert torch.equal(deconvviz.deconv(detached, images, **options), deconvviz.deconv(plain, images, **options))


@pytest.mark.parametrize("name", ["detach", "no_grad", "a function that passes nothing"])
def test_a_gradient_that_reaches_no_image_is_refused(name: str):
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return None

    middle = {"detach": torch.Tensor.detach, "no_grad": without_gradients(F.relu)}.get(name, Nothing.apply)
    model, images = net(middle), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(UnsupportedOp, match=r"no gradient of layer 'last' reaches the images"):
        deconvviz.deconv(model, images, layer="last", unit=1, rule="backprop")
    with pytest.raises(UnsupportedOp, match=r"no gradient of layer 'last' reaches the images"):
        deconvviz.project(model, images, layer="last", units=[1], rule="backprop", progress=False)
    assert deconvviz.deconv(model, images, layer="last", unit=1).any()


def test_the_audit_says_where_a_gradient_stops():
    model = net(lambda y: y + without_gradients(F.relu)(y) + Straight.apply(y))
    image = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    rows = {row.operation.rsplit(".", 1)[-1]: row for row in deconvviz.audit(model, image, rule="backprop")}
    assert rows["relu"].rule == "none: autograd passes nothing back"
    assert rows["apply"].rule == "its plain gradient" and not deconvviz.audit(model, image, rule="backprop").unsupported
    assert {row.operation.rsplit(".", 1)[-1] for row in deconvviz.audit(model, image).unsupported} == {"round"}


def test_custom_functions_of_other_threads_run_as_ever():
    """One thread records while another trains through the same function."""
    seen, done = [], threading.Event()

    def train():
        while not done.is_set():
            x = torch.ones(3, requires_grad=True)
            Straight.apply(x).sum().backward()
            seen.append(bool((x.grad == 1).all()))
            time.sleep(0.001)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        for _ in range(3):
            deconvviz.deconv(net(Straight.apply), images, layer="last", unit=1, rule="backprop")
    finally:
        done.set()
        thread.join()
    assert seen and all(seen)


MIXING = {
    "maximum": lambda y: y / (1 + y.amax(0, keepdim=True)),
    "mean": lambda y: y * torch.sigmoid(y.mean(0, keepdim=True)),
    "mean, expanded": lambda y: y * torch.sigmoid(y.mean(0).expand_as(y)),
    "the first image": lambda y: y * torch.sigmoid(y[:1]),
}


@pytest.mark.parametrize("name", MIXING)
def test_gates_of_a_whole_batch_are_refused(name: str):
    model, images = net(MIXING[name]), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(UnsupportedOp, match="mixes the images of a batch"):
        deconvviz.deconv(model, images, layer="last", unit=1)
    with pytest.raises(UnsupportedOp, match="mixes the images of a batch"):
        deconvviz.project(model, images, layer="last", units=[1], k=2, progress=False)
    if name != "maximum":  # of one image it is as large as the map, so it is no statistic
        assert deconvviz.deconv(model, images[:1], layer="last", unit=1).any()  # alone there is nothing to mix
