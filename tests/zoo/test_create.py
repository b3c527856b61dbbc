"""The networks are the papers' networks, and weights come with their card or not at all."""

import dataclasses
import importlib
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deconvviz import zoo
from deconvviz.errors import ModelError, OptionError, StoreError
from deconvviz.zoo import Card

CREATE = importlib.import_module("deconvviz.zoo.create")  # the name zoo.create is the function
NAMES = ["alexnet", "alexnet64", "zfnet", "zfnet64"]


def maps(model):
    """The output shape of each convolution and pool, as the input passes."""
    shapes = []
    hooks = [
        m.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
        for m in model.features
        if isinstance(m, (nn.Conv2d, nn.MaxPool2d))
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, *model.card.input_size))
    for hook in hooks:
        hook.remove()
    return shapes


def kinds(model):
    return "".join({"Conv2d": "c", "ReLU": "r", "MaxPool2d": "p"}.get(type(m).__name__, "n") for m in model)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_names_are_sorted():
    assert zoo.names() == sorted(zoo.names())
    assert set(NAMES) <= set(zoo.names())


def test_zfnet_has_the_maps_of_figure_3():
    model = zoo.create("zfnet")
    assert maps(model) == [
        *((96, 110, 110), (96, 55, 55), (256, 26, 26), (256, 13, 13)),
        *((384, 13, 13), (384, 13, 13), (256, 13, 13), (256, 6, 6)),
    ]
    assert kinds(model.features) == "crpncrpncrcrcrp"
    assert [m.out_features for m in model.classifier if isinstance(m, nn.Linear)] == [4096, 4096, 1000]
    assert [m.p for m in model.classifier if isinstance(m, nn.Dropout)] == [0.5, 0.5]


def test_alexnet_has_the_paper_s_numbers():
    model = zoo.create("alexnet")
    shapes = maps(model)
    assert shapes[0] == (96, 55, 55)
    assert torch.Size(shapes[0]).numel() == 290_400
    assert shapes[-1] == (256, 6, 6)
    assert parameters(model.features[0]) == 34_944
    assert parameters(model) == 60_965_224
    assert kinds(model.features) == "crnpcrnpcrcrcrp"
    assert [m.groups for m in model.features if isinstance(m, nn.Conv2d)] == [1, 2, 1, 2, 2]


@pytest.mark.parametrize("name", ["alexnet", "zfnet"])
def test_response_norm_is_the_paper_s_formula(name):
    norm = next(m for m in zoo.create(name).features if isinstance(m, nn.LocalResponseNorm))
    a = torch.rand(1, 9, 2, 2, dtype=torch.float64) * 30
    expected = torch.empty_like(a)
    for i in range(9):  # AlexNet, section 3.3
        near = a[:, max(0, i - 2) : min(8, i + 2) + 1].square().sum(1)
        expected[:, i] = a[:, i] / (2 + 1e-4 * near) ** 0.75
    torch.testing.assert_close(norm(a), expected)


@pytest.mark.parametrize(
    ("name", "expected"), [("zfnet64", [32, 16, 8, 4, 4, 4, 4, 2]), ("alexnet64", [16, 8, 8, 4, 4, 4, 4, 2])]
)
def test_small_networks(name, expected):
    model = zoo.create(name)
    shapes = maps(model)
    assert [s[1] for s in shapes] == expected
    assert [m.out_channels for m in model.features if isinstance(m, nn.Conv2d)] == [64, 160, 256, 256, 192]
    assert [m.out_features for m in model.classifier if isinstance(m, nn.Linear)] == [512, 200]
    assert any("No response norm" in text for text in model.card.deviations)


@pytest.mark.parametrize("name", NAMES)
def test_created_in_eval_mode_with_its_card(name):
    model = zoo.create(name, num_classes=7)
    assert not any(m.training for m in model.modules())
    assert model.card.name == name
    assert model.card.classes is None
    assert model(torch.zeros(2, 3, *model.card.input_size)).shape == (2, 7)


def test_dropout_reaches_the_classifier():
    assert [m.p for m in zoo.create("zfnet64", dropout=0.1).classifier if isinstance(m, nn.Dropout)] == [
        0.1,
        0.1,
    ]


def test_paper_s_first_weights():
    torch.manual_seed(0)
    model = zoo.create("alexnet64", init="paper")
    stds = [m.weight.std().item() for m in model.modules() if hasattr(m, "weight")]
    assert stds == pytest.approx([0.01] * 7, rel=0.05)
    ones = [n for n, m in model.named_modules() if hasattr(m, "bias") and m.bias.mean() == 1]
    assert ones == ["features.3", "features.8", "features.10", "classifier.2"]
    assert all((m.bias == 0).all() for m in zoo.create("zfnet64", init="paper").modules() if hasattr(m, "bias"))


def test_alexnet_s_biases_of_one_are_on_the_layers_the_paper_names():
    model = zoo.create("alexnet", init="paper")
    convolutions = [m.bias.mean().item() for m in model.features if isinstance(m, nn.Conv2d)]
    linear = [m.bias.mean().item() for m in model.classifier if isinstance(m, nn.Linear)]
    assert convolutions == [0, 1, 0, 1, 1]
    assert linear == [1, 1, 0]


def test_kaiming_starts_with_small_logits():
    torch.manual_seed(0)
    model = zoo.create("zfnet64")
    with torch.no_grad():
        assert model(torch.randn(8, 3, 64, 64)).std() < 2


def test_wrong_arguments():
    with pytest.raises(ModelError, match=r"no network named 'zfnet46'.*alexnet, alexnet64.*mean 'zfnet64'"):
        zoo.create("zfnet46")
    with pytest.raises(OptionError, match=r"init='normal': expected 'kaiming' or 'paper'"):
        zoo.create("zfnet64", init="normal")
    for number in (0, 2.5):
        with pytest.raises(OptionError, match=r"num_classes=.*at least 1"):
            zoo.create("zfnet64", num_classes=number)


def test_no_bundled_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(CREATE, "_WEIGHTS", tmp_path)
    with pytest.raises(ModelError, match="alexnet has no bundled weights; networks that have them: none"):
        zoo.create("alexnet", weights="bundled")
    (tmp_path / "zfnet64.safetensors").touch()
    with pytest.raises(ModelError, match="that have them: zfnet64"):
        zoo.create("alexnet", weights="bundled")


@pytest.fixture
def weights(tmp_path):
    """A float16 file of a small zfnet64 with three classes, no card."""
    torch.manual_seed(0)
    model = zoo.create("zfnet64", num_classes=3)
    save_file({k: v.half() for k, v in model.state_dict().items()}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_weights_from_a_file_without_a_card(weights):
    model = zoo.create("zfnet64", weights=weights, num_classes=3)
    stored = load_file(weights)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].float())
    assert model.card.weights_file == "w.safetensors"
    assert model.card.classes is None


@pytest.mark.parametrize("beside", ["w.json", "card.json"])
def test_the_card_beside_gives_the_classes(weights, beside):
    card = dataclasses.replace(zoo.create("zfnet64").card, classes=("a", "b", "ü"), training={"folders": ["x"]})
    card.write(weights.with_name(beside))
    model = zoo.create("zfnet64", weights=weights)
    assert model.card == dataclasses.replace(card, weights_file="w.safetensors")


def test_bundled_weights_are_the_files_in_data(weights, monkeypatch):
    monkeypatch.setattr(CREATE, "_WEIGHTS", weights.parent)
    weights.rename(weights.with_name("zfnet64.safetensors"))
    card = dataclasses.replace(zoo.create("zfnet64").card, classes=("a", "b", "c"))
    card.write(weights.with_name("zfnet64.json"))
    model = zoo.create("zfnet64", weights="bundled")
    assert model.card.classes == ("a", "b", "c")
    assert model.card.weights_file == "zfnet64.safetensors"


def test_wrong_files(weights, tmp_path):
    with pytest.raises(StoreError, match=r"classifier.5.weight is \(3, 512\), expected \(200, 512\).*num_classes"):
        zoo.create("zfnet64", weights=weights)
    with pytest.raises(StoreError, match=r"does not fit alexnet: features.4.weight is missing.* and \d+ more"):
        zoo.create("alexnet", weights=weights, num_classes=3)
    with pytest.raises(StoreError, match="no weights at"):
        zoo.create("zfnet64", weights=tmp_path / "none.safetensors")
    weights.write_bytes(b"\xff" * 100)
    with pytest.raises(StoreError, match="not a safetensors file"):
        zoo.create("zfnet64", weights=weights)
    zoo.create("alexnet64").card.write(tmp_path / "w.json")
    with pytest.raises(StoreError, match=r"holds weights of alexnet64, says w.json; expected zfnet64"):
        zoo.create("zfnet64", weights=weights)


def test_card_survives_its_file(tmp_path):
    card = Card("x", "y", ("z",), (3, 4), 5, classes=("é",), training={"top1": 0.5, "folders": ["a"]})
    card.write(tmp_path / "c.json")
    assert Card.read(tmp_path / "c.json") == card
    (tmp_path / "c.json").write_text(json.dumps({"name": "x", "colour": 1}))
    with pytest.raises(StoreError, match=r"no card that deconvviz wrote"):
        Card.read(tmp_path / "c.json")
    with pytest.raises(StoreError, match="cannot read the card"):
        Card.read(tmp_path / "none.json")


def test_shipped_cards_fit_their_weights():
    for path in CREATE._WEIGHTS.glob("*.safetensors"):
        model = zoo.create(path.stem, weights="bundled")
        assert model.card.classes
        assert model.card.training["top1"] > 0.3


def test_import_is_light():
    code = "import sys, deconvviz.zoo; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", ["alexnet", "alexnet64", "zfnet64"])
def test_ingredients_are_options_and_leave_the_other_modules_their_names(name):
    with torch.device("meta"):
        usual = zoo.create(name)
        norm = name != "alexnet"
        other = zoo.create(name, activation="tanh", overlap=False, norm=norm)
    assert usual.state_dict().keys() == other.state_dict().keys()
    kinds = [{type(m).__name__ for m in model.modules()} for model in (usual, other)]
    assert "ReLU" in kinds[0] and "Tanh" not in kinds[0] and "Tanh" in kinds[1] and "ReLU" not in kinds[1]
    assert ("LocalResponseNorm" in kinds[0], "LocalResponseNorm" in kinds[1]) == (not norm, norm)
    pools = [m.kernel_size for m in other.modules() if isinstance(m, nn.MaxPool2d)]
    assert pools == [2, 2, 2]
    side = usual.card.input_size[0]
    shapes = [m(torch.zeros(1, 3, side, side, device="meta")).shape for m in (usual, other)]
    assert shapes[0] == shapes[1]
    with pytest.raises(OptionError, match="activation='swish': expected relu, tanh, sigmoid"):
        zoo.create(name, activation="swish")
