"""Table 1 against a literal transcription of its formula, and what the control and the zeros mean."""

import pytest
import reference_studies as slow
import torch
from PIL import Image
from torch import nn

from deconvviz.errors import ImageError, LayerError, OptionError
from deconvviz.images import Preprocess
from deconvviz.studies.correspondence import _anywhere, correspondence, hamming, sign

BOXES = {"eye": [(0, 0, 3, 3), (1, 2, 4, 5), (4, 4, 7, 7)], "nose": [(2, 2, 6, 5), (0, 4, 4, 7), (3, 1, 7, 4)]}


def images(count=3, seed=0):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(180, 6), nn.ReLU(), nn.Linear(6, 5)),
        ).eval()


def run(model=None, x=None, parts=None, **options):
    options = {"draws": 3, "progress": False, **options}
    return correspondence(model or network(), images() if x is None else x, parts=parts or BOXES, **options)


@pytest.mark.parametrize("fill", [None, 0.7])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_delta_follows_the_formula(fill, batch_size):
    model, x = network(), images()
    result = run(model, x, layers=[1, 2, "6"], fill=fill, batch_size=batch_size)
    assert result.layers == ("1: 1", "2: 3", "6")
    for p, boxes in enumerate(BOXES.values()):
        masked = x.clone()
        for n, (top, left, bottom, right) in enumerate(boxes):
            masked[n, :, top:bottom, left:right] = fill or 0.0
        for row, last in enumerate((2, 4, 7)):
            with torch.no_grad():
                before, after = (model[:last](y).flatten(1).tolist() for y in (x, masked))
            assert result.pairs[row, p].tolist() == pytest.approx(slow.delta(before, after))


def test_means_and_spreads_are_over_pairs():
    result = run()
    pairs = result.pairs
    assert result.mean.equal(pairs.mean(2)) and pairs.shape == (2, 2, 3)
    assert result.std.tolist() == [[pytest.approx(slow.two_pass_std(x.tolist())) for x in row] for row in pairs]
    assert result.random_pairs.shape == (2, 2, 3, 3)
    everything = result.random_pairs.flatten(2)
    assert result.random_mean.allclose(everything.mean(2))
    assert result.random_std.tolist() == [[pytest.approx(slow.two_pass_std(x.tolist())) for x in r] for r in everything]


def test_zero_agrees_with_zero_and_differs_from_both_signs():
    signs = torch.tensor([[0, 0, 0, 1, 1, -1], [0, 1, -1, 1, -1, -1]], dtype=torch.int8)
    assert hamming(signs).tolist() == [3 / 6]


def test_a_change_of_rounding_size_is_zero():
    features = torch.tensor([[100.0, 1.0, 0.0, 5.0]])
    masked = features + torch.tensor([[5e-5, 1e-3, -1e-3, 0.0]])
    assert sign(features, masked).tolist() == [[0, -1, 1, 0]]


def test_the_same_image_with_the_same_mask_corresponds_perfectly():
    x = images(1).expand(4, -1, -1, -1).clone()
    result = run(x=x, parts={"a": [(2, 2, 5, 5)] * 4})
    assert result.mean.eq(0).all() and result.random_mean.gt(0).all()


def test_a_part_that_looks_alike_corresponds_more_than_random_places():
    """Every image has a red square on noise; the features are random mixtures of the mean colour."""
    x = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    boxes = [(top, left, top + 4, left + 4) for top, left in ((0, 0), (3, 9), (11, 2), (6, 6), (12, 12))]
    for image, (top, left, bottom, right) in zip(x, boxes, strict=True):
        image[:, top:bottom, left:right] = torch.tensor([2.0, -1.0, -1.0])[:, None, None]
    mix = nn.Conv2d(3, 40, 1, bias=False)
    mix.weight.data = torch.randn(40, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(mix, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 2))
    result = run(model, x, parts={"square": boxes}, layers=["2"], draws=30)
    assert result.mean.item() == 0 and result.random_mean.item() > 0.3
    assert result.changed.item() == result.random_changed.item() == 1


def test_a_mask_that_changes_nothing_is_told_by_what_it_changes():
    x = images()
    x[:, :, :3, :3] = 0
    result = run(x=x, parts={"black": [(0, 0, 2, 2)] * 3}, layers=["0"])
    assert result.mean.item() == 0 and result.changed.item() == 0 and result.random_changed.item() > 0


def test_the_control_has_the_sizes_of_the_parts_and_lies_in_the_image():
    boxes = torch.tensor([(0, 0, 3, 8), (2, 2, 3, 3)])
    drawn = _anywhere(boxes, 500, (8, 8), torch.Generator().manual_seed(0))
    assert (drawn[..., 2:] - drawn[..., :2]).eq(boxes[:, 2:] - boxes[:, :2]).all()
    assert drawn.min() == 0 and drawn.max() == 8
    assert drawn[:, 0, 0].unique().tolist() == list(range(6)) and drawn[:, 0, 1].unique().tolist() == [0]


def test_the_control_is_the_same_for_the_same_seed():
    first, same, other = (run(seed=seed).random_pairs for seed in (3, 3, 4))
    assert first.equal(same) and not first.equal(other)


def test_the_masks_colour_is_a_pixel_value_for_pictures():
    pictures = [Image.new("RGB", (8, 8), (255, 255, 255)), Image.new("RGB", (8, 8), (255, 255, 255))]
    preprocess = Preprocess((8, 8), 8, (0.5,) * 3, (0.25,) * 3)
    options = {"parts": {"a": [(0, 0, 4, 4)] * 2}, "preprocess": preprocess}
    white = run(x=pictures, fill=1.0, **options)  # masking white with white changes nothing
    assert white.random_mean.eq(0).all()
    assert run(x=pictures, fill=0.0, **options).random_mean.gt(0).any()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "expected a dict of names and boxes"),
        ([(0, 0, 1, 1)], "expected a dict of names and boxes"),
        ({"eye": BOXES["eye"][:2]}, "part 'eye' has 2 boxes for 3 images"),
        ({"eye": [(0, 0, 1)] * 3}, "part 'eye' has 3 boxes"),
        ({"eye": [(0, 0, 9, 2)] * 3}, "does not lie in an image of 8×8"),
        ({"eye": [(2, 0, 2, 2)] * 3}, r"image 0: box \(2, 0, 2, 2\)"),
        ({"eye": [(-1, 0, 2, 2)] * 3}, "expected 0 <= top < bottom <= height"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(OptionError, match=message):
        correspondence(network(), images(), parts=parts, progress=False)


def test_other_mistakes_are_told():
    with pytest.raises(ImageError, match="there is 1 image, expected at least 2"):
        run(x=images(1))
    with pytest.raises(OptionError, match="draws=0: expected a whole number of at least 1"):
        run(draws=0)
    with pytest.raises(LayerError, match="there is no layer 9"):
        run(layers=[9])


def test_the_callers_images_and_boxes_stay_as_they_are():
    x = images()
    before = x.clone()
    result = run(x=x, parts={"a": torch.tensor(BOXES["eye"])})
    assert x.equal(before) and result.boxes.tolist() == [[list(b) for b in BOXES["eye"]]]


def test_it_prints_the_table_and_draws_a_panel_per_layer():
    result = run()
    lines = result.table().splitlines()
    assert "nose (random)" in lines[0] and lines[1].startswith("2: 3") and len(lines) == 3
    assert f"{result.mean[0, 0]:.3f} ± {result.std[0, 0]:.3f}" in lines[1]
    axes = result.plot().axes
    assert [axis.get_title() for axis in axes] == ["layer 2: 3", "layer 6"]
    tops = [bar.get_height() for bar in axes[1].patches]
    assert tops == pytest.approx([*result.mean[1].tolist(), *result.random_mean[1].tolist()])
    assert axes[0].get_ylim()[1] >= max(tops)
