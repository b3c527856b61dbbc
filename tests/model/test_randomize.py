"""A copy with random weights: nothing trained is left, every tensor keeps its scale, the model is as it was."""

import copy

import pytest
import torch
from torch import nn

import deconvviz
from deconvviz.errors import ModelError, OptionError


def net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 40, 5), nn.BatchNorm2d(40), nn.ReLU(), nn.Flatten(), nn.Linear(40, 7)).train()


def test_every_tensor_is_drawn_again_at_its_scale():
    model = net()
    model[1].running_mean.normal_(generator=torch.Generator().manual_seed(2))
    before = copy.deepcopy(model.state_dict())
    random = deconvviz.randomize(model)
    for name, value in random.state_dict().items():
        own = before[name].double()
        assert torch.equal(model.state_dict()[name], before[name])
        if own.unique().numel() > 1:
            assert not torch.equal(value, before[name]), name
        if name.startswith("1."):  # a normalization's numbers change places
            assert torch.equal(*(x.flatten().sort().values for x in (value, before[name])))
        else:
            scale, expected = (x.double().square().mean().sqrt() for x in (value, own))
            assert abs(scale / expected - 1) < 4 / (2 * own.numel()) ** 0.5, name
            if own.numel() > 100:
                together = torch.corrcoef(torch.stack([value.double().flatten(), own.flatten()]))[0, 1]
                assert abs(together) < 4 / own.numel() ** 0.5, name
    assert random.training and next(random.parameters()).requires_grad


def test_a_seed_repeats_and_another_does_not():
    first, same, other = (deconvviz.randomize(net(), seed=seed)[4].weight for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_mistakes_are_named():
    with pytest.raises(OptionError, match=r"seed=0\.5"):
        deconvviz.randomize(net(), seed=0.5)
    with pytest.raises(ModelError, match="Module"):
        deconvviz.randomize("resnet")
    model = net()
    model.made = torch.ones(2, requires_grad=True) * 2  # not a leaf: torch refuses to copy it
    with pytest.raises(ModelError, match="cannot be copied"):
        deconvviz.randomize(model)
