"""Draws six methods side by side, and what random weights make of them: methods.png, methods-randomized.png, .json.

    python gallery/scripts/methods.py

Three free photos, ten draws of the weights each; the coffee is drawn. An edge detector, which does not look at the
network at all, stands beside the methods: what behaves like it says nothing of what was learned. The photos and their
licences are in gallery/SOURCES.md; the weights are the ones that come with the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from publishing import GALLERY, publish
from torch import Tensor, nn

import deconvviz
from deconvviz.images import PHOTOS

DRAWN, MEASURED = "coffee", ("coffee", "hopper", "chelsea")
DRAWS, SEED, STRIDE = 10, 0, 2


def edges(network: nn.Module, image: Tensor, number: object) -> Tensor:
    """Return the norm of the image's own gradient."""
    return torch.stack(torch.gradient(image[0].mean(0))).norm(dim=0)


def compare(path: Path) -> deconvviz.MethodComparison:
    model = deconvviz.zoo.create("zfnet64", weights="bundled")
    own = {"edge detector": edges}
    return deconvviz.compare_methods(model, path, own=own, stride=STRIDE, draws=DRAWS, seed=SEED, progress=False)


def numbers(result: deconvviz.MethodComparison) -> dict[str, object]:
    rho = result.rank_correlation
    stages = [stage[-1] for stage in result.stages]
    return {
        "explained": f"{result.target}: {result.value:.4g}",
        "rank correlation, all weights random": dict(zip(result.methods, rho[:, -1].mean(1).tolist(), strict=True)),
        "its standard deviation over the draws": dict(zip(result.methods, rho[:, -1].std(1).tolist(), strict=True)),
        "rank correlation, random from the output down to": {
            name: dict(zip(stages, row.mean(1).tolist(), strict=True))
            for name, row in zip(result.methods, rho, strict=True)
        },
        "SSIM, all weights random": dict(zip(result.methods, result.ssim[:, -1].mean(1).tolist(), strict=True)),
    }


def main(out: Path = GALLERY) -> None:
    paths = {photo.name: photo.path for photo in PHOTOS}
    found = {name: compare(paths[name]) for name in MEASURED}
    shown = found[DRAWN]
    facts: dict[str, Any] = {
        "model": "zfnet64",
        "weights": "bundled",
        "layer": f"Grad-CAM: {shown.layer}",
        "units": shown.target,
        "images": f"the sample photo {DRAWN}",
        "command": "python gallery/scripts/methods.py",
        "packages": ("captum", "scipy"),
        "out": out,
    }
    publish("methods", shown.plot(), **facts)
    measured = {
        "images": f"drawn: {DRAWN}; measured: {', '.join(MEASURED)}",
        "seed": SEED,
        "draws": f"{DRAWS}; the first is drawn, the numbers below are means over all",
        "results": {name: numbers(result) for name, result in found.items()},
    }
    publish("methods-randomized", shown.plot(what="randomized"), **facts | measured)


if __name__ == "__main__":
    main()
