"""The incremental scanner against brute force: the same numbers, whatever the network."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import nets
from torch import nn
from torch.nn import functional as F
from torchvision.models import SwinTransformer, VisionTransformer

import deconvviz
from deconvviz.errors import UnsupportedOp
from deconvviz.guard import untouched
from deconvviz.model.survey import resolve
from deconvviz.occlusion import incremental as _incremental
from deconvviz.tape.record import record


def brute(network, image, fill, boxes):
    """One occluded image at a time."""
    out = []
    for top, left, bottom, right in boxes.tolist():
        occluded = image.clone()
        occluded[0, :, top:bottom, left:right] = fill[:, top:bottom, left:right]
        out.append(network(occluded))
    return torch.cat(out)


def scanned(network, image, fill, boxes, layer=None, **options):
    """Outputs and responses of all positions, in order."""
    found = {}

    def receive(index, output, response):
        for name, tensor in (("output", output), ("response", response)):
            if tensor is not None:
                full = found.setdefault(name, tensor.new_full((len(boxes), *tensor.shape[1:]), torch.nan))
                assert full[index].isnan().all(), "a position came twice"
                full[index] = tensor

    with untouched(network) as inner:
        found_layer = None if layer is None else resolve(inner, layer, image)
        tape = record(inner, image.contiguous(memory_format=torch.channels_last), keep=None)
        _incremental.run_boxes(inner, tape, fill, boxes, found_layer, receive, memory=1 << 28, **options)
    return found["output"], found.get("response")


def grid(height, width, size, stride):
    """Captum's grid: the last windows are clipped."""
    boxes = []
    for top in range(0, max(1, height - size[0] + stride[0]), stride[0]):
        for left in range(0, max(1, width - size[1] + stride[1]), stride[1]):
            boxes.append((top, left, min(top + size[0], height), min(left + size[1], width)))
    return torch.tensor(boxes)


def check(network, image, boxes, tolerance, layer=None, limit=None):
    generator = torch.Generator().manual_seed(1)
    fill = torch.rand(image.shape[1:], generator=generator, dtype=image.dtype)
    chosen = boxes if limit is None else boxes[torch.randperm(len(boxes), generator=generator)[:limit]]
    network.eval()
    with torch.no_grad():
        expected = brute(network, image, fill, chosen)
    output, response = scanned(network, image, fill, chosen, layer)
    assert (output - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1)
    return output, response


@settings(max_examples=60)
@given(net=nets(), data=st.data())
def test_equals_brute_force_on_random_networks(net, data):
    height, width = net.images.shape[-2:]
    size = [data.draw(st.integers(1, n)) for n in (height, width)]
    stride = [data.draw(st.integers(1, n)) for n in size]
    boxes = grid(height, width, size, stride)[:12]
    check(net.module(), net.images[:1], boxes, 1e-10)


NAMES = (
    "alexnet squeezenet1_1 vgg11 resnet18 googlenet densenet121 mobilenet_v2 mobilenet_v3_small efficientnet_b0 "
    "shufflenet_v2_x0_5 regnet_y_400mf mnasnet0_5"
).split()
MORE = "vgg16 resnet50 inception_v3 mobilenet_v3_large regnet_x_800mf convnext_tiny".split()


def network_of(name):
    torch.manual_seed(0)
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **quick).eval().double()


@pytest.mark.parametrize(
    ("name", "side"), [(n, 64) for n in NAMES] + [pytest.param(n, 224, marks=pytest.mark.full) for n in MORE]
)
def test_equals_brute_force_on_published_networks(name, side):
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).double()
    check(network_of(name), image, grid(side, side, (16, 16), (8, 8)), 1e-10, limit=3)


def transformer(name):
    torch.manual_seed(0)
    sizes = {"num_heads": 2, "mlp_dim": 16, "num_classes": 5}
    if name == "vit":
        return VisionTransformer(image_size=32, patch_size=8, num_layers=1, hidden_dim=16, **sizes)
    return SwinTransformer([4, 4], 8, [1, 1], [1, 2], [4, 4], num_classes=5)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_transformers_are_scanned_whole_and_say_so(name):
    image, options = torch.randn(1, 3, 32, 32), {"size": 8, "stride": 4, "progress": False}
    network = transformer(name).eval()
    result = deconvviz.occlude(network, image, **options)
    full = deconvviz.occlude(network, image, method="full", **options)
    assert result.method == full.method == "full"
    assert torch.equal(result.probability, full.probability) and result.probability.std() > 0
    with pytest.raises(UnsupportedOp, match=r"Use method='full'"):
        deconvviz.occlude(network, image, method="incremental", **options)


class Everything(nn.Module):
    """Operations that stay local, that must not, and that come back."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, padding=1)
        self.norm = nn.BatchNorm2d(8, affine=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)), inplace=True)
        x = getattr(self, self.kind)(x)
        return self.head(self.second(x).relu_().mean((2, 3)))

    def gated(self, x):
        return x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1))

    def shuffled(self, x):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)

    def split(self, x):
        a, b = x.chunk(2, 1)
        return torch.cat([b, F.max_pool2d(a, 3, 1, 1)], 1)

    def subsampled(self, x):
        return F.pad(x[:, :, ::2, ::2], (1, 2, 0, 1)) * 2 - 1

    def flipped(self, x):
        return x.flip(3) + x

    def softmax_over_space(self, x):
        return x * x.flatten(2).softmax(-1).view_as(x)

    def upsampled(self, x):
        return F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=False)

    def normalized(self, x):
        return F.local_response_norm(x, 5) + F.group_norm(x, 2)

    def per_pixel(self, x):
        return x * torch.linspace(0, 1, x.shape[-1])

    def nothing_read(self, x):
        return F.avg_pool2d(x, 1, 5)


@pytest.mark.parametrize(
    "kind", [name for name, f in vars(Everything).items() if callable(f) and "_" not in name[:1]][1:]
)
def test_an_operation_without_a_local_rule_is_computed_whole(kind):
    torch.manual_seed(0)
    network = Everything(kind).eval()
    network.norm.running_mean.uniform_(-1, 1)
    image = torch.randn(1, 3, 24, 32)
    check(network.double(), image.double(), grid(24, 32, (5, 7), (3, 4)), 1e-12)


def test_the_response_is_the_layers():
    network = network_of("alexnet")
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    boxes = grid(64, 64, (32, 24), (32, 40))
    for layer, module in ((2, network.features[4]), (5, network.features[11])):
        _, response = check(network, image, boxes, 1e-10, layer=layer)
        seen = []
        handle = module.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o.clone()))
        fill = torch.rand(image.shape[1:], generator=torch.Generator().manual_seed(1), dtype=image.dtype)
        with torch.no_grad():
            brute(network, image, fill, boxes)
        handle.remove()
        torch.testing.assert_close(response, torch.cat(seen), rtol=1e-9, atol=1e-10)


def test_a_small_budget_gives_the_same(monkeypatch):
    network, image = network_of("squeezenet1_1"), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    boxes, fill = grid(64, 64, (16, 16), (16, 16)), torch.zeros(3, 64, 64, dtype=torch.float64)
    large, _ = scanned(network, image, fill, boxes)
    monkeypatch.setattr(_incremental, "WINDOW_BYTES", 1)
    small, _ = scanned(network, image, fill, boxes)
    torch.testing.assert_close(small, large, rtol=1e-9, atol=1e-10)


def test_a_network_that_mixes_the_batch_is_refused():
    class Mixing(nn.Module):
        def forward(self, x):
            return (x + x.flip(0)).flatten(1)

    boxes = grid(8, 8, (4, 4), (4, 4))
    image = torch.randn(1, 3, 8, 8)
    with pytest.raises(UnsupportedOp, match=r"depends on the other images of its batch.*method='full'"):
        scanned(Mixing(), image, torch.rand(3, 8, 8), boxes)
