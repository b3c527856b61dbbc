"""A small network with everything that makes occlusion hard, and the naive loop that scans are compared with."""

import itertools

import torch
from torch import nn
from torch.nn import functional as F

import deconvviz


class Net(nn.Module):
    """Five convolutions with a skip, an overlapping pool and a buffer; returns (N, 5)."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.third = nn.Conv2d(6, 8, 3, stride=2)
        self.head = nn.Linear(8, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = F.max_pool2d(x + F.relu(self.second(x)), 3, 2)
        x = F.relu(self.third(x))
        return self.head(self.drop(x.mean((2, 3))))


def build():
    """Return the network in float64, with statistics and answers that are not trivial."""
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.head.weight.mul_(8)
    return model.double()


def photo():
    """Return an image (3, 20, 17)."""
    return torch.randn(3, 20, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def occlude(net, image, **options):
    return deconvviz.occlude(net, image, progress=False, **options)


def naive(net, image, fill, masks):
    """Return probabilities (P, 5), outputs (P, 5) and layer 3's response (P, 8, h, w), one image at a time."""
    found = []
    net.eval()
    hook = net.third.register_forward_hook(lambda module, inputs, output: found.append(output.relu().detach()))
    with torch.no_grad():
        rows = torch.cat([net((image * (1 - m) + fill * m)[None]) for m in masks.to(image)])
    hook.remove()
    net.train()
    return rows.softmax(1), rows, torch.cat(found)


def window_masks(result):
    height, width = result.image_size
    masks = torch.zeros(len(result.rows) * len(result.cols), height, width)
    for mask, (top, left) in zip(masks, itertools.product(result.rows, result.cols), strict=True):
        mask[top : top + result.size[0], left : left + result.size[1]] = 1
    return masks
