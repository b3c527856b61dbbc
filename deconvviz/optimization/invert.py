"""The image rebuilt from a layer's response: what the layer still knows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..calls import Call, called
from ..checks import whole
from ..devices import Portions
from ..errors import DeconvvizError, LayerError, OptionError
from .climb import Settings, check_number, climb, settings_of
from .parameters import make
from .pictures import open_picture, shape_of
from .reading import Network, Readings, Source, reading
from .result import Inversion
from .robustness import NONE

STEPS = 400
RATES = {"fourier": 0.05, "pixels": 0.02}
# Weights of total variation and α-norm: without them the distance of deep layers is larger after the same steps, too.
PRIORS = {"fourier": (20.0, 10.0), "pixels": (1.0, 0.1)}


def invert(
    model: nn.Module,
    image: Any,
    *,
    layer: int | str | Sequence[int | str] | None = None,
    starts: int = 1,
    parametrization: str = "fourier",
    total_variation: float | None = None,
    alpha_norm: float | None = None,
    steps: int = STEPS,
    rate: float | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    preprocess: Any = None,
    call: Call | None = None,
    progress: bool = True,
) -> Inversion:
    """Rebuild an image from the response of one layer alone, or of each of several.

    Example:
        >>> import deconvviz, torch
        >>> model = deconvviz.zoo.create("zfnet64", weights="bundled")
        >>> result = deconvviz.invert(model, torch.rand(3, 64, 64), layer=[1, 2], steps=8, progress=False)
        >>> result.images.shape, result.distances.shape
        (torch.Size([2, 1, 3, 64, 64]), torch.Size([2, 1]))

    From noise, the image is changed until the layer answers as it did to the original. Of all images that would do,
    the priors choose a natural one: total variation and the α-norm, over a Fourier parametrization or over pixels. Their
    weights fall with the square of the steps that are left.

    Args:
        model: The network; left as it was found.
        image: A PIL image, a file, or a tensor (C, H, W) or (1, C, H, W) in the model's input space.
        layer: Number or module path, or several; None: all that have a number.
        starts: From how many different starts each layer is inverted: what they agree on is what the layer knows.
        parametrization: "fourier" or "pixels".
        total_variation: First weight of the mean squared difference of neighbours; None: what suits the parametrization.
        alpha_norm: First weight of the mean sixth power of the pixels' distance from gray; None likewise.
        steps: Steps of Adam.
        rate: Its step length; None: what suits the parametrization.
        seed: Of the starts.
        dtype: torch.bfloat16 runs the network in autocast; None as it is.
        preprocess: How a picture becomes the model's input, where the model does not say.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        progress: Show a bar with the time left.

    Returns:
        `Inversion`: `images` (L, N, C, H, W) with pixels from 0 to 1, `distances` (L, N): ‖Φ(x) − Φ₀‖² / ‖Φ₀‖². After
        Ctrl-C the layers that are done, with a warning.

    Raises:
        OptionError, LayerError, ImageError, ModelError: As their names say; the layers before are in the error's `done`.

    Source:
        Mahendran & Vedaldi, "Understanding Deep Image Representations by Inverting Them", CVPR 2015.
    """
    if parametrization not in RATES:
        raise OptionError(f"parametrization={parametrization!r}: expected 'fourier' or 'pixels'.")
    starts = whole(starts, "starts", 1)
    usual = PRIORS[parametrization]
    smooth = usual[0] if total_variation is None else total_variation
    bounded = usual[1] if alpha_norm is None else alpha_norm
    check_number("total_variation", smooth)
    check_number("alpha_norm", bounded)
    rate = RATES[parametrization] if rate is None else rate
    settings = settings_of(steps, rate, NONE, seed, dtype, settle=True)
    model = called(model, call)
    shown, known = open_picture(model, image, preprocess)
    with reading(model, known, shape_of(shown)) as network:
        sources = [network.find(one) for one in network.wanted(layer)]
        with tqdm(total=len(sources) * steps, unit=" steps", desc="invert", disable=not progress) as bar:
            pairs: list[tuple[Tensor, Tensor]] = []

            def part() -> Inversion:
                facts: dict[str, float | str] = {
                    "parametrization": parametrization,
                    "rate": settings.rate,
                    "steps": steps,
                }
                facts |= {"total_variation": smooth, "alpha_norm": bounded}
                rows = [source.layer for source in sources[: len(pairs)]]
                return Inversion(
                    tuple(row.name for row in rows),
                    tuple(-1 if row.number is None else row.number for row in rows),
                    shown,
                    torch.stack([images for images, _ in pairs]),
                    torch.stack([distances for _, distances in pairs]),
                    settings.seed,
                    tuple(facts.items()),
                )

            try:
                for source in sources:
                    priors = smooth, bounded
                    pairs.append(_invert(network, source, shown, starts, parametrization, priors, settings, bar))
            except (KeyboardInterrupt, DeconvvizError) as error:
                if not pairs:
                    raise
                kept = f"{len(pairs)} of {len(sources)} layers are done"
                if isinstance(error, DeconvvizError):
                    error.keep(part(), f"{kept}:")
                    raise
                warnings.warn(f"interrupted: {kept} and returned.", stacklevel=2)
    return part()


def _invert(
    network: Network,
    source: Source,
    shown: Tensor,
    starts: int,
    parametrization: str,
    priors: tuple[float, float],
    settings: Settings,
    bar: Any,
) -> tuple[Tensor, Tensor]:
    """Return a layer's images (N, C, H, W) from N starts, and their relative distances (N,)."""
    with torch.no_grad():
        goal = network.read(shown[None].to(network.device), [source]).response(source).float()
    size = goal.square().sum()
    if not size:
        raise LayerError(f"layer {source.layer.name!r} is zero for this image: nothing of it is left to rebuild.")

    def away(readings: Readings) -> Tensor:
        return (readings.response(source).float() - goal).square().sum((1, 2, 3)) / size

    begun = bar.n

    def rebuild(chosen: Tensor) -> tuple[Tensor, Tensor]:
        last: list[Tensor] = []
        left = iter(range(settings.steps, 0, -1))

        def loss(readings: Readings, now: Tensor) -> Tensor:
            # The priors choose among the images that would do, and let go: at the end the layer alone counts.
            prior = priors[0] * _variation(now) + priors[1] * (2 * now - 1).pow(6).mean((1, 2, 3))
            return away(readings) + (next(left) / settings.steps) ** 2 * prior

        def look(step: int, readings: Readings) -> None:
            if step == settings.steps:
                last.append(away(readings).cpu())

        seeds = [settings.seed * 1_000_003 + start for start in chosen.tolist()]
        parameters, own = make(parametrization, seeds, network.shape), [source.layer.name] * len(seeds)
        for step, _ in enumerate(climb(network, parameters, [source], False, loss, look, settings, own), 1):
            done = (int(chosen[0]) * settings.steps + len(chosen) * step) // starts
            bar.update(begun + done - bar.n)
        return parameters.images().detach().float().cpu(), last[0]

    parts = list(Portions(starts).run(rebuild, torch.arange(starts)))
    return torch.cat([images for images, _ in parts]), torch.cat([distances for _, distances in parts])


def _variation(images: Tensor) -> Tensor:
    """Return the mean squared difference of neighbouring pixels (B,)."""
    down, across = images.diff(dim=-2).square(), images.diff(dim=-1).square()
    return down.mean((1, 2, 3)) + across.mean((1, 2, 3))
