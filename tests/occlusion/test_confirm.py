"""Numbers are the network's own, whatever it does with its batch, or the call says why it cannot be."""

import logging

import numpy as np
import pytest
import torch
from occlusion_helpers import build, occlude, photo
from random_networks import Block, one_by_one
from torch import nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from deconvviz.devices import Portions
from deconvviz.errors import DeconvvizError, ModelError, UnsupportedOp
from deconvviz.occlusion.answer import Answer
from deconvviz.occlusion.confirm import agree

GRID = {"size": (5, 4), "stride": (3, 3), "fill": 0.0}


class Middle(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between, kind=torch.float64):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3)
        self.between, self.head = between, nn.Linear(4, 4)
        self.to(kind)

    def forward(self, x):
        return self.head(F.relu(self.second(F.max_pool2d(self.between(self.first(x)), 2))).mean((2, 3)))


def block(kind):
    import random

    return Block(kind, 4, (20, 17), random.Random(2))


def right(network, image, **options):
    """Occlude with the defaults, and compare with every image alone."""
    result = occlude(network.eval(), image, target=[0, 1, 2, 3], **GRID, **options)
    with torch.no_grad():
        expected = one_by_one(network, result).permute(2, 0, 1)
    assert (result.logit - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert expected.flatten(1).std(1).min() > 0
    return result


ON_WINDOWS = (
    "h_swish swish squared cubed gate where masked bounded place weighed coordinates cropped moved padded shuffled listed "
    "softplus_and_more relu_of_a_view relu_in_place_of_a_view dropped in_place norm local_norm"
).split()


@pytest.mark.parametrize("kind", ON_WINDOWS)
def test_what_works_position_by_position_takes_the_fast_path(kind):
    result = right(Middle(block(kind)), photo())
    assert (result.method, result.note) == ("incremental", "")


ONE_BY_ONE = {
    "normalized": "makes one number of the whole batch",
    "branched": "takes numbers out of the data",
    "scaled_by_a_number": "takes numbers out of the data",
    "counted": "gives as many numbers as the data says",
    "stretched": "depends on the other images of its batch",
    "centred": "depends on the other images of its batch",
    "first_of_the_batch": "depends on the other images of its batch",
    "last_of_the_batch": "depends on the other images of its batch",
    "batch_norm_of_its_own": "depends on the other images of its batch",
}


@pytest.mark.parametrize("kind", ONE_BY_ONE)
def test_images_that_see_each_other_run_one_by_one_and_it_is_said_once(kind, caplog):
    network = Middle(block(kind))
    with caplog.at_level(logging.WARNING, "deconvviz"):
        result = right(network, photo() * 2)
    assert result.method == "full" and ONE_BY_ONE[kind] in result.note
    assert [r.getMessage() for r in caplog.records] == [f"occlude: {result.note}"]
    assert "one by one" in right(network, photo() * 2, method="full").note
    with pytest.raises(UnsupportedOp, match="Use method='full'"):
        occlude(network, photo() * 2, target=1, method="incremental", **GRID)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("first", [True, False])
def test_a_state_for_each_image_of_a_batch_is_scanned_whole(kind, first):
    recurrent = block("recurrent")
    recurrent.f = kind(4, 4, batch_first=first)
    result = right(Middle(recurrent), photo())
    assert result.method == "full" and "has a state for each image of its batch" in result.note


def test_a_branch_may_add_operations_before_the_layer_that_is_followed():
    network = Middle(nn.Identity())
    network.first = nn.Sequential(block("branched"), network.first)
    image = photo() * 0.1
    image[:, 10:12, 8:10] = 2.0  # the branch is taken where this is not covered
    result = right(network, image)
    seen = []
    with torch.no_grad():
        for top in result.rows.tolist():
            for left in result.cols.tolist():
                covered = image.clone()
                covered[:, top : top + 5, left : left + 4] = 0
                maps = F.relu(network.second(F.max_pool2d(network.first(covered[None]), 2)))
                seen.append(maps[0, result.unit].sum())
    assert torch.allclose(result.activation.flatten(), torch.stack(seen), atol=1e-12)


class Noise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


class SometimesNoise(nn.Module):
    def forward(self, x):
        return x + (torch.rand(()) < 0.6) * 0.1


class NumpyNoise(nn.Module):
    def forward(self, x):
        return x + float(np.random.rand())


class AlwaysDrops(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


class Counts(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x + 0.1 * self.calls


class Remembers(nn.Module):
    last = 0.0

    def forward(self, x):
        self.last = self.last * 0.9 + x.mean()
        return x + self.last


@pytest.mark.parametrize("between", [Remembers, Noise, SometimesNoise, NumpyNoise, AlwaysDrops, Counts])
@pytest.mark.parametrize("method", [None, "full"])
def test_a_model_that_answers_otherwise_each_time_is_refused(between, method):
    with pytest.raises(ModelError, match=r"another answer each time it is asked about the same image.*random numbers"):
        occlude(Middle(between()).eval(), photo(), target=1, method=method, **GRID)


def test_random_numbers_that_change_nothing_do_not_matter():
    class Idle(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x) * 0

    right(Middle(Idle()), photo())


def test_a_model_that_casts_by_itself_gives_its_own_numbers():
    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Middle(nn.Identity(), torch.float32)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x)

    network, image = Casting().eval(), photo().float()
    assert network(image[None]).dtype == torch.bfloat16
    result = occlude(network, image, target=1, **GRID)
    with torch.no_grad():
        expected = one_by_one(network, result)[..., 1].float()
    assert result.method == "full" and "by a setting of its own" in result.note
    assert torch.allclose(result.logit, expected, atol=2 * 2**-8 * float(expected.abs().max()))


def test_kernels_from_elsewhere_do_not_get_what_kills_them():
    """Offsets that are no numbers make torchvision's deformable convolution read outside of its memory."""

    class Deformed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

        def forward(self, x):
            return deform_conv2d(x, x[:, :1].repeat(1, 18, 1, 1), self.weight, padding=1)

    right(Middle(Deformed()), photo())
    right(Middle(Deformed()), photo(), method="full")


def test_answers_agree_up_to_rounding_of_their_type_and_of_what_changes():
    usual = torch.tensor([[1.0, 2.0, 3.0]])
    changed = usual + 1e-3

    def same(found, dtype=None):
        return agree(Answer(found, None), Answer(changed, None), Answer(usual, None), dtype)

    assert same(changed) and same(changed * (1 + 2e-7))
    assert not same(usual)  # all of a small change is missing
    assert not same(changed + torch.tensor([0, 0, 1e-4]))
    assert same(changed + 1e-3, torch.bfloat16)
    assert not same(torch.full_like(changed, torch.nan))
    assert not agree(Answer(changed, usual), Answer(changed, changed), Answer(usual, usual))  # the response, too


# ---- memory ----


NO_ROOM = (
    torch.OutOfMemoryError("no room"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
)


@pytest.mark.parametrize("error", NO_ROOM)
@pytest.mark.parametrize("method", ["full", "incremental"])
def test_where_memory_lacks_every_path_goes_on_with_less(monkeypatch, method, error):
    network, image = build(), photo()
    expected = occlude(network, image, size=5, stride=2, method=method)
    plain, sizes = F.conv2d, []

    def tight(x, *args, **options):
        sizes.append(len(x))
        if len(x) > 3:
            raise error
        return plain(x, *args, **options)

    monkeypatch.setattr(F, "conv2d", tight)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, x, w, b: F.conv2d(x, w, b, self.stride, self.padding))
    result = occlude(network, image, size=5, stride=2, method=method)
    assert torch.allclose(result.probability, expected.probability, atol=1e-12) and result.method == method
    assert max(sizes) > 3


def test_the_late_layers_shrink_their_batches_too(monkeypatch):
    network, image = build(), photo()
    expected, plain, sizes = occlude(network, image, size=5, stride=2), F.linear, []

    def tight(x, *args):
        sizes.append(len(x))
        if len(x) > 1:
            raise torch.OutOfMemoryError("no room")
        return plain(x, *args)

    monkeypatch.setattr(torch._C._nn, "linear", tight)
    monkeypatch.setattr(F, "linear", tight)
    result = occlude(network, image, size=5, stride=2, method="incremental")
    assert torch.allclose(result.probability, expected.probability, atol=1e-12)


def test_portions_are_halved_for_good_and_other_errors_come_through():
    seen = []

    def work(items):
        seen.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError
        return items.tolist()

    assert [x for some in Portions(8).run(work, torch.arange(9)) for x in some] == list(range(9))
    assert seen == [8, 4, 2, 2, 2, 2, 1]
    with pytest.raises(RuntimeError, match="boom"):
        next(Portions(8).run(lambda items: (_ for _ in ()).throw(RuntimeError("boom")), torch.arange(9)))


# ---- targets ----


def test_a_target_may_be_any_whole_number():
    network, image = build().eval(), photo()
    expected = occlude(network, image, size=6, target=2)
    with torch.no_grad():
        logits = network(image[None])
    for target in (np.int64(2), torch.tensor(2), np.array(2), np.uint8(2)):
        result = occlude(network, image, size=6, target=target)
        assert result.target == 2 and torch.equal(result.logit, expected.logit)
    best = occlude(network, image, size=6, target=logits.argmax())
    assert best.target == int(logits.argmax())
    both = occlude(network, image, size=6, target=logits[0].topk(2).indices)
    assert both.target == tuple(logits[0].topk(2).indices.tolist()) and both.logit.shape[0] == 2
    assert occlude(network, image, size=np.int64(6), layer=np.int64(3), target=(3, np.int64(1))).number == 3
    with pytest.raises(DeconvvizError, match=r"target=tensor\(1\.\) has no meaning here"):
        occlude(network, image, size=6, target=torch.tensor(1.0))


class FilteredByItself(nn.Module):
    """Filters taken from the image, the images of a batch side by side as groups: as dynamic convolutions are written."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.make, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 36), nn.Linear(4, 3)

    def forward(self, x):
        y = self.first(x)
        groups = len(y) * 4
        filters = self.make(y.mean((2, 3))).view(groups, 1, 3, 3)
        z = nn.functional.conv2d(y.reshape(1, groups, *y.shape[2:]), filters, padding=1, groups=groups)
        return self.head(z.view_as(y).relu().mean((2, 3)))


def test_filters_that_are_taken_from_the_image_are_right():
    model = FilteredByItself().double().eval()
    image = torch.randn(1, 3, 9, 10, dtype=torch.float64)
    result = occlude(model, image, size=3, stride=3, target=[0, 1, 2])
    with torch.no_grad():
        rows = one_by_one(model, result).permute(2, 0, 1)
    assert (result.logit - rows).abs().max() < 1e-12
