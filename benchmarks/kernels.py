"""Counts the kernels that calls start on a GPU, and how often the host waits for them; needs no GPU.

    python benchmarks/kernels.py

The device is the one that the tests simulate (tests/simulated_device.py); the calls and their bounds are the tests', too
(tests/counted_work.py). Each kernel costs a GPU some 5 µs to start, each wait leaves it without work.
"""

from __future__ import annotations

import sys
from dataclasses import astuple
from pathlib import Path

from conditions import conditions, report

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from counted_work import BATCH, STEP, WORKS, Counts, counted, counted_step


def row(title: str, found: Counts, most: Counts) -> str:
    """Return one line of the table: each count, and its bound."""
    cells = [f"{a:,} (≤ {b:,})" for a, b in zip(astuple(found), astuple(most), strict=True)]
    return f"| {title} | {' | '.join(cells)} |"


def main() -> None:
    """Count every call and write the table."""
    table = ["| call | kernels | of them fills | waits of the host |", "|---|---|---|---|"]
    table += [row(work.title, counted(work), work.most) for work in WORKS.values()]
    table += [row(f"`train`, one step, {name}", counted_step(name), most) for name, most in STEP.items()]
    text = (
        f"{conditions(1)}. zfnet64 on {BATCH} images of 64 px unless said; training: resnet-20, batches of 2. "
        "In brackets the bound that a test holds."
    )
    report("kernels", "Kernels and waits on a GPU", text, table)


if __name__ == "__main__":
    main()
