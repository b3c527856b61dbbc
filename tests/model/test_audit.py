"""The audit lists what ran, with the rule it gets."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import deconvviz
from deconvviz import ImageError, OptionError


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2)
        self.lrn, self.fc = nn.LocalResponseNorm(3), nn.Linear(4, 2)

    def forward(self, x):
        x = self.lrn(self.pool(F.relu(self.norm(self.conv(x)), inplace=True)))
        x = F.relu(F.gelu(x)) * torch.sigmoid(x)
        return torch.softmax(self.fc(x.mean((2, 3))), 1)


def test_the_rows():
    report = deconvviz.audit(Mixed(), torch.randn(1, 3, 9, 9))
    rows = [(row.operation.rsplit(".", 1)[-1], row.module, row.calls, row.kind, row.status) for row in report]
    assert rows == [
        ("batch_norm", "norm", 1, "normalization", "extension"),
        ("relu", "", 2, "rectifier", "exact"),
        ("max_pool2d", "pool", 1, "max-pool", "exact"),
        ("local_response_norm", "lrn", 1, "normalization", "exact"),
        ("gelu", "", 1, "rectifier", "extension"),
        ("sigmoid", "", 1, "", "extension"),
        ("mul", "", 1, "product", "extension"),
        ("softmax", "", 1, "", "unsupported"),
    ]
    assert [row.operation for row in report.unsupported] == ["torch.softmax"]
    assert "there is no rule for it" in report.unsupported[0].rule


def test_what_makes_a_gate_needs_no_rule_unless_a_signal_comes_by():
    class Gated(nn.Module):
        def forward(self, x):
            gate = F.softsign(x)
            return torch.tanh(x) * F.hardsigmoid(gate) + (gate if self.also else 0)

    model = Gated()
    for also, expected in ((False, []), (True, ["torch.nn.functional.softsign"])):
        model.also = also
        report = deconvviz.audit(model, torch.randn(1, 3, 9, 9))
        rules = {row.operation.rsplit(".", 1)[-1]: row.rule for row in report}
        assert "a constant" in rules["hardsigmoid"]
        assert [
            row.operation for row in report.unsupported if "soft" in row.operation or "igmoid" in row.operation
        ] == expected
    assert not deconvviz.audit(torchvision.models.mobilenet_v3_small(weights=None)).unsupported


def test_it_prints():
    report = deconvviz.audit(torchvision.models.resnet18(weights=None), torch.zeros(1, 3, 32, 32))
    assert not report.unsupported
    lines = str(report).splitlines()
    assert len(lines) == len(report) + 1
    assert lines[0].split() == ["operation", "module", "calls", "status", "max-pools", "below", "rule"]
    assert report._repr_html_().count("<tr>") == len(report) + 1


def test_without_images_a_blank_one_of_the_models_size_runs():
    assert len(deconvviz.audit(nn.Sequential(nn.Conv2d(2, 1, 3), nn.ReLU()))) == 1


def test_images_must_be_images():
    with pytest.raises(ImageError, match=r"images have shape \(3,\), expected \(N, C, H, W\)"):
        deconvviz.audit(Mixed(), torch.zeros(3))


@pytest.mark.parametrize("rule", ["guided", "backprop"])
def test_the_rules_are_those_that_project_would_take(rule):
    x = torch.randn(1, 3, 9, 9)
    rows = {row.operation.rsplit(".", 1)[-1]: row for row in deconvviz.audit(Mixed(), x, rule=rule)}
    assert rows["relu"].rule.startswith("times its derivative") and rows["relu"].status == "exact"
    assert ("negative parts" in rows["relu"].rule) == (rule == "guided")
    # The gradient goes through both factors of a gate, and needs no rule of its own for what has none.
    assert rows["sigmoid"].rule == rows["softmax"].rule == "its plain gradient"
    assert not deconvviz.audit(Mixed(), x, rule=rule).unsupported
    deconvviz.project(Mixed().eval(), x, layer="fc", units=[0], k=1, rule=rule, progress=False)


def test_allow_gradient_says_what_is_allowed():
    x = torch.randn(1, 3, 9, 9)
    report = deconvviz.audit(Mixed(), x, allow_gradient=True)
    rows = {row.operation.rsplit(".", 1)[-1]: row for row in report}
    assert rows["softmax"].rule == "its plain gradient" and rows["softmax"].status == "extension"
    assert rows["relu"].rule == "max(signal, 0), as in the paper" and not report.unsupported
    lrn = {row.operation.rsplit(".", 1)[-1]: row.rule for row in deconvviz.audit(Mixed(), x, lrn="gradient")}
    assert lrn["local_response_norm"] == "its plain gradient"
    with pytest.raises(OptionError, match="rule='x' is not known"):
        deconvviz.audit(Mixed(), x, rule="x")


def test_layers_see_as_far_as_the_rule_goes():
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            y = F.relu(self.conv(x))
            return self.last(y * torch.sigmoid(y.mean((2, 3), keepdim=True)))

    for rule, field in (("deconvnet", (5, 5)), ("backprop", (22, 22))):
        row = deconvviz.layers(Squeezed(), 20, rule=rule)["last"]
        assert row.receptive_field == field
        found = deconvviz.project(
            Squeezed(), torch.randn(1, 3, 20, 20), layer="last", units=[0], k=1, rule=rule, progress=False
        )
        assert found.patches.shape[-2:] == tuple(min(side, 20) for side in field)  # what the image has of it
    with pytest.raises(OptionError, match="rule='x' is not known"):
        deconvviz.layers(Squeezed(), 20, rule="x")
