"""What the networks share: their shape as two named parts, the small classifier, the first weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from torch import nn

from ..errors import OptionError

SMALL_DEVIATIONS = (
    "64-pixel input; 64, 160, 256, 256 and 192 filters instead of 96, 256, 384, 384 and 256.",
    "One hidden fully connected layer of 512 instead of two of 4096.",
    "No response normalization: it costs half of the training speed on CPUs.",
)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def activations(name: str) -> Callable[[], nn.Module]:
    """Return what makes the activations of a name: "relu", the papers' own, "tanh" or "sigmoid", to compare with.

    Raises:
        OptionError: There is none of that name.
    """
    if name not in ACTIVATIONS:
        raise OptionError(f"activation={name!r}: expected {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def pool(overlap: bool) -> nn.Module:
    """Make a max-pool that halves a map: windows of 3 that overlap, as the papers', or of 2 side by side."""
    return nn.MaxPool2d(3, 2, ceil_mode=True) if overlap else nn.MaxPool2d(2, 2, ceil_mode=True)


def response_norm() -> nn.Module:
    """Make AlexNet's response normalization."""
    # Torch divides alpha by the size, the papers do not: 5e-4 here is their 1e-4.
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


def network(features: Iterable[nn.Module], classifier: Iterable[nn.Module]) -> nn.Sequential:
    """Chain the two parts, so that modules are called "features.0" and "classifier.2"."""
    return nn.Sequential(OrderedDict(features=nn.Sequential(*features), classifier=nn.Sequential(*classifier)))


def classifier(
    pixels: int,
    hidden: tuple[int, ...],
    num_classes: int,
    dropout: float,
    act: Callable[[], nn.Module] = ACTIVATIONS["relu"],
) -> list[nn.Module]:
    """Fully connected layers over `pixels` values, a dropout before each but for the last of several.

    The papers drop out the input of their two hidden layers; with one hidden layer, so is its output.
    """
    modules: list[nn.Module] = [nn.Flatten()]
    width = pixels
    for size in hidden:
        modules += [nn.Dropout(dropout), nn.Linear(width, size), act()]
        width = size
    if len(hidden) == 1:
        modules.append(nn.Dropout(dropout))
    return [*modules, nn.Linear(width, num_classes)]


def initialise(model: nn.Module, init: str, ones: tuple[str, ...] = ()) -> None:
    """Draw the first weights: "kaiming", or the "paper"'s N(0, 0.01²) with biases 0, but 1 in `ones`.

    The last layer is drawn small either way: Kaiming's would start with logits of size 8 and a loss far above
    chance, and the first steps then drive the network into a corner that it takes epochs to leave.
    """
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for name, module in layers:
        if init == "paper" or module is layers[-1][1]:
            nn.init.normal_(module.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.constant_(module.bias, float(init == "paper" and name in ones))
