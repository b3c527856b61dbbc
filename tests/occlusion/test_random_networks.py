"""Occlusion of random networks against every image alone: whatever they do to their maps, no number is wrong.

python -m pytest tests/occlusion/test_random_networks.py -m full      # a thousand of them
"""

import logging

import pytest
import torch
from occlusion_helpers import occlude
from random_networks import KINDS, case, one_by_one

from deconvviz.errors import UnsupportedOp


def check(seed, kinds=KINDS):
    """Return by which method the maps were measured, "" for a network that is refused by name."""
    network, image, options = case(seed, kinds)
    try:
        result = occlude(network, image, target=[0, 1, 2, 3], **options)
    except UnsupportedOp as error:
        assert "is changed in place through a view" in str(error), (seed, network)
        return ""
    with torch.no_grad():
        expected = one_by_one(network, result).permute(2, 0, 1)
    scale = expected.abs().max().clamp_min(1)
    assert (result.logit - expected).abs().max() <= 1e-9 * scale, (seed, network, options, result.method)
    return result.method


@pytest.fixture(autouse=True)
def quiet():
    """Many of these networks look at their whole batch, and each would say so."""
    logging.getLogger("deconvviz").setLevel(logging.ERROR)
    yield
    logging.getLogger("deconvviz").setLevel(logging.NOTSET)


@pytest.mark.parametrize("kind", KINDS)
def test_each_operation_alone(kind):
    assert bool(check(7, (kind,))) == (kind != "written")  # which loses what was kept, and is refused


def test_some_networks():
    found = [check(seed) for seed in range(24)]
    assert found.count("incremental") > 10 and found.count("full") > 2


@pytest.mark.full
@pytest.mark.parametrize("first", range(1000, 2000, 50))
def test_many_networks(first):
    found = [check(seed) for seed in range(first, first + 50)]
    assert found.count("incremental") > 25 and found.count("full") > 5
