"""Inception-v3, as torchvision builds it: Szegedy et al., "Rethinking the Inception Architecture", section 6."""

from __future__ import annotations

from torch import nn

from ..card import Card
from ..entry import Entry

_PAPER = (
    "Szegedy, Vanhoucke, Ioffe, Shlens & Wojna, Rethinking the Inception Architecture for Computer Vision, CVPR 2016, "
    "arXiv:1512.00567"
)


def inception_v3(num_classes: int = 1000, *, dropout: float = 0.2, head: bool = True) -> nn.Module:
    """Build the network: (N, 3, 299, 299) to (N, num_classes), in training mode also what its auxiliary head says."""
    from torchvision.models.inception import Inception3  # the import takes seconds, and most never build one

    return Inception3(num_classes, aux_logits=head, init_weights=False, dropout=dropout)


_CARD = Card(
    "inception-v3",
    _PAPER,
    (
        "The authors' released network: the paper's table 1 is an outline of it.",
        "A dropout of 0.2 before the last layer; the paper states none.",
    ),
    input_size=(299, 299),
    resize=342,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    reported="21.2 % top-1, 5.6 % top-5 (1 crop); 18.77 and 4.2 % (144 crops), one network, validation",
)
NETWORKS = (Entry(inception_v3, _CARD, first="kaiming"),)
