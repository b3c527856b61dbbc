"""Five ways to explain one number of a network by its signals, each a function of the case: (case) -> signed map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..devices import fitting
from ..errors import UnsupportedOp
from ..projection.deconvnet import begin, carry
from ..rules import table as rules
from ..rules.signals import Items
from ..tape.record import record
from .case import Case


def deconvnet(case: Case) -> Tensor:
    """The ZFNet paper's way back, with a seed of 1."""
    return _carry_back(case, "deconvnet")


def guided(case: Case) -> Tensor:
    """The way back that also keeps the forward signs."""
    return _carry_back(case, "guided")


def _carry_back(case: Case, rule: str) -> Tensor:
    start, layer = case.start, case.start.layer
    saver = rules.Saving(rule)
    try:
        tape = record(
            case.network, case.image, until=layer.value, keep=[layer.value], saver=saver, gradient=saver.gradient
        )
        place = torch.tensor([start.position])
        items = Items(torch.zeros(1, dtype=torch.long), place)
        # A seed of 1, not the activation: all methods explain the number itself, and a negative logit keeps its sign.
        seed = begin(tape, layer, torch.ones(1), torch.tensor([start.unit]), place)
        return items.whole(carry(tape, layer, seed, items, rule), case.image.shape).data
    except UnsupportedOp as error:
        raise UnsupportedOp(f"{error} Or leave the method out: compare_methods(…, methods=[…]).") from error


def gradient(case: Case) -> Tensor:
    """The gradient of the number, captum's `Saliency`."""
    from captum.attr import Saliency

    return Saliency(case.number).attribute(case.leaf(), abs=False)


def gradcam(case: Case) -> Tensor:
    """The maps of one layer, weighed by their mean gradients, captum's `LayerGradCam`."""
    from captum.attr import LayerAttribution, LayerGradCam

    assert case.cam is not None
    method = LayerGradCam(case.number, case.network.get_submodule(case.cam))
    coarse = method.attribute(case.leaf(), relu_attributions=True)
    return LayerAttribution.interpolate(coarse, tuple(case.image.shape[2:]), interpolate_mode="bilinear")


def integrated(case: Case) -> Tensor:
    """The gradient along the way from a blank image, captum's `IntegratedGradients`."""
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(case.number)
    along: dict[str, Any] = {"baselines": torch.zeros_like(case.image), "n_steps": case.steps}
    most = max(1, 4_000_000 // case.image.numel())  # 27 images of 224 × 224 at once
    return fitting(lambda size: method.attribute(case.leaf(), internal_batch_size=size, **along), most)
