"""An occluder that moves over its image, and the target's map as it fills."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..errors import OptionError
from ..occlusion import cells as _cells
from ..occlusion.result import Occlusion
from ..results import store as _store
from .occlusion import EMPTY, MAPS, range_of
from .style import written

SIDE, GAP, STRIP = 240, 12, 30  # pixels
MOST = 300  # frames; more would make a file of many megabytes
LETTERS = 13


def animate(
    result: Occlusion, path: str | os.PathLike[str], *, target: int | str | None = None, rate: float = 12.0
) -> None:
    """Write a GIF: at the left the covered image, at the right the target's map up to this position.

    Example:
        >>> deconvviz.occlude(model, image).animate("occlusion.gif")  # doctest: +SKIP

    Of more than 300 positions every second, third … is shown.

    Args:
        result: What `occlude` returned.
        path: Where to; written whole or not at all.
        target: Which of several targets; the first if None.
        rate: Frames per second, at most 50.

    Raises:
        OptionError: A rate that has no meaning.
        StoreError: The file cannot be written.
    """
    if not 0 < rate <= 50:
        raise OptionError(f"rate={rate}: give frames per second, above 0 and at most 50.")
    first = result.target[0] if isinstance(result.target, tuple) else result.target
    result = result.only(first if target is None else target)
    shown = range(0, result.label.numel(), -(-result.label.numel() // MOST))
    pages = [_frame(result, position) for position in shown]
    # One palette for all, from the fullest page: no flicker, a smaller file, and choosing one is slow.
    palette = pages[-1].quantize(256)
    frames = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]
    with _store.replacing(path) as temporary:
        frames[0].save(
            temporary, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / rate), loop=0, disposal=1
        )


def _frame(result: Occlusion, position: int) -> Image.Image:
    unit, values, usual = _cells.score(result)
    height, width = result.image_size
    factor = SIDE / max(height, width)
    size = round(width * factor), round(height * factor)
    page = Image.new("RGB", (2 * size[0] + 3 * GAP, size[1] + 2 * GAP + STRIP), "white")
    photo = _cells.pixels(result, _cells.covered(result, position)[0])
    page.paste(_picture(photo).resize(size, Image.Resampling.BICUBIC), (GAP, GAP))
    page.paste(_picture(_map(result, position)).resize(size, Image.Resampling.NEAREST), (size[0] + 2 * GAP, GAP))
    pen, font = ImageDraw.Draw(page), _font()
    name = _cells.short(result.name_of(result.target))  # type: ignore[arg-type]
    pen.text((GAP, size[1] + GAP + 7), written(name), fill="black", font=font)
    text = f"{unit} {float(values.flatten()[position]):.3f} ({usual:.3f} unoccluded)"
    pen.text((size[0] + 2 * GAP, size[1] + GAP + 7), text, fill="black", font=font)
    return page


def _map(result: Occlusion, position: int) -> np.ndarray:
    """Return the map (H, W, 3) up to a position, over the pixels: each shows the position whose cell it is in."""
    _, values, usual = _cells.score(result)
    if result.masks is not None:
        part = replace(result, masks=result.masks[: position + 1])
        array = _cells.over_image(part, values[: position + 1])
    else:
        seen = values.double().clone()
        seen.view(-1)[position + 1 :] = torch.nan
        assert result.size is not None
        places = zip((result.rows, result.cols), result.size, result.image_size, strict=True)
        rows, cols = (_cell_of_each_line(*place) for place in places)
        array = np.pad(seen.numpy(), (0, 1), constant_values=np.nan)[np.ix_(rows, cols)]
    colours = matplotlib.colormaps[MAPS].with_extremes(bad=EMPTY)
    return colours(range_of(values, usual)(np.ma.masked_invalid(array)))[..., :3]


def _cell_of_each_line(first: torch.Tensor, window: int, length: int) -> np.ndarray:
    """Return which of n cells each of `length` lines of pixels is in, n for those in none."""
    edges = _cells.cell_edges(first, window, length)
    cell = np.digitize(np.arange(length) + 0.5, edges) - 1
    return np.where((cell >= 0) & (cell < len(first)), cell, len(first))


def _picture(array: np.ndarray) -> Image.Image:
    return Image.fromarray((array * 255).round().astype(np.uint8))


def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), LETTERS)
