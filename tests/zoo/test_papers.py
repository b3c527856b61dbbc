"""The papers' networks have the papers' parameters and maps; each is audited, projected, occluded and trained a step."""

import pytest
import torch
from small_networks import SMALL
from torch import nn

import deconvviz
from deconvviz import zoo
from deconvviz.errors import OptionError

# The papers' figures, biases included.
PARAMETERS = {
    "fractalnet-20": 33_724_618,
    "inception-resnet-v2": 55_843_464,
    "inception-v4": 42_679_816,
    "alexnet": 60_965_224,
    "densenet-121": 7_978_856,
    "googlenet": 13_378_280,
    "imagenet-plain-34": 21_623_848,
    "imagenet-resnet-101": 44_549_160,
    "imagenet-resnet-152": 60_192_808,
    "imagenet-resnet-50": 25_557_032,
    "lenet-1": 2_578,
    "lenet-5": 60_000,
    "overfeat-accurate": 144_656_488,
    "overfeat-fast": 145_920_872,
    "inception-v3": 27_161_264,
    "resnet-110": 1_727_962,
    "resnext-50": 25_028_904,
    "squeezenet-1.0": 1_248_424,
    "stochastic-depth-110": 1_727_962,
    "vgg-a": 132_863_336,
    "vgg-a-lrn": 132_863_336,
    "vgg-b": 133_047_848,
    "vgg-c": 133_638_952,
    "vgg-d": 138_357_544,
    "vgg-e": 143_667_240,
    "wide-resnet-28-10": 36_479_194,
    "zfnet": 62_357_608,
    "zfnet-wide": 107_627_624,
}


def on_meta(name, **options):
    """The network without numbers: nothing is allocated, nothing computed."""
    with torch.device("meta"):
        return zoo.create(name, **options)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def shapes(model, kinds=("Conv2d", "TableConvolution", "MaxPool2d", "Average")):
    """The shape of what each such module returns, in order, for one blank image."""
    seen = []
    for module in model.modules():
        if type(module).__name__ in kinds:
            module.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[1:])))
    channels = len(model.card.mean)
    model(torch.zeros(1, channels, *model.card.input_size, device="meta"))
    return seen


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_papers(name):
    assert parameters(on_meta(name)) == PARAMETERS[name]


def test_lenet_5_has_the_parameters_of_each_layer():
    counts = [parameters(layer) for layer in on_meta("lenet-5").children()]
    assert [n for n in counts if n] == [156, 12, 1_516, 32, 48_120, 10_164]


def test_lenet_5_reads_sixty_connections_and_no_other():
    model = zoo.create("lenet-5")
    layer = model.c3
    assert len(layer.weight) == 60 and sorted(torch.bincount(layer.rows).tolist()) == [3] * 6 + [4] * 9 + [6]
    assert torch.bincount(layer.cols).tolist() == [10] * 6  # each map of S2 is read as often
    x = torch.randn(1, 6, 14, 14)
    before = layer(x)
    x[:, 3] += 1
    touched = (layer(x) != before).amax((0, 2, 3)).nonzero().flatten().tolist()
    assert touched == layer.rows[layer.cols == 3].tolist()


def test_lenet_5_ends_in_the_distance_to_the_digits():
    model, x = zoo.create("lenet-5"), torch.randn(3, 84)
    distance = (x[:, None] - model.output.codes).square().sum(2)
    assert torch.allclose((-distance).softmax(1), model.output(x).softmax(1), atol=1e-5)
    assert set(model.output.codes.unique().tolist()) == {-1.0, 1.0}
    assert len(model.output.codes.unique(dim=0)) == 10


def test_a_trainable_average_is_the_sum_times_a_weight_and_a_bias():
    layer = zoo.create("lenet-1").h2
    with torch.no_grad():
        layer.bias.fill_(0.5)
    x = torch.randn(2, 4, 6, 6)
    windows = x.unfold(2, 2, 2).unfold(3, 2, 2).sum((-1, -2))
    assert torch.allclose(layer(x), windows * layer.weight[:, None, None] + 0.5, atol=1e-6)


def test_googlenet_without_its_heads_has_the_parameters_that_are_used():
    assert parameters(on_meta("googlenet", heads=False)) == 6_998_552
    assert parameters(on_meta("googlenet").inception3a) == 163_328 + 368  # its weights, and a bias per map


def test_googlenet_has_the_maps_of_table_1():
    model = on_meta("googlenet")
    seen = shapes(model, ("MaxPool2d",))
    assert [s for s in seen if s[1] in (56, 28, 14, 7)][:2] == [(64, 56, 56), (192, 28, 28)]
    modules = [getattr(model, f"inception{n}") for n in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
    outputs = []
    for module in modules:
        module.register_forward_hook(lambda _m, _i, out: outputs.append(tuple(out.shape[1:])))
    model(torch.zeros(1, 3, 224, 224, device="meta"))
    assert outputs == [
        *((256, 28, 28), (480, 28, 28), (512, 14, 14), (512, 14, 14), (512, 14, 14)),
        *((528, 14, 14), (832, 14, 14), (832, 7, 7), (1024, 7, 7)),
    ]


def outputs_of(model, names):
    """The shapes of what these modules return for one blank image of the card's size."""
    seen = []
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[1:])))
    model(torch.zeros(1, 3, *model.card.input_size, device="meta"))
    return seen


def test_bn_inception_has_the_maps_of_figure_5():
    names = [f"inception{n}" for n in ("3a", "3b", "3c", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
    assert outputs_of(on_meta("bn-inception"), names) == [
        *((256, 28, 28), (320, 28, 28), (576, 14, 14)),
        *((576, 14, 14), (576, 14, 14), (576, 14, 14), (576, 14, 14), (1024, 7, 7)),
        *((1024, 7, 7), (1024, 7, 7)),
    ]


def test_inception_resnet_v1_has_the_maps_of_figure_15():
    model = on_meta("inception-resnet-v1")
    assert outputs_of(model, ["stem", "a", "reduction_a", "b", "reduction_b", "c"]) == [
        *((256, 35, 35), (256, 35, 35), (896, 17, 17), (896, 17, 17), (1792, 8, 8), (1792, 8, 8)),
    ]
    assert [len(stage) for stage in (model.a, model.b, model.c)] == [5, 10, 5]


def test_a_scaled_residual_is_added_before_the_relu():
    unit = zoo.create("inception-resnet-v1", blocks=(1, 1, 1)).a[0]
    x = torch.randn(2, 256, 5, 5)
    branches = torch.cat([branch(x) for branch in unit.branches], 1)
    assert torch.allclose(unit(x), (x + 0.17 * unit.up(branches)).relu(), atol=1e-5)


def test_a_fractal_joins_columns_by_their_mean():
    block = zoo.create("fractalnet-20", maps=(4, 4, 4, 4, 4)).fractals[0]
    x = torch.randn(2, 3, 8, 8)
    one, two, four = block.columns
    half = (two[0](x) + four[1](four[0](x))) / 2  # f₂(x)
    again = (two[1](half) + four[3](four[2](half))) / 2  # what f₂ makes of it, but for the join with the first column
    wanted = (one[0](x) + two[1](half) + four[3](four[2](half))) / 3
    assert torch.allclose(block(x), wanted, atol=1e-5) and not torch.allclose(again, wanted, atol=1e-3)
    assert torch.allclose(block(x, only=0), one[0](x), atol=1e-6)
    assert torch.allclose(block(x, only=1), two[1](two[0](x)), atol=1e-5)
    deep = four[3](four[2](four[1](four[0](x))))
    assert torch.allclose(block(x, only=2), deep, atol=1e-5)


def test_drop_path_keeps_at_least_one_way_and_ends_with_training():
    model = zoo.create("fractalnet-20", num_classes=3, maps=(4, 4, 4, 4, 4), drop_path=0.9, dropout=[0.0] * 5)
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(model(x), model(x))
    block = model.fractals[0].eval()
    assert all(block(x, drop=0.9).abs().max() > 0 for _ in range(20))
    model.train()
    assert len({round(model(x).sum().item(), 4) for _ in range(8)}) > 1


def test_dropout_is_the_paper_s_unless_said():
    model = on_meta("googlenet")
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.7, 0.7, 0.4]
    assert [m.p for m in on_meta("vgg-a", dropout=0.1).modules() if isinstance(m, nn.Dropout)] == [0.1, 0.1]


def test_googlenet_trains_with_three_outputs_and_answers_with_one():
    model = on_meta("googlenet", num_classes=7).train()
    outputs = model(torch.zeros(2, 3, 224, 224, device="meta"))
    assert [tuple(o.shape) for o in outputs] == [(2, 7)] * 3
    assert model.eval()(torch.zeros(2, 3, 224, 224, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("overfeat-fast", [56, 28, 24, 12, 12, 12, 12, 6]),
        ("overfeat-accurate", [108, 36, 30, 15, 15, 15, 15, 15, 5]),
        ("vgg-a", [224, 112, 112, 56, 56, 56, 28, 28, 28, 14, 14, 14, 7]),
        ("zfnet-wide", [110, 55, 26, 13, 13, 13, 13, 6]),
        ("lenet-1", [24, 12, 8, 4]),
        ("lenet-5", [28, 14, 10, 5, 1]),
        ("sppnet", [110, 55, 27, 13, 13, 13, 13]),
        ("nin", [54, 54, 54, 27, 27, 27, 27, 13, 13, 13, 13, 6, 6, 6, 6]),
    ],
)
def test_maps_are_as_wide_as_the_papers_say(name, sides):
    assert [shape[1] for shape in shapes(on_meta(name))] == sides


def test_a_pyramid_takes_any_size_and_holds_each_cell_s_maximum():
    model = zoo.create("sppnet", num_classes=5, hidden=8)
    assert [model(torch.randn(1, 3, h, w)).shape for h, w in ((180, 224), (224, 180))] == [(1, 5)] * 2
    x = torch.randn(2, 4, 12, 18)
    pooled = model.classifier[0](x).reshape(2, -1)
    assert pooled.shape == (2, 4 * 50)
    assert torch.equal(pooled[:, -4:], x.amax((2, 3)))
    halves = x.unflatten(2, (2, 6)).unflatten(4, (2, 9)).amax((3, 5)).flatten(1)
    assert torch.equal(pooled[:, -20:-4], halves)


def test_blocks_survive_less_the_deeper_they_are_and_are_weighed_after_training():
    model = zoo.create("stochastic-depth-110", layers=14)
    blocks = [m for m in model.modules() if type(m).__name__ == "Dropping"]
    assert [b.survival for b in blocks] == pytest.approx([11 / 12, 10 / 12, 9 / 12, 8 / 12, 7 / 12, 6 / 12])
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(blocks[0](x), (x + 11 / 12 * blocks[0].block.residual(x)).relu())
    last, x = blocks[-1].train(), torch.rand(2, 64, 8, 8)
    kept = [not torch.equal(last(x), x) for _ in range(200)]
    assert 70 < sum(kept) < 130  # half; beyond this once in 40,000 runs


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("lenet-5", {"c1": 5, "s2": 6, "c3": 14, "s4": 16, "c5": 32}),
        ("alexnet", {"features.0": 11, "features.4": 51, "features.8": 99, "features.10": 131, "features.12": 163}),
    ],
)
def test_receptive_fields_are_as_wide_as_the_papers_layers_make_them(name, fields):
    table = deconvviz.layers(zoo.create(name))
    assert {layer: table[layer].receptive_field for layer in fields} == {n: (f, f) for n, f in fields.items()}


@pytest.mark.parametrize(("name", "layers"), [("a", 11), ("a-lrn", 11), ("b", 13), ("c", 16), ("d", 16), ("e", 19)])
def test_vgg_has_as_many_layers_as_its_column_says(name, layers):
    model = on_meta(f"vgg-{name}")
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()) == layers
    ones = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(ones) == (3 if name == "c" else 0)
    assert sum(isinstance(m, nn.LocalResponseNorm) for m in model.modules()) == (name == "a-lrn")


@pytest.mark.parametrize("layers", [50, 101, 152])
def test_bottlenecks_stride_at_their_first_convolution(layers):
    model = on_meta(f"imagenet-resnet-{layers}")
    firsts = [model.layer2[0], model.layer3[0], model.layer4[0]]
    assert [(b.conv1.stride, b.conv2.stride) for b in firsts] == [((2, 2), (1, 1))] * 3
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()) == layers + 4  # and four projections


@pytest.mark.parametrize("layers", [18, 34])
def test_a_plain_network_is_a_residual_one_without_its_shortcuts(layers):
    plain, residual = on_meta(f"imagenet-plain-{layers}"), on_meta(f"imagenet-resnet-{layers}")
    names = dict(residual.named_parameters())
    assert {n: p.shape for n, p in plain.named_parameters()} == {
        n: p.shape for n, p in names.items() if ".downsample." not in n
    }


def test_squeezenet_s_bypass_goes_round_every_second_fire_module():
    x = torch.randn(1, 128, 5, 5)
    features = zoo.create("squeezenet-1.0", bypass=True).features
    around = [n for n, m in features.named_children() if type(m).__name__ == "Bypass"]
    assert around == ["4", "7", "9", "12"]  # fire 3, 5, 7 and 9
    assert torch.equal(features[4](x), features[4].fire(x) + x)


def test_an_option_that_a_network_does_not_have_is_named():
    with pytest.raises(OptionError, match=r"vgg-a has no option width; it has dropout, size, hidden"):
        zoo.create("vgg-a", width=3)


@pytest.mark.parametrize("name", [n for n in zoo.names() if not n.endswith("-1202")])  # as those with 110 layers
def test_every_card_says_where_the_network_comes_from(name):
    card = on_meta(name).card if name != "efficientnet-lite0" else None
    if card is not None:
        assert card.name == name and len(card.paper) > 40
        assert all(text.endswith(".") for text in card.deviations)
        assert not card.reported or "%" in card.reported


def test_every_network_of_one_paper_is_tried_at_small_size():
    cifar = {n for n in zoo.names() if n.split("-")[0] in ("plain", "resnet", "preresnet")}
    others = {"efficientnet-lite0", "zfnet64", "alexnet64"}  # each has a test of its own
    assert set(SMALL) == set(zoo.names()) - cifar - others


REPEATED = "BasicBlock Block17 Block35 Block8 Bottleneck InceptionA InceptionB InceptionC PlainBlock".split()


def shorten(model):
    """Leave two of each row of like blocks: the third finds nothing that the second does not."""
    for stage in [m for m in model.modules() if isinstance(m, nn.Sequential)]:
        kinds = [type(block).__name__ for block in stage]
        for i in range(len(kinds) - 1, 1, -1):
            if kinds[i] in REPEATED and kinds[i] == kinds[i - 1] == kinds[i - 2]:
                del stage[i]


@pytest.fixture(scope="module", params=SMALL)
def small(request):
    options, side = SMALL[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.create(request.param, num_classes=5, **options)
        shorten(model)
        return model, torch.randn(2, len(model.card.mean), side, side)


def test_it_audits_clean(small):
    model, images = small
    assert not deconvviz.audit(model, images).unsupported


def test_it_projects_and_occludes(small):
    model, images = small
    result = deconvviz.project(model, images, layer=2, units=[0, 1, 2, 3], k=1, progress=False)
    assert result.projections.abs().max() > 0
    side = images.shape[-1]
    two = {"size": (side, side // 2), "stride": (side, side - side // 2), "fill": 0.0}  # places: left and right
    found = deconvviz.occlude(model, images[:1], layer=2, target=1, method="incremental", progress=False, **two)
    covered = images[:1].repeat(2, 1, 1, 1)
    covered[0, :, :, : side // 2] = covered[1, :, :, side - side // 2 :] = 0
    with torch.no_grad():
        torch.testing.assert_close(found.logit[0], model(covered)[:, 1], rtol=1e-4, atol=1e-5)


def test_it_trains_a_step(small):
    model, images = small
    model.train()
    try:
        if hasattr(model, "losses"):  # a detector
            boxes = torch.tensor([[4.0, 4.0, 40.0, 40.0]])
            loss = sum(model.losses(images, [{"boxes": boxes, "labels": torch.tensor([n])} for n in (1, 2)]).values())
        else:
            outputs = model(images)
            scores = outputs if isinstance(outputs, tuple) else (outputs,)
            loss = sum(nn.functional.cross_entropy(s, torch.tensor([0, 1])) for s in scores)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    finally:
        model.eval().zero_grad()
