"""`project(model, layer=n)`: a sample of torchvision's networks, all of them at n = 1 to 5 under the marker `full`.

benchmarks/torchvision_matrix.py prints the table of all.
"""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torchvision

import deconvviz
from deconvviz import LayerError, UnsupportedOp

# name -> (side in pixels, how many of the layers 1, 3 and 5 there are)
SAMPLE = {
    "alexnet": (80, 3),
    "convnext_tiny": (40, 3),
    "efficientnet_b0": (40, 3),
    "mobilenet_v3_small": (40, 3),
    "regnet_y_400mf": (40, 3),
    "shufflenet_v2_x0_5": (40, 3),
    "squeezenet1_1": (64, 2),
    "swin_t": (64, 0),  # its layers are blocks, behind attention
}
ALL = torchvision.models.list_models(module=torchvision.models)


def reached(name: str, size: int, numbers: Iterable[int]) -> int:
    model = torchvision.models.get_model(name, weights=None).eval()
    images = torch.randn(2, 3, size, size)
    count = 0
    for number in numbers:
        try:
            result = deconvviz.project(model, images, layer=number, units=[0, 1], top=1, progress=False)
        except LayerError as error:
            assert f"there is no layer {number}" in str(error)
            continue
        except UnsupportedOp as error:
            assert " in module '" in str(error)
            continue
        assert result.number == number and torch.isfinite(result.projections).all()
        count += 1
    return count


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_torchvision(name: str):
    size, expected = SAMPLE[name]
    assert reached(name, size, (1, 3, 5)) == expected


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", ALL)
def test_all_of_torchvision(name: str):
    fixed = name.startswith(("vit", "maxvit"))
    assert reached(name, 224 if fixed else 128, range(1, 6)) >= 1


def test_deeper_layers_of_a_transformer_are_refused_by_name():
    model = torchvision.models.swin_t(weights=None)
    with pytest.raises(UnsupportedOp, match=r"in module 'features\."):
        deconvviz.project(model, torch.randn(1, 3, 64, 64), layer="features.3", units=[0], top=1, progress=False)


def test_a_few_models_equal_an_independent_reference():
    """The short form of benchmarks/coverage.py, whose table is over all of torchvision and 190 models of timm."""
    script = Path(__file__).parents[1] / "benchmarks" / "coverage.py"
    done = subprocess.run([sys.executable, script, "--names", "short"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 models, 24 comparisons: 22 equal to the reference, 2 refused by name, 0 wrong" in done.stdout
