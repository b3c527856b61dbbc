"""How alike two maps are: their strength per pixel, by ranks and by structure."""

from __future__ import annotations

import torch
from torch import Tensor


def strength(full: Tensor) -> Tensor:
    """Return (…, H, W) float64: the sum of absolute values over the channels of (…, C, H, W)."""
    return full.double().abs().sum(-3)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's ρ of two maps' pixels, ties at their mean rank; 1 for equal maps, else 0 for a constant one."""
    from scipy.stats import spearmanr

    if torch.equal(a, b):
        return 1.0
    if a.min() == a.max() or b.min() == b.max():
        return 0.0
    return float(spearmanr(a.flatten().numpy(), b.flatten().numpy()).statistic)


def ssim(a: Tensor, b: Tensor) -> float:
    """Return scikit-image's structural similarity, each map divided by its maximum; NaN under 7 pixels."""
    from skimage.metrics import structural_similarity

    if min(a.shape) < 7:
        return float("nan")
    a, b = (x / x.max().clamp_min(1e-300) for x in (a, b))
    return float(structural_similarity(a.numpy(), b.numpy(), data_range=1.0))
