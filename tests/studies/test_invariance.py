"""Transformations and curves against loops over pixels, exact shifts and turns, and plain calls of the model."""

import math

import pytest
import reference_studies as slow
import torch
from PIL import Image
from torch import nn

from deconvviz.errors import ModelError, OptionError
from deconvviz.images import Preprocess, open_images
from deconvviz.studies import transforms as module
from deconvviz.studies.invariance import Curve, Invariance, invariance

PIXELS = Preprocess((16, 16), 16, (0.5,) * 3, (0.5,) * 3)


def images(count=2, height=8, width=8, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
            *(nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 5)),
        ).eval()


def opened(tensor):
    return open_images(network(), tensor)


@pytest.mark.parametrize("kind", ["vertical", "horizontal", "scale", "rotation"])
@pytest.mark.parametrize("size", [(5, 6), (4, 4)])
@pytest.mark.parametrize("amount", [1.0, 1.37, 0.6, 30.0])
def test_transformations_follow_the_definition(kind, size, amount):
    image = images(1, *size).double()
    found = module.moved(image, kind, torch.tensor([amount], dtype=torch.float64), "zeros")[0]
    assert torch.allclose(found, slow.moved(image[0], kind, amount, 0.0), atol=1e-9)


@pytest.mark.parametrize(("kind", "dim"), [("vertical", 2), ("horizontal", 3)])
@pytest.mark.parametrize("amount", [-3, 0, 2])
def test_a_shift_by_whole_pixels_copies_them(kind, dim, amount):
    image = images(1, 9, 7).double()
    expected = torch.full_like(image, 0.5)
    length = image.shape[dim] - abs(amount)
    expected.narrow(dim, max(amount, 0), length).copy_(image.narrow(dim, max(-amount, 0), length))
    move = module.mover(0.5, image, opened(image))
    found = move(image, kind, torch.tensor([float(amount)], dtype=torch.float64))
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_quarter_turns_are_counterclockwise(turns):
    image = images(1).double()
    found = module.moved(image, "rotation", torch.tensor([90.0 * turns], dtype=torch.float64), "border")
    assert torch.allclose(found, image.rot90(turns, (2, 3)), atol=1e-12)


def test_borders_are_filled_as_stated():
    image = torch.full((1, 3, 6, 6), 2.0)
    shift = torch.tensor([3.0])
    assert module.mover(None, image, opened(image))(image, "vertical", shift)[0, :, 0].eq(0).all()
    assert module.mover(7.0, image, opened(image))(image, "vertical", shift)[0, :, 0].eq(7).all()
    for name in ("edge", "reflect"):
        assert torch.allclose(module.mover(name, image, None)(image, "vertical", shift), image.float())


def test_a_number_is_a_pixel_value_for_pictures():
    pictures = [Image.new("RGB", (8, 8), (255, 0, 0))]
    preprocess = Preprocess((8, 8), 8, (0.5,) * 3, (0.25,) * 3)
    those = open_images(network(), pictures, preprocess)
    move = module.mover(1.0, pictures, those)
    assert move(those.take([0]), "vertical", torch.tensor([4.0]))[0, :, 0].eq(2.0).all()  # (1 − 0.5) / 0.25


def test_curves_are_what_the_model_gives_for_the_transformed_images():
    model, x = network().double(), images().double()
    amounts = {"horizontal": [-2, 0, 3], "scale": [1, 1.5]}
    result = invariance(model, x, transforms=amounts, layers=[1, "5"], batch_size=2, progress=False)
    assert result.layers == ("1: 1", "5")
    for kind, values in amounts.items():
        curve = result[kind]
        assert curve.distance.shape == (2, 2, len(values)) and curve.amounts.tolist() == values
        for n in range(2):
            for a, amount in enumerate(values):
                moved = slow.moved(x[n], kind, amount, 0.0)[None]
                with torch.no_grad():
                    for row, last in enumerate((2, 6)):
                        expected = (model[:last](moved) - model[:last](x[n : n + 1])).norm().item()
                        assert curve.distance[row, n, a].item() == pytest.approx(expected, abs=1e-10)
                    chances = model(x[n : n + 1]).softmax(1)[0]
                    target = int(chances.argmax())
                    expected = model(moved).softmax(1)[0, target].item()
                assert curve.probability[n, a].item() == pytest.approx(expected, abs=1e-10)
                assert result.targets[n] == target
                assert result.original[n].item() == pytest.approx(chances[target].item(), abs=1e-10)


def test_no_change_has_no_distance():
    amounts = {"vertical": [0], "horizontal": [0], "scale": [1], "rotation": [0]}
    result = invariance(network(), images(), transforms=amounts, progress=False)
    for curve in result.curves:
        assert curve.distance.max() < 1e-6 and curve.probability[:, 0].tolist() == pytest.approx(
            result.original.tolist()
        )


def test_the_usual_amounts_are_the_papers_in_proportion():
    usual = module.amounts_of(module.KINDS, (224, 112))
    assert usual["vertical"][0] == -60 and usual["horizontal"][-1] == 30 and len(usual["vertical"]) == 25
    assert usual["scale"][0] == 1 and usual["scale"][-1] == pytest.approx(1.8)
    assert usual["rotation"] == [10.0 * n for n in range(36)]
    shifts = module.amounts_of(["vertical"], (64, 64))["vertical"]
    assert shifts == [round(a) for a in shifts] and 0 in shifts and min(shifts) == -17 and max(shifts) == 17
    assert module.amounts_of(["horizontal"], (8, 8))["horizontal"] == [-2, -1, 0, 1, 2]


def test_the_usual_layers_are_the_first_and_the_last_features():
    result = invariance(network(), images(), transforms={"scale": [1.2]}, progress=False)
    assert result.layers == ("1: 1", "5")


def made(distance, amounts, kind="vertical", norms=None):
    """A result with given distances (L, N, A)."""
    distance, amounts = torch.tensor(distance).double(), torch.tensor(amounts).double()
    layers, count = distance.shape[:2]
    chance = torch.full((count, len(amounts)), 0.5).double()
    curve = Curve(kind, amounts, distance, chance, torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    norms = torch.ones(layers, count).double() if norms is None else torch.tensor(norms).double()
    targets = torch.zeros(count, dtype=torch.int64)
    return Invariance(tuple("ab"[:layers]), (curve,), norms, targets, chance[:, 0])


def test_a_straight_line_is_linear_and_a_jump_is_not():
    amounts = [-2, -1, 0, 1, 2]
    result = made([[[2, 1, 0, 1, 2.0]], [[1, 1, 0, 1, 1.0]]], amounts)
    line, jump = result.linearity("vertical").tolist()
    assert line == pytest.approx(1.0) and jump < 0.8
    assert result.first_step("vertical").tolist() == [1.0, 1.0]


def test_relative_distance_is_of_the_original_norm():
    result = made([[[0, 3.0], [0, 5.0]]], [1, 1.5], "scale", [[2, 0]])
    assert result.relative("scale").tolist() == [[[0, 1.5], [0, math.inf]]]


def test_the_sample_photos_take_one_target_each():
    twelve = invariance(network(), None, preprocess=PIXELS, transforms={"scale": [1.0]}, progress=False).targets
    given = (twelve + 1) % 5
    result = invariance(network(), None, preprocess=PIXELS, targets=given, transforms={"scale": [1.0]}, progress=False)
    assert torch.equal(result.targets, given)


def test_targets_may_be_given_or_come_with_the_images():
    model = network()
    options = {"transforms": {"scale": [1.0]}, "progress": False}
    assert invariance(model, images(), targets=[4, 0], **options).targets.tolist() == [4, 0]

    class Labelled(torch.utils.data.Dataset):
        targets = (3, 1)

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return images()[index], self.targets[index]

    assert invariance(model, Labelled(), targets="labels", **options).targets.tolist() == [3, 1]


def test_labels_by_name_are_looked_up_on_the_card(tmp_path):
    for name in ("n02", "cat"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    model = network()
    model.card = type("Card", (), {"classes": ("dog", "cat"), "training": {"folders": ["n02", "n07"]}})()
    options = {"targets": "labels", "transforms": {"scale": [1.0]}, "progress": False}
    preprocess = Preprocess((8, 8), 8, (0.5,) * 3, (0.5,) * 3)
    assert invariance(model, tmp_path, preprocess=preprocess, **options).targets.tolist() == [1, 0]
    (tmp_path / "cat").rename(tmp_path / "bird")
    with pytest.raises(OptionError, match="label 'bird' is no class on the model's card"):
        invariance(model, tmp_path, preprocess=preprocess, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transforms": ["shear"]}, "expected some of 'vertical', 'horizontal', 'scale', 'rotation'"),
        ({"transforms": []}, "expected some of"),
        ({"transforms": {"scale": [0.0]}}, "expected finite numbers, positive for a scale"),
        ({"transforms": {"rotation": []}}, "expected finite numbers"),
        ({"transforms": {"vertical": [math.nan]}}, "expected finite numbers"),
        ({"fill": "gray"}, "expected a number, 'edge', 'reflect' or None"),
        ({"targets": [0]}, "there are 1 targets for 2 images"),
        ({"targets": [0, 5]}, "target 5 of image 1: the model has classes 0 to 4"),
        ({"targets": "names"}, "the images come without labels|expected class indices"),
        ({"targets": "labels"}, "the images come without labels"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number of at least 1"),
    ],
)
def test_mistakes_are_told(options, message):
    with pytest.raises(OptionError, match=message):
        invariance(network(), images(), **{"transforms": {"scale": [1.1]}, **options}, progress=False)


def test_a_model_without_classes_is_refused():
    with pytest.raises(ModelError, match=r"the model's output is of shape \(1, 4, 8, 8\), expected \(N, classes\)"):
        invariance(network()[:2], images(), layers=["0"], transforms={"scale": [1.1]}, progress=False)


def test_an_unknown_kind_is_told():
    with pytest.raises(OptionError, match="no 'scale' in this result, it has vertical"):
        made([[[0.0]]], [0])["scale"]


def test_the_sample_photos_are_taken_whole():
    model = network()
    pixels = Preprocess((16, 16), 16, (0.5,) * 3, (0.5,) * 3)
    result = invariance(model, transforms={"scale": [1.5]}, preprocess=pixels, progress=False)
    assert len(result.targets) == 12


def test_the_picture_has_a_row_per_transformation():
    result = invariance(network(), images(), transforms={"scale": [1, 1.2], "vertical": [0, 1, 2]}, progress=False)
    figure = result.plot()
    assert len(figure.subfigs) == 2
    assert [len(part.subfigs[0].axes) for part in figure.subfigs] == [2, 3]  # the examples
    assert all(len(part.subfigs[1].axes) == 3 for part in figure.subfigs)


def test_a_picture_may_go_without_the_images():
    """Of images that may not be published only the curves are drawn."""
    result = made([[[1, 0, 1.0]], [[2, 0, 2.0]]], [-1, 0, 1])

    def shown(figure):
        return [
            axis for part in figure.subfigs for inner in part.subfigs or [part] for axis in inner.axes if axis.images
        ]

    assert len(shown(result.plot())) == 2
    figure = result.plot(examples=False)
    assert not shown(figure) and len(figure.subfigs[0].axes) == 3
