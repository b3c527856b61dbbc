"""The units of "Identity Mappings", each against its figure written out."""

import pytest
import torch
from torch.nn import functional as F

import deconvviz
from deconvviz import zoo
from deconvviz.errors import OptionError

SHORTCUTS = ["scaled", "exclusive gate", "shortcut gate", "convolution", "dropout"]
ORDERS = ["norm after addition", "relu before addition", "relu first", "norm first"]
WAYS = [{"shortcut": s} for s in SHORTCUTS] + [{"order": o} for o in ORDERS]
each = pytest.mark.parametrize("way", WAYS, ids=lambda way: next(iter(way.values())))


def build(**way):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.create("resnet-14", num_classes=4, **way).double()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # statistics of their own, or a norm does nothing
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
        return model.eval()


def by_figure(unit, x, way):
    """Figs. 2 and 4 of the paper, for a unit that keeps its size."""
    shortcut, order = way.get("shortcut", "identity"), way.get("order", "original")
    if order == "norm first":
        return x + unit.conv2(unit.bn2(unit.conv1(unit.bn1(x).relu())).relu())
    if order == "relu first":
        return x + unit.bn2(unit.conv2(unit.bn1(unit.conv1(x.relu())).relu()))
    inner = unit.conv2(unit.bn1(unit.conv1(x)).relu())
    if order == "norm after addition":
        return unit.bn2(inner + x).relu()
    if order == "relu before addition":
        return unit.bn2(inner).relu() + x
    residual = unit.bn2(inner)
    if shortcut == "scaled":
        return (x / 2 + residual / 2).relu()
    if shortcut == "convolution":
        return (F.conv2d(x, unit.shortcut.weight) + residual).relu()
    if shortcut == "dropout":
        return (x + residual).relu()  # after training
    gate = 1 / (1 + torch.exp(-(F.conv2d(x, unit.gate.weight, unit.gate.bias) - 6)))
    return ((1 - gate) * x + (gate * residual if shortcut == "exclusive gate" else residual)).relu()


@each
def test_a_unit_is_the_figure_s(way):
    unit = build(**way).layer2[1]
    x = torch.randn(2, 32, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(unit(x.clone()), by_figure(unit, x, way), rtol=0, atol=1e-12)


@each
def test_networks_train_audit_project_and_occlude(way):
    model = build(**way).float()
    x = torch.randn(2, 3, 32, 32)
    assert not deconvviz.audit(model, x).unsupported
    assert deconvviz.project(model, x, layer=2, units=[0], k=1, progress=False).projections.abs().max() > 0
    quick, full = (
        deconvviz.occlude(model, x[:1], size=16, stride=16, method=m, progress=False) for m in ("incremental", "full")
    )
    torch.testing.assert_close(quick.logit, full.logit, rtol=1e-4, atol=1e-5)
    F.cross_entropy(model.train()(x), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_orders_move_layers_and_change_no_count_but_the_last_norm():
    def count(**way):
        return sum(p.numel() for p in build(**way).parameters())

    usual = count()
    assert {count(order=order) for order in ORDERS[:3]} == {usual}
    assert count(order="norm first") == sum(p.numel() for p in zoo.create("preresnet-14", num_classes=4).parameters())
    # 1×1 of each unit: two stay at 16, one goes 16 -> 32 and so on; a gate has biases too.
    products = 16 * 16 * 2 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64
    assert count(shortcut="convolution") == usual + products
    assert count(shortcut="exclusive gate") == count(shortcut="shortcut gate") == usual + products + 2 * (16 + 32 + 64)
    assert count(shortcut="scaled") == count(shortcut="dropout") == usual


def test_a_dropped_shortcut_is_dropped_in_training_alone():
    unit = build(shortcut="dropout").layer1[1]
    x = torch.randn(1, 16, 8, 8, dtype=torch.float64)
    assert torch.equal(unit(x), unit(x))
    unit.dropout.train()
    assert not torch.equal(unit(x), unit(x))


@pytest.mark.parametrize(
    ("name", "way", "text"),
    [
        ("resnet-14", {"shortcut": "long"}, "shortcut='long': expected one of 'identity', 'scaled'"),
        ("resnet-14", {"order": "reverse"}, "order='reverse': expected one of 'original'"),
        ("resnet-14", {"order": "relu first", "shortcut": "scaled"}, "one at a time"),
        ("plain-14", {"shortcut": "scaled"}, "give them to resnet-14"),
    ],
)
def test_what_the_paper_has_not_is_refused(name, way, text):
    with pytest.raises(OptionError, match=text):
        zoo.create(name, **way)
