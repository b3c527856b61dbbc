"""torchvision's detectors, whose images are resized and batched by operations that can be followed."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def is_detector(model: nn.Module) -> bool:
    """Say whether a model is one of torchvision's detectors."""
    module = sys.modules.get("torchvision.models.detection.transform")
    if module is None:  # nobody can have made one
        return False
    return isinstance(model._modules.get("transform"), module.GeneralizedRCNNTransform)


def run_detector(model: nn.Module, images: Tensor) -> Any:
    """Call a detector with a batch of images (N, C, H, W): a list of N detections.

    Its own transform takes the images apart, one by one, and writes them into a new batch; ours does the same to all of
    them at once, and gives the same numbers.
    """
    own = model._modules["transform"]
    try:
        model._modules["transform"] = _Batched(own, images)  # type: ignore[assignment]
        # The forward pass asks these for their sizes alone.
        return model([torch.empty(images.shape[1:], device="meta")] * len(images))
    finally:
        model._modules["transform"] = own


class _Batched:
    """Stands in for a detector's transform; the batch is at hand."""

    def __init__(self, own: Any, batch: Tensor) -> None:
        self.own, self.batch = own, batch

    def __call__(self, images: Any, targets: Any = None) -> tuple[Any, Any]:
        """Normalize, resize and pad the batch."""
        from torchvision.models.detection.image_list import ImageList

        batch = self._resized(self.own.normalize(self.batch))
        height, width = batch.shape[-2:]
        step = self.own.size_divisible
        more = [math.ceil(side / step) * step - side for side in (height, width)]
        if any(more):
            batch = F.pad(batch, (0, more[1], 0, more[0]))
        return ImageList(batch, [(height, width)] * len(batch)), targets

    def _resized(self, batch: Tensor) -> Tensor:
        """Resize as torchvision's `_resize_image_and_masks` does to one image."""
        own = self.own
        if getattr(own, "_skip_resize", False):
            return batch
        if own.fixed_size is not None:
            size = [own.fixed_size[1], own.fixed_size[0]]
            return F.interpolate(batch, size=size, mode="bilinear", align_corners=False)
        sides = batch.shape[-2:]
        scale = min(own.min_size[-1] / min(sides), own.max_size / max(sides))
        if scale == 1:  # each pixel is itself
            return batch
        how: dict[str, Any] = {"mode": "bilinear", "align_corners": False}
        return F.interpolate(batch, scale_factor=scale, recompute_scale_factor=True, **how)

    def postprocess(self, *given: Any) -> Any:
        """Take boxes back to the images' own pixels."""
        return self.own.postprocess(*given)
