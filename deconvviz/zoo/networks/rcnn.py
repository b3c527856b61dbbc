"""Fast and Faster R-CNN on ZF and VGG: Girshick, ICCV 2015; Ren, He, Girshick & Sun, NIPS 2015."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..card import Card
from ..entry import Entry

_FAST = "Girshick, Fast R-CNN, ICCV 2015, arXiv:1504.08083"
_FASTER = (
    "Ren, He, Girshick & Sun, Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, NIPS 2015, "
    "arXiv:1506.01497"
)
STRIDE = 16  # pixels from one position of the shared maps to the next, on both networks
SCALES, RATIOS = (128, 256, 512), (0.5, 1.0, 2.0)  # of the nine anchors: sides of squares, height to width
_POOLED = {"zf": 6, "vgg": 7}
_MAPS = {"zf": 256, "vgg": 512}


def _features(trunk: str) -> nn.Sequential:
    """Return the convolutions that all regions share."""
    if trunk == "vgg":
        layers: list[nn.Module] = []
        inputs = 3
        for number, (count, maps) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))):
            layers += [nn.MaxPool2d(2, ceil_mode=True)] if number else []
            for _ in range(count):
                layers += [nn.Conv2d(inputs, maps, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = maps
        return nn.Sequential(*layers)

    def norm() -> nn.Module:
        return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)  # torch divides alpha by the size

    return nn.Sequential(
        *(nn.Conv2d(3, 96, 7, 2, 3), nn.ReLU(inplace=True), norm(), nn.MaxPool2d(3, 2, 1)),
        *(nn.Conv2d(96, 256, 5, 2, 2), nn.ReLU(inplace=True), norm(), nn.MaxPool2d(3, 2, 1)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 384, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)),
    )


class RoIPooling(nn.Module):
    """The largest response in each of size × size parts of a region; of all of a map where no regions are given."""

    def __init__(self, size: int) -> None:
        """Pool to `size` rows and columns."""
        super().__init__()
        self.size = size

    def forward(self, maps: Any, regions: list[Tensor] | None = None, sizes: Any = None) -> Tensor:
        """Map (N, C, h, w) and, per image, boxes (R, 4) in pixels to (all R, C, size, size)."""
        maps = maps["0"] if isinstance(maps, dict) else maps
        if regions is None:
            return F.adaptive_max_pool2d(maps, self.size)
        from torchvision.ops import roi_pool

        return roi_pool(maps, regions, self.size, 1 / STRIDE)


class Head(nn.Sequential):
    """Two hidden layers over a pooled region."""

    def __init__(self, values: int, hidden: int, dropout: float) -> None:
        """Make the layers."""
        super().__init__(
            *(nn.Flatten(), nn.Linear(values, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            *(nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)),
        )


class Predictor(nn.Module):
    """A score for each class, the first being background, and a box for each."""

    def __init__(self, hidden: int, num_classes: int) -> None:
        """Make the two matrices."""
        super().__init__()
        self.scores, self.boxes = nn.Linear(hidden, num_classes), nn.Linear(hidden, 4 * num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (R, hidden) to scores (R, classes) and box corrections (R, 4 classes)."""
        return self.scores(x), self.boxes(x)


class RPNHead(nn.Module):
    """A 3×3 convolution, then for each of nine anchors whether it holds an object, by a softmax of two, and its box."""

    def __init__(self, maps: int, anchors: int = len(SCALES) * len(RATIOS)) -> None:
        """Make the layers; both hidden and shared maps are `maps`."""
        super().__init__()
        self.anchors = anchors
        self.conv, self.relu = nn.Conv2d(maps, maps, 3, padding=1), nn.ReLU(inplace=True)
        self.scores, self.boxes = nn.Conv2d(maps, 2 * anchors, 1), nn.Conv2d(maps, 4 * anchors, 1)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map lists of (N, maps, h, w) to lists of objectness (N, anchors, h, w) and corrections (N, 4 anchors, h, w)."""
        hidden = [self.relu(self.conv(x)) for x in features]
        scores = [self.scores(x) for x in hidden]
        # A softmax of two scores is the sigmoid of their difference.
        return [s[:, self.anchors :] - s[:, : self.anchors] for s in scores], [self.boxes(x) for x in hidden]


class FastRCNN(nn.Module):
    """Scores and boxes of regions from one pass over an image.

    Called with images alone it answers for the image as one region, (N, 3, H, W) to (N, classes): pooling over the
    whole map is what RoI pooling does with a region that is the whole image. `detect` and `losses` take regions.
    """

    def __init__(self, trunk: str, num_classes: int = 21, *, dropout: float = 0.5, hidden: int = 4096) -> None:
        """Make the network on "zf" or "vgg"; class 0 is background."""
        super().__init__()
        from torchvision.models.detection.roi_heads import RoIHeads  # the import takes seconds

        size, maps = _POOLED[trunk], _MAPS[trunk]
        self.features = _features(trunk)
        pool, head = RoIPooling(size), Head(maps * size * size, hidden, dropout)
        self.regions = RoIHeads(
            *(pool, head, Predictor(hidden, num_classes)),
            *(0.5, 0.5),  # overlaps from which a region is an object, and below which background
            *(64, 0.25),  # regions of an image in a training step, and the share of objects
            *((10.0, 10.0, 5.0, 5.0), 0.05, 0.3, 100),  # weights of the boxes; least score, overlap and number detected
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, classes)."""
        return self.regions.box_predictor.scores(self.regions.box_head(self.regions.box_roi_pool(self.features(x))))

    def detect(self, x: Tensor, regions: list[Tensor]) -> list[dict[str, Tensor]]:
        """Find objects in images (N, 3, H, W), given boxes (R, 4) for each.

        Returns for each image `boxes` (n, 4), `labels` (n,) and `scores` (n,), overlapping ones suppressed by class.
        """
        return self._heads(OrderedDict({"0": self.features(x)}), regions, _sizes(x), None)[0]

    def losses(
        self, x: Tensor, targets: list[dict[str, Tensor]], regions: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return what training minimizes the sum of; a target has `boxes` (n, 4) and `labels` (n,), 1 and above.

        The regions of an image default to its own boxes, which are always among them.
        """
        given = [target["boxes"] for target in targets] if regions is None else regions
        return self._heads(OrderedDict({"0": self.features(x)}), given, _sizes(x), targets)[1]

    def _heads(self, maps: Any, regions: Any, sizes: Any, targets: Any) -> Any:
        self.regions.train(targets is not None)  # the heads tell by their mode which of the two they do
        try:
            return self.regions(maps, regions, sizes, targets)
        finally:
            self.regions.train(self.training)


class FasterRCNN(FastRCNN):
    """Fast R-CNN with a network that proposes the regions, on the same maps: 9 anchors at each position."""

    def __init__(self, trunk: str, num_classes: int = 21, *, dropout: float = 0.5, hidden: int = 4096) -> None:
        """Make the network on "zf" or "vgg"; class 0 is background."""
        super().__init__(trunk, num_classes, dropout=dropout, hidden=hidden)
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.rpn import RegionProposalNetwork

        self.rpn = RegionProposalNetwork(
            *(AnchorGenerator((SCALES,), (RATIOS,)), RPNHead(_MAPS[trunk])),
            *(0.7, 0.3, 256, 0.5),  # overlaps of objects and of background, anchors in a step, share of objects
            *({"training": 12000, "testing": 6000}, {"training": 2000, "testing": 300}, 0.7),
        )

    def propose(self, x: Tensor) -> list[Tensor]:
        """Return for each of the images (N, 3, H, W) at most 300 boxes (R, 4), the likeliest objects first."""
        return self._propose(x, OrderedDict({"0": self.features(x)}), None)[0]

    def detect(self, x: Tensor, regions: list[Tensor] | None = None) -> list[dict[str, Tensor]]:
        """Find objects in images (N, 3, H, W), in the regions that the network itself proposes, or in given ones."""
        maps = OrderedDict({"0": self.features(x)})
        found = self._propose(x, maps, None)[0] if regions is None else regions
        return self._heads(maps, found, _sizes(x), None)[0]

    def losses(
        self, x: Tensor, targets: list[dict[str, Tensor]], regions: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the four losses: two of the proposals, two of the regions."""
        maps = OrderedDict({"0": self.features(x)})
        found, losses = self._propose(x, maps, targets)
        return losses | self._heads(maps, found if regions is None else regions, _sizes(x), targets)[1]

    def _propose(self, x: Tensor, maps: Any, targets: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
        from torchvision.models.detection.image_list import ImageList

        self.rpn.train(targets is not None)
        try:
            return self.rpn(ImageList(x, _sizes(x)), maps, targets)
        finally:
            self.rpn.train(self.training)


def _sizes(x: Tensor) -> list[tuple[int, int]]:
    return [(x.shape[2], x.shape[3])] * len(x)


_ALONE = "Called with images alone it scores each image as one region; `detect` takes or proposes regions."
_ZF = "The response norms have AlexNet's constants."
_SAMPLING = "Background regions overlap objects by less than 0.5, also by less than the paper's 0.1."


def _entry(build: Any, trunk: str, name: str, paper: str, reported: str, more: Sequence[str] = ()) -> Entry:
    deviations = (_ALONE, _SAMPLING, *([_ZF] if trunk == "zf" else []), *more)
    card = Card(
        name,
        paper,
        deviations,
        input_size=(600, 600),
        resize=600,
        mean=(123 / 255, 116 / 255, 103 / 255),
        std=(1 / 255,) * 3,  # the authors only subtract the mean, on the scale of 0–255
        reported=reported,
    )
    return Entry(functools.partial(build, trunk), card, first="kaiming")


_JOINT = "Proposals and regions are trained together; the paper alternates."
NETWORKS = (
    _entry(FastRCNN, "zf", "fast-rcnn-zf", _FAST, "mAP 58.7 % on VOC 2007, 2,000 regions (in Faster R-CNN's table 2)"),
    _entry(FastRCNN, "vgg", "fast-rcnn-vgg", _FAST, "mAP 66.9 % on VOC 2007, trained on its trainval"),
    _entry(FasterRCNN, "zf", "faster-rcnn-zf", _FASTER, "mAP 59.9 % on VOC 2007, 300 proposals", (_JOINT,)),
    _entry(FasterRCNN, "vgg", "faster-rcnn-vgg", _FASTER, "mAP 69.9 % on VOC 2007, 300 proposals", (_JOINT,)),
)
