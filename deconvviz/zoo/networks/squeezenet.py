"""SqueezeNet: Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size"."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from ..card import Card
from ..entry import Entry

_PAPER = (
    "Iandola, Han, Moskewicz, Ashraf, Dally & Keutzer, SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and "
    "<0.5MB model size, 2016, arXiv:1602.07360"
)
_INPUT: dict[str, Any] = {
    "input_size": (227, 227),
    "mean": (123 / 255, 117 / 255, 104 / 255),
    "std": (1 / 255,) * 3,  # the authors only subtract the mean, on the scale of 0–255
}
_SIZE = "Input of 227 pixels: the paper's 224 does not give its first map of 111."
_NO_PADDING = "conv10 pads nothing, as in the paper's table; the authors' file of 1.0 pads by 1."
_SMALLER = (
    "Version 1.1 of the authors' release: a first layer of 64 filters 3×3 instead of 96 of 7×7, and pools earlier, "
    "after conv1, fire3 and fire5; the same accuracy for 2.4 times less work."
)


class Bypass(nn.Module):
    """A fire module with its input added to its output (Fig. 2, middle)."""

    def __init__(self, fire: nn.Module) -> None:
        """Keep the module."""
        super().__init__()
        self.fire = fire

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same."""
        return self.fire(x) + x


def build(version: str, num_classes: int = 1000, *, dropout: float = 0.5, bypass: bool = False) -> nn.Module:
    """Build torchvision's SqueezeNet, which is the paper's: (N, 3, 227, 227) to (N, num_classes).

    With `bypass`, the fire modules that keep the width have their input added to their output.
    """
    from torchvision.models.squeezenet import Fire, SqueezeNet  # the import takes seconds, and most never build one

    model = SqueezeNet(version, num_classes, dropout)
    for name, fire in list(model.features.named_children()) if bypass else []:
        if isinstance(fire, Fire) and fire.squeeze.in_channels == 2 * fire.expand1x1.out_channels:
            setattr(model.features, name, Bypass(fire))
    return model


# Layers 1–5: the response of conv1, then fire3, fire5, fire7 and fire9, each the second module of one width.
_CARD10 = Card(
    "squeezenet-1.0",
    _PAPER,
    (_SIZE, _NO_PADDING),
    layers=("features.1", "features.4", "features.7", "features.9", "features.12"),
    reported="42.5 % top-1, 19.7 % top-5 (one network, 1 crop, validation); with bypass 39.6 and 17.5 %",
    **_INPUT,
)
_CARD11 = Card(
    "squeezenet-1.1",
    _PAPER,
    (_SMALLER, "Input of 227 pixels, as its authors trained it."),
    layers=("features.1", "features.4", "features.7", "features.10", "features.12"),
    **_INPUT,
)
NETWORKS = (
    Entry(functools.partial(build, "1_0"), _CARD10, first="kaiming"),
    Entry(functools.partial(build, "1_1"), _CARD11, first="kaiming"),
)
