"""A network of the zoo from its name: built, with its weights and their card."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..checks import whole
from ..errors import ModelError, OptionError, StoreError
from ..results.store import open_file
from . import networks
from .card import Card
from .entry import Entry, Family
from .parts import initialise

_FILES = [
    importlib.import_module(f"{networks.__name__}.{file.name}") for file in pkgutil.iter_modules(networks.__path__)
]
_NETWORKS: dict[str, Entry] = {e.card.name: e for file in _FILES for e in getattr(file, "NETWORKS", ())}
_FAMILIES: list[Family] = [family for file in _FILES for family in getattr(file, "FAMILIES", ())]
_WEIGHTS = Path(__file__).parent / "weights"


class Network(nn.Module):
    """What `create` returns, as type checkers see it: a module that carries its card."""

    card: Card


def names() -> list[str]:
    """Return the names that `create` knows, sorted; of plain-N, resnet-N and preresnet-N the usual ones.

    Example:
        >>> zoo.names()[:4]
        ['alexnet', 'alexnet64', 'plain-110', 'plain-20']
    """
    return sorted({*_NETWORKS, *(name for family in _FAMILIES for name in family.common)})


def knows(name: str) -> bool:
    """Say whether a name is for `create` to build or to refuse: one of the zoo, or FAMILY-N of the CIFAR networks.

    "resnet18" is not: it is torchvision's.

    Example:
        >>> zoo.knows("resnet-26"), zoo.knows("resnet18")
        (True, False)
    """
    return name in _NETWORKS or (_family(name) is not None and "-" in name)


def create(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    dropout: float | None = None,
    init: str = "kaiming",
    **options: Any,
) -> Network:
    """Build one of the papers' networks, in eval mode, with its card as `.card`.

    Example:
        >>> model = zoo.create("zfnet64", weights="bundled")
        >>> model(torch.zeros(1, 3, 64, 64)).shape, model.card.classes[0]
        (torch.Size([1, 200]), 'goldfish, Carassius auratus')

    Args:
        name: one of `names()`, or plain-N, resnet-N or preresnet-N with any N = 6n + 2 up to 1202.
        weights: None for random weights (on the command line a network has its bundled ones where there are
            some), "bundled" for the ones in this package, "pretrained" for
            efficientnet-lite0's ImageNet weights (the extra `pretrained`), or the path of a safetensors file. A
            card beside the file (`<stem>.json`, else `card.json`) gives the classes.
        num_classes: number of outputs; None takes the weights' card's, else the network's usual number.
        dropout: probability, in training mode only, in the networks that have it; None: the paper's.
        init: the random weights: "kaiming", or "paper" for N(0, 0.01²) with the paper's biases; the ResNet
            papers' own are Kaiming's.
        options: what the network's function in `zoo.networks` takes beside: VGG `size=32, hidden=64`, …

    Returns:
        The module, `(N, 3, *card.input_size)` to (N, num_classes); `card` is a `Card`.

    Raises:
        ModelError: no network of that name, or none with such weights; a package that it needs is missing.
        OptionError: `init` or `num_classes` has no meaning, or the network has no such option.
        StoreError: the weights' file cannot be read, or holds another network's tensors.
    """
    entry = _entry(name)
    if num_classes is not None:
        num_classes = whole(num_classes, "num_classes", 1)
    if init not in ("kaiming", "paper"):
        raise OptionError(f"init={init!r}: expected 'kaiming' or 'paper'.")
    if weights == "pretrained":
        return _pretrained(entry, num_classes)
    path = None if weights is None else _bundled_path(name) if weights == "bundled" else Path(weights)
    card = entry.card if path is None else _card_of(path, entry.card)
    tensors = None if path is None else _read(path)
    outputs = num_classes or (len(card.classes) if card.classes else None)
    if tensors is not None and card.classes and num_classes is None:
        _check_classes(path, len(card.classes), tensors)
    if unknown := set(options) - set(entry.options):
        have = ", ".join(entry.options) or "none"
        raise OptionError(f"{name} has no option {', '.join(sorted(unknown))}; it has {have}.")
    if dropout is not None and "dropout" in entry.options:
        options["dropout"] = dropout
    model = entry.build(**({"num_classes": outputs} if outputs else {}), **options)
    if path is None and entry.first != "own":
        initialise(model, init if entry.first == "chosen" else "kaiming", entry.ones)
    if tensors is not None:
        _load(model, tensors, f"{path} does not fit {name}")
    return _with_card(model, card)


def bundled(name: str) -> bool:
    """Say whether the package holds weights for a network.

    Example:
        >>> bundled("zfnet64"), bundled("zfnet")
        (True, False)
    """
    return (_WEIGHTS / f"{name}.safetensors").exists()


def _with_card(model: nn.Module, card: Card) -> Network:
    network = cast(Network, model)
    network.card = card
    return network.eval()


def _family(name: str) -> Family | None:
    return next((family for family in _FAMILIES if family.matches(name)), None)


def _entry(name: str) -> Entry:
    if name in _NETWORKS:
        return _NETWORKS[name]
    if family := _family(name):
        return family.entry(name)
    close = difflib.get_close_matches(str(name), names(), 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ModelError(f"no network named {name!r} in the zoo. There are: {', '.join(names())}.{hint}")


def _pretrained(entry: Entry, num_classes: int | None) -> Network:
    if entry.pretrained is None:
        have = ", ".join(other for other, there in _NETWORKS.items() if there.pretrained)
        raise ModelError(
            f"{entry.card.name} has no pretrained weights; networks that have them: {have}. "
            "Give weights='bundled' or the path of a safetensors file."
        )
    model, card = entry.pretrained()
    outputs = len(card.classes or ()) or 1000
    if num_classes not in (None, outputs):
        text = f"num_classes={num_classes}: the pretrained weights of {card.name} have {outputs}. Leave it out."
        raise OptionError(text)
    return _with_card(model, card)


def _bundled_path(name: str) -> Path:
    if bundled(name):
        return _WEIGHTS / f"{name}.safetensors"
    have = ", ".join(other for other in names() if bundled(other)) or "none"
    raise ModelError(
        f"{name} has no bundled weights; networks that have them: {have}. "
        "Train it (deconvviz train) and give the path of its weights."
    )


def _card_of(path: Path, usual: Card) -> Card:
    """Return the card beside the weights, else the network's own; either names the weights' file."""
    for beside in (path.with_suffix(".json"), path.with_name("card.json")):
        if beside.exists():
            card = Card.read(beside)
            if card.name != usual.name:
                text = f"{path} holds weights of {card.name}, says {beside.name}; expected {usual.name}."
                raise StoreError(text)
            return dataclasses.replace(card, weights_file=path.name)
    return dataclasses.replace(usual, weights_file=path.name)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with open_file(path):  # which a pipe or a folder is not
            return load_file(path)
    except FileNotFoundError as error:
        raise StoreError(f"no weights at {path}. Give the path of a safetensors file.") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise StoreError(f"{path} is not a safetensors file, or it is damaged ({error}).") from error


def _check_classes(path: Path | None, classes: int, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a card of other weights, before a network for its many classes is made."""
    if not any(tensor.dim() and len(tensor) == classes for tensor in tensors.values()):
        raise StoreError(f"the card beside {path} names {classes} classes, and nothing in the weights has as many.")


def _load(model: nn.Module, tensors: dict[str, Tensor], but: str) -> None:
    wanted = model.state_dict()
    wrong = [f"{key} is missing" for key in wanted if key not in tensors]
    wrong += [f"{key} is not part of it" for key in tensors if key not in wanted]
    wrong += [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    wrong += [
        f"{key} is {tensors[key].dtype}, expected {value.dtype}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].is_floating_point() != value.is_floating_point()
    ]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise StoreError(f"{but}: {'; '.join(wrong[:8])}{more}. Is num_classes right?")
    model.load_state_dict(tensors)
