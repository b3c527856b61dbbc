"""Layers by number and by name; the table."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import deconvviz
from deconvviz import LayerError, ModelError


def table(name: str, size: int = 64):
    options = {"init_weights": False} if name == "googlenet" else {}
    return deconvviz.layers(torchvision.models.get_model(name, weights=None, **options), size)


def test_few_convolutions_are_counted_each():
    found = table("alexnet")
    assert [row.name for row in found.numbered] == [f"features.{i}" for i in (1, 4, 7, 9, 11)]
    assert found[5].units == 256 and found[5].kind == "rectifier"


@pytest.mark.parametrize(
    ("name", "names", "strides"),
    [
        ("vgg11", ["features.1", "features.4", "features.9", "features.14", "features.19"], [1, 2, 4, 8, 16]),
        ("resnet18", ["relu", "layer1", "layer2", "layer3", "layer4"], [2, 4, 8, 16, 32]),
    ],
)
def test_deep_networks_are_counted_by_stride(name: str, names: list[str], strides: list[int]):
    found = table(name)
    assert [row.name for row in found.numbered] == names
    assert [row.stride[0] for row in found.numbered] == strides
    assert [row.number for row in found.numbered] == [1, 2, 3, 4, 5]


def test_squeeze_and_excite_does_not_count():
    class Excite(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.down, self.up = nn.Conv2d(n, 1, 1), nn.Conv2d(1, n, 1)

        def forward(self, x):
            return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))

    blocks = [nn.Sequential(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1), nn.ReLU(), Excite(4)) for i in range(4)]
    found = deconvviz.layers(nn.Sequential(*blocks), (3, 16, 16))
    assert [row.name for row in found.numbered] == ["0.1", "1.1", "2.1", "3.1"]


class Blurred(nn.Module):
    """Two convolutions, a blur before each: one kernel, over channels that it folds into the batch."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1)
        self.blur = nn.Conv2d(1, 1, 3, 2, 1)

    def forward(self, x):
        for convolution in (self.first, self.second):
            y = F.relu(convolution(x))
            x = self.blur(y.flatten(0, 1)[:, None]).unflatten(0, y.shape[:2]).squeeze(2)
        return x.amax((2, 3))


def test_what_is_folded_into_the_batch_has_no_number():
    model, image = Blurred().eval(), torch.randn(1, 3, 16, 16)
    assert [row.name for row in deconvviz.layers(model, image.shape[1:]).numbered] == [":relu#1", ":relu#2"]
    assert deconvviz.occlude(model, image, size=4, stride=4, progress=False).layer == ":relu#2"
    with pytest.raises(LayerError, match="its first dimension is not the batch"):
        deconvviz.top(model, image, layers=["blur#1"], progress=False)


def test_joined_branches_count_as_one_activation_and_have_a_name():
    class Ghost(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.main, self.cheap = nn.Conv2d(n, 2, 3, padding=1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            x = F.relu(self.main(x))
            return torch.cat([x, F.relu(self.cheap(x))], 1)[:, :3]

    found = deconvviz.layers(nn.Sequential(*(Ghost(3) for _ in range(4))), (3, 9, 9))
    assert [row.name for row in found.numbered] == ["3:cat"]
    assert (found[1].kind, found[1].units) == ("concatenation", 4)


def test_a_convolution_without_a_rectifier_is_its_own_response():
    found = deconvviz.layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3)), (1, 9, 9))
    assert [row.name for row in found.numbered] == ["1", "2"]


def test_names_and_aliases_are_the_same_layer():
    found = table("resnet18")
    assert found["layer4"] is found["layer4.1"] is found[np.int64(5)]
    assert len(found) == len(list(found))


def test_errors_list_the_right_ones():
    found = table("alexnet")
    with pytest.raises(LayerError, match=r"there is no layer 6; .* 1 \(features.1\), .*5 \(features.11\).*module path"):
        found[6]
    with pytest.raises(LayerError, match=r"there is no layer 'features.99' .* the layers are features.0, features.1,"):
        found["features.99"]
    with pytest.raises(LayerError, match="numbered layers are none"):
        deconvviz.layers(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2))[1]
    with pytest.raises(LayerError, match=r"input_size must be a side, .* got \(1, 2, 3, 4\)"):
        deconvviz.layers(nn.Conv2d(1, 1, 1), (1, 2, 3, 4))
    with pytest.raises(ModelError, match=r"failed on images of shape \(1, 3, 8, 8\)"):
        table("alexnet", 8)


def test_the_table_prints():
    found = deconvviz.layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)), (1, 4, 4))
    lines = str(found).splitlines()
    assert lines[0].split() == [
        "number",
        "name",
        "kind",
        "units",
        "map",
        "receptive",
        "field",
        "stride",
        "max-pools",
        "below",
        "parameters",
        "multiply-adds",
    ]
    assert lines[2].split() == ["1", "1", "rectifier", "2", "2×2", "3×3", "1×1", "0"]
    assert lines[-1].split() == ["3", "linear", "3", "1×1", "4×4", "0", "27", "24"]
    assert found._repr_html_().count("<tr>") == 5
    assert "<td>rectifier</td>" in found._repr_html_()


def test_vision_transformers_have_their_patches():
    found = deconvviz.layers(torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32), 32)
    assert [row.name for row in found.numbered] == ["encoder.layers.encoder_layer_0"]
    assert found["conv_proj"].receptive_field == (8, 8)


def test_position_maps_in_other_orders():
    """A layer whose channels come last is carried back all the same."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(3, 4)

        def forward(self, x):
            return self.fc(self.conv(x).permute(0, 2, 3, 1))

    model, images = Last().double(), torch.randn(2, 2, 6, 7, dtype=torch.float64)
    found = deconvviz.layers(model, (2, 6, 7))["fc"]
    assert (found.units, found.height, found.width, found.receptive_field) == (4, 4, 5, (3, 3))
    ours = deconvviz.deconv(model, images, layer="fc", unit=2, position=(1, 3))
    images.requires_grad_()
    (expected,) = torch.autograd.grad((model(images)[:, 1, 3, 2] ** 2).sum() / 2, images)
    assert torch.allclose(ours, expected, atol=1e-12)
    result = deconvviz.project(model, images.detach(), layer="fc", units=[2], top=1, progress=False)
    assert result.projections.shape == (1, 1, 2, 3, 3)


class Late(nn.Module):
    """Its modules are registered in another order than they run in; `form` says what the first one sees."""

    def __init__(self, channels: int, form: str):
        super().__init__()
        seen = {"plain": channels, "coordinates": channels + 2, "unshuffled": 4 * channels, "grouped": channels}[form]
        self.head, self.form = nn.Conv2d(8, 5, 1), form
        self.stem = nn.Conv2d(seen, 8 * seen, 3, groups=seen if form == "grouped" else 1)
        self.mix = nn.Conv2d(8 * seen, 8, 1)

    def forward(self, x):
        if self.form == "coordinates":
            x = torch.cat([x, torch.zeros(len(x), 2, *x.shape[2:])], 1)
        if self.form == "unshuffled":
            x = F.pixel_unshuffle(x, 2)
        return self.head(self.mix(self.stem(x)))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("form", ["plain", "coordinates", "unshuffled", "grouped"])
def test_channels_are_those_of_the_convolution_that_runs_first(channels: int, form: str):
    found = deconvviz.layers(Late(channels, form), 16)
    assert found.input_size == (channels, 16, 16)


def test_channels_of_a_model_that_normalizes_three():
    class Normalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.first = nn.Conv2d(8, 8, 1), nn.Conv2d(3, 8, 3)
            self.register_buffer("mean", torch.rand(3, 1, 1))

        def forward(self, x):
            assert x.shape[1] == 3
            return self.late(self.first(x - self.mean))

    assert deconvviz.layers(Normalized(), 16).input_size == (3, 16, 16)
