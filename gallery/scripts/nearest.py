"""Finds the images nearest in feature space: the AlexNet paper's Fig. 4 (right), nearest-samples.png and .json.

    python gallery/scripts/nearest.py
    python gallery/scripts/nearest.py --data TINY_IMAGENET

The first shows windows of the sample photos (gallery/SOURCES.md), for each query those of all other photos. The
second counts, over Tiny-ImageNet's validation images, how many neighbours show the query's class and how near they
are in pixels; it draws bars alone and writes nearest-tiny-imagenet.png and .json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from publishing import publish
from tiny_imagenet import classes, pictures
from torch import Tensor, nn

import deconvviz
from deconvviz import Neighbours
from deconvviz.images import samples
from deconvviz.images.preprocess import preprocess_for

QUERIES = ("chelsea", "hopper", "coffee", "astronaut", "gravel", "retina")
K, SEED = 5, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="TINY_IMAGENET")
    options = parser.parse_args()
    model = deconvviz.zoo.create("zfnet64", weights="bundled")
    if options.data is None:
        show(model)
    else:
        count(model, options.data)


def show(model: nn.Module) -> None:
    windows = samples(64, preprocess=preprocess_for(model))
    labels, rows = windows.labels or [], []
    for name in QUERIES:
        others = [i for i, label in enumerate(labels) if label != name]
        query = windows.take([labels.index(name)])  # the first window is the largest
        found = deconvviz.nearest(model, windows.take(others), query=query, k=K, progress=False)
        rows.append((found, tuple(labels[others[i]] for i in found.image_ids[0].tolist())))
    first = rows[0][0]
    result = Neighbours(
        first.layer,
        first.metric,
        torch.cat([r.image_ids for r, _ in rows]),
        torch.cat([r.distances for r, _ in rows]),
        torch.cat([r.query_ids for r, _ in rows]),
        tuple(names for _, names in rows),
        torch.cat([r.pictures for r, _ in rows]),
    )
    publish(
        "nearest-samples",
        result.plot(),
        model="zfnet64",
        weights="bundled",
        layer=result.layer,
        units="all",
        images=f"{len(windows)} windows of the sample photos; for each query those of all other photos",
        command="python gallery/scripts/nearest.py",
        results=dict(zip(QUERIES, (list(names) for _, names in rows), strict=True)),
    )


def count(model: nn.Module, data: Path) -> None:
    folders = classes(data)
    shown = preprocess_for(model)
    images = torch.stack([shown(image) for folder in folders for image in pictures(folder, 50)])
    labels = torch.arange(len(folders)).repeat_interleave(len(images) // len(folders))
    queries = list(range(0, len(images), len(images) // len(folders)))  # the first image of every class
    torch.manual_seed(SEED)
    spaces = {"trained": model, "random weights": deconvviz.zoo.create("zfnet64", num_classes=200)}
    found = {name: deconvviz.nearest(one, images, query=queries, k=K, progress=False) for name, one in spaces.items()}
    distances = pixel_distances(images, queries)
    ids = {name: one.image_ids for name, one in found.items()}
    ids["pixels"] = distances.topk(K, dim=1, largest=False).indices
    results = {name: numbers(one, distances, labels, queries) for name, one in ids.items()}
    print(results)
    publish(
        "nearest-tiny-imagenet",
        bars(results),
        model="zfnet64",
        weights="bundled; random for comparison",
        layer=found["trained"].layer,
        units="all",
        images=f"Tiny-ImageNet's {len(images):,} validation images; queries: the first of each class",
        seed=SEED,
        command="python gallery/scripts/nearest.py --data TINY_IMAGENET",
        results={"neighbours": K, "queries": len(queries), "chance": 49 / (len(images) - 1), **results},
    )


def pixel_distances(images: Tensor, queries: list[int]) -> Tensor:
    """Return (queries, images): Euclidean distances, infinite for the query itself."""
    distances = torch.cdist(images[queries].flatten(1), images.flatten(1))
    distances[range(len(queries)), queries] = torch.inf
    return distances


def numbers(ids: Tensor, distances: Tensor, labels: Tensor, queries: list[int]) -> dict[str, float]:
    """Return the share of neighbours of the query's class, and their pixel distance relative to all images'."""
    same = labels[ids] == labels[queries][:, None]
    every = distances.where(distances.isfinite(), torch.nan).nanmean(1, keepdim=True)
    return {
        "same class": float(same.double().mean()),
        "pixel distance": float((distances.gather(1, ids) / every).mean()),
    }


def bars(results: dict[str, Any]) -> Figure:
    style = deconvviz.plotting.style

    figure = Figure(figsize=(6.4, 2.3), dpi=144, layout="constrained")
    texts = {
        "same class": "neighbours of the query's class",
        "pixel distance": "their distance in pixels,\nany image: 1",
    }
    for axis, (key, text) in zip(figure.subplots(1, 2, sharey=True), texts.items(), strict=True):
        values = [results[name][key] for name in results]
        drawn = axis.barh(list(results), values, color=[style.colour(0), "0.6", "0.8"], height=0.6)
        axis.bar_label(
            drawn, [f"{v:.1%}" if key == "same class" else f"{v:.2f}" for v in values], padding=3, fontsize=8
        )
        axis.set(xlim=(0, 1.25 * max(values)), xticks=[])
        axis.set_title(text)
        style.plain(axis).spines["bottom"].set_visible(False)
        axis.tick_params(length=0)
    axis.invert_yaxis()
    return figure


if __name__ == "__main__":
    main()
