"""Draws the five panels of the ZFNet paper's Fig. 7 for three free photos: occlusion-<photo>.png and .json.

    python gallery/occlusion.py [--weights FILE]

The photos and their licences are in gallery/SOURCES.md; the weights are the ones that come with the package.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch

import deconvviz
from deconvviz.preprocess import preprocess_for
from deconvviz.samples import PHOTOS, samples

HERE = Path(__file__).parent
SHOWN = ("chelsea", "coffee", "hopper")
SIZE, STRIDE = 14, 2  # the paper states neither; about a fifth of the side, as its figure looks
WINDOWS = 1200  # of the sample photos: the other images of panel (c)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="bundled", help="default: the ones in the package")
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    model = deconvviz.zoo.create("zfnet64", weights=options.weights)
    for photo in PHOTOS:
        if photo.name in SHOWN:
            draw(model, photo, options.out)


def draw(model: torch.nn.Module, photo: object, out: Path) -> None:
    windows = samples(64, WINDOWS, preprocess=preprocess_for(model))
    others = windows.take([i for i, name in enumerate(windows.labels) if name != photo.name])
    start = time.perf_counter()
    result = deconvviz.occlude(model, photo.path, layer=5, size=SIZE, stride=STRIDE, others=others)
    seconds = time.perf_counter() - start
    result.plot(title=f"{photo.title}, seen by zfnet64").savefig(out / f"occlusion-{photo.name}.png")
    facts = {
        "command": "python gallery/occlusion.py",
        "photo": {"title": photo.title, "author": photo.author, "licence": photo.licence, "source": photo.source},
        "network": "zfnet64",
        "weights": model.card.weights_file,
        "training": model.card.training and dict(model.card.training),
        "size": SIZE,
        "stride": STRIDE,
        "fill": result.fill_name,
        "positions": list(result.label.shape),
        "target": {"class": result.target, "name": result.name_of(result.target)},
        "layer": 5,
        "others": f"{len(others)} windows of the other sample photos",
        "unit": result.unit,
        "unoccluded": {name: value.item() for name, value in result.unoccluded.items()},
        "lowest": {"probability": result.probability.min().item(), "activation": result.activation.min().item()},
        "method": result.method,
        "seconds, with the projections": round(seconds, 2),
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    (out / f"occlusion-{photo.name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
