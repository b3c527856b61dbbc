"""Small files of every kind of result, written by version 0.1.0 before results had one base."""

from pathlib import Path

import deconvviz
from deconvviz.training.result import Training

SAVED = {
    "correspondence": (deconvviz.Correspondence, "Correspondence of 3 images: 2 parts, 1 layer"),
    "filter-comparison": (deconvviz.FilterComparison, "FilterComparison of 2 networks: one, two"),
    "filters": (deconvviz.Filters, "Filters of 0: 4 filters, 3×3 px, stride 1×1"),
    "invariance": (deconvviz.Invariance, "Invariance of 2 images, 1 layer: scale"),
    "method-comparison": (
        deconvviz.MethodComparison,
        "MethodComparison of class 0: 2 methods, 8×8 px, 2 stages × 1 draw",
    ),
    "neighbours": (deconvviz.Neighbours, "Neighbours of 1: 1: 2 queries × 2 images, l2"),
    "occlusion": (deconvviz.Occlusion, "Occlusion of a: 3×3 positions, 8×8 px"),
    "occlusion-targets": (deconvviz.Occlusion, "Occlusion of class 0, class 1: 3×3 positions, 8×8 px"),
    "probe": (deconvviz.Probe, "Probe of 1 layer: 6 images, 2 classes"),
    "projections": (deconvviz.Projections, "Projections of 1: 2 units × 2 images, 3×3 px"),
    "recording": (deconvviz.Recording, "Recording of 1, 4: epochs 1, 2; 6 images"),
    "responses": (deconvviz.Responses, "Responses of 2 layers: 6 images"),
    "topk": (deconvviz.TopK, "TopK of 1, 4: 2 of 6 images per unit"),
    "training": (Training, "Training of run/weights.safetensors: 2 epochs, top-1 50.0%"),
}
FOLDER = Path(__file__).parent / "results" / "saved"


def saved(name):
    return SAVED[name][0].load(FOLDER / f"{name}.safetensors")
