"""occlude's target goes by a class's name, its projections by any rule; type checkers see what it returns."""

import inspect
import typing

import pytest
import torch
from PIL import Image
from torch import nn

import deconvviz
from deconvviz.errors import OptionError
from deconvviz.model.output import class_number
from deconvviz.occlusion.occlude import Options, occlude

NAMES = ("goldfish, Carassius auratus", "tabby, tabby cat", "crane", "Crane", "Persian cat")
QUIET = {"progress": False, "size": 8}


def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("goldfish, Carassius auratus", 0),
        ("Goldfish", 0),
        (" carassius auratus ", 0),
        ("tabby cat", 1),
        ("persian cat", 4),
    ],
)
def test_a_class_goes_by_its_name_or_by_one_of_its_words(name, number):
    assert class_number(name, NAMES) == number


@pytest.mark.parametrize(
    ("name", "names", "message"),
    [
        ("goldfisch", NAMES, r"no class of this model, which has 5\. Did you mean 'goldfish'"),
        ("crane", NAMES, r"several classes: 2 \(crane\), 3 \(Crane\)\. Give the number"),
        ("crane", None, r"names of this model's classes are not known"),
        ("x", NAMES, r"no class of this model, which has 5\.$"),
    ],
)
def test_other_names_are_refused_with_what_there_is(name, names, message):
    with pytest.raises(OptionError, match=message):
        class_number(name, names)


def test_a_name_gives_the_map_of_its_class():
    model, image = net(), torch.randn(1, 3, 16, 16)
    by_name = deconvviz.occlude(model, image, target="tabby", class_names=NAMES, **QUIET)
    by_number = deconvviz.occlude(model, image, target=1, class_names=NAMES, **QUIET)
    assert by_name.target == 1 and torch.equal(by_name.probability, by_number.probability)
    several = deconvviz.occlude(model, image, target=["tabby", 0], class_names=NAMES, **QUIET)
    assert several.target == (1, 0)
    with pytest.raises(OptionError, match="Did you mean 'tabby'"):
        deconvviz.occlude(model, image, target="taby", class_names=NAMES, **QUIET)


def test_a_name_of_the_card_explains_the_same_class_with_every_method():
    model = deconvviz.zoo.create("zfnet64", weights="bundled")
    image, options = torch.randn(1, 3, 64, 64), {"methods": ["gradient"], "stages": 0, "progress": False}
    by_name = deconvviz.compare_methods(model, image, target="goldfish", **options)
    by_number = deconvviz.compare_methods(model, image, target=0, **options)
    assert by_name == by_number


@pytest.mark.parametrize("rule", ["deconvnet", "guided", "backprop"])
def test_the_projections_beside_the_maps_go_by_the_rule_that_is_asked_for(rule):
    model, image = net(), torch.randn(1, 3, 16, 16)
    found = deconvviz.occlude(model, image, layer=2, rule=rule, others=torch.randn(4, 3, 16, 16), **QUIET)
    expected = deconvviz.deconv(model, image, layer=2, unit=found.unit, rule=rule)[0]
    assert torch.allclose(found.projection, expected, atol=1e-6)
    assert found.other_patches.shape[0] == 4


def test_a_rule_that_is_none_is_refused_before_the_scan():
    with pytest.raises(OptionError, match="rule='lrp' is not known"):
        deconvviz.occlude(net(), torch.randn(1, 3, 16, 16), rule="lrp", **QUIET)


def test_type_checkers_see_the_arguments_and_what_comes_back():
    parameters = inspect.signature(occlude).parameters
    assert set(Options.__annotations__) == set(parameters) - {"model", "image"}
    if hasattr(typing, "get_overloads"):
        returns = [o.__annotations__["return"] for o in typing.get_overloads(occlude)]
        assert returns == ["Occlusion", "list[Occlusion]", "Any"]
    model = deconvviz.zoo.create("zfnet64")
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    assert type(occlude(model, pictures[0], size=32, stride=32, progress=False)) is deconvviz.Occlusion
    assert [type(o) for o in occlude(model, pictures, size=32, stride=32, progress=False)] == [deconvviz.Occlusion] * 2
