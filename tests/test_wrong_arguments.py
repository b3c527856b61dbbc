"""Numbers are taken in every form they come in; all that is none, no network or no image is refused with its cause."""

import numpy as np
import pytest
import torch
from torch import nn

import deconvviz
from deconvviz.errors import DeconvvizError

QUIET = {"progress": False}


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(*layers).eval()


def images(n=4):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, a, b):
        return self.conv(a + b).mean((2, 3))


class ByNumpy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.second(torch.from_numpy(self.first(x).detach().numpy())).mean((2, 3))


OF_THREE = [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)]
# what a number goes into -> a call with it whose result does not depend on how the number is written
TAKES_A_NUMBER = {
    "project k": lambda n: deconvviz.project(net(), images(), layer=2, units=[0], k=n, **QUIET).projections,
    "project units": lambda n: deconvviz.project(net(), images(), layer=2, units=[n, 1], k=2, **QUIET).projections,
    "project layer": lambda n: deconvviz.project(net(), images(), layer=n - 1, units=[0], k=2, **QUIET).projections,
    "project batch_size": lambda n: (
        deconvviz.project(net(), images(), layer=2, units=[0], k=2, batch_size=n, **QUIET).projections
    ),
    "deconv unit": lambda n: deconvviz.deconv(net(), images(), layer=2, unit=n),
    "deconv layer": lambda n: deconvviz.deconv(net(), images(), layer=n - 1, unit=0),
    "deconv position": lambda n: deconvviz.deconv(net(), images(), layer=2, unit=0, position=(n, n)),
    "top k": lambda n: deconvviz.top(net(), images(), layers=[1], k=n, **QUIET)[1].values,
    "top layers": lambda n: deconvviz.top(net(), images(), layers=[n - 1], k=2, **QUIET)[2].values,
    "top batch_size": lambda n: deconvviz.top(net(), images(), layers=[1], k=2, batch_size=n, **QUIET)[1].values,
    "occlude target": lambda n: deconvviz.occlude(net(), images(1), target=n, size=8, **QUIET).probability,
    "occlude targets": lambda n: deconvviz.occlude(net(), images(1), target=[n, 0], size=8, **QUIET).probability,
    "occlude unit": lambda n: deconvviz.occlude(net(), images(1), target=(2, n), size=8, **QUIET).logit,
    "occlude size": lambda n: deconvviz.occlude(net(), images(1), size=n, stride=4, **QUIET).probability,
    "occlude stride": lambda n: deconvviz.occlude(net(), images(1), size=(8, 8), stride=(n, n), **QUIET).probability,
    "occlude refine": lambda n: deconvviz.occlude(net(), images(1), size=4, stride=1, refine=n, **QUIET).probability,
    "layers input_size": lambda n: torch.tensor(deconvviz.layers(net(), n * 6)["0"].height),
    "layers input_size pair": lambda n: torch.tensor(deconvviz.layers(net(), (n * 6, n * 7))["0"].width),
    "nearest query": lambda n: deconvviz.nearest(net(), images(), query=n, layer=2, k=2, **QUIET).distances,
    "nearest queries": lambda n: deconvviz.nearest(net(), images(), query=[0, n], layer=2, k=2, **QUIET).distances,
    "nearest k": lambda n: deconvviz.nearest(net(), images(), query=0, layer=2, k=n, **QUIET).distances,
    "invariance targets": lambda n: (
        deconvviz.invariance(net(), images(2), layers=[1], transforms=["vertical"], targets=[n, 1], **QUIET).original
    ),
    "zoo classes": lambda n: torch.tensor(
        deconvviz.zoo.create("nin-cifar", num_classes=n)(torch.zeros(1, 3, 32, 32)).shape
    ),
}


@pytest.mark.parametrize("call", TAKES_A_NUMBER.values(), ids=list(TAKES_A_NUMBER))
def test_a_number_counts_however_it_is_written(call):
    expected = call(3)
    for number in OF_THREE:
        assert torch.equal(call(number), expected), repr(number)


NO_NUMBER = [True, torch.tensor(True), 2.0, "2", [2], None]
REFUSES = {name: call for name, call in TAKES_A_NUMBER.items() if not name.startswith("layers ")}
MAY_BE_NONE = {"project batch_size", "top batch_size", "occlude target", "occlude refine", "occlude stride"}
MAY_BE_NONE |= {"zoo classes", "occlude size"}
A_LIST_IS_FINE = {"occlude target", "nearest query"}


@pytest.mark.parametrize("value", NO_NUMBER, ids=repr)
@pytest.mark.parametrize("name", REFUSES)
def test_what_is_no_number_is_refused(name, value):
    if (value is None and name in MAY_BE_NONE) or (isinstance(value, list) and name in A_LIST_IS_FINE):
        return
    if "layer" in name:  # n − 1 of these is no question to the library
        return
    with pytest.raises(DeconvvizError):
        REFUSES[name](value)


@pytest.mark.parametrize(
    "mask",
    [
        [False, True, True, False, False, True],
        np.array([0, 1, 1, 0, 0, 1], bool),
        torch.tensor([0, 1, 1, 0, 0, 1]).bool(),
    ],
    ids=["list", "numpy", "torch"],
)
def test_a_mask_of_all_units_picks_those_that_are_true(mask):
    assert deconvviz.project(net(), images(), layer=2, units=mask, k=1, **QUIET).units.tolist() == [1, 2, 5]


@pytest.mark.parametrize("mask", [[True], [False] * 6, torch.ones(7).bool(), [True, 2]], ids=repr)
def test_a_mask_of_another_length_or_of_nothing_is_refused(mask):
    with pytest.raises(DeconvvizError, match="units"):
        deconvviz.project(net(), images(), layer=2, units=mask, k=1, **QUIET)


CALLS = {
    "audit": lambda m, x: deconvviz.audit(m, x),
    "deconv": lambda m, x: deconvviz.deconv(m, x, layer=1, unit=0),
    "layers": lambda m, x: deconvviz.layers(m, tuple(x.shape[1:]) if isinstance(x, torch.Tensor) else None),
    "nearest": lambda m, x: deconvviz.nearest(m, x, query=0, layer=1, k=1, **QUIET),
    "occlude": lambda m, x: deconvviz.occlude(m, x[:1] if isinstance(x, torch.Tensor) else x, **QUIET),
    "project": lambda m, x: deconvviz.project(m, x, layer=1, units=[0], k=1, **QUIET),
    "response_std": lambda m, x: deconvviz.response_std(m, x, layers=[1], **QUIET),
    "top": lambda m, x: deconvviz.top(m, x, layers=[1], k=1, **QUIET),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_a_network_with_two_inputs_is_told_to_be_wrapped(call):
    with pytest.raises(DeconvvizError, match=r"takes something else than images alone: .*'b'"):
        call(TwoInputs().eval(), images())


@pytest.mark.parametrize("model", [lambda x: x, "resnet18", None, nn.ReLU], ids=["function", "name", "None", "class"])
@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_a_model_is_a_module(call, model):
    with pytest.raises(DeconvvizError, match=r"expected a torch\.nn\.Module"):
        call(model, images())


@pytest.mark.parametrize("call", [deconvviz.layers, deconvviz.audit], ids=["layers", "audit"])
def test_a_network_of_another_size_is_told_how_to_say_so(call):
    own = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10)).eval()
    with pytest.raises(DeconvvizError, match=r"input_size=28"):
        call(own)
    assert len(call(own, input_size=28)) and len(call(own, input_size=(1, 28, 28)))
    with pytest.raises(DeconvvizError, match=r"failed on images of shape \(1, 1, 30, 30\)(?!.*input_size)"):
        call(own, input_size=30)
    with pytest.raises(DeconvvizError, match=r"input_size must be a side"):
        call(own, input_size=(1, 2, 3, 4))


def test_a_model_without_numbers_has_a_table_and_nothing_else():
    with torch.device("meta"):
        hollow = net()
    assert [layer.units for layer in deconvviz.layers(hollow).numbered] == [4, 6]
    for name, call in CALLS.items():
        if name not in ("layers", "audit"):
            with pytest.raises(DeconvvizError, match=r"on the meta device: it has a shape and no numbers"):
                call(hollow, images())


@pytest.mark.parametrize(
    "call", [c for n, c in CALLS.items() if n != "layers"], ids=[n for n in CALLS if n != "layers"]
)
def test_no_images_are_refused_as_such(call):
    with pytest.raises(DeconvvizError, match="no images"):
        call(net(), [])


@pytest.mark.parametrize("shape", [(2, 3, 40), (2, 3, 8, 8, 8)], ids=["sound", "volumes"])
@pytest.mark.parametrize(
    "call", [c for n, c in CALLS.items() if n != "layers"], ids=[n for n in CALLS if n != "layers"]
)
def test_networks_of_one_and_three_dimensions_are_not_for_this(call, shape):
    first = (nn.Conv1d if len(shape) == 3 else nn.Conv3d)(3, 4, 3)
    with pytest.raises(DeconvvizError, match=r"two dimensions|expected \(N, C, H, W\)"):
        call(nn.Sequential(first, nn.ReLU()), torch.randn(shape))


@pytest.mark.parametrize("name", ["deconv", "project", "top", "occlude", "nearest"])
def test_numpy_on_the_path_is_named(name):
    layer = {"layer": "second"} if name in ("deconv", "project", "nearest", "occlude") else {"layers": ["second"]}
    more = {"deconv": {"unit": 0}, "nearest": {"query": 0, "k": 1}}.get(name, {})
    more |= {} if name == "deconv" else QUIET
    with pytest.raises(DeconvvizError, match=r"numpy"):
        getattr(deconvviz, name)(ByNumpy().eval(), images(1 if name == "occlude" else 4), **layer, **more)


@pytest.mark.parametrize("position", [3, (1,), (1, 2, 3), "11", (1.0, 2)])
def test_a_position_is_a_row_and_a_column(position):
    with pytest.raises(DeconvvizError, match="position"):
        deconvviz.deconv(net(), images(), layer=1, unit=0, position=position)
