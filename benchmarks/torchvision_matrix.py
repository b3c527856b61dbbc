"""Runs `project(model, layer=n)` for n = 1 to 5 on every classification network of torchvision; prints a table.

    python benchmarks/torchvision_matrix.py [--size 128] [--names alexnet resnet18 ...] > benchmarks/torchvision_matrix.md

Random weights, 2 images, 2 units, top 1. A network that refuses the size (transformers with a fixed one) gets 224.
Each cell is "ok", "no layer" (the network has fewer levels) or the operation that has no rule; anything else is a bug
and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import re
import sys
import time

import torch
import torchvision

import deconvviz

NUMBERS = range(1, 6)


def images_for(model: torch.nn.Module, size: int) -> torch.Tensor:
    """Return two images of a size that the model takes."""
    for side in (size, 224):
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        try:
            deconvviz.layers(model, side)
        except deconvviz.ModelError:
            continue
        return images
    raise ValueError(f"neither {size} nor 224 px suit the model")


def outcome(model: torch.nn.Module, images: torch.Tensor, number: int) -> str:
    """Project two units of layer `number` and say how it went."""
    try:
        result = deconvviz.project(model, images, layer=number, units=[0, 1], k=1, progress=False)
    except deconvviz.UnsupportedOp as error:
        return "`" + str(error).split(" in ")[0].rsplit(".", 1)[-1] + "`"
    except deconvviz.LayerError as error:
        return "no layer" if "there is no layer" in str(error) else f"BUG {error}"
    except Exception as error:
        return f"BUG {type(error).__name__}: {error}"
    if not torch.isfinite(result.projections).all():
        return "BUG not finite"
    return "ok"


def row(name: str, size: int) -> list[str]:
    """Return one line of the table: name, side in pixels, five outcomes, seconds."""
    started = time.perf_counter()
    model = torchvision.models.get_model(name, weights=None).eval()
    images = images_for(model, size)
    cells = [outcome(model, images, number) for number in NUMBERS]
    return [name, str(images.shape[-1]), *cells, f"{time.perf_counter() - started:.0f}"]


def families(rows: list[list[str]]) -> list[str]:
    """Join the networks whose names begin with the same word, and that fared the same."""
    joined: dict[tuple[str, ...], list[str]] = {}
    for name, _, *cells, _ in rows:
        family = re.split(r"[\d_]", name)[0]
        joined.setdefault((family, *cells), []).append(name)
    return [f"| {family} ({len(names)}) | " + " | ".join(cells) + " |" for (family, *cells), names in joined.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--names", nargs="*", default=torchvision.models.list_models(module=torchvision.models))
    options = parser.parse_args()
    torch.manual_seed(0)
    print(
        f"`project(model, layer=n)` on {len(options.names)} networks of torchvision {torchvision.__version__}, torch "
        f"{torch.__version__}, CPU, {torch.get_num_threads()} threads, random weights, 2 images, 2 units, top 1. "
        f"Command: `python {' '.join(sys.argv)}`.\n"
    )
    print("| network | px | 1 | 2 | 3 | 4 | 5 | s |\n|---|---|---|---|---|---|---|---|")
    rows = []
    for name in options.names:
        rows.append(row(name, options.size))
        print("| " + " | ".join(rows[-1]) + " |", flush=True)
    print("\n| family | 1 | 2 | 3 | 4 | 5 |\n|---|---|---|---|---|---|\n" + "\n".join(families(rows)))
    return int(any(cell.startswith("BUG") for cells in rows for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
