"""Tiny-ImageNet's validation images, as the gallery's studies take them; none of them gets into a picture."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def classes(data: Path) -> list[Path]:
    """Return the validation folders, one per class, in the order of the shipped networks' outputs."""
    found = sorted(path for path in (data / "val").iterdir() if path.is_dir()) if (data / "val").is_dir() else []
    if len(found) != 200:
        raise SystemExit(f"{data} has {len(found)} folders in val, expected Tiny-ImageNet's 200.")
    return found


def pictures(folder: Path, count: int) -> list[Image.Image]:
    """Return the first images of a class, by file name."""
    return [opened(path) for path in sorted(folder.glob("*.JPEG"))[:count]]


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
