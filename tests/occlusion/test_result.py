"""The result of an occlusion scan: what it holds, its sums over pixels, its file."""

import pytest
import torch
from occlusion_helpers import build, occlude, photo, window_masks
from torch import nn

import deconvviz
from deconvviz.errors import OptionError, StoreError
from deconvviz.occlusion import result as _maps


@pytest.fixture
def net():
    return build()


@pytest.fixture
def image():
    return photo()


@pytest.mark.parametrize("target", [None, [1, 2], lambda y: y[:, 0] * 2])
@pytest.mark.parametrize("masks", [None, torch.eye(20, 17)[None] > 0])
def test_save_and_load(net, image, tmp_path, target, masks):
    size = None if masks is not None else (5, 6)
    result = occlude(net, image, target=target, size=size, masks=masks, class_names=list("abcde"))
    result.save(tmp_path / "a")
    again = deconvviz.Occlusion.load(tmp_path / "a")
    for name, value in vars(result).items():
        other = getattr(again, name)
        if isinstance(value, torch.Tensor):
            assert value.dtype == other.dtype and torch.equal(value.nan_to_num(), other.nan_to_num())
        elif name != "unoccluded":
            assert value == other, name
    assert all(torch.equal(v.nan_to_num(), again.unoccluded[k].nan_to_num()) for k, v in result.unoccluded.items())
    assert torch.equal(again.attribution("logit").nan_to_num(), result.attribution("logit").nan_to_num())


def test_loading_something_else_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"not a result")
    with pytest.raises(StoreError, match="is not a file that deconvviz wrote"):
        deconvviz.Occlusion.load(tmp_path / "a")


def test_there_is_no_activation_without_a_layer(image):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 17, 5)).double()
    result = occlude(model, image, size=6)
    assert result.activation is None and result.layer is None and result.unit is None
    with pytest.raises(OptionError, match=r"of='activation': give 'probability', 'logit'"):
        result.attribution("activation")


def test_names_of_classes(net, image):
    assert occlude(net, image, size=9).name_of(3) == "class 3"
    assert occlude(net, image, size=9, class_names=list("abcde")).name_of(3) == "d"


def test_other_images_show_the_same_unit(net, image):
    others = torch.randn(6, 3, 20, 17, dtype=torch.float64)
    result = occlude(net, image, size=9, layer=2, others=others)
    assert result.number == 2 and result.other_patches.shape == result.other_projections.shape
    assert len(result.other_patches) == 4 and result.projection.shape == image.shape


def test_the_sums_over_pixels_are_those_of_a_loop(net, image):
    result = occlude(net, image, size=(6, 4), stride=(5, 3))
    values = torch.randn(len(result.rows), len(result.cols))
    expected = (window_masks(result) * values.flatten()[:, None, None]).sum(0).double()
    assert torch.allclose(result.over_pixels(values), expected, atol=1e-5)
    assert _maps._covers(torch.tensor([0, 3]), 2, 4).tolist() == [[1, 1, 0, 0], [0, 0, 0, 1]]
