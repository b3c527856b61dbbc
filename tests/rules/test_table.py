"""The rules against the paper written out, against captum and against autograd."""

import pytest
import reference
import torch
import torchvision
from hypothesis import assume, given, settings
from nets import SPELLED, Net, nets
from torch import nn
from torch.nn import functional as F

import deconvviz
from deconvviz import OptionError


def close(ours: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    # Numbers are around 1: a projection of 1e-15 is a zero that rounding has left.
    return bool((ours - expected).abs().max() <= tolerance * max(float(expected.abs().max()), 1e-6))


@settings(max_examples=150)
@given(nets())
def test_deconv_is_the_paper_written_out(net: Net):
    ours = deconvviz.deconv(net.module(), net.images, layer="out", unit=net.unit, position=net.position)
    for image, one in zip(net.images.numpy(), ours, strict=True):
        expected, run = reference.project(net.steps, image, net.unit, net.position)
        assume(run.gap > 1e-9)  # the second place so near that rounding decides
        assert close(one, torch.from_numpy(expected), 1e-9), net


PLAIN = ("conv", "relu", "max_pool", "avg_pool", "batch_norm", "add", "concat", "scale")


@settings(max_examples=40)
@given(nets(kinds=PLAIN, whole=False))
def test_backprop_is_autograd(net: Net):
    ours = deconvviz.deconv(
        net.module(), net.images, layer="out", unit=net.unit, position=net.position, rule="backprop"
    )
    for step in net.steps:
        if "style" in step.p:  # autograd has no out=, and cannot bear every change in place
            step.p["style"] = "functional" if step.kind == "relu" else "+"
    images = net.images.clone().requires_grad_()
    activation = net.module().eval()(images)[:, net.unit, net.position[0], net.position[1]]
    (expected,) = torch.autograd.grad((activation**2).sum() / 2, images)
    assert close(ours, expected, 1e-9), net


@settings(max_examples=25)
@given(nets(kinds=PLAIN, whole=False))
def test_guided_is_autograd_with_rectified_gradients(net: Net):
    class Guided(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clamp_min(0)

        @staticmethod
        def backward(ctx, grad):
            return grad.clamp_min(0) * (ctx.saved_tensors[0] > 0)

    ours = deconvviz.deconv(net.module(), net.images, layer="out", unit=net.unit, position=net.position, rule="guided")
    for step in net.steps:
        if "style" in step.p:
            step.p["style"] = "guided" if step.kind == "relu" else "+"
    images = net.images.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPELLED, "relu", lambda module, xs, p: Guided.apply(xs[0]))
        activation = net.module().eval()(images)[:, net.unit, net.position[0], net.position[1]]
    (expected,) = torch.autograd.grad((activation**2).sum() / 2, images)
    assert close(ours, expected, 1e-9), net


def without_in_place(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


@pytest.mark.parametrize(
    ("name", "layer"),
    [("alexnet", "features.10"), ("resnet18", "layer2.1.conv1"), ("squeezenet1_1", "features.7.expand3x3")],
)
def test_deconv_equals_captum(name: str, layer: str):
    from captum.attr import NeuronDeconvolution

    model = without_in_place(torchvision.models.get_model(name, weights=None).eval().double())
    if name == "resnet18":  # captum hooks modules: each ReLU that runs twice needs to be two
        for block in model.modules():
            if isinstance(block, torchvision.models.resnet.BasicBlock):
                block.forward = two_relus(block)
    images = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    caught = {}
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: caught.update(out=o.detach()))
    model(images)
    handle.remove()
    # captum starts from 1 where we start from the activation: the same but for the factor, if that is positive.
    unit, row, col = (int(i) for i in (caught["out"][0] == caught["out"].max()).nonzero()[0])
    ours = deconvviz.deconv(model, images, layer=layer, unit=unit, position=(row, col))
    with pytest.warns(UserWarning):
        attributed = NeuronDeconvolution(model, model.get_submodule(layer)).attribute(images, (unit, row, col))
    expected = attributed.detach() * caught["out"].max()
    assert expected.any()
    assert close(ours, expected, 1e-9)


def two_relus(block: nn.Module):
    block.relu2 = nn.ReLU()

    def forward(x):
        out = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
        return block.relu2(out + (x if block.downsample is None else block.downsample(x)))

    return forward


@pytest.mark.parametrize("function", [F.leaky_relu, F.elu, F.silu, F.gelu, F.hardswish, F.mish, F.relu6, F.softplus])
def test_the_relatives_of_the_relu_rectify_the_signal(function):
    class Net(nn.Module):
        def __init__(self, middle):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.middle = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 2), middle

        def forward(self, x):
            return self.b(self.middle(self.a(x)))

    images = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    net = Net(function).double()
    ours = deconvviz.deconv(net, images, layer="b", unit=1, position=(1, 2))
    # By hand: transposed filters, rectification, transposed filters.
    with torch.no_grad():
        response = net(images)
        signal = torch.zeros_like(response)
        signal[0, 1, 1, 2] = response[0, 1, 1, 2]
        expected = F.conv_transpose2d(F.conv_transpose2d(signal, net.b.weight).clamp_min(0), net.a.weight)
    assert close(ours, expected, 1e-12)
    backprop = deconvviz.deconv(net, images, layer="b", unit=1, position=(1, 2), rule="backprop")
    images.requires_grad_()
    (expected,) = torch.autograd.grad(net(images)[0, 1, 1, 2] ** 2 / 2, images)
    assert close(backprop, expected, 1e-9)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm([4, 4, 4])])
def test_norms_of_the_image_itself_scale_the_signal(norm: nn.Module):
    torch.manual_seed(0)
    for p in norm.parameters():
        p.data.uniform_(0.5, 2)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.Conv2d(4, 2, 2)).double()
    images = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    ours = deconvviz.deconv(net, images, layer="2", unit=1, position=(1, 2))
    with torch.no_grad():
        x = net[0](images)
        response = net(images)[:, 1, 1, 2]
        dims = [1, 2, 3] if isinstance(norm, nn.LayerNorm) else [2, 3] if isinstance(norm, nn.InstanceNorm2d) else None
        if dims is None:
            var = x.view(2, 2, 2, 4, 4).var([2, 3, 4], unbiased=False).repeat_interleave(2, 1)[..., None, None]
        else:
            var = x.var(dims, unbiased=False, keepdim=True)
        weight = norm.weight if isinstance(norm, nn.LayerNorm) else norm.weight[:, None, None]
        signal = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
        signal[:, 1, 1, 2] = response
        back = F.conv_transpose2d(signal, net[2].weight) * weight / (var + norm.eps).sqrt()
        expected = F.conv_transpose2d(back, net[0].weight)
    assert close(ours, expected, 1e-9)


def test_local_response_norm_passes_or_gives_its_gradient():
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.LocalResponseNorm(3, 0.5, 0.75, 2), nn.Conv2d(6, 2, 2)).double()
    images = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    options = {"layer": "2", "unit": 0, "position": (0, 1), "rule": "backprop"}
    gradient = deconvviz.deconv(net, images, **options, lrn="gradient")
    options["rule"] = "deconvnet"  # without rectifiers the same but for the normalization
    passed = deconvviz.deconv(net, images, **options)
    images.requires_grad_()
    (expected,) = torch.autograd.grad(net(images)[0, 0, 0, 1] ** 2 / 2, images)
    assert close(gradient, expected, 1e-9)
    without = deconvviz.deconv(nn.Sequential(net[0], net[2]), images.detach(), **{**options, "layer": "1"})
    ratio = passed / without  # the filters are the same, only the activation differs
    assert torch.allclose(ratio[without != 0], ratio[without != 0][0])


def test_a_pool_that_returns_its_indices():
    class Net(nn.Module):
        def __init__(self, pool):
            super().__init__()
            self.conv, self.pool, self.out = nn.Conv2d(1, 2, 3), pool, nn.Identity()

        def forward(self, x):
            y = self.pool(self.conv(x))
            return self.out(y[0] if isinstance(y, tuple) else y)

    images = torch.randn(2, 1, 8, 9)
    for kind in (nn.MaxPool2d, nn.AdaptiveMaxPool2d):
        torch.manual_seed(3)
        plain = deconvviz.deconv(Net(kind(3)), images, layer="out", unit=1)
        torch.manual_seed(3)
        assert torch.equal(deconvviz.deconv(Net(kind(3, return_indices=True)), images, layer="out", unit=1), plain)


def test_an_adaptive_max_pool_is_unpooled_by_its_switches():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveMaxPool2d((2, 3)), nn.Identity()).double()
    images = torch.randn(2, 1, 9, 10, dtype=torch.float64)
    ours = deconvviz.deconv(net, images, layer="2", unit=1, position=(1, 1))
    images.requires_grad_()
    (expected,) = torch.autograd.grad((net(images)[:, 1, 1, 1] ** 2).sum() / 2, images)  # no ReLU: they agree
    assert close(ours, expected, 1e-12)


def test_a_dilated_pool_whose_window_is_all_padding():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d((1, 2), 1, (0, 1), 2), nn.Identity())
    images = torch.randn(1, 1, 1, 3)
    maps = net(images)
    ours = deconvviz.deconv(net, images, layer="2", unit=0, position=(0, 1))
    assert torch.isfinite(maps[0, 0, 0, 1]) and ours.any()


def test_unknown_rules_are_refused():
    net, images = nn.Sequential(nn.Conv2d(1, 1, 1)), torch.randn(1, 1, 3, 3)
    with pytest.raises(OptionError, match="rule='saliency' is not known; choose one of deconvnet, guided, backprop"):
        deconvviz.deconv(net, images, layer="0", unit=0, rule="saliency")
    with pytest.raises(OptionError, match="lrn='off' is not known; choose 'pass'"):
        deconvviz.deconv(net, images, layer="0", unit=0, lrn="off")


def test_tanh_passes_the_signal_and_the_gradient_rules_take_its_slope():
    torch.manual_seed(3)
    first, second = nn.Conv2d(2, 3, 3).double(), nn.Conv2d(3, 2, 3).double()
    model = nn.Sequential(first, nn.Tanh(), second).eval().requires_grad_(False)
    images = torch.randn(2, 2, 9, 9, dtype=torch.float64)
    options = {"layer": "2", "unit": 1, "position": (2, 3)}
    seed = torch.zeros(2, 2, 5, 5, dtype=torch.float64)
    seed[:, 1, 2, 3] = model(images)[:, 1, 2, 3]
    above = F.conv_transpose2d(seed, second.weight)
    slope = 1 - first(images).tanh() ** 2
    expected = {"deconvnet": above, "backprop": above * slope, "guided": above.clamp_min(0) * slope}
    for rule, signal in expected.items():
        ours = deconvviz.deconv(model, images, rule=rule, **options)
        assert close(ours, F.conv_transpose2d(signal, first.weight), 1e-9), rule
    assert "both signs" in next(row.rule for row in deconvviz.audit(model, images) if row.operation == "torch.tanh")


def backward(model, images, until, unit, position):
    """Return an activation's own gradient, times the activation."""
    x = images.clone().requires_grad_()
    value = model[:until](x)[:, unit, position[0], position[1]]
    return torch.autograd.grad((value**2).sum() / 2, x)[0]


def test_a_sigmoid_rectifies_the_signal_and_the_gradient_rules_take_its_slope():
    torch.manual_seed(3)
    first, second = nn.Conv2d(2, 3, 3).double(), nn.Conv2d(3, 2, 3).double()
    model = nn.Sequential(first, nn.Sigmoid(), second).eval().requires_grad_(False)
    images = torch.randn(2, 2, 9, 9, dtype=torch.float64)
    options = {"layer": "2", "unit": 1, "position": (2, 3)}
    seed = torch.zeros(2, 2, 5, 5, dtype=torch.float64)
    seed[:, 1, 2, 3] = model(images)[:, 1, 2, 3]
    above = F.conv_transpose2d(seed, second.weight)
    slope = first(images).sigmoid() * (1 - first(images).sigmoid())
    expected = {"deconvnet": above.clamp_min(0), "backprop": above * slope, "guided": above * slope}
    for rule, signal in expected.items():
        ours = deconvviz.deconv(model, images, rule=rule, **options)
        assert close(ours, F.conv_transpose2d(signal, first.weight), 1e-9), rule
    (row,) = (row for row in deconvviz.audit(model, images) if row.operation.endswith("sigmoid"))
    assert (row.kind, row.status) == ("squashing", "extension")


def test_sigmoids_are_layers_where_they_make_no_gate():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(
                [nn.Conv2d(3, 4, 3, stride=2, padding=1), *(nn.Conv2d(4, 4, 1) for _ in range(9))]
            )

        def forward(self, x):
            x = self.convs[0](x).relu()
            for conv in self.convs[1:]:
                x = x * torch.sigmoid(conv(x))  # after the last activation
            return x

    few = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 4, 3), nn.Sigmoid())
    assert [row.name for row in deconvviz.layers(few, 16).numbered] == ["1", "3"]
    many = nn.Sequential(
        *(
            m
            for n in range(9)
            for m in (nn.Conv2d(3 if n == 0 else 4, 4, 3, stride=1 + (n == 4), padding=1), nn.Sigmoid())
        )
    )
    assert [row.name for row in deconvviz.layers(many, 16).numbered] == ["7", "17"]
    assert [row.name for row in deconvviz.layers(Gated(), 16).numbered] == [":relu"]


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_an_lp_pool_gives_each_input_its_share(power, ceil_mode):
    torch.manual_seed(power)
    pool = nn.LPPool2d(power, (2, 3), stride=(2, 2), ceil_mode=ceil_mode)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Softplus(), pool, nn.Identity()).double().requires_grad_(False)
    images = torch.randn(3, 2, 9, 10, dtype=torch.float64)
    for position in ((0, 0), (3, 3)):
        ours = deconvviz.deconv(model, images, layer="2", unit=1, position=position, rule="backprop")
        assert close(ours, backward(model, images, 3, 1, position), 1e-9)
    # The deconvnet's way differs at the rectifier alone; the shares times the inputs are the pool's result.
    found = deconvviz.deconv(model[2:], images[:, :1].relu(), layer="2", unit=0, position=(1, 1))
    value = pool(images[:, :1].relu())[:, 0, 1, 1]
    total = (found * images[:, :1].relu()).sum((1, 2, 3))
    assert torch.allclose(total.double(), value**2, rtol=1e-5)  # without weights the network is in float32
    assert (
        deconvviz.deconv(model[2:], torch.zeros(1, 1, 9, 10).double(), layer="2", unit=0, position=(1, 1)).eq(0).all()
    )
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.LPPool2d(2, 3)).double()  # no stride is the kernel's
    assert deconvviz.layers(net, (2, 9, 10))["1"].stride == (3, 3)


class Bare(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.conv, self.last, self.way = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 3, 1), way

    def forward(self, x):
        return self.last(self.way(self.conv(x)))


def test_a_maxout_gives_the_signal_to_the_larger_operand():
    torch.manual_seed(0)
    model = Bare(lambda x: torch.maximum(x[:, :2], x[:, 2:])).double().requires_grad_(False)
    images = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    x = images.clone().requires_grad_()
    value = model(x)[:, 1, 3, 4]
    (expected,) = torch.autograd.grad((value**2).sum() / 2, x)
    for rule in ("deconvnet", "guided", "backprop"):  # there is no rectifier
        assert close(deconvviz.deconv(model, images, layer="last", unit=1, position=(3, 4), rule=rule), expected, 1e-9)
    whole = deconvviz.deconv(model, images, layer="last", unit=1, position=(0, 0))
    tied = Bare(lambda x: torch.maximum(x, x.clone())[:, :2]).double().requires_grad_(False)
    alone = Bare(lambda x: x[:, :2]).double().requires_grad_(False)
    alone.load_state_dict(tied.state_dict())
    both = [deconvviz.deconv(m, images, layer="last", unit=0, position=(0, 0)) for m in (tied, alone)]
    assert close(*both, 1e-12) and whole.any()  # of equal ones it is the first's
    wide = Bare(lambda x: torch.maximum(x, x.mean(1, keepdim=True))[:, :2]).double()
    with pytest.raises(deconvviz.UnsupportedOp, match="its operands are of different sizes"):
        deconvviz.deconv(wide, images, layer="last", unit=0)


@pytest.mark.parametrize("function", [torchvision.ops.roi_pool, torchvision.ops.roi_align], ids=["pool", "align"])
def test_regions_of_interest_carry_back_through_each_image_s_own(function):
    torch.manual_seed(0)
    boxes = torch.tensor([[0, 1.0, 2, 9, 10], [1, 0, 0, 5, 6], [2, 4, 3, 11, 11]], dtype=torch.float64)

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last, self.boxes = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 2), boxes

        def forward(self, x):
            return self.last(function(self.conv(x), self.boxes[: len(x)], (3, 3), 1.0))

    model, images = Head().double().requires_grad_(False), torch.randn(3, 2, 12, 12, dtype=torch.float64)
    x = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad((model(x)[:, 1, 1, 0] ** 2).sum() / 2, x)
    assert close(deconvviz.deconv(model, images, layer="last", unit=1, position=(1, 0)), expected, 1e-9)
    result = deconvviz.project(model, images, layer="last", units=[0, 1], k=3, progress=False)
    for row, unit in enumerate((0, 1)):
        for image, place, ours in zip(
            result.image_ids[row].tolist(), result.positions[row], result.projections[row], strict=True
        ):
            x = images.clone().requires_grad_()
            value = model(x)[image, unit, place[0], place[1]]
            (wanted,) = torch.autograd.grad(value**2 / 2, x)
            assert close(ours, wanted[image], 1e-6)
    model.boxes = boxes.flip(0)
    with pytest.raises(deconvviz.UnsupportedOp, match="it has not one region for each image, in their order"):
        deconvviz.deconv(model, images, layer="last", unit=1)
