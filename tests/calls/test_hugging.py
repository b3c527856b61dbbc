"""Models of Hugging Face's transformers as they are, with random weights: layers, answers, names, processors."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import deconvviz
from deconvviz import targets
from deconvviz.images import preprocess_for

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

QUIET = {"progress": False}
NAMES = {0: "cat", 1: "dog, hound", 2: "boat"}


def make(kind):
    own = {"id2label": NAMES, "label2id": {name: number for number, name in NAMES.items()}}
    if kind == "resnet":
        config = transformers.ResNetConfig(
            embedding_size=6, hidden_sizes=[6, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic", **own
        )
        build = transformers.ResNetForImageClassification
    elif kind == "convnext":
        config = transformers.ConvNextConfig(hidden_sizes=[4, 6, 8, 8], depths=[1, 1, 1, 1], image_size=32, **own)
        build = transformers.ConvNextForImageClassification
    elif kind == "vit":
        config = transformers.ViTConfig(
            hidden_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=8,
            **own,
        )
        build = transformers.ViTForImageClassification
    else:
        config = transformers.SwinConfig(
            image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4, **own
        )
        build = transformers.SwinForImageClassification
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(config).double().eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def maps_of(kind, output):
    output = output if isinstance(output, torch.Tensor) else output[0]
    if kind == "vit":
        return output[:, 1:].mT.unflatten(2, (4, 4))
    return output.mT.unflatten(2, (4, 4)) if kind == "swin" else output


@pytest.mark.parametrize("kind", ["resnet", "convnext", "vit", "swin"])
def test_a_model_is_taken_as_it_is(kind, images):
    model = make(kind)
    with torch.no_grad():
        logits = model(images).logits
    found = deconvviz.occlude(model, images[:1], target="hound", size=16, stride=16, fill=0.0, **QUIET)
    assert found.target == 1 and found.name_of(1) == "dog, hound"
    assert float(found.unoccluded["logit"]) == pytest.approx(float(logits[0, 1]), abs=1e-9)
    for i in range(2):
        for j in range(2):
            covered = images[:1].clone()
            covered[:, :, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16] = 0
            with torch.no_grad():
                assert float(found.logit[i, j]) == pytest.approx(float(model(covered).logits[0, 1]), abs=1e-9)
    numbered = deconvviz.layers(model, 32).numbered
    path = numbered[-1].name
    caught = {}
    handle = model.get_submodule(path).register_forward_hook(lambda m, i, output: caught.update(output=output))
    with torch.no_grad():
        model(images)
    handle.remove()
    maps = maps_of(kind, caught["output"])
    best = deconvviz.top(model, images, layers=[path], k=1, **QUIET)[path]
    assert torch.allclose(best.values[:, 0], maps.amax((0, 2, 3)), rtol=0, atol=1e-9)


def test_a_target_gets_the_models_own_output(images):
    model = make("vit")
    found = deconvviz.occlude(model, images[:1], target=lambda y: y.logits[:, 2] - y["logits"][:, 0], size=32, **QUIET)
    with torch.no_grad():
        logits = model(images[:1]).logits[0]
    assert float(found.unoccluded["logit"]) == pytest.approx(float(logits[2] - logits[0]), abs=1e-9)
    assert found.label.eq(-1).all()
    named = deconvviz.occlude(model, images[:1], target=targets.score("cat"), size=32, **QUIET)
    assert float(named.unoccluded["logit"]) == pytest.approx(float(logits[0]), abs=1e-9)
    made = deconvviz.maximize(model, target="boat", steps=1, **QUIET)
    assert made.names == ("boat",) and made.images.shape[-2:] == (32, 32)


def test_an_image_processor_is_a_preprocess():
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]
    )
    model = make("vit").float()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    known = preprocess_for(model, processor)
    assert known.size == (32, 32) and known.mean == (0.4, 0.5, 0.6)
    expected = processor(images=picture, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(known(picture), expected)
    back = known.invert(expected)
    by_hand = expected * torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1) + torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    assert torch.allclose(back, by_hand.clamp(0, 1), rtol=0, atol=5e-3)
    found = deconvviz.top(model, [picture, picture.rotate(90)], layers=[1], k=1, preprocess=processor, **QUIET)
    assert found.count == 2
