"""Occlusion scans against a naive loop and against captum."""

import pytest
import torch
from captum.attr import FeatureAblation
from captum.attr import Occlusion as Captum
from occlusion_helpers import build, naive, occlude, photo, window_masks
from pictures import noise
from torch import nn

import deconvviz
from deconvviz.errors import OptionError
from deconvviz.images.preprocess import Preprocess
from deconvviz.occlusion import brute_force as _full
from deconvviz.occlusion import refine as _refine

METHODS = ["full", "incremental"]


@pytest.fixture
def net():
    return build()


@pytest.fixture
def image():
    return photo()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("size", "stride", "edge"),
    [(5, 3, "clip"), (5, 3, "align"), ((7, 2), (2, 4), "clip"), ((20, 17), 1, "clip"), (1, 6, "align")],
)
def test_a_scan_is_the_naive_loop(net, image, method, size, stride, edge):
    result = occlude(net, image, size=size, stride=stride, edge=edge, method=method, fill=0.3)
    masks = window_masks(result)
    shares, rows, responses = naive(net, image, result.fill, masks)
    base_shares, base_rows, base_response = naive(net, image, result.fill, torch.zeros(1, 20, 17))
    shape = len(result.rows), len(result.cols)
    target, unit = int(base_rows.argmax()), int(base_response.sum((2, 3)).argmax())
    assert (result.target, result.unit, result.method) == (target, unit, method)
    close = {"rtol": 1e-9, "atol": 1e-10}
    assert torch.allclose(result.probability, shares[:, target].view(shape), **close)
    assert torch.allclose(result.logit, rows[:, target].view(shape), **close)
    assert torch.equal(result.label, rows.argmax(1).view(shape))
    assert torch.allclose(result.activation, responses[:, unit].sum((1, 2)).view(shape), **close)
    assert torch.allclose(result.unoccluded["probability"], base_shares[0, target], **close)
    assert torch.allclose(result.unoccluded["activation"], base_response[0, unit].sum(), **close)
    assert result.measured.all() and result.deviation is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "stride"), [((5, 5), (3, 3)), ((4, 9), (4, 2)), ((6, 3), (5, 3)), ((20, 17), (1, 1))])
def test_attribution_is_captums(net, image, method, size, stride):
    result = occlude(net, image, size=size, stride=stride, fill="mean", method=method)
    net.eval()
    for of, forward in (("logit", net), ("probability", lambda x: net(x).softmax(1))):
        expected = Captum(forward).attribute(
            image[None], (3, *size), (3, *stride), baselines=result.fill[None], target=result.target
        )[0]
        # captum gives float32, and the same for each channel.
        assert torch.allclose(result.attribution(of).float().expand(3, -1, -1), expected, rtol=1e-5, atol=1e-6)


def test_attribution_of_masks_is_captums_feature_ablation(net, image):
    parts = torch.randint(0, 6, (20, 17), generator=torch.Generator().manual_seed(1))
    masks = torch.stack([parts == i for i in range(6)])
    result = occlude(net, image, masks=masks, fill=-1.0)
    net.eval()
    expected = FeatureAblation(net).attribute(
        image[None], baselines=-1.0, target=result.target, feature_mask=parts.expand(1, 3, -1, -1)
    )
    assert result.probability.shape == (6, 1) and result.method == "full" and result.size is None
    assert torch.allclose(result.attribution("logit").to(expected), expected[0, 0], rtol=1e-5, atol=1e-6)


def test_masks_may_be_soft_and_boxes_among_them_take_the_fast_path(net, image):
    soft = torch.rand(4, 20, 17, generator=torch.Generator().manual_seed(0))
    result = occlude(net, image, masks=soft, fill=1.0)
    shares, rows, _ = naive(net, image, result.fill, soft)
    assert torch.allclose(result.probability[:, 0], shares[:, result.target], atol=1e-10)
    drop = result.unoccluded["logit"] - rows[:, result.target]
    mean = (soft.double() * drop[:, None, None]).sum(0) / soft.double().sum(0)
    assert torch.allclose(result.attribution("logit"), mean, atol=1e-9)
    grid = occlude(net, image, size=6, stride=5)
    boxes = occlude(net, image, masks=window_masks(grid).bool())
    assert boxes.method == "incremental"
    assert torch.allclose(boxes.probability[:, 0], grid.probability.flatten(), atol=1e-12)
    assert torch.allclose(boxes.attribution(), grid.attribution(), atol=1e-12)


def test_pixels_in_no_window_have_no_attribution(net, image):
    drop = occlude(net, image, size=2, stride=9).attribution()
    assert drop.isnan().any() and torch.equal(drop.isnan(), drop.isnan().all(1)[:, None] | drop.isnan().all(0))


def test_several_targets_of_every_kind_at_once(net, image):
    def margin(output):
        return output[:, 0] - output[:, 1]

    def peak(response):
        return response.amax((1, 2, 3))

    asked = [3, 0, margin, ("third:relu", 2), ("third:relu", peak)]
    layer = next(x.name for x in deconvviz.layers(net, (20, 17)) if x.number == 3)
    asked = [(layer, x[1]) if isinstance(x, tuple) else x for x in asked]
    result = occlude(net, image, size=5, target=asked)
    shares, rows, responses = naive(net, image, result.fill, window_masks(result))
    shape = (len(result.rows), len(result.cols))
    expected = [rows[:, 3], rows[:, 0], margin(rows), responses[:, 2].sum((1, 2)), peak(responses)]
    assert result.logit.shape == (5, *shape)
    assert torch.allclose(result.logit.flatten(1), torch.stack(expected), atol=1e-10)
    assert torch.allclose(result.probability[0].flatten(), shares[:, 3], atol=1e-10)
    assert result.probability[2:].isnan().all()
    assert result.target == (3, 0, "margin", f"unit 2 of layer {layer}", f"peak of layer {layer}")
    assert result.attribution().shape == (5, 20, 17)
    one = result.only("margin")
    assert torch.equal(one.attribution(), result.attribution("logit")[2]) and one.probability.shape == shape
    assert torch.allclose(one.unoccluded["logit"], margin(naive(net, image, 0, torch.zeros(1, 20, 17))[1]), atol=1e-10)
    with pytest.raises(OptionError, match=r"target 4 was not measured, only 3, 0, 'margin'"):
        result.only(4)


def test_a_network_that_ends_in_a_softmax_is_not_softmaxed_again(net, image):
    whole = nn.Sequential(net, nn.Softmax(1))
    result, plain = occlude(whole, image, size=6), occlude(net, image, size=6)
    assert torch.allclose(result.probability, plain.probability, atol=1e-12)
    assert torch.equal(result.logit, result.probability)


def test_a_batch_gives_a_list(net, image):
    batch = torch.stack([image, image.flip(2), -image])
    results = occlude(net, batch, size=6)
    assert [torch.equal(r.image, x) for r, x in zip(results, batch, strict=True)] == [True] * 3
    alone = occlude(net, batch[1:2], size=6)
    assert isinstance(alone, deconvviz.Occlusion)
    assert torch.allclose(alone.probability, results[1].probability, atol=1e-12)


def test_pictures_and_files_go_through_the_preprocessing(net, tmp_path):
    picture = noise((40, 30), 90).convert("RGB")
    picture.save(tmp_path / "a.png")
    known = Preprocess((20, 17), 20, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    results = [occlude(net, x, size=8, preprocess=known) for x in (picture, str(tmp_path / "a.png"))]
    for result in results:
        assert result.fill_name == "mid-gray" and result.mean == (0.1, 0.2, 0.3)
        assert torch.allclose(result.fill[:, 0, 0], torch.tensor([0.8, 0.6, 0.4]))
    assert torch.equal(results[0].probability, results[1].probability)
    assert len(occlude(net, [picture, picture], size=8, preprocess=known)) == 2
    assert len(occlude(net, tmp_path, size=8, preprocess=known)) == 1


@pytest.mark.parametrize("method", ["full", "incremental"])
def test_a_model_that_views_its_maps_is_scanned_too(method):
    """In channels_last memory `view` would fail."""

    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5)

        def forward(self, x):
            return self.fc(self.conv(x).relu().view(len(x), -1))

    model, picture = Viewing().eval().double(), torch.randn(1, 3, 8, 8, dtype=torch.float64)
    result = occlude(model, picture, size=2, stride=2, target=1, method=method, fill=0.0)
    covered = picture.clone()
    covered[..., 2:4, 4:6] = 0
    with torch.no_grad():
        assert torch.allclose(result.logit[1, 2], model(covered)[0, 1], atol=1e-12)


def test_memory_does_not_change_the_result(net, image):
    large, small = (occlude(net, image, size=5, stride=4, method="full", memory=m) for m in (10**9, 1))
    assert torch.allclose(large.probability, small.probability, atol=1e-12)


def test_out_of_memory_halves_the_batch_and_goes_on(net, image, monkeypatch):
    sizes, plain = [], _full.Pass.__call__

    def tight(self, images):
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.cuda.OutOfMemoryError("no room")
        return plain(self, images)

    expected = occlude(net, image, size=5, stride=4, method="full")
    monkeypatch.setattr(_full.Pass, "__call__", tight)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    result = occlude(net, image, size=5, stride=4, method="full")
    assert torch.allclose(result.probability, expected.probability, atol=1e-12)
    assert sizes[:5] == [3, 16, 8, 4, 2]  # 3: whether images see each other


def test_no_memory_for_a_single_image_is_an_error(net, image, monkeypatch):
    plain = _full.Pass.__call__

    def none(self, images):
        if not torch.equal(images[0], image):  # the unoccluded image still fits
            raise torch.cuda.OutOfMemoryError("no room")
        return plain(self, images)

    monkeypatch.setattr(_full.Pass, "__call__", none)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="no room"):
        occlude(net, image, size=5, method="full")


def test_a_model_in_half_precision_gives_float32(net, image, tmp_path):
    result = occlude(net.bfloat16(), image.float(), size=8, fill="blur")
    assert {x.dtype for x in (result.image, result.fill, result.probability, result.projection)} == {torch.float32}
    result.save(tmp_path / "a")


# ---- options that trade ----


def test_refine_measures_where_the_map_changes_and_marks_the_rest(net):
    image = torch.zeros(3, 33, 33, dtype=torch.float64)
    image[:, 4:10, 4:10] = 3
    full = occlude(net, image, size=3, stride=1, fill=0.0, method="full")
    result = occlude(net, image, size=3, stride=1, fill=0.0, method="full", refine=4)
    seen = result.measured
    assert seen[::4, ::4].all() and not seen.all() and 64 < seen.sum() < 700
    for name in ("probability", "logit", "label", "activation"):
        assert torch.allclose(getattr(result, name)[seen].double(), getattr(full, name)[seen].double(), atol=1e-10)
    span = full.probability.max() - full.probability.min()
    assert (result.probability - full.probability).abs().max() < 0.2 * span
    assert torch.equal(result.label, full.label)


def test_interpolation_is_linear_and_keeps_what_was_measured():
    rows, cols = torch.tensor([0, 3, 6, 9, 11]), torch.tensor([0, 5])
    chosen = torch.tensor([0, 2, 4]), torch.tensor([0, 1])
    plane = (2.0 * rows[:, None] - cols).double()
    between = _refine.spread(plane[chosen[0][:, None], chosen[1]], "logit", *chosen, (rows, cols))
    assert torch.allclose(between, plane)
    labels = _refine.spread(torch.tensor([[1, 2], [3, 4], [5, 6]]), "label", *chosen, (rows, cols))
    assert labels[[0, 2, 4]].tolist() == [[1, 2], [3, 4], [5, 6]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_refine_works_on_the_smallest_grids(net, shape):
    image = torch.randn(3, 6 + shape[0], 6 + shape[1], dtype=torch.float64)
    result = occlude(net, image, size=7, stride=1, refine=3)
    assert result.measured.shape == shape and result.probability.isfinite().all()


def test_a_lower_precision_reports_its_deviation(net, image):
    model, x = net.float(), image.float()
    exact = occlude(model, x, size=5, stride=4)
    for method in METHODS:
        result = occlude(model, x, size=5, stride=4, dtype=torch.bfloat16, method=method)
        off = (result.probability - exact.probability).abs().max()
        assert set(result.deviation) == {"probability", "logit", "activation"}
        assert 0 < result.deviation["probability"] <= float(off) + 1e-6 < 0.1
        assert result.probability.dtype == torch.float32
