"""Transformers: blocks are numbered, tokens are maps with the class token apart, against hooks and plain torch."""

import pytest
import torch
import torchvision
from torch import nn

import deconvviz
from deconvviz import ImageError, UnsupportedOp
from deconvviz.model.tokens import Grid

QUIET = {"progress": False}
timm = pytest.importorskip("timm")


def vit():
    how = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 5}
    model = torchvision.models.VisionTransformer(image_size=32, patch_size=8, **how)
    nn.init.normal_(model.heads.head.weight)
    return model


def deit():
    """With a class and a distillation token, and pictures that are not square."""
    how = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.models.deit.VisionTransformerDistilled(img_size=(32, 24), **how)


def swin():
    return torchvision.models.SwinTransformer([4, 4], 8, [1, 2], [2, 2], [4, 4], num_classes=3)


def timm_swin():
    how = {"patch_size": 4, "window_size": 4, "embed_dim": 8, "depths": (1, 2), "num_heads": (2, 2), "num_classes": 5}
    return timm.models.swin_transformer.SwinTransformer(img_size=32, **how)


def convnext():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(4, 8, 2), CNBlockConfig(8, None, 1)], num_classes=5)


# network -> image size, the blocks' paths, tokens before the grid, and a block's output as maps (N, units, rows, cols)
MODELS = {
    vit: ((32, 32), "encoder.layers.encoder_layer_0 encoder.layers.encoder_layer_1", 1, (4, 4)),
    deit: ((32, 24), "blocks.0 blocks.1", 2, (4, 3)),
    swin: ((32, 32), "features.1.0 features.3.0 features.3.1", 0, None),
    timm_swin: ((32, 32), "layers.0.blocks.0 layers.1.blocks.0 layers.1.blocks.1", 0, None),
    convnext: ((32, 32), "features.1.0 features.1.1 features.3.0", 0, "first"),
}


def network(build):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build().double().eval()


def pictures(size, n=3):
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def response(model, path, images):
    """What a module returns, by a hook."""
    found = {}
    handle = model.get_submodule(path).register_forward_hook(lambda m, i, output: found.update(output=output))
    with torch.no_grad():
        model(images)
    handle.remove()
    return found["output"]


def maps_of(output, before, form):
    if form == "first":
        return output
    if form is None:
        return output.permute(0, 3, 1, 2)
    return output[:, before:].transpose(1, 2).unflatten(2, form)


@pytest.mark.parametrize("build", MODELS, ids=lambda f: f.__name__)
def test_the_numbered_layers_are_the_blocks_and_their_tokens_are_maps(build):
    size, names, before, form = MODELS[build]
    model, images = network(build), pictures(size)
    paths = names.split()
    numbered = deconvviz.layers(model, size).numbered
    assert [row.name for row in numbered] == paths
    last = maps_of(response(model, paths[-1], images), before, form)
    assert (numbered[-1].units, numbered[-1].height, numbered[-1].width) == last.shape[1:]
    best = deconvviz.top(model, images, layers=[len(paths)], k=2, **QUIET)[len(paths)]
    expected = last.amax((2, 3)).T.sort(1, descending=True)
    assert torch.allclose(best.values, expected.values[:, :2], rtol=0, atol=1e-12)
    assert torch.equal(best.image_ids, expected.indices[:, :2])
    for unit in range(len(best.values)):
        row, col = best.positions[unit, 0].tolist()
        assert float(last[best.image_ids[unit, 0], unit, row, col]) == pytest.approx(
            float(best.values[unit, 0]), abs=1e-12
        )
    found = deconvviz.response_std(model, images, layers=[1, len(paths)], **QUIET)
    assert float(found.std[1]) == pytest.approx(float(last.std(correction=0)), rel=1e-9)


@pytest.mark.parametrize("build", [vit, deit], ids=lambda f: f.__name__)
def test_the_class_token_stands_apart(build):
    size, names, before, _ = MODELS[build]
    model, images = network(build), pictures(size)
    path = names.split()[0]
    tokens = response(model, path, images)
    scanned = deconvviz.top(model, images, layers=[path, f"{path}:class"], k=1, **QUIET)
    own, apart = (scanned[name].values[:, 0] for name in (path, f"{path}:class"))
    assert torch.allclose(apart, tokens[:, :before].amax((0, 1)), rtol=0, atol=1e-12)
    assert torch.allclose(own, tokens[:, before:].amax((0, 1)), rtol=0, atol=1e-12)
    assert not torch.allclose(own, apart)
    row = deconvviz.layers(model, size)[f"{path}:class"]
    assert (row.units, row.height, row.width, row.number) == (16, 1, before, None)


@pytest.mark.parametrize("build", [vit, timm_swin, convnext], ids=lambda f: f.__name__)
def test_evidence_and_occlusion_equal_brute_force(build):
    size, names, before, form = MODELS[build]
    model, images = network(build), pictures(size)
    path = names.split()[-1]
    found = deconvviz.evidence(model, images, layer=path, units=[3], k=1, size=16, stride=16, fill=0.0, **QUIET)
    number, (row, col) = int(found.image_ids[0, 0]), found.positions[0, 0].tolist()
    answer = deconvviz.occlude(model, images[:1], target=1, layer=path, size=16, stride=16, fill=0.0, **QUIET)
    for i in range(2):
        for j in range(2):
            covered = images.clone()
            covered[:, :, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16] = 0
            maps = maps_of(response(model, path, covered), before, form)
            if found.maps.shape[2:] == (2, 2):
                left = float(found.activations[0, 0]) - float(maps[number, 3, row, col])
                assert float(found.maps[0, 0, i, j]) == pytest.approx(left, abs=1e-5)
            with torch.no_grad():
                assert float(answer.logit[i, j]) == pytest.approx(float(model(covered[:1])[0, 1]), abs=1e-9)
            assert float(answer.activation[i, j]) == pytest.approx(float(maps[0, answer.unit].sum()), abs=1e-9)


@pytest.mark.parametrize("build", [vit, swin], ids=lambda f: f.__name__)
def test_images_are_made_for_a_units_tokens_without_the_class_token(build):
    size, names, before, form = MODELS[build]
    model, path = network(build), names.split()[0]
    how = {"input_size": size, "steps": 4, "robust": False, **QUIET}
    made = deconvviz.maximize(model, layer=path, units=[2], **how)
    seen = torchvision.transforms.functional.normalize(made.images[0], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    maps = maps_of(response(model, path, seen.double()), before, form)
    assert float(made.activations[0, 0, -1]) == pytest.approx(float(maps[0, 2].amax()), abs=1e-4)
    assert made.activations[0, 0, -1] > made.activations[0, 0, 0]


@pytest.mark.parametrize("build", [vit, deit, swin, timm_swin], ids=lambda f: f.__name__)
def test_the_deconvnet_is_refused_at_attention_by_name(build):
    model = network(build)
    with pytest.raises(UnsupportedOp, match=r"in module '[\w.]+'.* attention"):
        deconvviz.deconv(model, pictures(MODELS[build][0], 1), layer=1, unit=0)


def test_convnext_has_no_attention_and_is_projected():
    model, images = network(convnext), pictures((32, 32), 1)
    assert deconvviz.deconv(model, images, layer=2, unit=1).any()


class Shuffled(nn.Module):
    """Tokens whose order is lost, beside some whose order is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 6, 8, 8), nn.Parameter(torch.randn(1, 2, 6))
        self.front, self.back, self.without, self.some, self.mixed = (nn.Identity() for _ in range(5))

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        token = self.token.expand(len(x), -1, -1)
        front = self.front(torch.cat([token, x], 1))
        back = self.back(torch.cat([x, token[:, :1]], 1))
        without = self.without(front[:, 2:])
        some = self.some(front[:, 1:-1])  # as many as there are patches, and not these
        return self.mixed(x.flip(1)).mean(1) + sum(y.sum(1) for y in (front, back, without, some))


def test_tokens_are_followed_by_where_they_lie_not_by_how_many_they_are():
    from deconvviz.model.tokens import grids
    from deconvviz.rules.table import Saving, reach_all
    from deconvviz.tape.record import record

    model, images = Shuffled().eval(), torch.randn(1, 3, 24, 32)
    with deconvviz.guard.untouched(model) as network:
        tape = record(network, images, saver=Saving())
    found = grids(tape, reach_all(tape))
    at = {path: found.get(value) for (path, _), value in tape.calls.items()}
    assert at["front"] == Grid(3, 4, 2, 0) and at["back"] == Grid(3, 4, 0, 1) and at["without"] == Grid(3, 4, 0, 0)
    assert at["some"] is None
    assert Grid(3, 4, 2, 1).total == 15


def test_images_of_another_size_are_refused_where_tokens_stand_apart():
    class Free(Shuffled):
        def forward(self, x):
            x = self.patches(x).flatten(2).mT
            return self.front(torch.cat([self.token.expand(len(x), -1, -1), x], 1)).mean((1, 2))

    model = Free().eval()
    row = deconvviz.layers(model, 32)["front"]
    with pytest.raises(ImageError, match="has 11 tokens, 18 on the first image"):
        row.as_maps(torch.zeros(1, 11, 6))


class ByHand(nn.Module):
    """Two blocks as in ConvNeXt, with a normalization between them that is written out."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x):
            return x + self.down(self.up(self.norm(x.permute(0, 2, 3, 1))).relu()).permute(0, 3, 1, 2)

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 4, 4, 4), self.Block(), self.Block()

    def forward(self, x):
        x = self.first(self.stem(x))
        centred = x - x.mean(1, keepdim=True)
        x = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.activate(self.second(x)).mean((2, 3))

    def activate(self, x):
        return x


class Activated(ByHand):
    """With an activation outside of the blocks, by which it is counted."""

    def activate(self, x):
        return x.relu()


def test_networks_that_activate_outside_of_blocks_are_counted_by_their_activations():
    assert [row.name for row in deconvviz.layers(ByHand().eval(), 16).numbered] == ["first", "second"]
    assert [row.name for row in deconvviz.layers(Activated().eval(), 16).numbered] == ["stem"]
