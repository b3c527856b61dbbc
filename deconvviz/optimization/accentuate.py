"""An image changed as little as needed to excite a unit more, and less: what the unit sees in this image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..calls import Call, called
from . import robustness
from .climb import check_number, climb, settings_of
from .natural import natural
from .parameters import Fourier
from .pictures import open_picture, shape_of
from .reading import Readings, reading
from .result import Accentuated
from .robustness import Robustness

STEPS, RATE = 64, 0.02
_VISIBLE = 0.05  # a change of a pixel that an eye begins to see


def accentuate(
    model: nn.Module,
    image: Any,
    *,
    layer: int | str,
    unit: int,
    strength: float = 1.0,
    robust: bool | Robustness = True,
    steps: int = STEPS,
    rate: float = RATE,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    preprocess: Any = None,
    call: Call | None = None,
    progress: bool = True,
) -> Accentuated:
    """Change an image as little as needed to excite a unit more, and less.

    Example:
        >>> import deconvviz, torch
        >>> model = deconvviz.zoo.create("zfnet64", weights="bundled")
        >>> result = deconvviz.accentuate(model, torch.rand(3, 64, 64), layer=2, unit=3, steps=4, progress=False)
        >>> result.more.shape, result.activations.shape
        (torch.Size([3, 64, 64]), torch.Size([3]))

    Both images start from the given one and climb in the Fourier parametrization, one up and one down. A change costs
    its mean square, in units of what an eye begins to see; a gain counts in standard deviations of the layer's responses.

    Args:
        model: The network; left as it was found.
        image: A PIL image, a file, or a tensor (C, H, W) or (1, C, H, W) in the model's input space.
        layer: Number or module path, see `layers`.
        unit: Which of the layer's units.
        strength: How much the unit counts beside the image: 0 leaves the image as it is.
        robust: Whether the image is moved a little at each step, or a `Robustness` that says how.
        steps: Steps of Adam.
        rate: Its step length.
        seed: Of the moves.
        dtype: torch.bfloat16 runs the network in autocast; None as it is.
        preprocess: How a picture becomes the model's input, where the model does not say.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        progress: Show a bar with the time left.

    Returns:
        `Accentuated`: `image`, `more` and `less` (C, H, W) with pixels from 0 to 1, `activations` (3,), `distances`.

    Raises:
        OptionError, UnitError, LayerError, ImageError, ModelError: As their names say.

    Source:
        Hamblin et al., "Feature Accentuation: Revealing 'What' Features Respond to in Natural Images", 2024.
    """
    check_number("strength", strength)
    settings = settings_of(steps, rate, robustness.read(robust), seed, dtype)
    model = called(model, call)
    shown, known = open_picture(model, image, preprocess)
    with reading(model, known, shape_of(shown)) as network:
        source = network.find(layer)
        (number,) = source.layer.choose([unit])
        parameters = Fourier([torch.Generator() for _ in range(2)], network.shape, natural())
        parameters.invert(shown[None].float().expand(2, -1, -1, -1))
        with torch.no_grad():
            original = network.read(shown[None].to(network.device), [source])
            own = original.before(source)[0].float()
        spread = own.std().clamp(min=1e-6)  # of all the layer's units: the scale of what is worth a change
        reached: list[Tensor] = []

        def loss(readings: Readings, now: Tensor) -> Tensor:
            peaks = readings.before(source)[:, number].float().amax((1, 2))
            # Less than silent is nothing to pay for.
            gain = torch.stack([peaks[0], -peaks[1].clamp(min=0)]) / spread
            changed = ((now - start) / _VISIBLE).square().mean((1, 2, 3))
            return changed - strength * gain

        def look(step: int, readings: Readings) -> None:
            if step == steps:
                reached.append(readings.response(source)[:, number].amax((1, 2)).float())

        start = parameters.images().detach().to(network.device)
        with tqdm(total=steps, unit=" steps", desc="accentuate", disable=not progress) as bar:
            for _ in climb(network, parameters, [source], False, loss, look, settings, ("more", "less")):
                bar.update(1)
        seen = original.response(source)[0, number].amax().float()
        images = parameters.images().detach().float().cpu()
    distances = (images - shown.float().cpu()).square().mean((1, 2, 3)).sqrt()
    activations = torch.stack([seen, *reached[0]]).cpu()
    facts = (("strength", strength), ("steps", steps), ("rate", rate), ("robust", settings.robust != robustness.NONE))
    return Accentuated(
        source.layer.name, number, shown, images[0], images[1], activations, distances, settings.seed, facts
    )
