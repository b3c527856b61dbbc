"""The papers' numbers, each from its network: parameters, multiply-adds, outputs, connections; and torch's own counts."""

import inspect
import json
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import deconvviz
from deconvviz import zoo
from deconvviz.cli import main as cli
from deconvviz.errors import LayerError, OptionError, UnsupportedOp


def cost_of(name, **options):
    """The cost of a network without numbers: nothing is allocated, nothing computed."""
    with torch.device("meta"):
        model = zoo.create(name, **options)
    return deconvviz.cost(model)


def column(cost, what):
    return [getattr(layer, what) for layer in cost]


def test_alexnet_works_in_its_convolutions_and_remembers_in_its_matrices():
    cost = cost_of("alexnet")
    assert cost.parameters == 60_965_224 and cost.macs == 724_406_816
    assert cost.share("macs", "convolution") == pytest.approx(0.919, abs=5e-4)
    assert cost.share("parameters", "linear") == pytest.approx(0.962, abs=5e-4)
    first = cost["features.0"]
    assert (first.outputs, first.connections) == (290_400, 105_705_600)
    assert cost.neurons == 659_272  # "650,000 neurons"
    assert [layer.receptive_field for layer in cost if layer.kind == "convolution"] == [
        (f, f) for f in (11, 51, 99, 131, 163)
    ]
    assert cost.depth == 8
    assert "multiply-adds: 724,406,816 (724.4 M); convolutions 91.9 %, fully connected 8.1 %" in cost.table()


def test_lenet_5_has_the_connections_of_its_paper():
    cost = cost_of("lenet-5")
    assert column(cost, "name") == ["c1", "s2", "c3", "s4", "c5", "f6", "output"]
    assert column(cost, "parameters") == [156, 12, 1_516, 32, 48_120, 10_164, 0]
    assert column(cost, "connections") == [122_304, 5_880, 151_600, 2_000, 48_120, 10_164, 840]
    assert cost.connections == 340_908 and cost.parameters == 60_000  # section II.B


def test_vgg_keeps_15_million_numbers_and_19_works_five_times_a_plain_34():
    vgg, vgg19, plain = cost_of("vgg-d"), cost_of("vgg-e"), cost_of("imagenet-plain-34")
    assert vgg.outputs == 15_237_608 and vgg.memory == 4 * vgg.outputs
    assert vgg19.macs == pytest.approx(19.63e9, abs=5e6) and plain.macs == pytest.approx(3.644e9, abs=5e5)
    assert plain.macs / vgg19.macs == pytest.approx(0.186, abs=5e-4)
    assert (vgg.depth, vgg19.depth, plain.depth) == (16, 19, 34)


@pytest.mark.parametrize(("layers", "giga"), [(50, 3.86), (101, 7.57), (152, 11.28)])
def test_residual_networks_work_as_much_as_table_1_says(layers, giga):
    cost = cost_of(f"imagenet-resnet-{layers}")
    assert cost.macs / 1e9 == pytest.approx(giga, abs=0.01) and cost.depth == layers


def test_an_inception_module_costs_what_the_paper_s_row_says():
    cost = cost_of("googlenet")
    module = [layer for layer in cost if layer.name.startswith("inception3a.") and layer.kind == "convolution"]
    assert sum(layer.macs for layer in module) == 163_328 * 28 * 28  # 128 M in table 1
    assert sum(layer.parameters for layer in module) == 163_328 + 368
    assert cost.depth == 22 and cost.idle == 13_378_280 - 6_998_552 and cost.parameters == 13_378_280
    assert f"nothing that ran uses {cost.idle:,}" in cost.table()


@pytest.mark.parametrize(("branch", "quoted", "saved"), [("three", 0.5, 0.417), ("five", 0.917, 0.897)])
def test_a_reduction_saves_less_than_is_quoted_when_it_counts_itself(branch, quoted, saved):
    cost = cost_of("googlenet")
    reduction, convolution = (cost[f"inception3a.{branch}.{n}.0"] for n in (0, 1))
    direct = convolution.macs * 192 // reduction.shape[0]  # the convolution over all 192 maps
    assert 1 - convolution.macs / direct == pytest.approx(quoted, abs=5e-4)
    assert 1 - (reduction.macs + convolution.macs) / direct == pytest.approx(saved, abs=5e-4)


def stack(*sizes):
    layers = [nn.Conv2d(8, 8, size, padding="same", bias=False) for size in sizes]
    return deconvviz.cost(nn.Sequential(*layers), input_size=(8, 16, 16))


@pytest.mark.parametrize(
    ("small", "large", "saved"),
    [
        ((3, 3, 3), (7,), 0.449),  # VGG, section 2.3
        ((3, 3), (5,), 0.28),  # Inception-v3, section 3.1
        (((3, 1), (1, 3)), (3,), 0.333),  # section 3.2
    ],
)
def test_small_filters_see_as_far_for_fewer_weights(small, large, saved):
    few, many = stack(*small), stack(*large)
    assert 1 - few.parameters / many.parameters == pytest.approx(saved, abs=5e-4)
    assert 1 - few.macs / many.macs == pytest.approx(saved, abs=5e-4)
    assert few.layers[-1].receptive_field == many.layers[-1].receptive_field


class Everything(nn.Module):
    """Products of many kinds: grouped, dilated and transposed convolutions, attention, functions, shared weights."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, 2, 1)
        self.b = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.weighed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.out = nn.Linear(6, 4)
        self.never = nn.Linear(9, 9)

    def forward(self, x):
        x = self.up(self.b(self.b(self.a(x).relu())).relu())
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=True)[0]
        tokens = self.weighed(tokens) @ self.weighed(tokens).transpose(1, 2) @ tokens
        return F.linear(tokens.mean(1), self.out.weight, self.out.bias)


def test_products_are_those_that_torch_counts_and_no_parameter_is_lost(monkeypatch):
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)  # which its counter does not see
    model = Everything().eval()
    cost = deconvviz.cost(model, input_size=16)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 16, 16))
    assert 2 * cost.macs == counter.get_total_flops()
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.idle == sum(p.numel() for p in model.never.parameters())
    assert cost["b#1"].parameters == 8 * 2 * 9 + 8 and cost["b#2"].parameters == 0
    assert cost["b#1"].macs == cost["b#2"].macs == 8 * 8 * 8 * 2 * 9
    assert cost["norm"].parameters == 12 and cost["norm"].outputs == 0
    attention = [layer for layer in cost if layer.name.startswith("attention")]
    assert sum(layer.parameters for layer in attention) == sum(p.numel() for p in model.attention.parameters())


@pytest.mark.parametrize("name", ["squeezenet-1.1", "densenet-121", "wide-resnet-28-10", "nin-cifar"])
def test_whole_networks_cost_what_torch_counts(name):
    with torch.device("meta"):
        model = zoo.create(name)
    cost = deconvviz.cost(model)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *cost.input_size, device="meta"))
    assert 2 * cost.macs == counter.get_total_flops()
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    table = deconvviz.layers(model)
    assert sum(row.macs for row in table) == cost.macs and sum(row.parameters for row in table) == cost.parameters


def test_an_attention_s_products_count_whatever_kernel_makes_them():
    class Attention(nn.Module):
        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)[:, None]
            return F.scaled_dot_product_attention(tokens, tokens, tokens).mean((1, 2))

    assert deconvviz.cost(Attention(), input_size=(6, 8, 8)).macs == 2 * 64 * 64 * 6


def test_pools_connect_all_that_their_windows_read():
    pools = nn.MaxPool2d(3, 2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3), nn.AdaptiveAvgPool2d(1)
    cost = deconvviz.cost(nn.Sequential(nn.Conv2d(2, 2, 1), *pools), input_size=21)
    # 21 -> 10 -> 5 -> 3 (windows of 2, 3 and 2) -> 1
    assert column(cost, "connections")[1:] == [2 * 100 * 9, 2 * 25 * 4, 2 * (2 + 3 + 2) ** 2, 2 * 9]
    assert cost.outputs == 2 * (2 * 21 * 21 + 100 + 25 + 9 + 1) and cost.neurons == 2 * 21 * 21


def test_the_layer_table_has_columns_of_cost():
    table = deconvviz.layers(zoo.create("zfnet64"))
    assert "parameters  multiply-adds" in str(table)
    assert table["features.0"].macs == 64 * 3 * 49 * 32 * 32 and table["features.0"].parameters == 64 * 147 + 64
    assert table["features.1"].macs == 0


def test_what_is_not_counted_is_refused():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x):
            return self.rnn(x.flatten(2).transpose(1, 2))[0]

    with pytest.raises(UnsupportedOp, match=r"lstm|rnn"):
        deconvviz.cost(Recurrent(), input_size=8)
    assert deconvviz.layers(Recurrent(), 8)


def test_it_is_kept_compared_and_refuses_what_it_has_not(tmp_path):
    cost = cost_of("lenet-1")
    cost.save(tmp_path / "cost.safetensors")
    assert deconvviz.Cost.load(tmp_path / "cost.safetensors") == cost
    with pytest.raises(LayerError, match="it has h1, h2"):
        _ = cost["c1"]
    with pytest.raises(LayerError, match="expected 'parameters', 'macs'"):
        cost.share("flops", "linear")


def test_pictures_show_layers_or_networks():
    cost, other = cost_of("lenet-1"), cost_of("lenet-5")
    layers = cost.plot()
    heights = [bar.get_height() for bar in layers.axes[0].patches]
    assert sorted(heights) == sorted(layer.macs for layer in cost)
    circles = cost.plot(name="one", others={"five": other}, accuracy={"one": 98.3, "five": 99.05}).axes[0].collections
    assert [tuple(c.get_offsets()[0]) for c in circles[::2]] == [(cost.macs, 98.3), (other.macs, 99.05)]
    areas = [c.get_sizes()[0] for c in circles[::2]]
    assert areas[0] / areas[1] == pytest.approx(cost.parameters / other.parameters)
    with pytest.raises(OptionError, match="accuracy has no number for five"):
        cost.plot(name="one", others={"five": other}, accuracy={"one": 98.3})


def test_the_picture_s_options_are_those_of_its_drawing():
    own = inspect.signature(deconvviz.Cost.plot).parameters
    draw = inspect.signature(import_module("deconvviz.plotting.cost").draw).parameters
    assert set(list(own)[1:]) == set(list(draw)[1:])


def test_the_command_prints_the_table_and_draws(tmp_path, capsys):
    out = tmp_path / "cost.png"
    chosen = ["--compare", "lenet-5", "--accuracy", "98.3,99.05", "--out", str(out)]
    assert cli.main(["cost", "lenet-1", *chosen]) == 0
    printed = capsys.readouterr().out
    assert "parameters: 2,578" in printed and "lenet-5: 7 layers: 60,000 parameters" in printed and out.exists()
    assert cli.main(["cost", "lenet-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"][0]["name"] == "h1"
    assert cli.main(["cost", "lenet-1", "--accuracy", "1,2"]) == 2
