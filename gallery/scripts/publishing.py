"""What every figure of the gallery comes with: a moderate PNG and a JSON of its conditions and numbers."""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

GALLERY = Path(__file__).parent.parent
REQUIRED = ("figure", "model", "weights", "layer", "units", "images", "versions", "hardware", "seed", "command")
_PACKAGES = ("deconvviz", "torch", "matplotlib", "scikit-image")
_LIMIT = 350_000  # bytes: what is larger is brought to 255 colours, which the eye hardly sees


def publish(name: str, figure: Figure, *, out: Path = GALLERY, packages: tuple[str, ...] = (), **facts: Any) -> None:
    """Write `out`/pictures/`name`.png and `out`/records/`name`.json.

    Args:
        name: of the two files.
        figure: the picture.
        out: the folder of both folders.
        packages: whose versions matter beside the usual ones.
        facts: of `REQUIRED` at least model, weights, layer, units, images, command; `seed` is None where nothing
            is random. `results` holds the numbers that the page of claims reads.
    """
    around = {
        "figure": f"{name}.png",
        "versions": {p: version(p) for p in (*_PACKAGES, *packages)},
        "hardware": f"{platform.machine()} CPU",
        "seed": None,
    }
    given = {**around, **facts}
    missing = [key for key in REQUIRED if key not in given]
    if missing:
        raise ValueError(f"{name}: the conditions lack {', '.join(missing)}.")
    ordered = {key: given[key] for key in (*REQUIRED, *(k for k in given if k not in REQUIRED))}
    write(name, picture(figure), rounded(ordered), out)


def write(name: str, png: bytes, record: Mapping[str, Any], out: Path = GALLERY) -> None:
    """Write a picture and its record to where they belong."""
    for folder in ("pictures", "records"):
        (out / folder).mkdir(exist_ok=True)
    (out / "pictures" / f"{name}.png").write_bytes(png)
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (out / "records" / f"{name}.json").write_text(text, encoding="utf-8")
    print(f"wrote pictures/{name}.png and records/{name}.json")


def picture(figure: Figure) -> bytes:
    """Return the figure as a PNG, in 255 colours where the full ones are many bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi="figure", metadata={"Software": None})
    with Image.open(buffer) as drawn:
        colours = drawn.convert("RGB")
    full = _bytes(colours)
    few = colours.quantize(255, kmeans=2) if len(full) > _LIMIT else None
    return full if few is None else _bytes(few)


def _bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def rounded(value: Any, digits: int = 4) -> Any:
    """Return numbers, also inside of tensors, lists and dicts, with this many significant digits."""
    if isinstance(value, torch.Tensor):
        return rounded(value.tolist(), digits)
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {str(key): rounded(one, digits) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one, digits) for one in value]
    return value


def layers_of(names: Sequence[str]) -> list[str]:
    """Return the layers without the path: "1" of "1: features.1"."""
    return [name.split(":", 1)[0] if ": " in name else name for name in names]
