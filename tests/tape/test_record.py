"""Whatever way a model is written, the tape sees what ran; what it cannot see or has no rule for is refused."""

import warnings

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import deconvviz
from deconvviz import LayerError, ModelError, UnsupportedOp
from deconvviz.errors import ForwardError
from deconvviz.guard import untouched
from deconvviz.rules.table import Saving
from deconvviz.tape.record import record


class Model(nn.Module):
    """conv → `between` → conv, the last one's name is "last"."""

    def __init__(self, between, channels: int = 4) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(channels, 5, 3)
        self.shared = nn.ReLU()
        self.in_place = nn.ReLU(inplace=True)
        self.between = between

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


def run(between, **options):
    model = Model(between).double()
    images = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"layer": "last", "unit": 2, "position": (3, 2), **options}
    return deconvviz.deconv(model, images, **options), model, images


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-12 * float(b.abs().max()))


def added(x):
    x += 1
    return x


def filled(m, x):
    out = torch.empty_like(x)
    torch.clamp(x, min=0, out=out)
    return out


RELUS = {
    "module": lambda m, x: m.shared(x),
    "module twice": lambda m, x: m.shared(m.shared(x)),
    "in-place module": lambda m, x: m.in_place(x),
    "in-place module twice": lambda m, x: m.in_place(m.in_place(x)),
    "functional": lambda m, x: F.relu(x),
    "keyword": lambda m, x: F.relu(input=x),
    "in-place functional": lambda m, x: F.relu(x, inplace=True),
    "relu_": lambda m, x: x.relu_(),
    "torch.relu": lambda m, x: torch.relu(x),
    "clamp": lambda m, x: x.clamp(min=0),
    "clamp_": lambda m, x: x.clamp_(min=0),
    "clamp_min": lambda m, x: x.clamp_min(0),
    "clip": lambda m, x: torch.clip(x, 0),
    "threshold": lambda m, x: F.threshold(x, 0, 0),
    "out=": filled,
    "in-place through a chain": lambda m, x: added(x.relu_()) - 1,
    "aten": lambda m, x: torch.ops.aten.relu.default(x),
    "after contiguous, which returns its input": lambda m, x: x.contiguous().relu_(),
    "in eval dropout": lambda m, x: F.dropout(F.relu(x), 0.5, m.training),
    "checkpointed": lambda m, x: torch.utils.checkpoint.checkpoint(F.relu, x, use_reentrant=False),
    "nested in a dict": lambda m, x: {"a": [F.relu(x)]}["a"][0],
    "in float64 through float32's name": lambda m, x: F.relu(x).to(torch.float64).type_as(x),
}


@pytest.mark.parametrize("spelling", RELUS)
def test_every_spelling_of_a_relu_is_the_same(spelling: str):
    expected, _, _ = run(lambda m, x: F.relu(x))
    assert expected.any()
    assert same(run(RELUS[spelling])[0], expected)


def both_in_place(m, x):
    y = F.relu(x)
    y += m.first.bias.view(1, -1, 1, 1) * 0 + x  # x is used after its ReLU
    return y


ADDS = {
    "operator": lambda m, x: F.relu(x) + x,
    "reversed": lambda m, x: x + F.relu(x),
    "torch": lambda m, x: torch.add(F.relu(x), x),
    "keyword": lambda m, x: torch.add(input=F.relu(x), other=x),
    "in place": both_in_place,
    "add_": lambda m, x: F.relu(x).add_(x),
    "out=": lambda m, x: torch.add(F.relu(x), x, out=torch.empty_like(x)),
    "out= into an operand": lambda m, x: (lambda y: torch.add(y, x, out=y))(F.relu(x)),
    "into a constant": lambda m, x: torch.zeros_like(x).add_(F.relu(x)).add_(x),
    "alpha": lambda m, x: F.relu(x).add(x, alpha=1.0),
    "stack": lambda m, x: torch.stack([F.relu(x), x], 1).sum(1),
    "minus": lambda m, x: F.relu(x) - (-x),
    "rsub": lambda m, x: -(0 - F.relu(x)) + x,
    "out twice": lambda m, x: (F.relu(x) * 2 + x + x) / 2,
}


@pytest.mark.parametrize("spelling", ADDS)
def test_every_spelling_of_a_sum_is_the_same(spelling: str):
    expected, _, _ = run(ADDS["operator"])
    assert same(run(ADDS[spelling])[0], expected)


def test_a_keyword_of_numpy():
    expected, _, _ = run(lambda m, x: torch.cat([F.relu(x)[:, :2], x[:, 2:]], 1))
    assert same(run(lambda m, x: torch.concat([F.relu(x)[:, :2], x[:, 2:]], axis=1))[0], expected)


def through_view(m, x):
    x.view(-1).relu_()
    return x


def through_earlier_view(m, x):
    view = x[:, :2]
    x.relu_()
    return torch.cat([view, view], 1)


def through_data(m, x):
    x.data.relu_()
    return x


def data_set(m, x):
    x.data = F.relu(x)
    return x


def into_part(m, x):
    out = torch.zeros_like(x)
    out[:, :2].copy_(x[:, :2])
    return out


def into_part_of_constant(m, x):
    out = torch.zeros(x.shape, dtype=x.dtype)
    early = out[:, :4]
    torch.add(x[:, :2], 0, out=out[:, :2])
    return early


def item_set(m, x):
    x[:, :2] = 0
    return x


def scripted(function):
    def run(m, x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is on its way out
            return torch.jit.script(function)(x)

    return run


def swish(x):
    return x * torch.sigmoid(x) + x


def square(x):
    return (x + 1) ** 2


# What it says: the operation (and the module, which is the model itself here).
REFUSED = {
    "mask product": (lambda m, x: x * (x > 0), r"torch\.Tensor\.mul in the model itself: both operands"),
    "float mask": (lambda m, x: x * (x > 0).to(x.dtype), "mul in the model itself: both operands"),
    "where": (lambda m, x: torch.where(x > 0, x, 0.0), r"torch\.where in the model itself"),
    "masked_fill": (lambda m, x: x.masked_fill(x < 0, 0), "masked_fill in the model itself"),
    "max with zero": (lambda m, x: torch.maximum(x, torch.zeros_like(x)), r"torch\.maximum in the model itself"),
    "max over channels": (lambda m, x: x.max(1, keepdim=True)[0].expand_as(x), r"torch\.Tensor\.max in"),
    "square": (lambda m, x: x * x, "mul in the model itself: both operands"),
    "power": (lambda m, x: x**2, r"torch\.Tensor\.__pow__ in the model itself: what goes in is no rectifier's result"),
    "absolute": (lambda m, x: x.abs(), r"torch\.Tensor\.abs in"),
    "softsign": (lambda m, x: F.softsign(x), r"softsign in"),
    "clamp at one": (lambda m, x: x.clamp(min=1), r"clamp in the model itself: it cuts at 1"),
    "hardtanh": (lambda m, x: F.hardtanh(x), r"hardtanh in the model itself: it cuts at -1"),
    "threshold": (lambda m, x: F.threshold(x, 0, 3), "it puts 3 in place"),
    "dropout": (lambda m, x: F.dropout(x, 0.5, training=True), r"dropout in the model itself: it is random even"),
    "batch statistics": (lambda m, x: F.batch_norm(x, None, None, training=True), "statistics of the batch"),
    "division of a constant": (lambda m, x: torch.ones_like(x) / x, "div in the model itself: it divides by"),
    "division of a number": (lambda m, x: 1 / x, "there is no rule for it"),
    "division that rounds": (lambda m, x: torch.div(x, 2, rounding_mode="floor"), "it rounds"),
    "quotient": (lambda m, x: x / (1 + x), "both operands"),
    "cast to whole numbers": (lambda m, x: x.to(torch.int64).to(x.dtype), "its result is not floating-point"),
    "matrix of itself": (lambda m, x: x @ x.transpose(2, 3) @ x, "its second operand depends on the images"),
    "filters from the images": (
        lambda m, x: F.conv2d(x, x[:, :, :1, :1].mean(0)[:, None].expand(4, 4, 1, 1)),
        "filters",
    ),
    "index from the images": (lambda m, x: x[:, x.mean((0, 2, 3)).argsort()], "__getitem__ in the model itself"),
    "item assignment": (item_set, "__setitem__ in the model itself"),
    "through a view": (through_view, "in-place change through a view"),
    "through an earlier view": (through_earlier_view, "in-place change through a view"),
    "through .data": (through_data, "in-place change through a view"),
    ".data set": (data_set, r"torch\.Tensor\.data\.__set__"),
    "into a part": (into_part, "in-place change through a view"),
    "into a part, read by an earlier view": (into_part_of_constant, "in-place change"),
    "scripted function": (scripted(square), r"aten\.pow in the model itself: what goes in is no rectifier's result"),
    "batch mixed": (lambda m, x: x.flip(0), "mixes the images of a batch"),
    "batch summed": (lambda m, x: x.cumsum(0), "mixes the images of a batch"),
    "batch centred": (lambda m, x: x - x.mean(0, keepdim=True), "batch"),
    "one factor per image": (lambda m, x: x * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), "treats them unequally"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_rule_is_refused_by_name(what: str):
    between, message = REFUSED[what]
    with pytest.raises(UnsupportedOp, match=message):
        run(lambda m, x: between(m, x))


GRADIENTS = ("mask product", "where", "masked_fill", "square", "power", "absolute", "softsign", "hardtanh", "quotient")


@pytest.mark.parametrize("what", GRADIENTS)
def test_allow_gradient_gives_the_plain_gradient(what: str):
    between = REFUSED[what][0]
    ours, model, images = run(between, allow_gradient=True)
    images = images.clone().requires_grad_()
    activation = model(images)[:, 2, 3, 2]
    (expected,) = torch.autograd.grad((activation**2).sum() / 2, images)
    assert same(ours, expected)


def test_a_scripted_function_is_seen_through():
    assert same(run(scripted(swish))[0], run(lambda m, x: swish(x))[0])


def test_an_autograd_function_is_seen_through():
    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return swish(x)

    assert same(run(lambda m, x: Swish.apply(x))[0], run(lambda m, x: swish(x))[0])


def test_allow_gradient_for_batch_statistics_of_one_image():
    model = Model(lambda m, x: F.batch_norm(x, None, None, training=True)).double()
    images = torch.randn(1, 3, 9, 8, dtype=torch.float64)
    ours = deconvviz.deconv(model, images, layer="last", unit=2, position=(3, 2), allow_gradient=True)
    images.requires_grad_()
    (expected,) = torch.autograd.grad(model(images)[0, 2, 3, 2] ** 2 / 2, images)
    assert same(ours, expected)


def test_torch_batch_norm_has_its_own_order_of_arguments():
    mean, var, weight = torch.randn(4).double(), torch.rand(4).double() + 0.5, torch.randn(4).double()
    expected, _, _ = run(lambda m, x: F.batch_norm(x, mean, var, weight, None, False, 0.1, 1e-5))
    ours, _, _ = run(lambda m, x: torch.batch_norm(x, weight, None, mean, var, False, 0.1, 1e-5, False))
    assert same(ours, expected)


def test_running_statistics_that_change_do_not_hide_the_result():
    class Adaptive(nn.BatchNorm2d):
        def forward(self, x):
            return F.batch_norm(x, self.running_mean, self.running_var, training=True)

    model = nn.Sequential(nn.Conv2d(1, 2, 1), Adaptive(2), nn.Conv2d(2, 1, 1))
    with pytest.raises(UnsupportedOp, match="batch_norm in module '1': it normalizes with the statistics"):
        deconvviz.deconv(model, torch.randn(1, 1, 3, 3), layer="2", unit=0)
    assert not model[1].running_mean.any()


def test_gates_are_constants():
    def swish(m, x):
        return x * torch.sigmoid(2 * x)

    ours, model, images = run(swish)
    with torch.no_grad():
        x = model.first(images)
        gate = torch.sigmoid(2 * x)
    images = images.clone().requires_grad_()
    activation = model.last(model.first(images) * gate)[:, 2, 3, 2]
    (expected,) = torch.autograd.grad((activation**2).sum() / 2, images)
    assert same(ours, expected)


@pytest.mark.parametrize("squeeze", [lambda x: x.mean((2, 3), keepdim=True), lambda x: F.adaptive_avg_pool2d(x, 1)])
def test_squeeze_and_excite(squeeze):
    ours, model, images = run(lambda m, x: x * F.hardsigmoid(squeeze(x)))
    with torch.no_grad():
        gate = F.hardsigmoid(squeeze(model.first(images)))
    images = images.clone().requires_grad_()
    activation = model.last(model.first(images) * gate)[:, 2, 3, 2]
    (expected,) = torch.autograd.grad((activation**2).sum() / 2, images)
    assert same(ours, expected)


def test_a_hard_sigmoid_written_out_is_a_gate_and_another_product_is_not():
    assert run(lambda m, x: x * (F.relu6(x + 3) / 6))[0].any()
    with pytest.raises(UnsupportedOp, match="neither is a gate"):
        run(lambda m, x: x * (F.relu6(x) * 3))


def test_a_gate_that_takes_the_shape_of_the_map():
    expected = run(
        lambda m, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)).expand(2 if len(x) == 2 else 1, 4, 9, 8)
    )
    ours = run(lambda m, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)).expand_as(x))
    assert same(ours[0], expected[0])


def test_a_model_may_change_its_input_in_place():
    class Normalizing(nn.Sequential):
        def forward(self, x):
            x -= 1
            return super().forward(x.mul_(2))

    model = Normalizing(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1)).double()
    plain = nn.Sequential(*model)
    images = torch.randn(2, 1, 5, 6, dtype=torch.float64)
    before = images.clone()
    ours = deconvviz.deconv(model, images, layer="2", unit=1, position=(0, 0))
    assert torch.equal(images, before)
    assert same(ours, 2 * deconvviz.deconv(plain, (images - 1) * 2, layer="2", unit=1, position=(0, 0)))


def test_wrappers_change_nothing():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 2, 2))
    images = torch.randn(2, 2, 9, 9)
    expected = deconvviz.deconv(net, images, layer="3", unit=1)
    assert torch.equal(deconvviz.deconv(nn.Sequential(nn.Identity(), net), images, layer="1.3", unit=1), expected)
    assert torch.equal(deconvviz.deconv(nn.DataParallel(net), images, layer="3", unit=1), expected)
    doubled = deconvviz.deconv(net.double(), images.double(), layer="3", unit=1)
    assert doubled.dtype == torch.float64
    bound = 64 * torch.finfo(torch.float32).eps * float(expected.abs().max())  # of sums of up to 64 terms
    assert torch.allclose(doubled.float(), expected, rtol=0, atol=bound)


def test_outputs_that_are_no_tensors():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
            self.neck = Pyramid()

        def forward(self, x):
            return {"out": self.neck(self.backbone(x)), "n": 3, "none": None}

    class Pyramid(nn.Module):
        def forward(self, x):
            return x, (F.max_pool2d(x, 2), [x.mean((2, 3))])

    names = [row.name for row in deconvviz.layers(Detector(), (1, 8, 8))]
    assert names == ["backbone.0", "backbone", "neck:max_pool2d", "neck[1][1][0]"]
    assert deconvviz.deconv(Detector(), torch.randn(1, 1, 8, 8), layer="neck:max_pool2d", unit=0).shape == (1, 1, 8, 8)


def test_modules_that_run_twice_are_told_apart():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            return self.conv(F.relu(self.conv(x)))

    images = torch.randn(1, 2, 6, 6)
    with pytest.raises(LayerError, match=r"'conv' runs 2 times; say which: conv#1, conv#2"):
        deconvviz.deconv(Twice(), images, layer="conv", unit=0)
    assert deconvviz.layers(Twice(), (2, 6, 6))["conv#2"].receptive_field == (5, 5)


def test_a_layer_inside_an_in_place_chain_keeps_its_values():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1))
    images = torch.randn(1, 1, 5, 5)
    with untouched(net), torch.no_grad():
        response = net[0](images)
        tape = record(net, images, keep=None, saver=Saving())
    kept = tape.kept[tape.calls["0", 1]]
    assert torch.allclose(kept, response) and (kept < 0).any()


def test_a_kept_layer_changed_through_a_view_is_refused():
    class Sneaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1, bias=False)

        def forward(self, x):
            x = self.conv(x)
            x.view(-1).zero_()
            return F.relu(x)

    net = Sneaky()
    with untouched(net), pytest.raises(UnsupportedOp, match="changed in place through a view; its values are lost"):
        record(net, torch.ones(1, 1, 2, 2), keep=None)


def test_a_path_that_depends_on_the_batch_is_noticed():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)

        def forward(self, x):
            return self.a(x) if len(x) == 1 else self.b(x)

    with pytest.raises(LayerError, match="did not run as on the first image"):
        deconvviz.deconv(Fickle(), torch.randn(2, 1, 3, 3), layer="a", unit=0)


def test_a_replay_leaves_constants_alone():
    kept = torch.zeros(1, 4, 1, 8, dtype=torch.float64)

    def into_constant(m, x):
        return kept.clone().expand(2, 4, 9, 8).contiguous().sub_(x)

    assert run(into_constant)[0].any()
    assert not kept.any()


class Boom(Exception):
    pass


def boom(error: Exception):
    def raising(m, x):
        raise error

    return raising


@pytest.mark.parametrize("error", [Boom("mine"), KeyError("key"), NotImplementedError("later"), TypeError("type")])
def test_a_models_own_error_passes_unchanged(error: Exception):
    with pytest.raises(type(error)) as caught:
        run(boom(error))
    assert caught.value is error


@pytest.mark.parametrize("error", [RuntimeError("size 3"), ValueError("wrong"), AssertionError(""), IndexError("i")])
def test_an_error_that_images_may_cause_says_what_they_were(error: Exception):
    with pytest.raises(ModelError, match=r"the model failed on images of shape \(1, 3, 9, 8\), float64: ") as caught:
        run(boom(error))
    assert caught.value.__cause__ is error
    assert isinstance(caught.value, RuntimeError)


def test_wrong_channels_say_so():
    with pytest.raises(ModelError, match=r"shape \(1, 1, 9, 9\), float32: .*expected input.* to have 3 channels"):
        deconvviz.deconv(Model(lambda m, x: x), torch.randn(2, 1, 9, 9), layer="last", unit=0)


class Shared(nn.Module):
    """A module under two names, and blocks that return more than a tensor."""

    def __init__(self):
        super().__init__()
        self.conv, self.block, self.pair = nn.Conv2d(3, 4, 3), Returns("one"), Returns("two")
        self.tied = self.conv

    def forward(self, x):
        x = self.conv(x)
        x = self.block(x)[0] + self.pair(x)["b"][0]
        return x.mean((2, 3))


class Returns(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        return (x.relu(), None, 3) if self.form == "one" else {"a": x * 2, "b": [x * 3]}


def test_every_name_of_a_module_works_and_so_do_the_parts_of_what_it_returns():
    model, images = Shared(), torch.randn(1, 3, 8, 8)
    conv = model.conv(images)
    values = {"conv": conv, "tied": conv, "block": conv.relu(), "pair[a]": conv * 2, "pair[b][0]": conv * 3}
    for name, expected in values.items():
        best = deconvviz.top(model, images, layers=[name], k=1, progress=False).tops[0]
        assert torch.allclose(best.values[:, 0], expected.amax((0, 2, 3))), name
    with pytest.raises(LayerError, match=r"'pair' returns 2 tensors; say which: pair\[a\], pair\[b\]\[0\]"):
        deconvviz.layers(model, 8)["pair"]


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: nn.DataParallel(nn.DataParallel(m))])
def test_names_inside_a_wrapper_work(wrap):
    model, images = Shared(), torch.randn(1, 3, 8, 8)
    wrapped = wrap(model)
    name = next(path for path, module in wrapped.named_modules() if module is model.block)
    assert name.startswith("module.")
    ours = deconvviz.deconv(wrapped, images, layer=name, unit=1)
    assert torch.equal(ours, deconvviz.deconv(model, images, layer="block", unit=1))


@pytest.mark.parametrize("place", ["__enter__", "__exit__"])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("base", [TorchDispatchMode, TorchFunctionMode])
def test_an_interrupt_leaves_no_mode_behind(monkeypatch, base, place, late):
    model, images, seen = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(1, 3, 8, 8), []
    real = getattr(base, place)

    def interrupted(self, *args):
        ours = type(self).__module__.startswith("deconvviz") and not seen
        if ours:
            seen.append(self)
        if ours and not late:
            raise KeyboardInterrupt
        result = real(self, *args)
        if ours:
            raise KeyboardInterrupt
        return result

    class Theirs(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    def stacks():
        return (
            torch.overrides._get_current_function_mode_stack(),
            torch.utils._python_dispatch._get_current_dispatch_mode_stack(),
        )

    with Theirs():
        before = stacks()
        with monkeypatch.context() as patch:
            patch.setattr(base, place, interrupted)
            with pytest.raises(KeyboardInterrupt):
                deconvviz.deconv(model, images, layer="1", unit=0)
        assert seen and stacks() == before
    expected = deconvviz.deconv(model, images, layer="1", unit=0)
    assert expected.any()


def test_an_error_while_an_interrupt_is_handled_stays_an_error():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(ForwardError, match="broken"):
            deconvviz.deconv(Broken(), torch.zeros(1, 3, 4, 4), layer=1, unit=0)


def test_a_models_own_error_comes_at_once_and_a_devices_as_it_is():
    class Broken(nn.Module):
        def __init__(self, text, after):
            super().__init__()
            self.conv, self.text, self.left = nn.Conv2d(3, 4, 3), text, after

        def forward(self, x):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError(self.text)
            return self.conv(x)

    images = torch.randn(4, 3, 8, 8)
    for after in range(6):  # the survey, the rehearsal, and so on: none of them runs the model again
        model = Broken("no luck", after)
        with pytest.raises(ForwardError, match="no luck"):
            deconvviz.project(model, images, layer="conv", units=[0], top=2, batch_size=2, progress=False)
        assert model.left == -1
    with pytest.raises(RuntimeError, match=r"^CUDA error: misaligned address$"):
        deconvviz.layers(Broken("CUDA error: misaligned address", 0), 8)


def test_a_view_that_needs_contiguous_maps_is_run_again():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)

        def forward(self, x):
            x = self.a(x)
            return self.b(x.view(len(x), -1).view(x.shape))

    model, images = Viewed(), torch.randn(2, 3, 9, 9)
    result = deconvviz.project(model, images, layer="b", units=[1], top=2, progress=False)
    whole = deconvviz.deconv(model, images, layer="b", unit=1)
    for place, number in enumerate(result.image_ids[0].tolist()):
        assert result.projections[0, place].sum() == pytest.approx(whole[number].sum().item(), rel=1e-4)
