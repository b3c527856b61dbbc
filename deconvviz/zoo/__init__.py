"""The papers' networks: one paper per file, each network with its card."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..errors import ModelError, OptionError, StoreError
from .card import Card
from .networks import alexnet as _alexnet
from .networks import efficientnet_lite as _efficientnet_lite
from .networks import resnet_cifar as _resnet_cifar
from .networks import zfnet as _zfnet
from .parts import initialise

__all__ = ["Card", "create", "names"]


@dataclasses.dataclass(frozen=True)
class _Entry:
    build: Callable[..., nn.Module]  # build(num_classes, dropout=...), either may be left out
    card: Card
    ones: tuple[str, ...] = ()  # modules whose bias the paper sets to 1
    modern: bool = False  # no dropout to choose, and the first weights are Kaiming's
    pretrained: Callable[[], tuple[nn.Module, Card]] | None = None  # weights from a package, with their card


_NETWORKS = {
    entry.card.name: entry
    for entry in (
        _Entry(_zfnet.zfnet, _zfnet.CARD),
        _Entry(_zfnet.zfnet64, _zfnet.CARD64),
        _Entry(_alexnet.alexnet, _alexnet.CARD, _alexnet.BIAS_ONE),
        _Entry(_alexnet.alexnet64, _alexnet.CARD64, _alexnet.BIAS_ONE64),
        _Entry(
            _efficientnet_lite.build, _efficientnet_lite.CARD, modern=True, pretrained=_efficientnet_lite.pretrained
        ),
    )
}
_DATA = Path(__file__).parent / "weights"


def names() -> list[str]:
    """Return the names that `create` knows, sorted; of plain-N, resnet-N and preresnet-N the usual ones.

    Example:
        >>> zoo.names()[:4]
        ['alexnet', 'alexnet64', 'plain-110', 'plain-20']
    """
    return sorted((*_NETWORKS, *_resnet_cifar.COMMON))


def knows(name: str) -> bool:
    """Say whether a name is for `create` to build or to refuse: one of the zoo, or FAMILY-N of the CIFAR networks.

    "resnet18" is not: it is torchvision's.

    Example:
        >>> zoo.knows("resnet-26"), zoo.knows("resnet18")
        (True, False)
    """
    return name in _NETWORKS or (_resnet_cifar.matches(name) and "-" in name)


def create(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    dropout: float = 0.5,
    init: str = "kaiming",
) -> nn.Module:
    """Build one of the papers' networks, in eval mode, with its card as `.card`.

    Example:
        >>> model = zoo.create("zfnet64", weights="bundled")
        >>> model(torch.zeros(1, 3, 64, 64)).shape, model.card.classes[0]
        (torch.Size([1, 200]), 'goldfish, Carassius auratus')

    Args:
        name: one of `names()`, or plain-N, resnet-N or preresnet-N with any N = 6n + 2 up to 1202.
        weights: None for random weights, "bundled" for the ones in this package, "pretrained" for
            efficientnet-lite0's ImageNet weights (the extra `pretrained`), or the path of a safetensors file. A
            card beside the file (`<stem>.json`, else `card.json`) gives the classes.
        num_classes: number of outputs; None takes the weights' card's, else the network's usual number.
        dropout: probability, in training mode only, in the networks that have it.
        init: the random weights: "kaiming", or "paper" for N(0, 0.01²) with the paper's biases; the ResNet
            papers' own are Kaiming's.

    Returns:
        The module, `(N, 3, *card.input_size)` to (N, num_classes).

    Raises:
        ModelError: no network of that name, or none with such weights; a package that it needs is missing.
        OptionError: `init` or `num_classes` has no meaning.
        StoreError: the weights' file cannot be read, or holds another network's tensors.
    """
    entry = _entry(name)
    _check(num_classes, init)
    if weights == "pretrained":
        return _pretrained(entry, num_classes)
    path = None if weights is None else _bundled(name) if weights == "bundled" else Path(weights)
    card = entry.card if path is None else _card_of(path, entry.card)
    outputs = num_classes or (len(card.classes) if card.classes else None)
    options = {} if entry.modern else {"dropout": dropout}
    model = entry.build(**({"num_classes": outputs} if outputs else {}), **options)
    if path is None:
        initialise(model, "kaiming" if entry.modern else init, entry.ones)
    else:
        _load(model, path, name)
    model.card = card  # type: ignore[assignment]
    return model.eval()


def _entry(name: str) -> _Entry:
    if name in _NETWORKS:
        return _NETWORKS[name]
    if _resnet_cifar.matches(name):
        return _Entry(functools.partial(_resnet_cifar.build, name), _resnet_cifar.card(name), modern=True)
    close = difflib.get_close_matches(str(name), names(), 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ModelError(f"no network named {name!r} in the zoo. There are: {', '.join(names())}.{hint}")


def _check(num_classes: int | None, init: str) -> None:
    if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 1):
        raise OptionError(f"num_classes={num_classes!r}: expected a whole number of at least 1, or None.")
    if init not in ("kaiming", "paper"):
        raise OptionError(f"init={init!r}: expected 'kaiming' or 'paper'.")


def _pretrained(entry: _Entry, num_classes: int | None) -> nn.Module:
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
    model.card = card  # type: ignore[assignment]
    return model.eval()


def _bundled(name: str) -> Path:
    path = _DATA / f"{name}.safetensors"
    if path.exists():
        return path
    have = ", ".join(other for other in names() if (_DATA / f"{other}.safetensors").exists()) or "none"
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


def _load(model: nn.Module, path: Path, name: str) -> None:
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise StoreError(f"no weights at {path}. Give the path of a safetensors file.") from error
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} is not a safetensors file, or it is damaged ({error}).") from error
    wanted = model.state_dict()
    wrong = [f"{key} is missing" for key in wanted if key not in tensors]
    wrong += [f"{key} is not part of it" for key in tensors if key not in wanted]
    wrong += [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise StoreError(f"{path} does not fit {name}: {'; '.join(wrong[:8])}{more}. Is num_classes right?")
    model.load_state_dict(tensors)
