"""SqueezeNet is the paper's network by its table, and the shipped weights know what they were trained on."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data
from torch import nn

import deconvviz
from deconvviz import zoo
from deconvviz.images import open_images

# Table 1 of the paper: squeeze 1×1, expand 1×1, expand 3×3 of fire2 … fire9.
FIRES = [(16, 64, 64)] * 2 + [(32, 128, 128)] * 2 + [(48, 192, 192)] * 2 + [(64, 256, 256)] * 2
# The module at each place: a convolution's filters, a fire module by number, or a pool.
ORDER = {
    "squeezenet-1.0": ["conv 96", "relu", "pool", 2, 3, 4, "pool", 5, 6, 7, 8, "pool", 9],
    "squeezenet-1.1": ["conv 64", "relu", "pool", 2, 3, "pool", 4, 5, "pool", 6, 7, 8, 9],
}
PARAMETERS = {"squeezenet-1.0": 1_248_424, "squeezenet-1.1": 1_235_496}  # Table 1; the authors' file of 1.1
WEIGHTS = Path(zoo.__file__).parent / "weights"
LAYERS = {2: "fire3", 3: "fire5", 4: "fire7", 5: "fire9"}


def is_place(module: nn.Module, place: object) -> bool:
    if isinstance(place, int):
        widths = tuple(c.out_channels for c in (module.squeeze, module.expand1x1, module.expand3x3))
        return widths == FIRES[place - 2] and module.expand3x3.padding == (1, 1)
    if place == "pool":
        return isinstance(module, nn.MaxPool2d) and (module.kernel_size, module.stride) == (3, 2)
    return isinstance(module, nn.ReLU if place == "relu" else nn.Conv2d)


@pytest.mark.parametrize("name", ORDER)
def test_it_is_the_table_s(name):
    model = zoo.create(name)
    assert len(model.features) == len(ORDER[name])
    assert all(is_place(module, place) for module, place in zip(model.features, ORDER[name], strict=True))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    first = model.features[0]
    assert (first.out_channels, first.kernel_size) == ((96, (7, 7)) if name.endswith("0") else (64, (3, 3)))
    assert first.stride == (2, 2)
    assert model(torch.zeros(2, 3, *model.card.input_size)).shape == (2, 1000)


def test_the_maps_of_1_0_are_the_table_s():
    table = deconvviz.layers(zoo.create("squeezenet-1.0"))
    pools = [row.height for row in table if row.kind == "max-pool"]
    assert table[1].height == 111 and pools == [55, 27, 13]
    assert table["classifier.1"].height == 13


@pytest.mark.parametrize("name", ORDER)
def test_the_numbered_layers_are_the_first_response_and_every_second_fire_module(name):
    table = deconvviz.layers(zoo.create(name))
    assert [layer.number for layer in table.numbered] == [1, 2, 3, 4, 5]
    assert table[1].name == "features.1" and table[1].kind == "rectifier"
    for number, fire in LAYERS.items():
        assert table[number].name == f"features.{ORDER[name].index(int(fire[4:]))}"
    assert [layer.units for layer in table.numbered[1:]] == [128, 256, 384, 512]


def test_a_layer_that_the_card_names_and_that_does_not_run_leaves_the_usual_numbers():
    model = zoo.create("squeezenet-1.1")
    del model.features[12]
    strides = [layer.stride for layer in deconvviz.layers(model).numbered]
    assert strides == sorted(set(strides))


def test_dropout_is_taken():
    assert zoo.create("squeezenet-1.1", dropout=0.1).classifier[0].p == 0.1


def test_other_classes():
    assert zoo.create("squeezenet-1.0", num_classes=7)(torch.zeros(1, 3, 227, 227)).shape == (1, 7)


@pytest.fixture(scope="module")
def trained():
    return zoo.create("squeezenet-1.1", weights="bundled")


def test_the_card_of_the_weights(trained):
    card = trained.card
    assert card.classes is not None and len(card.classes) == 1000 and card.classes[1] == "goldfish"
    assert card.training is not None and (card.training["top1"], card.training["top5"]) == (0.66, 0.88)
    licence = card.licence.split()[-1]
    assert "Redistribution and use" in (WEIGHTS / licence).read_text(encoding="utf-8")
    assert card.layers == zoo.create("squeezenet-1.1").card.layers


def test_it_names_what_a_photo_shows(trained):
    images = open_images(trained, [Image.fromarray(pixels) for pixels in (data.coffee(), data.chelsea())])
    with torch.no_grad():
        answers = trained(images.take([0, 1])).topk(5).indices
    names = [[trained.card.classes[i] for i in row] for row in answers.tolist()]
    assert names[0][0] == "espresso" and {"tabby", "Egyptian cat", "tiger cat"} & set(names[1])
