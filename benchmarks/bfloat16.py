"""What bfloat16 gains and costs on this processor: `deconvviz.occlude(dtype=torch.bfloat16)` against float32.

Processors with AMX or AVX512-BF16 multiply in bfloat16; others convert to float32 and back around each operation.

    python benchmarks/bfloat16.py [--models alexnet,resnet18] [--rounds 3] [--threads 2]
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch
import torchvision
from conditions import alternate, conditions, load, report

import deconvviz

SIDE, SIZE, STRIDE = 224, 48, 32
FEATURES = ("amx_bf16", "avx512_bf16")


def features() -> str:
    """Say which instructions for bfloat16 the processor has, where the system tells."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return "instructions for bfloat16 unknown"
    return "; ".join(f"{name}: {'yes' if name in flags else 'no'}" for name in FEATURES)


def case(name: str, rounds: int) -> str:
    """Return one row: the times of both types, their ratio, and what the logit's drops lose."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    image = torch.randn(1, 3, SIDE, SIDE)
    grid = {"size": SIZE, "stride": STRIDE, "fill": 0.0, "target": 0, "progress": False}
    runs = {
        dtype: functools.partial(deconvviz.occlude, model, image, dtype=dtype, **grid)
        for dtype in (None, torch.bfloat16)
    }
    exact, other = runs[None](), runs[torch.bfloat16]()
    times = alternate({str(dtype): run for dtype, run in runs.items()}, rounds)
    plain, half = (1e3 * value / exact.logit.numel() for value in times.values())
    span = float(exact.logit.max() - exact.logit.min())
    error = float((exact.logit - other.logit).abs().max()) / span
    return f"| {name} | {exact.logit.numel()} | {plain:.2f} | {half:.2f} | {plain / half:.2f}× | {error:.1%} |"


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="alexnet,resnet18")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    text = conditions(options.threads)
    rows = [
        "| model | positions | float32, ms | bfloat16, ms | float32 over bfloat16 | largest error, of the logit's range |",
        "|---|---|---|---|---|---|",
        *(case(name, options.rounds) for name in options.models.split(",")),
    ]
    details = (
        f"{text}. Processor: {features()}. Milliseconds per position of a {SIZE}-pixel occluder, one {SIDE} px image, "
        f"random weights, the default method; medians of {options.rounds} rounds in turn; {load()}. Without these "
        "instructions float32 is the faster choice; the result's `deviation` says what the type costs."
    )
    report("bfloat16", "bfloat16 on this processor", details, rows)


if __name__ == "__main__":
    main()
