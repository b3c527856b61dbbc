"""Several rules in one call, and where a signal was lost on its way."""

import itertools

import pytest
import torch
from torch import nn

import deconvviz
from deconvviz.errors import OptionError
from deconvviz.projection.result import Projections

WAYS = ("guided", "deconvnet")


@pytest.fixture
def images():
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(dead=False):
    """Three convolutions; dead: what guided backpropagation carries back from unit 0 comes to a rectifier that is off."""
    torch.manual_seed(3)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(2)), *(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 3))
    )
    if dead:
        with torch.no_grad():
            net[0].bias[:4] = -9  # off everywhere
            net[3].weight[0::2, 4:] = 0  # these look at what is off, and only unit 0 at them
            net[3].bias += 2
            net[5].weight[0, 1::2] = 0
            net[5].weight[0, 0::2] = net[5].weight[0, 0::2].abs()
            net[5].bias += 9
    return net


def test_two_rules_are_the_same_as_two_calls(images, tmp_path):
    net, asked = network(), {"layer": "5", "units": [3, 0], "k": 3, "progress": False}
    both = deconvviz.project(net, images, **asked, rule=WAYS)
    apart = [deconvviz.project(net, images, **asked, rule=rule) for rule in WAYS]
    for found, expected in zip((both, *both.beside), apart, strict=True):
        assert (found.rule, found.layer) == (expected.rule, expected.layer)
        for name in ("units", "image_ids", "boxes", "patches", "projections", "likeness", "lost"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert not torch.allclose(both.projections, both.beside[0].projections)
    assert repr(both) == repr(apart[0]) + ", beside deconvnet"
    both.save(tmp_path / "saved")
    streamed = deconvviz.project(net, images, **asked, rule=WAYS, out=tmp_path / "streamed")
    assert Projections.load(tmp_path / "saved") == both == streamed
    assert torch.equal(both[0].beside[0].projections[0], both.beside[0].projections[1])
    assert len(list(both)) == 2


def test_the_picture_has_a_side_for_each_rule(images):
    both = deconvviz.project(network(), images, layer="5", units=[3, 0], k=3, rule=WAYS, progress=False)
    figure = both.plot()
    said = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert len(figure.axes) == 3 and {"projections, guided", "projections, deconvnet", "patches"} < set(said)
    arrays = [axes.images[0].get_array() for axes in figure.axes]
    assert all(not (a == b).all() for a, b in itertools.combinations(arrays, 2))


@pytest.mark.parametrize("rule", [(), ("guided", "guided"), ("guided", "lrp")])
def test_rules_without_meaning_are_refused(images, rule):
    with pytest.raises(OptionError, match="rule="):
        deconvviz.project(network(), images, layer="5", rule=rule, progress=False)


def test_a_lost_signal_says_where(images, tmp_path):
    net = network(dead=True)
    found = deconvviz.project(net, images, layer="5", units=[0, 1], k=3, rule=WAYS, progress=False)
    # By hand: what each rectifier hands on, the last first.
    for k in range(3):
        image = images[found.image_ids[0, k]][None].requires_grad_()
        first = net[0](image)
        deep = net[3](net[2](first.relu()))
        row, col = found.positions[0, k].tolist()
        (back,) = torch.autograd.grad(net[5](deep.relu())[0, 0, row, col], deep, retain_graph=True)
        (back,) = torch.autograd.grad(deep, first, (back.clamp_min(0) * (deep > 0)).detach(), retain_graph=True)
        assert not (back.clamp_min(0) * (first > 0)).any()
    places = {found.lost_at(0, k) for k in range(3)}
    assert len(places) == 1 and places <= {"1", "2"} and not found.projections[0].any()
    assert [found.lost_at(1, k) for k in range(3)] == [""] * 3 and found.projections[1].flatten(1).any(1).all()
    assert not found.beside[0].lost.any() and found.beside[0].projections[0].flatten(1).any(1).all()
    (place,) = places
    assert f"Of 3 of 6 signals nothing reached the pixels, lost at {place} (3)." in found.note
    assert "3 signals lost on the way" in repr(found)
    assert found.columns()["lost_at"] == [place] * 3 + [""] * 3
    said = [text.get_text() for axes in found.plot().axes for text in axes.texts]
    assert said.count(f"lost at\n{place}") == 3
    proof = deconvviz.evidence(net, images, layer="5", units=[0, 1], k=3, rule="guided", progress=False)
    assert torch.equal(proof.lost, found.lost) and found.loss in proof.note
    proof.save(tmp_path / "proof")
    assert deconvviz.Evidence.load(tmp_path / "proof") == proof
    assert f"lost at\n{place}" in [text.get_text() for text in proof.plot().axes[-1].texts]
