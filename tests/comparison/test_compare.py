"""Methods side by side: each against captum, the slow deconvnet or autograd; the check where its outcome is known."""

import copy
import dataclasses
import sys

import numpy as np
import pytest
import torch
from captum.attr import Deconvolution, GuidedBackprop, IntegratedGradients, LayerAttribution, LayerGradCam, Saliency
from captum.attr import Occlusion as CaptumOcclusion
from matplotlib.figure import Figure
from pictures import noise
from reference import Step
from reference import project as slow
from torch import nn
from torch.nn import functional as F

from deconvviz.cli import main as cli
from deconvviz.comparison import similarity
from deconvviz.comparison.compare import compare_methods
from deconvviz.comparison.result import MethodComparison
from deconvviz.errors import ImageError, LayerError, ModelError, OptionError, UnitError, UnsupportedOp
from deconvviz.images.preprocess import Preprocess
from deconvviz.model import randomize

QUIET = {"progress": False, "size": 5, "stride": 3, "steps": 8}


class Net(nn.Module):
    """Convolutions with ReLUs as modules, or called as functions: the same numbers either way."""

    def __init__(self, functional=False):
        super().__init__()
        self.functional = functional
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.head = nn.Conv2d(6, 5, 3), nn.Linear(5 * 4 * 3, 4)
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU()

    def forward(self, x):
        relu1, relu2 = (F.relu, F.relu) if self.functional else (self.relu1, self.relu2)
        x = relu1(self.norm(self.first(x)))
        x = relu2(self.second(F.max_pool2d(x, 2)))
        return self.head(x.flatten(1))


def network(functional=False):
    torch.manual_seed(0)
    model = Net(functional).double().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    return model


def plain(functional=False):
    """The same without anything in place, as captum's hooks need it."""
    model = network(functional)
    model.relu1.inplace = False
    return model


def photo():
    return torch.randn(3, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def compare(model, image=None, **options):
    return compare_methods(model, photo() if image is None else image, **{**QUIET, "stages": 0, **options})


# ---- the maps -------------------------------------------------------------------------------------------------------


def captums(model, image, target):
    x = image[None].clone().requires_grad_()
    cam = LayerGradCam(model, model.relu2).attribute(x, target, relu_attributions=True)
    window = {"sliding_window_shapes": (3, 5, 5), "strides": (3, 3, 3), "baselines": 0.0}
    return {
        "deconvnet": Deconvolution(model).attribute(x, target),
        "guided": GuidedBackprop(model).attribute(x, target),
        "gradient": Saliency(model).attribute(x, target, abs=False),
        "gradcam": LayerAttribution.interpolate(cam, (12, 10), interpolate_mode="bilinear"),
        "integrated": IntegratedGradients(model).attribute(x, torch.zeros_like(x), target, n_steps=8),
        "occlusion": CaptumOcclusion(model).attribute(image[None], target=target, **window)[:, :1],
    }


@pytest.mark.filterwarnings("ignore:Setting (forward|backward):UserWarning")  # captum on its own hooks
@pytest.mark.parametrize("target", [None, 0, np.int64(3)])
def test_maps_are_captums(target):
    model, image = network(), photo()
    result = compare(model, image, target=target)
    chosen = int(model(image[None]).argmax()) if target is None else int(target)
    assert result.target == f"class {chosen}" and result.layer == "relu2"
    assert result.value == pytest.approx(model(image[None])[0, chosen].item())
    for name, expected in captums(plain(), image, chosen).items():
        assert result[name].shape == ((1, 12, 10) if name in ("gradcam", "occlusion") else (3, 12, 10))
        assert expected.abs().max() > 0, name
        # captum's occlusion is float32
        assert torch.allclose(result[name], expected[0].detach().double(), rtol=1e-5, atol=1e-6), name


@pytest.mark.filterwarnings("ignore:Setting (forward|backward):UserWarning")
def test_functional_relus_are_seen_where_captum_misses_them():
    modules, functions, image = compare(network()), compare(network(functional=True)), photo()
    for name in ("deconvnet", "guided", "gradient", "integrated", "occlusion"):
        assert torch.allclose(modules[name], functions[name]), name
    blind = Deconvolution(plain(functional=True)).attribute(image[None].clone().requires_grad_(), 0)[0]
    seen = compare(network(functional=True), target=0)
    assert torch.allclose(blind, seen["gradient"]) and not torch.allclose(blind, seen["deconvnet"])
    assert functions.layer == "second"  # the ReLU behind it is no module


def test_the_deconvnet_of_a_class_is_the_papers_written_out():
    conv = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    draw = np.random.default_rng(0).normal
    steps = [
        Step("conv", (0,), {"weight": draw(size=(4, 3, 3, 3)), "bias": draw(size=4), **conv}),
        Step("relu", (1,), {"style": "module"}),
        Step("max_pool", (2,), {"kernel": (3, 3), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1),
                                "ceil_mode": False}),
        Step("conv", (3,), {"weight": draw(size=(5, 4, 3, 3)), "bias": draw(size=5), **conv, "padding": (0, 0)}),
    ]  # fmt: skip
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 5, 3), nn.Flatten()
    ).double()
    for place, step in ((0, steps[0]), (3, steps[3])):
        model[place].weight.data, model[place].bias.data = (torch.from_numpy(step.p[n]) for n in ("weight", "bias"))
    image = torch.randn(3, 8, 8, dtype=torch.float64)
    result = compare(model, image, methods=["deconvnet"])
    unit = int(result.target.split()[1])
    expected, run = slow(steps, image.numpy(), unit, (0, 0))
    assert run.values[-1][unit, 0, 0] == pytest.approx(result.value) and result.value > 0
    assert np.allclose(result["deconvnet"].numpy() * result.value, expected)


def test_guided_backprop_is_the_gradient_with_both_rectifications():
    class Guided(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx, signal):
            return signal.clamp(min=0) * (ctx.saved_tensors[0] > 0)

    model = plain()
    model.relu1 = model.relu2 = _Call(Guided.apply)
    x = photo()[None].requires_grad_()
    model(x)[0, 2].backward()
    assert torch.allclose(compare(network(functional=True), target=2)["guided"], x.grad[0])


class _Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("unit", [None, 4])
def test_a_target_may_be_a_unit_of_a_layer(unit):
    model, image = network(), photo()
    result = compare(model, image, target=("relu2", unit))
    maps = model.relu2(model.second(F.max_pool2d(model.relu1(model.norm(model.first(image[None]))), 2)))[0]
    found = int(maps.flatten(1).amax(1).argmax()) if unit is None else unit
    row, col = divmod(int(maps[found].argmax()), 3)
    assert result.target == f"unit {found} of layer relu2 at {row}, {col}"
    assert result.value == pytest.approx(maps[found, row, col].item()) and result.value > 0
    x = image[None].clone().requires_grad_()
    features = model.second(F.max_pool2d(F.relu(model.norm(model.first(x))), 2))
    features[0, found, row, col].backward()
    assert torch.allclose(result["gradient"], x.grad[0])
    assert result.layer == "relu1"  # Grad-CAM before the target
    # The seed is 1, the activation's own projection is the map times it.
    import deconvviz

    own = deconvviz.deconv(model, image[None], layer="relu2", unit=found)[0]
    assert torch.allclose(result["deconvnet"] * result.value, own)


def test_integrated_gradients_add_up_to_the_change_of_the_number():
    model, image = network(), photo()
    result = compare(model, image, target=1, methods=["integrated"], steps=400)
    with torch.no_grad():
        change = model(torch.stack([image, torch.zeros_like(image)]))[:, 1]
    assert float(result["integrated"].sum()) == pytest.approx(float(change[0] - change[1]), rel=0.02)


# ---- the check ------------------------------------------------------------------------------------------------------


def edges(network, image, number):
    return torch.stack(torch.gradient(image[0].mean(0))).norm(dim=0)


def test_a_method_that_ignores_the_weights_scores_one_and_the_gradient_of_a_linear_model_none():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    image = torch.randn(3, 32, 32)
    result = compare(model, image, target=2, methods=["gradient"], own={"edges": edges}, stages=3, draws=2)
    assert torch.allclose(result["gradient"], model[1].weight[2].detach().view(3, 32, 32))
    assert result.stages == (("1",),) and result.rank_correlation.shape == result.ssim.shape == (2, 1, 2)
    assert abs(float(result.scores[0])) < 0.1 and float(result.scores[1]) == 1.0
    assert result.ssim[1].tolist() == [[1.0, 1.0]] and float(result.ssim[0].max()) < 0.2
    assert result.table().endswith(
        "least changed when 1 alone is random: edges, 1.00; when all weights are: edges, 1.00"
    )


def test_the_cascade_goes_from_the_output_down_and_leaves_nothing():
    seen = []

    def watch(network, image, number):
        seen.append({name: p.clone() for name, p in network.state_dict().items()})
        return edges(network, image, number)

    model = network()
    result = compare(model, methods=[], own={"watch": watch}, stages=8)
    assert result.stages == (("head",), ("second",), ("norm", "first"))
    trained = model.state_dict()
    changed = [{name for name in trained if not torch.equal(trained[name], one[name])} for one in seen]
    whole = {name for name in trained if name != "norm.num_batches_tracked"}
    heads, seconds = {"head.weight", "head.bias"}, {"second.weight", "second.bias"}
    assert result.table().splitlines()[1].split("  ")[1:4] == ["head", "second", "first"]
    assert changed == [set(), heads, heads | seconds, whole - {"norm.weight", "norm.bias"}]  # which are all 1 and 0
    for name in ("head.weight", "first.weight"):
        old, new = trained[name], seen[-1][name]
        assert float(new.square().mean() / old.square().mean()) == pytest.approx(1, abs=0.5)
    # A normalization's channels trade places as a whole.
    pairs = [torch.stack([s["norm.running_mean"], s["norm.running_var"]], 1) for s in (trained, seen[-1])]
    assert sorted(pairs[0].tolist()) == sorted(pairs[1].tolist()) and not torch.equal(*pairs)


def test_what_the_run_does_not_show_is_drawn_last():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.unused = nn.Linear(12, 3), nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.ones(12))

        def forward(self, x):
            return F.linear(x.flatten(1) * self.scale, self.head.weight)

    result = compare(Reads(), torch.randn(3, 2, 2), methods=["gradient"], stages=4)
    assert result.stages == (("unused", "head", ""),)


def test_a_stage_of_several_layers_is_named_by_the_lowest():
    result = compare(network(), methods=["gradient"], stages=2)
    assert result.stages == (("head",), ("second", "norm", "first"))
    assert [a.get_title() for a in result.plot(what="randomized").axes] == ["trained", "head", "first"]
    assert "head" in result.table().splitlines()[1] and "first" in result.table().splitlines()[1]


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(3, 8, [1, 2, 3]), (10, 1, [10]), (10, 2, [1, 10]), (10, 4, [1, 4, 7, 10]), (0, 3, [])],
)
def test_stages_are_spread_and_end_with_all(count, most, expected):
    assert randomize.stages_of(count, most) == expected


def test_rank_correlation_is_scipys_and_blank_maps_count_as_unrelated():
    a = torch.tensor([[0.0, 0.0, 1.0], [2.0, 2.0, 5.0]])
    b = torch.tensor([[1.0, 0.0, 0.0], [7.0, 3.0, 3.0]])
    ranks = [np.array([1.5, 1.5, 3, 4.5, 4.5, 6]), np.array([3, 1.5, 1.5, 6, 4.5, 4.5])]
    assert similarity.rank_correlation(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert similarity.rank_correlation(a, 2 * a) == pytest.approx(1) and similarity.rank_correlation(
        a, -a
    ) == pytest.approx(-1)
    assert similarity.rank_correlation(a, torch.zeros(2, 3)) == 0 and similarity.rank_correlation(a * 0, a * 0) == 1
    assert np.isnan(similarity.ssim(a, b)) and similarity.ssim(torch.eye(9), 3 * torch.eye(9)) == pytest.approx(1)


def test_the_seed_decides_the_draws_and_draws_differ():
    model = network()
    a, b, c = (compare(model, methods=["gradient"], stages=2, draws=2, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.rank_correlation, b.rank_correlation) and torch.equal(a.randomized[0], b.randomized[0])
    assert not torch.equal(a.rank_correlation, c.rank_correlation)
    assert not torch.equal(a.rank_correlation[..., 0], a.rank_correlation[..., 1])
    assert a.randomized[0].shape == (2, 3, 12, 10)
    expected = similarity.rank_correlation(similarity.strength(a.maps[0]), similarity.strength(a.randomized[0][1]))
    assert float(a.rank_correlation[0, 1, 0]) == expected


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"target": 4}, OptionError, "target 4 is out of range: the model has 4 classes, 0 to 3"),
        ({"target": "cat"}, OptionError, "target='cat': the names of this model's classes are not known"),
        ({"target": True}, OptionError, "target=True has no meaning"),
        ({"target": ("relu2", 5)}, UnitError, "unit 5 is out of range: layer 'relu2' has units 0 to 4"),
        ({"target": ("nowhere", 0)}, LayerError, "there is no layer 'nowhere'"),
        ({"target": (":max_pool2d", 0)}, LayerError, "is not what one module returns in its only call"),
        ({"target": ("first", 0)}, LayerError, "Grad-CAM needs a convolution before the target"),
        ({"layer": "head"}, LayerError, "Grad-CAM cannot use layer 'head'.* such as .*relu2"),
        ({"methods": ["lime"]}, OptionError, r"methods=\['lime'\]: expected some of deconvnet, guided"),
        ({"methods": ["guided", "guided"]}, OptionError, "each once"),
        ({"methods": []}, OptionError, "expected some of"),
        ({"own": {"guided": edges}}, OptionError, "own method 'guided' is no function, or has a name that is taken"),
        (
            {"own": {"flat": lambda *_: torch.zeros(3)}},
            OptionError,
            r"method 'flat' gave \(3,\), expected \(3, 12, 10\)",
        ),
        ({"own": {"nan": lambda n, x, f: x[0] / 0}}, ModelError, "map of 'nan' of the trained network holds NaN"),
        ({"stages": -1}, OptionError, "stages=-1, draws=1, steps=8: expected at least 0, 1 and 1"),
        ({"draws": 0}, OptionError, "draws=0"),
        ({"stride": 7}, OptionError, r"stride \(7, 7\) is larger than its size \(5, 5\)"),
        ({"image": torch.zeros(2, 3, 12, 10)}, ImageError, "there are 2 images, expected one"),
        ({"image": torch.full((3, 12, 10), torch.nan)}, ImageError, "image 0 holds NaN or infinity"),
    ],
)
def test_mistakes_are_told(options, kind, message):
    with pytest.raises(kind, match=message):
        compare(network(), **options)


def test_models_that_do_not_fit_are_refused():
    image = torch.randn(3, 12, 10)
    with pytest.raises(ModelError, match=r"output for one image is \(1, 6, 12, 10\), expected \(1, classes\)"):
        compare(nn.Conv2d(3, 6, 3, padding=1), image)
    with pytest.raises(LayerError, match="Grad-CAM needs a convolution before the target, and this model has none"):
        compare(nn.Sequential(nn.Flatten(), nn.Linear(360, 2)), image)
    broken = network()
    broken.head.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"'head\.weight' holds NaN"):
        compare(broken)
    soft = nn.Sequential(network(), nn.Softmax(1))
    with pytest.raises(UnsupportedOp, match=r"softmax.*methods=\[…\]"):
        compare(soft)
    assert compare(soft, methods=["gradient", "occlusion"]).methods == ("gradient", "occlusion")
    with pytest.raises(ImageError, match="no image: give a tensor"):
        compare_methods(network(), None)


def test_without_captum_it_says_what_to_install_and_runs_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ModelError, match=r'gradient, gradcam, integrated: needs captum.*"deconvviz\[compare\]"'):
        compare(network())
    assert len(compare(network(), methods=["deconvnet", "guided", "occlusion"]).maps) == 3


# ---- the model, the file, the picture -------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was_found():
    model, image = network(), photo()
    model.train()
    model.norm.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    compare(model, image, stages=2)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert [m.training for m in model.modules()] == modes and model.relu1.inplace and not model.relu2.inplace
    assert all(p.requires_grad for p in model.parameters()) and torch.equal(image, photo())
    assert torch.equal(torch.get_rng_state(), random) and model.head.weight.grad.eq(1).all()
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())


def test_pictures_and_half_precision_run():
    picture = noise((10, 12), 50).convert("RGB")
    known = Preprocess((12, 10), None, (0.5,) * 3, (0.5,) * 3)
    result = compare(network().to(torch.bfloat16), picture, preprocess=known, stages=1)
    assert result.maps[0].dtype == torch.float32 and result.picture.shape == (3, 12, 10)


def test_results_are_frozen_kept_and_drawn(tmp_path):
    result = compare(network(), stages=2, draws=2, own={"edges": edges})
    result.save(tmp_path / "a.safetensors")
    loaded = MethodComparison.load(tmp_path / "a.safetensors")
    assert result.table() == loaded.table() and result.stages == loaded.stages and result.methods == loaded.methods
    for a, b in zip((*result.maps, *result.randomized), (*loaded.maps, *loaded.randomized), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert torch.equal(loaded.rank_correlation, result.rank_correlation) and torch.equal(loaded.ssim, result.ssim)
    assert loaded._repr_png_().startswith(b"\x89PNG")
    given = Figure(layout=None)
    assert result.plot(given) is given
    part = Figure().subfigures(1, 2)[1]
    assert result.plot(part, what="randomized") is part
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.target = ""


def test_the_pictures_show_what_the_result_holds():
    from deconvviz.plotting.comparison import dark, signed

    result = compare(network(), stages=2, own={"edges": edges})
    axes = result.plot().axes
    assert [a.get_title() for a in axes if a.get_title()][:3] == ["image", "deconvnet", "guided backprop"]
    assert len(axes) == 1 + 2 * 7
    drawn = result.plot(what="randomized").axes
    assert len(drawn) == 7 * 3 and drawn[0].get_ylabel() == "deconvnet" and drawn[1].get_title() == "head"
    shown = drawn[1].images[0].get_array()
    assert np.array_equal(shown, dark(result.randomized[0][0]))
    assert drawn[1].get_xlabel() == f"ρ = {float(result.rank_correlation[0, 0, 0]):.2f}".replace("-", "−")
    flat = dark(torch.zeros(3, 2, 2)), signed(torch.zeros(3, 2, 2))
    assert flat[0].min() == 1 and np.all(flat[1] == 0.5)
    with pytest.raises(OptionError, match="what='both' has no meaning here"):
        result.plot(what="both")
    with pytest.raises(OptionError, match="nothing was randomized"):
        compare(network()).plot(what="randomized")
    with pytest.raises(OptionError, match="no method 'lime' in this result, it has deconvnet"):
        result["lime"]
    assert torch.equal(result.strength("edges"), result["edges"][0].abs())


def test_the_command_prints_the_numbers_and_writes_both_pictures(tmp_path, capsys):
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    noise((70, 64), 60).convert("RGB").save(photo)
    asked = ["compare-methods", "zfnet64", str(photo), "--weights", "random", "--quiet", "--stages", "1"]
    asked += ["--size", "16", "--stride", "16", "--out", str(out / "a.png"), "--randomized", str(out / "b.png")]
    assert cli.main([*asked, "--save", str(out / "a.safetensors"), "--target", "5:"]) == 0
    printed = capsys.readouterr().out
    assert "of layer features.11" in printed and printed.count("wrote ") == 3 and "least changed when" in printed
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "b.png"))
    assert cli.main([*asked, "--target", "3", "--methods", "deconvnet,none"]) == 2
    assert "expected some of deconvnet" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*asked, "--target", "5:x"])
    assert "expected a class, LAYER:UNIT, or LAYER: for its strongest" in capsys.readouterr().err
