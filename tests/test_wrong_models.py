"""What is no model, takes no images, or hides its way: each public function says so, with the cause and the remedy."""

import pytest
import torch
from torch import nn

import deconvviz
from deconvviz.errors import DeconvvizError, ForwardError, LayerError, ModelError

IMAGES = torch.randn(4, 3, 16, 16)
CALLS = {
    "audit": lambda m: deconvviz.audit(m, IMAGES),
    "deconv": lambda m: deconvviz.deconv(m, IMAGES, layer="c", unit=0),
    "filters": deconvviz.filters,
    "invariance": lambda m: deconvviz.invariance(m, IMAGES, progress=False),
    "layers": lambda m: deconvviz.layers(m, 16),
    "nearest": lambda m: deconvviz.nearest(m, IMAGES, query=0, progress=False),
    "occlude": lambda m: deconvviz.occlude(m, IMAGES[:1], progress=False),
    "probe": lambda m: deconvviz.probe(m, IMAGES, labels=[0, 1, 0, 1], folds=2, progress=False),
    "project": lambda m: deconvviz.project(m, IMAGES, layer="c", progress=False),
    "report": lambda m: deconvviz.report(m, IMAGES, progress=False),
    "response_std": lambda m: deconvviz.response_std(m, IMAGES, progress=False),
    "top": lambda m: deconvviz.top(m, IMAGES, layers="c", progress=False),
}


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 4, 3)

    def forward(self, a, b):
        return self.c(a + b)


class Through(nn.Module):
    """Goes by way of something that torch does not see."""

    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.way = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), way

    def forward(self, x):
        return self.b(self.way(self.a(x))).mean((2, 3))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("model", "kind"),
    [(lambda x: x, "function"), ({}, "dict"), (None, "NoneType"), (nn.ReLU, "the class ReLU: give one")],
)
def test_what_is_no_module_is_refused(call, model, kind):
    with pytest.raises(ModelError, match=rf"expected a torch.nn.Module, got {kind}"):
        call(model)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_model_of_two_inputs_is_told_what_to_do(call):
    with pytest.raises(ForwardError, match=r"something else than images alone: .*argument: 'b'. Say how it is called"):
        call(Two())


@pytest.mark.parametrize(
    "way",
    [lambda x: torch.from_numpy(x.detach().numpy()), lambda x: torch.full_like(x, x.mean().item())],
    ids=["numpy", "item"],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda m: deconvviz.deconv(m, IMAGES, layer="b", unit=0),
        lambda m: deconvviz.project(m, IMAGES, layer="b", progress=False),
        lambda m: deconvviz.top(m, IMAGES, layers=["a", "b"], progress=False),
        lambda m: deconvviz.response_std(m, IMAGES, layers=["b"], progress=False),
        lambda m: deconvviz.nearest(m, IMAGES, query=0, layer="b", progress=False),
        lambda m: deconvviz.probe(m, IMAGES, labels=[0, 1, 0, 1], folds=2, layers=["b"], progress=False),
    ],
    ids=["deconv", "project", "top", "response_std", "nearest", "probe"],
)
def test_a_way_that_cannot_be_seen_is_named(way, call):
    with pytest.raises(LayerError, match=r"module 'b' did not run, or returned nothing that depends on the images"):
        call(Through(way))


class Transformed(nn.Module):
    """A branch inside a transform of torch.func, beside a plain one."""

    def __init__(self, alone):
        super().__init__()
        self.a, self.b, self.alone = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), alone

    def forward(self, x):
        y = self.a(x)
        z = torch.func.vmap(lambda one: one / one.norm())(y)
        return self.b(z if self.alone else y + z).mean((2, 3))


@pytest.mark.parametrize("rule", ["deconvnet", "backprop"])
@pytest.mark.parametrize("alone", [True, False])
def test_transforms_of_torch_func_are_named(alone, rule):
    torch.manual_seed(0)
    model = Transformed(alone).eval()
    for call in (
        lambda: deconvviz.deconv(model, IMAGES, layer="b", unit=0, rule=rule),
        lambda: deconvviz.project(model, IMAGES, layer="b", units=[0], k=1, rule=rule, progress=False),
    ):
        with pytest.raises(DeconvvizError, match=r"torch\.func \(vmap, grad"):
            call()
    assert deconvviz.deconv(model, IMAGES, layer="a", unit=0, rule=rule).any()


def test_occlusion_of_a_transform_is_right_or_names_it():
    torch.manual_seed(0)
    with pytest.raises(
        ModelError, match=r"torch\.func \(vmap, grad …\) around torch\.Tensor\.norm in the model itself"
    ):
        deconvviz.occlude(Transformed(True).eval(), IMAGES[:1], size=6, target=1, progress=False)
    model = Transformed(False).double().eval()
    result = deconvviz.occlude(model, IMAGES[:1].double(), size=6, stride=5, target=1, progress=False)
    for row, top in enumerate(result.rows.tolist()):
        for col, left in enumerate(result.cols.tolist()):
            image = result.image.clone()
            image[:, top : top + 6, left : left + 6] = result.fill[:, top : top + 6, left : left + 6]
            assert abs(model(image[None].double())[0, 1] - result.logit[row, col]) < 1e-12
