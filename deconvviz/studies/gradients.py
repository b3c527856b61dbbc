"""Where gradients die: the standard deviation of the loss's gradient at each layer, over the first steps of a training."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..calls import Call, called
from ..checks import at_once, whole
from ..devices import exact_float32, sent
from ..errors import LayerError, ModelError, OptionError
from ..guard import placement, seeded, unwrapped
from ..images import Images, ImageSet, open_images
from ..model.features import labels_of
from ..model.output import classification_losses, scores_of
from ..model.table import Layer, Layers
from ..modes import sound_gradients
from ..results.text import amount
from ..scan.engine import first_pass
from ..tape.operations import Op, Tape, tensors_in
from ..tape.record import record
from .responses import Responses, check_kind, combine, moments, targets

_Moments = tuple[int, Tensor, Tensor]
_Place = tuple[str, str, int]  # module, operation, which of its calls there


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Gradients(Responses):
    """The standard deviation of the loss's gradient at each layer's response.

    What `Responses` says of responses holds here of the gradients: `std` (L,), `mean` (L,), `unit_std(name)`,
    `sorted()`. Each is that of an image's own loss, so that it does not depend on the batch size.

    Attributes:
        losses: (T,) float64, the mean loss of each iteration, before its step.
        each: (T, L) float64, the standard deviation at each iteration; NaN where a layer was left out of it.
    """

    losses: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    each: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    drawn_by = "gradients"

    def sorted(self) -> Gradients:
        """Return the same with the layers in order of falling standard deviation."""
        order = self.std.argsort(descending=True, stable=True)
        found = super().sorted()
        assert isinstance(found, Gradients)
        return dataclasses.replace(found, each=self.each[:, order])

    def merge(self, other: Responses) -> Gradients:
        """Return the result for the iterations of both.

        Raises:
            OptionError: Other layers, or no gradients.
        """
        if not isinstance(other, Gradients):
            raise OptionError(f"a merge takes results of one kind: Gradients and {type(other).__name__}.")
        found = super().merge(other)
        assert isinstance(found, Gradients)
        both = torch.cat([self.losses, other.losses]), torch.cat([self.each, other.each])
        return dataclasses.replace(found, losses=both[0], each=both[1])

    def describe(self) -> str:
        """Say how many layers, images and iterations."""
        layers, steps = amount(len(self.names), "layer"), amount(len(self.losses), "iteration")
        return f"{layers}: {amount(self.count, 'image')}, {steps}"

    def table(self) -> str:
        """Return one line per layer."""
        lines = [f"{name}: {std:.4g}" for name, std in zip(self.names, self.std.tolist(), strict=True)]
        head = f"standard deviation of the loss's gradient over {self.count} images, {len(self.losses)} iterations"
        return "\n".join([head, *lines])

    def plot(
        self,
        figure: Any = None,
        *,
        name: str = "this network",
        others: Mapping[str, Responses] | None = None,
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw the standard deviations in order and sorted; see `deconvviz.plotting.gradients.draw`, `Result.plot`."""
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw", figure, name=name, others=others, **look)


def gradient_std(
    model: nn.Module,
    data: Images,
    *,
    labels: object = None,
    layers: Layers | None = None,
    kind: str | None = None,
    iterations: int = 20,
    batch_size: int | None = None,
    lr: float = 0.01,
    momentum: float = 0.9,
    auxiliary: float = 0.3,
    seed: int = 0,
    preprocess: object = None,
    call: Call | None = None,
    progress: bool = True,
) -> Gradients:
    """Measure the loss's gradient at each layer's response over the first iterations of a training.

    Example:
        >>> import deconvviz, torch
        >>> model, images = deconvviz.zoo.create("plain-20"), torch.randn(8, 3, 32, 32)
        >>> options = {"labels": [0, 1] * 4, "iterations": 2, "batch_size": 4, "progress": False}
        >>> result = deconvviz.gradient_std(model, images, **options)
        >>> len(result.names), result.std.shape, result.each.shape
        (19, torch.Size([19]), torch.Size([2, 19]))

    A copy of the network is trained, as a whole in training mode, by stochastic gradient descent on batches of the data
    in random order, without augmentation; the network itself stays as it is. At each step the gradient of every image's
    own loss is taken at each layer's response, as `response_std` chooses it: after the batch normalization, before the
    rectifier or the addition. Where these fall from the last layer to the first, gradients die on their way down; what
    lifts them, such as an auxiliary head (`auxiliary=0` leaves the heads out), a shortcut or another activation, lies
    above in the picture.

    Args:
        model: The network, (N, C, H, W) to (N, classes), in training mode also a tuple of such scores: first the
            network's own, then its auxiliary heads'. Left as it was found.
        data: Images with labels: a folder with a subfolder per class, a dataset with targets; or any images, with `labels`.
        labels: One class per image, by its number, or by its name, where the sorted names are the classes.
        layers: Module paths or numbers; a convolution is measured as above, any other layer at its own output.
        kind: "3x3" or another size of filter, "conv" for all convolutions; None: as for `response_std`.
        iterations: Steps.
        batch_size: Images per step; None: what a `DataLoader` says, else 64.
        lr: The learning rate; 0 measures the network as it is, on several batches.
        momentum: Of the descent.
        auxiliary: The weight of each auxiliary head's loss beside the network's own.
        seed: Of the order of the images and of dropout.
        preprocess: See `project`.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        progress: Show a bar.

    Returns:
        A `Gradients`: `names`, `std` (L,), `each` (T, L), `losses` (T,), `count`, `unit_std(name)`, `sorted()`.

    Raises:
        LayerError: No such layer, or one that no gradient reaches.
        OptionError: Labels that do not fit, or an option that has no meaning.
        ModelError: Another output than scores, a loss that is not finite, or a network that cannot be copied.
        ImageError: Unfit images.

    Source: Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
        section 4.2; Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 5, on auxiliary heads.
    """
    check_kind(kind, layers)
    steps = whole(iterations, "iterations", 1)
    for name, value in (("lr", lr), ("momentum", momentum), ("auxiliary", auxiliary)):
        if not 0 <= value < math.inf:
            raise OptionError(f"{name}={value!r}: expected a number of at least 0.")
    model = called(model, call)
    opened = open_images(model, data, preprocess)
    classes = _classes(labels_of(model, opened, labels))
    tape, rows = first_pass(model, opened, wanted=layers)
    names, found = targets(tape, rows, layers, kind)
    size = min(at_once(batch_size, opened.batch_size), len(opened))
    places = _places(tape, found)
    device, _ = placement(model)
    parts: list[_Moments | None] = [None] * len(found)
    losses, each = [], []
    with seeded(seed, device), exact_float32(), torch.inference_mode(False), torch.enable_grad():
        trained = _Trained(_copied(model), lr, momentum, auxiliary, found, places)
        batches = _batches(opened, classes, size, steps, seed)
        for number, (images, answers) in enumerate(tqdm(batches, "gradient_std", steps, disable=not progress)):
            loss, grads = trained.step(images, answers)
            if not math.isfinite(loss):
                raise ModelError(f"the loss became {loss} at iteration {number}. Give a lower lr, or sound weights.")
            measured = [None if g is None else moments(g) for g in grads]
            parts = [_both(a, b) for a, b in zip(parts, measured, strict=True)]
            losses.append(loss)
            each.append([math.nan if m is None else _spread(m) for m in measured])
    if None in parts:
        missed = names[parts.index(None)]
        raise LayerError(f"no gradient of the loss reaches layer {missed!r} in training mode. Choose another layer.")
    known = [part for part in parts if part is not None]
    return Gradients(
        names,
        tuple(layer.name for layer in found),
        tuple(layer.units for layer in found),
        steps * size,
        torch.tensor([n for n, _, _ in known]),
        torch.cat([mean for _, mean, _ in known]).cpu(),
        torch.cat([squares for _, _, squares in known]).cpu(),
        losses=torch.tensor(losses, dtype=torch.float64),
        each=torch.tensor(each, dtype=torch.float64),
    )


class _Trained:
    """A network that takes steps and tells the gradients at some layers."""

    def __init__(
        self,
        network: nn.Module,
        lr: float,
        momentum: float,
        auxiliary: float,
        layers: Sequence[Layer],
        places: Mapping[_Place, Sequence[tuple[int, int]]],
    ) -> None:
        self.network, self.auxiliary, self.layers, self.places = network.train(), auxiliary, layers, places
        parameters = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr, momentum) if parameters and lr else None
        self.device, self.dtype = placement(network)

    def step(self, images: Tensor, labels: Tensor) -> tuple[float, list[Tensor | None]]:
        """Take one step; return the loss before it and the images' own gradients (n, units, h, w) at the layers."""
        grads: list[Tensor | None] = [None] * len(self.layers)
        count: dict[tuple[str, str], int] = {}

        def look(tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
            result = run()
            where = op.module, op.short
            count[where] = count.get(where, 0) + 1
            made = list(tensors_in(result))
            for index, output in self.places.get((*where, count[where]), ()):
                if made[output].requires_grad:
                    made[output].register_hook(keep(index))
            return result

        def keep(index: int) -> Callable[[Tensor], None]:
            # Of a sum over the batch, not of its mean: each image's own.
            def hook(grad: Tensor) -> None:
                grads[index] = self.layers[index].as_maps(grad.detach()) * len(labels)

            return hook

        self.network.zero_grad()
        # A frozen network has gradients at its responses, too.
        inputs = sent(images, self.device).to(self.dtype).clone().requires_grad_()
        outputs: list[Any] = []
        handle = self.network.register_forward_hook(lambda _m, _i, output: outputs.append(output))
        try:
            record(self.network, inputs, saver=look)
        finally:
            handle.remove()
        scores = scores_of(outputs[0])
        if int(labels.max()) >= scores[0].shape[1]:
            raise OptionError(f"label {int(labels.max())} is out of range: the model has {scores[0].shape[1]} classes.")
        loss = classification_losses(scores, sent(labels, self.device), self.auxiliary).mean()
        with sound_gradients():
            loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
        return float(loss.detach()), grads


def _classes(labels: Sequence[Any]) -> Tensor:
    """Return the labels as numbers of classes: as they are, or names by their place among the sorted ones."""
    if all(isinstance(label, int) or hasattr(label, "__index__") for label in labels):
        numbers = [int(label) for label in labels]
        if min(numbers) < 0:
            raise OptionError(f"label {min(numbers)}: expected numbers of classes, from 0.")
        return torch.tensor(numbers)
    names = sorted({str(label) for label in labels})
    return torch.tensor([names.index(str(label)) for label in labels])


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(unwrapped(model))
    except RuntimeError as error:
        raise ModelError(
            f"the model cannot be copied, and a copy is what is trained: {error}. Let it keep no results of a pass."
        ) from error


def _places(tape: Tape, layers: Sequence[Layer]) -> dict[_Place, list[tuple[int, int]]]:
    """Say after which calls the responses are there: {call: [(number of the layer, which of its results)]}."""
    wanted = {layer.value: number for number, layer in enumerate(layers)}
    count: dict[tuple[str, str], int] = {}
    found: dict[_Place, list[tuple[int, int]]] = {}
    for op in tape.ops:
        where = op.module, op.short
        count[where] = count.get(where, 0) + 1
        for output, value in enumerate(op.outputs):
            if value in wanted:
                found.setdefault((*where, count[where]), []).append((wanted[value], output))
    return found


def _batches(images: ImageSet, classes: Tensor, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of one size in random order, as often through the images as the steps need."""
    generator, left = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(left) < size:
            left = torch.cat([left, torch.randperm(len(images), generator=generator)])
        ids, left = left[:size], left[size:]
        yield images.take(ids), classes[ids]


def _both(a: _Moments | None, b: _Moments | None) -> _Moments | None:
    if a is None or b is None:
        return b if a is None else a
    return a[0] + b[0], *combine(a, b)


def _spread(found: _Moments) -> float:
    """Return the standard deviation over all of a layer's numbers."""
    count, mean, squares = found
    return float((squares / count + (mean - mean.mean()).square()).mean().sqrt())
