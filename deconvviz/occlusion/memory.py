"""How much fits: the bytes that a batch may take."""

from __future__ import annotations

import torch

from ..devices import free_bytes

CPU_BYTES = 1_000_000_000
SHARE = 0.5  # of what is free on an accelerator
UNKNOWN_BYTES = 4_000_000_000  # an accelerator that does not say what is free
# Kernels count elements in 32 bits.
MOST_ELEMENTS = 2**31 - 1


def budget(device: torch.device) -> int:
    """Return the bytes that batches may take on a device."""
    if device.type == "cpu":
        return CPU_BYTES
    free = free_bytes(device)
    return int(SHARE * (UNKNOWN_BYTES if free is None else free))
