"""Cards and weights that are damaged, or made to do harm: a StoreError that names the file, and nothing is allocated."""

import copy
import dataclasses
import json
import os
import random
import struct

import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file
from torch import nn

from deconvviz import zoo
from deconvviz.errors import StoreError
from deconvviz.images import open_images
from deconvviz.zoo import Card

LEAVES = [
    None,
    True,
    -1,
    0,
    1,
    2**70,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    {},
    [1, 2],
    ["a"],
    [[[1]]],
    [-5, -5],
]


def card():
    training = {"top1": 0.5, "folders": ["a", "b"], "data": "x"}
    return Card("lenet-5", "paper", ("one",), (12, 14), 16, classes=("a", "b"), training=training, layers=("c1",))


def written(path):
    card().write(path)
    return path.read_bytes()


def refused_or_usable(path):
    """Read a card: what is no card is a StoreError, and what is taken for one prepares a picture."""
    try:
        found = Card.read(path)
    except StoreError as error:
        assert str(path) in str(error)
        return True
    model = nn.Conv2d(3, 2, 3)
    model.card = found
    height, width = found.input_size
    if len(found.mean) == 3 and max(found.input_size) < 100 and found.resize < 100:
        assert open_images(model, Image.new("RGB", (20, 20))).take([0]).shape == (1, 3, height, width)
    return False


def places(tree, path=()):
    yield path
    if isinstance(tree, (dict, list)):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from places(tree[key], (*path, key))


def changed(tree, path, value):
    if not path:
        return value
    tree = copy.deepcopy(tree)
    at = tree
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return tree


def test_a_card_with_another_value_anywhere(tmp_path):
    path = tmp_path / "card.json"
    fields = json.loads(written(path))
    refused = []
    for number, place in enumerate(places(fields)):
        for leaf in LEAVES[number % 2 :: 2]:
            path.write_text(json.dumps(changed(fields, place, leaf)))
            refused.append(refused_or_usable(path))
    assert 0.5 < sum(refused) / len(refused) < 1


def test_a_card_with_damaged_bytes(tmp_path):
    path, rng = tmp_path / "card.json", random.Random(0)
    data = written(path)
    for _ in range(120):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        cut = rng.randrange(len(damaged)) if rng.random() < 0.3 else len(damaged)
        path.write_bytes(damaged[:cut])
        refused_or_usable(path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"name": ' * 50_000, "9" * 5000, '{"resize": ' + "9" * 5000 + "}", "", "\x00", "5"]
)
def test_a_card_that_is_made_to_do_harm(text, tmp_path):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(StoreError, match="no card that deconvviz wrote, or damaged"):
        Card.read(tmp_path / "card.json")


def test_a_card_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(StoreError, match=r"is no file|Is a directory"):
            Card.read(tmp_path / name)
    (tmp_path / "large").write_bytes(b" " * (5 << 20))
    with pytest.raises(StoreError, match="larger than 4 MiB"):
        Card.read(tmp_path / "large")


@pytest.fixture
def weights(tmp_path):
    model = zoo.create("lenet-5", num_classes=2)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    dataclasses.replace(model.card, classes=("a", "b")).write(tmp_path / "w.json")
    return tmp_path / "w.safetensors"


def test_a_network_for_the_classes_of_another_card_is_not_even_made(weights, monkeypatch):
    assert len(zoo.create("lenet-5", weights=weights).card.classes) == 2
    other = Card.read(weights.with_suffix(".json"))
    dataclasses.replace(other, classes=("",) * 400_000).write(weights.with_suffix(".json"))
    monkeypatch.setattr(nn, "Linear", lambda *_, **__: pytest.fail("made"))
    with pytest.raises(StoreError, match="names 400000 classes, and nothing in the weights has as many"):
        zoo.create("lenet-5", weights=weights)


def test_damaged_weights(weights, tmp_path):
    rng, data = random.Random(1), weights.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(30):
        damaged = bytearray(data)
        damaged[rng.randrange(header)] = rng.randrange(256)
        weights.write_bytes(damaged[: rng.randrange(len(data))] if rng.random() < 0.2 else damaged)
        try:
            zoo.create("lenet-5", weights=weights)
        except StoreError as error:
            assert str(weights) in str(error)
    tensors = zoo.create("lenet-5", num_classes=2).state_dict()
    for kind in (torch.int64, torch.bool, torch.complex64):
        try:
            weights.write_bytes(save({name: x.to(kind) for name, x in tensors.items()}))
        except KeyError:
            assert kind.is_complex  # the older releases of safetensors write none
            continue
        with pytest.raises(StoreError, match=r"does not fit lenet-5.*expected torch.float32"):
            zoo.create("lenet-5", weights=weights)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StoreError, match="it is no file"):
        zoo.create("lenet-5", weights=tmp_path / "pipe")
