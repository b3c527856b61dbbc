"""A ResNet of stochastic depth for CIFAR: Huang, Sun, Liu, Sedra & Weinberger, ECCV 2016, sections 3 and 4."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ..card import Card
from ..entry import Entry
from . import resnet_cifar

_PAPER = "Huang, Sun, Liu, Sedra & Weinberger, Deep Networks with Stochastic Depth, ECCV 2016, arXiv:1603.09382"
LAYERS = 110


class Dropping(nn.Module):
    """A block whose convolutions are left out of some training steps, and weighed by how often they were in after it."""

    def __init__(self, block: resnet_cifar.Block, survival: float) -> None:
        """Keep the block in a share `survival` of the steps."""
        super().__init__()
        self.block, self.survival = block, survival

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) as the block does; one draw holds for the whole batch."""
        beside = x if self.block.shortcut is None else self.block.shortcut(x)
        if self.training:
            share = 1.0 if torch.rand(()) < self.survival else 0.0
        else:
            share = self.survival
        if not share:
            return beside  # never negative: a ReLU came before
        return self.block.relu2(beside + share * self.block.residual(x))


def stochastic_depth(num_classes: int = 10, *, last: float = 0.5, layers: int = LAYERS) -> nn.Module:
    """Build resnet-110 whose blocks survive with a probability that falls from 1 to `last`, in even steps."""
    model = resnet_cifar.build(f"resnet-{layers}", num_classes)
    stages = [model.get_submodule(f"layer{n}") for n in (1, 2, 3)]
    places = [(stage, name) for stage in stages for name, _ in stage.named_children()]
    for number, (stage, name) in enumerate(places, 1):
        block = stage.get_submodule(name)
        assert isinstance(block, resnet_cifar.Block)
        setattr(stage, name, Dropping(block, 1 - number / len(places) * (1 - last)))
    return model


_CARD: Card = dataclasses.replace(
    resnet_cifar.card(f"resnet-{LAYERS}"),
    name=f"stochastic-depth-{LAYERS}",
    paper=_PAPER,
    reported="5.23 % on CIFAR-10 with shifted and mirrored images, as the authors' code gives it (Fig. 3)",
)
NETWORKS = (Entry(stochastic_depth, _CARD, first="kaiming"),)
