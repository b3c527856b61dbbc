"""Draws how units developed over a training: Fig. 4 of the ZFNet paper, and when each layer settled.

    python gallery/scripts/recording.py --checkpoints RUNS

RUNS holds a folder per network (zfnet64, alexnet64) with the weights that its training kept, epoch-001.safetensors …:
`deconvviz train zfnet64 --data tiny-imagenet --epochs 40 --recipe modern --out RUNS/zfnet64` with
`keep_epochs=(1, 2, 5, 10, 20, 30, 40)` in `deconvviz.train`. `deconvviz train … --record FILE` writes the same
recording during the training; here the kept weights are recorded afterwards. Images: the sample photos
(gallery/SOURCES.md). With `--keep FOLDER` the recordings stay there, as safetensors files.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

from publishing import layers_of, publish

import deconvviz
from deconvviz import Recording

NETWORKS = ("zfnet64", "alexnet64")
THRESHOLDS = (0.5, 0.7, 0.8, 0.9)
SHOWN = 5  # units of each layer
COMMAND = "python gallery/scripts/recording.py --checkpoints RUNS"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=Path, required=True, metavar="RUNS")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for network in NETWORKS:
            path = (options.keep or Path(temporary)) / f"{network}-recording.safetensors"
            draw(network, record(network, options.checkpoints / network, path))


def record(network: str, folder: Path, path: Path) -> Recording:
    recorder = deconvviz.Recorder(path, epochs=None)
    kept = sorted(folder.glob("epoch-*.safetensors"))
    if not kept:
        raise SystemExit(f"no epoch-*.safetensors in {folder}.")
    for weights in kept:
        recorder(deconvviz.zoo.create(network, weights=weights), int(re.findall(r"\d+", weights.stem)[0]))
    return recorder.recording


def draw(network: str, recording: Recording) -> None:
    """Publish the convergence curves, and for zfnet64 the units of all layers."""
    usual: dict[str, Any] = {
        "model": network,
        "weights": f"kept at epochs {', '.join(map(str, recording.epochs))} of the training of the bundled ones",
        "layer": [track.name for track in recording.layers],
        "units": [track.units.tolist() for track in recording.layers],
        "images": f"{recording.count} windows of the sample photos",
        "command": COMMAND,
    }
    publish(f"recording-{network}-convergence", recording.plot_convergence(), **usual, results=numbers(recording))
    if network == "zfnet64":
        for track in recording.layers:
            units = track.units.tolist()[:: len(track.units) // SHOWN][:SHOWN]
            one = {**usual, "layer": track.name, "units": units}
            figure = recording.plot(layer=track.name, units=units)
            publish(f"recording-{network}-layer-{track.number}", figure, **one)


def numbers(recording: Recording) -> dict[str, Any]:
    names = layers_of([f"{track.number}: {track.name}" for track in recording.layers])
    half = {str(t): recording.half_settled(t) for t in THRESHOLDS}
    return {
        "epochs": list(recording.epochs),
        "convergence": dict(zip(names, recording.convergence(), strict=True)),
        "half of the units settled at": {t: dict(zip(names, e.values(), strict=True)) for t, e in half.items()},
        "share of units whose strongest image changed": {
            name: track.changed().double().mean(1) for name, track in zip(names, recording.layers, strict=True)
        },
    }


if __name__ == "__main__":
    main()
