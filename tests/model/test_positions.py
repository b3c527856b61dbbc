"""Rows, columns and units are found wherever a model puts them; what can't be told is refused."""

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import deconvviz
from deconvviz import ImageError, LayerError, ModelError
from deconvviz.model.survey import resolve


class Step(nn.Module):
    """One step of a network that moves positions about."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        weights = {"conv": (2, 2, 3, 2), "dilated": (2, 2, 3, 3), "circular": (2, 2, 3, 3), "up": (2, 2, 3, 2)}
        self.weight = nn.Parameter(torch.rand(weights.get(kind, (1, 1, 1, 1)), dtype=torch.float64) + 0.1)

    def forward(self, x):
        match self.kind:
            case "conv":
                return F.conv2d(x, self.weight, padding=(1, 0), stride=(1, 2))
            case "dilated":
                return F.conv2d(x, self.weight, padding=(1, 2), dilation=(2, 3))
            case "circular":
                return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), self.weight)
            case "up":
                return F.conv_transpose2d(x, self.weight, stride=(1, 2))
            case "swap":
                return x.transpose(2, 3)
            case "flip":
                return x.flip(3)
            case "roll":
                return x.roll((2, 1), (2, 3))
            case "area":
                return F.interpolate(x, size=(6, 5), mode="area")
            case "bicubic":
                return F.interpolate(x, size=(7, 9), mode="bicubic").abs()
            case "adapt":
                return F.adaptive_avg_pool2d(x, (5, 4))
            case "flat":
                return F.relu(x.flatten(2)).unflatten(2, x.shape[2:])
            case "last":
                return x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)
            case "sum":
                return x + x.flip(2)
            case "cross":
                side = min(x.shape[2:])
                x = x[:, :, :side, :side]
                return x + x.transpose(2, 3)
        raise AssertionError(self.kind)


KINDS = "conv dilated circular up swap flip roll area adapt flat last sum cross".split()


@settings(max_examples=40)
@given(st.lists(st.sampled_from(KINDS), min_size=2, max_size=5), st.sampled_from([(9, 12), (14, 10)]))
def test_projections_are_not_cut_however_positions_move(kinds, size):
    torch.manual_seed(0)
    model = nn.Sequential(Step("dilated"), *map(Step, kinds)).eval()
    images = torch.rand(3, 2, *size, dtype=torch.float64)
    layer = str(len(kinds))
    try:
        model(images)
    except RuntimeError:
        assume(False)  # the map is smaller than a kernel
    try:
        result = deconvviz.project(model, images, layer=layer, units=[1], top=3, progress=False)
    except deconvviz.LayerError as refused:
        assert "holds its channels can't be told" in str(refused)
        return
    whole = deconvviz.deconv(model, images, layer=layer, unit=1)
    found = resolve(model, layer, images)
    for place, number in enumerate(result.image_ids[0].tolist()):
        top, left, bottom, right = result.boxes[0, place].tolist()
        inside = whole[number, :, top:bottom, left:right]
        assert whole[number].any()
        assert inside.abs().sum() == pytest.approx(whole[number].abs().sum().item(), rel=1e-12)
        shown = result.projections[0, place].double()
        assert shown.abs().sum() == pytest.approx(inside.abs().sum().item(), rel=1e-5)
    for row in range(found.height):
        for col in range(found.width):
            images.requires_grad_()
            (grad,) = torch.autograd.grad(found.as_maps(model(images))[0, :, row, col].sum(), images)
            rows, cols = grad[0].abs().sum(0).nonzero().T
            top, left, bottom, right = found.reach.boxes(np.array((row, col)))
            if len(rows):
                assert top <= rows.min() and rows.max() < bottom and left <= cols.min() and cols.max() < right


class Tokens(nn.Module):
    """A small vision transformer: patches, a class token, attention, a block that mixes tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.flat = nn.Conv2d(3, 8, 4, 4), nn.Flatten(2)
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix, self.fc = nn.Linear(12, 12), nn.Linear(8, 6)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.tokens, self.classed, self.after = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x):
        x = self.tokens(self.flat(self.patches(x)).transpose(1, 2))
        x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        x = self.classed(torch.cat([self.token.expand(len(x), -1, -1), x], 1))
        y = self.norm(x)
        return self.fc(self.after(x + self.attention(y, y, y, need_weights=False)[0]))


def test_tokens_are_positions_and_their_features_units():
    model, images = Tokens().eval(), torch.randn(2, 3, 12, 16)
    table = deconvviz.layers(model, (12, 16))
    forms = {r.name: (r.units, r.height, r.width) for r in table}
    assert forms["patches"] == forms["flat"] == forms["tokens"] == (8, 3, 4)
    assert forms["classed"] == forms["after"] == (8, 3, 4)  # and the class token apart
    assert forms["classed:class"] == forms["after:class"] == (8, 1, 1)
    assert forms["fc"] == (6, 3, 4)
    assert forms["mix"] == (0, 0, 0)  # tokens went into its features
    assert "?" in str(table)
    with pytest.raises(LayerError, match=r"which dimension of layer 'mix' holds its channels can't be told"):
        deconvviz.top(model, images, layers=["mix"], k=1, progress=False)
    best = deconvviz.top(model, images, layers=["flat"], k=1, progress=False)["flat"]
    maps = model.patches(images).detach()
    strongest = maps.amax((2, 3)).argmax(0)
    assert torch.equal(best.image_ids[:, 0], strongest)
    for unit, (row, col) in enumerate(best.positions[:, 0].tolist()):
        assert float(maps[strongest[unit], unit, row, col]) == pytest.approx(float(best.values[unit, 0]), rel=1e-5)
    result = deconvviz.project(model, images, layer="tokens", units=[5], top=1, progress=False)
    row, col = result.positions[0, 0].tolist()
    assert result.boxes[0, 0].tolist() == [4 * row, 4 * col, 4 * row + 4, 4 * col + 4]
    same = deconvviz.project(model, images, layer="patches", units=[5], top=1, progress=False)
    assert torch.equal(result.projections, same.projections)


def test_channels_last_blocks_are_read_as_such():
    """Swin's blocks have the form (N, H, W, C), also behind its shifted windows."""
    torch.manual_seed(0)
    model = torchvision.models.SwinTransformer([4, 4], 8, [1, 2], [2, 2], [4, 4], num_classes=3).eval()
    images = torch.randn(2, 3, 32, 40)
    table = deconvviz.layers(model, (32, 40))
    last = table["features.3"]
    assert (last.units, last.height, last.width) == (16, 4, 5)
    best = deconvviz.top(model, images, layers=["features.3"], k=1, progress=False).tops[0]
    caught = {}
    model.features[3].register_forward_hook(lambda m, i, o: caught.update(out=o))
    model(images)
    assert torch.allclose(best.values[:, 0], caught["out"].amax((0, 1, 2)), atol=1e-5)


@pytest.mark.parametrize("order", [(0, 3, 1, 2), (0, 2, 3, 1), (0, 3, 2, 1)])
def test_images_in_another_order_are_refused(order):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x):
            return F.relu(self.conv((x / 2).permute(order)))

    size = [0, 0, 0]
    for place, length in zip(order[1:], (3, 24, 16), strict=True):
        size[place - 1] = length
    images = torch.randn(2, *size)
    for call in (
        lambda: deconvviz.layers(Other(), tuple(size)),
        lambda: deconvviz.deconv(Other(), images, layer="conv", unit=0),
        lambda: deconvviz.top(Other(), images, layers=["conv"], progress=False),
    ):
        with pytest.raises(ImageError, match=r"takes the images' (height|width) as channels.*Wrap it"):
            call()


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "vgg11", "densenet121"])
def test_a_number_names_the_same_layer_at_every_size(name: str):
    model = torchvision.models.get_model(name, weights=None)
    usual = {row.number: row.name for row in deconvviz.layers(model, 128).numbered}
    for size in (32, 40, 63, (48, 97)):
        found = {row.number: row.name for row in deconvviz.layers(model, size).numbered}
        assert found and found.items() <= usual.items(), size


def test_what_follows_an_adaptive_pool_has_no_number():
    def block(n):
        return nn.Sequential(nn.Conv2d(n, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))

    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(4, 4, 1), nn.ReLU())
    model = nn.Sequential(*(block(3 if i == 0 else 4) for i in range(3)), *(nn.Conv2d(4, 4, 1) for _ in range(5)), head)
    for size in (8, 16, 32, 48):
        assert [row.name for row in deconvviz.layers(model, size).numbered] == ["0.1", "1.1", "2.1"]


def test_results_are_looked_through_by_the_name_that_was_asked_for():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Conv2d(4, 2, 3))
    images = torch.randn(4, 3, 9, 9)
    best = deconvviz.top(model, images, layers=["0.1", "0", 1], k=2, progress=False)
    assert torch.equal(best["0.1"].values, best["0"].values)
    assert best[1].number == 1
    for scanned in ("0.1", "0", 1):
        held = deconvviz.top(model, images, layers=[scanned], k=2, progress=False)
        for layer in ("0.1", "0", 1):
            result = deconvviz.project(model, images, layer=layer, units=[3], top=held, progress=False)
            assert torch.equal(result.activations[0], held.tops[0].values[3])


def test_responses_that_are_not_one_per_image_are_refused():
    class Augmented(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(self.conv(torch.cat([x, x.flip(3)])).mean((2, 3))).view(2, len(x), -1).mean(0)

    model, images = Augmented().eval(), torch.randn(6, 3, 16, 16)
    for call in (
        lambda: deconvviz.top(model, images, layers=["conv"], k=3, batch_size=3, progress=False),
        lambda: deconvviz.deconv(model, images[:3], layer="conv", unit=0),
        lambda: deconvviz.nearest(model, images[:3], query=0, layer="conv", progress=False),
    ):
        with pytest.raises(LayerError, match=r"'conv' returns .* responses for .* images: its first dimension is not"):
            call()


def test_a_layer_that_is_cut_off_says_so():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            return self.b(torch.from_numpy(self.a(x).numpy()))

    for name in ("b", "unused", "module.b"):
        with pytest.raises(
            LayerError, match=rf"module '{name}' did not run, or returned nothing that depends on the im"
        ):
            deconvviz.deconv(Cut(), torch.randn(1, 3, 9, 9), layer=name, unit=0)


def test_a_detector_is_refused_with_the_name_of_its_trunk():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Module()
            self.backbone.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())

        def forward(self, images):
            batch = torch.zeros(len(images), 3, 20, 20)
            for place, image in zip(batch, images, strict=True):
                place.copy_(image)
            return self.backbone.body(batch)

    model, images = Detector().eval(), torch.rand(2, 3, 20, 20)
    for call in (
        lambda: deconvviz.deconv(model, images, layer="backbone.body.3", unit=2),
        lambda: deconvviz.project(model, images[:1], layer="backbone.body.3", units=[0], top=1, progress=False),
    ):
        with pytest.raises(ModelError, match=r"Detector takes the images of a batch one by one.*model.backbone.body"):
            call()
    assert deconvviz.deconv(model.backbone.body, images, layer="3", unit=2).shape == images.shape


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_an_overflow_is_an_error(scale: float):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    for layer in (model[0], model[2]):
        layer.weight.data.abs_().mul_(scale)
    images = torch.rand(2, 3, 16, 16) * 40
    if scale == 1e4:
        model, images = model.half(), images.half()
    with pytest.raises(ModelError, match=r"(is not finite for image 0|the projection is not finite)\. Look for"):
        deconvviz.deconv(model, images, layer=2, unit=1)
    finite = nn.Sequential(model[0], nn.ReLU())  # the response is finite, its projection is not
    if scale == 1e30:
        with pytest.raises(ModelError, match="the projection is not finite"):
            deconvviz.deconv(finite, images * 1e-3, layer="1", unit=1)


class Branches(nn.Module):
    """Two maps stacked, weighed by a number per branch and channel that comes from all of them, and added."""

    def __init__(self):
        super().__init__()
        self.first, self.gate, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.first(x)
        weights = self.gate(x.mean((2, 3), keepdim=True)).view(-1, 2, 4, 1, 1)
        return self.last((torch.stack([x, x.square()], 1) * weights).sum(1))


def test_rows_stay_rows_beside_a_gate_of_one_position():
    torch.manual_seed(0)
    model, image = Branches().double(), torch.randn(1, 3, 8, 6, dtype=torch.float64, requires_grad=True)
    layer = deconvviz.layers(model, (3, 8, 6))["last"]
    assert layer.reach.dims == (2, 3) and (layer.height, layer.width) == (8, 6)
    activation = model(image)[0, 1, 6, 2]
    (expected,) = torch.autograd.grad(activation * activation.detach(), image)
    found = deconvviz.deconv(model, image.detach(), layer="last", unit=1, position=(6, 2), rule="backprop")
    assert torch.allclose(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
