"""Draws what the papers' networks cost, one circle each: costs.png and .json.

    python gallery/scripts/costs.py

The networks have shapes and no numbers (torch.device("meta")): nothing is allocated, nothing computed.
"""

from __future__ import annotations

import torch
from publishing import publish

import deconvviz

SHOWN = (
    *("alexnet", "zfnet", "overfeat-accurate", "nin", "vgg-d", "vgg-e", "googlenet", "bn-inception", "inception-v3"),
    *("imagenet-plain-34", "imagenet-resnet-34", "imagenet-resnet-50", "imagenet-resnet-152", "densenet-121"),
    "squeezenet-1.0",
)

if __name__ == "__main__":
    costs = {}
    for name in SHOWN:
        with torch.device("meta"):
            model = deconvviz.zoo.create(name)
        costs[name] = deconvviz.cost(model)
    first = SHOWN[0]
    others = {name: cost for name, cost in costs.items() if name != first}
    publish(
        "costs",
        costs[first].plot(name=first, others=others, title="Depth against work", figsize=(8, 5.6)),
        model=", ".join(SHOWN),
        weights="none: shapes alone",
        layer="all",
        units=[],
        images="one of each network's own size",
        command="python gallery/scripts/costs.py",
        results={n: {"parameters": c.parameters, "multiply-adds": c.macs, "depth": c.depth} for n, c in costs.items()},
    )
