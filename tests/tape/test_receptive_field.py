"""Receptive fields against the support of a float64 gradient through a network made linear and positive."""

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from nets import Module, Net, nets
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import deconvviz
from deconvviz.model.survey import resolve
from deconvviz.tape.receptive_field import Reach, Span

KINDS = (*("conv",) * 3, *("max_pool",) * 3, "avg_pool", "add", "concat", "relu", "batch_norm")


def sum_pool(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """A max-pool's windows, summed: the same positions, but every tap counts."""
    pair = lambda v: (v, v) if isinstance(v, int) else tuple(v)  # noqa: E731
    kernel, padding, dilation = pair(kernel_size), pair(padding), pair(dilation)
    stride = kernel if stride is None else pair(stride)
    size = F.max_pool2d(x.detach(), kernel, stride, padding, dilation, ceil_mode).shape[2:]
    margins = []
    for k in (1, 0):
        end = (size[k] - 1) * stride[k] + (kernel[k] - 1) * dilation[k] + 1
        margins += [padding[k], end - padding[k] - x.shape[2 + k]]
    ones = x.new_ones(x.shape[1], 1, *kernel)
    return F.conv2d(F.pad(x, margins), ones, None, stride, 0, dilation, x.shape[1])


class Linear(TorchFunctionMode):
    """Takes the nonlinearities out of a network."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        if name in ("relu", "clamp", "threshold", "dropout", "batch_norm", "local_response_norm"):
            return args[0] * 1
        if name in ("max_pool2d", "boolean_dispatch", "fn"):
            return sum_pool(*args, **{k: v for k, v in kwargs.items()})
        return func(*args, **kwargs)


def positive(model: nn.Module) -> nn.Module:
    model = model.double().eval()
    for p in model.parameters():
        p.data = torch.full_like(p, 1 / max(1, p[0].numel()))
    return model


def support(model: nn.Module, layer, images: torch.Tensor, position: tuple[int, int]) -> tuple[int, int, int, int]:
    """The bounding box of the input pixels that move a layer's response at a position."""
    caught = {}
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: caught.update(out=o))
    images = images.clone().requires_grad_()
    try:
        with Linear():
            model(images)
    finally:
        handle.remove()
    (grad,) = torch.autograd.grad(caught["out"][..., position[0], position[1]].sum(), images, allow_unused=True)
    if grad is None or not grad.any():
        return 0, 0, 0, 0
    rows, cols = grad[0].sum(0).nonzero().T
    return int(rows.min()), int(cols.min()), int(rows.max()) + 1, int(cols.max()) + 1


@settings(max_examples=80)
@given(nets(kinds=KINDS, whole=False, largest=16))
def test_boxes_are_the_support_of_the_gradient(net: Net):
    for step in net.steps:
        if step.p.get("style") == "out":
            step.p["style"] = "+"  # autograd has no out=
    model = positive(Module(net.steps))
    found = resolve(model, "out", net.images)
    _, height, width = net.shape
    corners = {(0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1), net.position}
    for position in corners:
        box = found.reach.boxes(np.array(position))
        assert tuple(box) == support(model, "out", net.images[:1], position), (net, position)


@pytest.mark.parametrize(
    ("name", "layers", "size"),
    [
        ("alexnet", ["features.2", "features.5", "features.12"], (140, 97)),
        ("resnet18", ["maxpool", "layer2", "layer3.1.conv2"], (96, 65)),
        ("googlenet", ["maxpool1", "inception3b", "inception4c"], (113, 96)),
    ],
)
def test_boxes_of_real_networks(name: str, layers: list[str], size: tuple[int, int]):
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = positive(torchvision.models.get_model(name, weights=None, **options))
    images = torch.ones(1, 3, *size, dtype=torch.float64)
    for layer in layers:
        found = resolve(model, layer, images)
        h, w = found.height, found.width
        for position in {(0, 0), (h // 2, w // 2), (h - 1, w - 1), (0, w - 1)}:
            box = found.reach.boxes(np.array(position))
            assert tuple(box) == support(model, layer, images, position), (layer, position)


class Resampled(nn.Module):
    """Everything that moves positions besides pools and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, 2, 1)
        self.up = nn.ConvTranspose2d(4, 4, (3, 2), 2, 1, dilation=(1, 2))
        self.mixed, self.shuffled, self.reflected, self.nhwc = (nn.Identity() for _ in range(4))
        self.same = nn.Conv2d(4, 4, (3, 2), padding="same")
        self.mirror = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.mix = nn.Conv2d(16, 16, 1)
        self.adaptive = nn.AdaptiveAvgPool2d((3, 4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(F.pad(x, (1, 0, 0, 2)))
        up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        near = F.interpolate(x, size=up.shape[2:], mode="nearest")
        self.up(x)
        x = self.mixed(up + near)
        x = self.shuffled(F.pixel_shuffle(self.mix(F.pixel_unshuffle(x, 2)), 2) + x)
        x = self.same(self.mirror(x))
        n, c, h, w = x.shape
        x = x.view(n, 2, 2, h, w).transpose(1, 2).reshape(n, c, h, w)[:, :, 1:, ::2]
        x = self.reflected(torch.cat([x.unflatten(1, (2, 2)).mean(1), x.unflatten(1, (2, 2)).sum(2)], 1))
        self.adaptive(x)
        return self.nhwc(self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("layer", ["up", "mixed", "shuffled", "mirror", "same", "adaptive", "nhwc"])
@pytest.mark.parametrize("size", [(17, 12), (9, 22)])
def test_boxes_through_resampling_views_and_borders(layer: str, size: tuple[int, int]):
    model = positive(Resampled())
    images = torch.ones(1, 2, *size, dtype=torch.float64)
    found = resolve(model, layer, images)
    for i in range(found.height):
        for j in range(found.width):
            box = found.reach.boxes(np.array((i, j)))
            assert tuple(box) == support(model, layer, images, (i, j)), (layer, i, j)


def test_a_layer_without_rows_and_columns_sees_everything():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 4 * 6, 3))
    found = resolve(model, "2", torch.zeros(1, 1, 6, 8))
    assert found.reach.dims is None
    assert found.reach.boxes(np.array((0, 0))).tolist() == [0, 0, 6, 8]


def test_the_papers_arithmetic():
    """AlexNet's receptive fields and strides are known: 11/4, 51/8, 99/16, 131/16, 163/16 with 3 × 3 / 2 pools."""
    table = deconvviz.layers(torchvision.models.alexnet(weights=None))
    assert [(row.receptive_field, row.stride) for row in table.numbered] == [
        ((11, 11), (4, 4)),
        ((51, 51), (8, 8)),
        ((99, 99), (16, 16)),
        ((131, 131), (16, 16)),
        ((163, 163), (16, 16)),
    ]


def test_frames_leave_room_on_the_side_that_the_image_lacks():
    span = Span.of_input(10).slide(5, 2, 2, 1, 5)
    assert span.lo.tolist() == [0, 0, 2, 4, 6]
    assert span.hi.tolist() == [3, 5, 7, 9, 10]
    reach = Reach(span, span, (2, 3))
    assert reach.window() == (5, 5)
    positions = np.array([(0, 0), (1, 2), (4, 4)])
    assert reach.frame_shift(positions).tolist() == [[2, 2], [0, 0], [0, 0]]


def test_a_window_in_the_padding_alone_sees_nothing():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, padding=1))
    found = resolve(model, "0", torch.zeros(1, 1, 3, 3))
    assert found.reach.boxes(np.array((0, 2))).tolist() == [0, 0, 0, 0]
    assert found.reach.boxes(np.array((1, 2))).tolist() == [0, 1, 1, 2]
