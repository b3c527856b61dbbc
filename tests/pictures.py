"""Pictures that are the same in every process, whichever tests ran before."""

import numpy as np
from PIL import Image


def noise(size: tuple[int, int], spread: float, seed: int = 0) -> Image.Image:
    """Return a grey picture of noise of this (width, height) and spread, not of C's `rand`, which goes on between calls."""
    values = np.random.default_rng(seed).normal(128, spread, size[::-1])
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))
