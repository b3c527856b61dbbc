"""The standard deviations against two passes over all responses, in pieces, and on the right tensors."""

import random

import pytest
import reference_studies as slow
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import deconvviz
from deconvviz.errors import ImageError, LayerError, ModelError, OptionError
from deconvviz.studies import responses
from deconvviz.studies.responses import response_std


def images(count=5, size=16, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def network(seed=0):
    """conv → BN → ReLU → 1×1 conv → ReLU → 3×3 conv without BN."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
            *(nn.Conv2d(4, 6, 1), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 3), nn.ReLU(inplace=True)),
        )
        model[1].running_mean.normal_(), model[1].running_var.uniform_(0.5, 2), model[1].weight.data.normal_()
    return model.eval().double()


def measured(model, x, *until):
    """The outputs of the modules before index `until`, computed by plain calls, as flat lists per unit."""
    with torch.no_grad():
        outputs = [model[:n](x.clone()) for n in until]
    return [[unit.tolist() for unit in out.movedim(1, 0).flatten(1)] for out in outputs]


def test_one_pass_equals_two_passes():
    model, x = network(), images().double()
    result = response_std(model, x, batch_size=2, progress=False)
    assert result.names == ("0", "5") and result.measured == ("1", "5") and result.count == 5
    for n, units in enumerate(measured(model, x, 2, 6)):
        everything = [v for unit in units for v in unit]
        assert result.std[n].item() == pytest.approx(slow.two_pass_std(everything), rel=1e-12)
        assert result.mean[n].item() == pytest.approx(sum(everything) / len(everything), rel=1e-9, abs=1e-12)
        each = [slow.two_pass_std(unit) for unit in units]
        assert result.unit_std(result.names[n]).tolist() == pytest.approx(each, rel=1e-12)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 4), st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_moments_merge_exactly_in_any_grouping(seed, units, sizes):
    generator = torch.Generator().manual_seed(seed)
    # Far from zero, where the textbook formula E[x²] − E[x]² would have no digit left.
    parts = [1e8 + torch.randn(n, units, 2, 3, generator=generator, dtype=torch.float64) for n in sizes]
    moments = [responses.moments(part) for part in parts]
    random.Random(seed).shuffle(moments)
    while len(moments) > 1:
        a, b = moments.pop(), moments.pop(0)
        moments.append((a[0] + b[0], *responses.combine(a, b)))
    count, mean, squares = moments[0]
    everything = torch.cat(parts).movedim(1, 0).flatten(1)
    for unit, values in enumerate(everything.tolist()):
        assert (squares[unit] / count).sqrt().item() == pytest.approx(slow.two_pass_std(values), rel=1e-6, abs=1e-12)
        assert mean[unit].item() == pytest.approx(sum(values) / count, rel=float(count) * 2.0**-52)


def test_a_large_batch_is_measured_in_chunks(monkeypatch):
    whole = response_std(network(), images().double(), progress=False)
    monkeypatch.setattr(responses, "_CHUNK", 1)
    chunked = response_std(network(), images().double(), progress=False)
    assert torch.allclose(whole.std, chunked.std, rtol=1e-13)


def test_scans_of_parts_merge_to_the_scan_of_all():
    x = images(7).double()
    one, *others = (response_std(network(), x[a:b], progress=False) for a, b in ((0, 3), (3, 4), (4, 7)))
    for other in others:
        one = one.merge(other)
    whole = response_std(network(), x, progress=False)
    assert one.count == 7 and one.values.equal(whole.values)
    assert torch.allclose(one.std, whole.std, rtol=1e-12) and torch.allclose(one.mean, whole.mean, rtol=1e-9)


def test_a_merge_of_other_layers_is_refused():
    a, b = (response_std(network(), images().double(), layers=[n], progress=False) for n in ("0", "5"))
    with pytest.raises(OptionError, match="a merge takes results of the same layers"):
        a.merge(b)


def test_sorted_is_by_falling_size_and_keeps_names_and_units_together():
    result = response_std(network(), images().double(), kind="conv", progress=False)
    order = result.sorted()
    assert order.std.tolist() == sorted(result.std.tolist(), reverse=True)
    for name in result.names:
        assert order.unit_std(name).equal(result.unit_std(name))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ("0", "5")),
        ({"kind": "conv"}, ("0", "3", "5")),
        ({"kind": "1x1"}, ("3",)),
        ({"layers": ["5", "0"]}, ("0", "5")),
        ({"layers": "4"}, ("4",)),
        ({"layers": ["0", "1"]}, ("0",)),  # the same tensor twice
    ],
)
def test_layers_by_kind_and_by_name(options, names):
    assert response_std(network(), images().double(), **options, progress=False).names == names


def test_without_3x3_convolutions_all_are_taken():
    model = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.Conv2d(4, 2, 1))
    assert response_std(model, images(), progress=False).names == ("0", "2")


def test_resnet18_has_16_and_each_is_measured_after_its_normalization():
    model = torchvision.models.resnet18(weights=None)
    result = response_std(model, images(2, 32), progress=False)
    assert len(result.names) == 16
    assert all(n.replace("conv", "bn") == m for n, m in zip(result.names, result.measured, strict=True))


class Shared(nn.Module):
    """A convolution that a normalization and a sum both read, and one that runs twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.again = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        y = self.stem(x)
        return self.again(self.again(y + self.bn(y)))


def test_a_normalization_that_is_not_the_only_reader_is_not_the_convolutions():
    result = response_std(Shared().eval(), images(), progress=False)
    assert result.names == ("stem", "again#1", "again#2") == result.measured


def test_images_of_different_sizes_count_by_their_positions():
    class Sizes(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return images(1, (8, 12)[index])[0]

    result = response_std(network().float(), Sizes(), batch_size=1, progress=False)
    assert result.values[0] == 6 * 6 + 10 * 10


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": ["nowhere"]}, LayerError, "there is no layer 'nowhere'"),
        ({"kind": "7x7"}, LayerError, "no layers of kind '7x7'"),
        ({"kind": "pool"}, OptionError, "kind='pool': expected \"conv\" or a size"),
        ({"kind": "conv", "layers": ["0"]}, OptionError, "no layers beside it"),
        ({"layers": []}, LayerError, "Give layers="),
        ({"batch_size": -1}, OptionError, "batch_size=-1"),
    ],
)
def test_mistakes_are_told(options, error, message):
    with pytest.raises(error, match=message):
        response_std(network(), images().double(), **options, progress=False)


def test_what_is_not_finite_is_refused():
    with pytest.raises(ImageError, match="image 0 holds NaN or infinity"):
        response_std(network(), torch.full((1, 3, 16, 16), torch.nan).double(), progress=False)
    model = nn.Sequential(nn.Conv2d(3, 2, 3, bias=False))
    model[0].weight.data.fill_(3e38)
    with pytest.raises(ModelError, match="layer '0', unit 0 gives NaN or infinity for finite images"):
        response_std(model, images() * 100, progress=False)


def test_unit_std_of_a_layer_that_is_not_there():
    with pytest.raises(LayerError, match="no layer 'x' in this result, it has 0, 5"):
        response_std(network(), images().double(), progress=False).unit_std("x")


def test_it_is_public():
    assert deconvviz.response_std is response_std and deconvviz.Responses is responses.Responses
