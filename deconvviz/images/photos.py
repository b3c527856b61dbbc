"""The sample photos: free pictures, some from scikit-image and matplotlib, in windows of several scales."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as F
from torchvision.transforms.functional import InterpolationMode

from ..errors import ImageError, OptionError
from .image_set import ImageSet
from .preprocess import Preprocess, preprocess_for, upright

_SKIMAGE, _MATPLOTLIB = ("skimage", "data"), ("matplotlib", "mpl-data/sample_data")
_OWN = (__name__.split(".")[0], "images/sample_photos")
_LARGE = 128  # pixels: from this side on what a whole photo shows can be told


@dataclasses.dataclass(frozen=True)
class Photo:
    """One sample photo: where its file lies, and what one must know to show it to others.

    Attributes:
        name: short name, the label of its windows.
        file: file name.
        title, author, licence, source: for the list of sources; `licence` is what the package states.
        finest: the shortest windows are the photo's short side divided by this; even textures need few of
            them.
        place: (package, folder) that the file comes with.
        classes: ImageNet's names for what is shown.
        small: whether it is too small for windows below 128 pixels.
    """

    name: str
    file: str
    title: str
    author: str
    licence: str
    source: str
    finest: float = 8
    place: tuple[str, str] = _SKIMAGE
    classes: tuple[str, ...] = ()
    small: bool = False

    @property
    def path(self) -> Path:
        """The file in the installed package, found without importing the package."""
        spec = importlib.util.find_spec(self.place[0])
        folders = (spec.submodule_search_locations if spec is not None else None) or [self.place[0]]
        return Path(folders[0], self.place[1], self.file)


_STATED = "scikit-image, docstring of skimage.data."
# In full resolution, for windows of every size. Left out, because their licence is not stated or not free: color,
# coins, ihc, moon, motorcycle, page, text, cell.
_DETAILED = (
    Photo("astronaut", "astronaut.png", "The astronaut Eileen Collins", "NASA", "public domain",
          "NASA Great Images, https://flic.kr/p/r9qvLn; " + _STATED + "astronaut"),
    Photo("coffee", "coffee.png", "Coffee cup, courtesy of Pikolo Espresso Bar", "Rachel Michetti", "CC0",
          _STATED + "coffee"),
    Photo("chelsea", "chelsea.png", "Chelsea the cat", "Stefan van der Walt", "CC0", _STATED + "chelsea"),
    Photo("rocket", "rocket.jpg", "Launch of DSCOVR on Falcon 9", "SpaceX", "public domain",
          "https://www.flickr.com/photos/spacexphotos/16511594820/; " + _STATED + "rocket"),
    Photo("hopper", "grace_hopper.jpg", "Commodore Grace M. Hopper, USN", "James S. Davis, U.S. Navy",
          "public domain (work of the U.S. federal government)",
          "matplotlib's sample data; Wikimedia Commons, Commodore_Grace_M._Hopper,_USN_(covered).jpg",
          place=_MATPLOTLIB),
    Photo("hubble", "hubble_deep_field.jpg", "Hubble eXtreme Deep Field", "NASA", "public domain",
          "HubbleSite release 2012/37; " + _STATED + "hubble_deep_field", finest=3),
    Photo("retina", "retina.jpg", "Fundus photograph of a normal left eye", "Mikael Häggström", "CC0",
          "Wikimedia Commons, Fundus_photograph_of_normal_left_eye.jpg; " + _STATED + "retina",
          finest=3),
    Photo("camera", "camera.png", "Cameraman", "Lav Varshney", "CC0", _STATED + "camera"),
    Photo("clock", "clock_motion.png", "Wall clock, blurred by motion", "Stefan van der Walt",
          "public domain", _STATED + "clock", finest=2),
    Photo("brick", "brick.png", "Brick wall", "CC0Textures (Bricks25)", "CC0", _STATED + "brick", finest=3),
    Photo("grass", "grass.png", "Grass", "linolafett", "CC0", _STATED + "grass", finest=3),
    Photo("gravel", "gravel.png", "Gravel", "CC0Textures (Gravel04)", "CC0", _STATED + "gravel", finest=3),
)  # fmt: skip


def _listed() -> Iterator[Photo]:
    """Read the table of the photos that come with this package."""
    lines = (Path(__file__).parent / "sample_photos" / "SOURCES.md").read_text(encoding="utf-8").splitlines()
    for line in [line for line in lines if line.startswith("| ")][1:]:
        name, title, author, licence, source, classes = (cell.strip() for cell in line.strip("|").split("|"))
        named = tuple(classes.split(", ")) if classes else ()
        about = (title, author, licence, source)
        yield Photo(name, f"{name}.jpg", *about, finest=2, place=_OWN, classes=named, small=True)


PHOTOS = (*_DETAILED, *_listed())

_LEVELS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # a photo's short side, in windows
_MAGNIFY = 1.5  # no window is enlarged more than this


@dataclasses.dataclass(frozen=True)
class _Window:
    """A slice of `photo` resized to `shape`, from `corner`."""

    photo: Photo
    level: float
    shape: tuple[int, int]
    corner: tuple[int, int]


class Photos:
    """The sample photos' windows, by number; see `samples`."""

    parallel, pictures = False, True

    def __init__(self, size: tuple[int, int], count: int | None, preprocess: Preprocess) -> None:
        self.size, self.preprocess = size, preprocess
        sizes = _photo_sizes(size)
        if count is None:
            self.windows = [_middle(photo, sizes[photo], size) for photo in sizes]
        else:
            found = [w for photo in sizes for w in _cut(photo, sizes[photo], size)]
            # Windows larger than every photo: better enlarged than none.
            found = found or [_middle(photo, sizes[photo], size) for photo in sizes]
            self.windows = _thinned(found, count)
        self.names = [w.photo.name if count is None else _name(w, sizes[w.photo], size) for w in self.windows]
        self._levels: dict[tuple[str, float], Tensor] = {}

    @classmethod
    def open(cls, model: nn.Module, images: object, preprocess: object) -> ImageSet | None:
        """Take None."""
        if images is not None:
            return None
        known = preprocess_for(model, preprocess)
        return cls.cut(known.size or 256, preprocess=known)

    @classmethod
    def cut(
        cls, size: int | tuple[int, int], count: int | None = None, preprocess: Preprocess | None = None
    ) -> ImageSet:
        """Return at most `count` windows of `size`, or whole photos; see `samples`."""
        height, width = map(int, size) if isinstance(size, Sequence) else (int(size), int(size))
        if min(height, width) < 1 or (count is not None and count < 1):
            raise OptionError(f"size {size} and count {count} must be at least 1.")
        if count is None and min(height, width) < _LARGE:
            count = 3600
        shown = preprocess or Preprocess((height, width), None, (0.0,) * 3, (1.0,) * 3, source="pixels")
        source = cls((height, width), count, shown)
        photos = [window.photo.name for window in source.windows]
        return ImageSet(source, shown, source.names, labels=photos, origins=photos)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, ids: Sequence[int]) -> Tensor:
        pixels = torch.stack([self._slice(self.windows[i]) for i in ids])
        if self.preprocess.transform is None:
            return self.preprocess.normalize(pixels)
        return torch.stack([self.preprocess(F.to_pil_image(p)) for p in pixels])

    def _slice(self, window: _Window) -> Tensor:
        if (window.photo.name, window.level) not in self._levels:
            self._read(window.photo)
        (top, left), (height, width) = window.corner, self.size
        return self._levels[window.photo.name, window.level][:, top : top + height, left : left + width]

    def _read(self, photo: Photo) -> None:
        """Resize one photo to all its levels: a few resizes instead of one for each window."""
        gray = self.preprocess.mean is not None and len(self.preprocess.mean) == 1
        with Image.open(photo.path) as opened:
            picture = upright(opened, "L" if gray and self.preprocess.transform is None else "RGB")
        mode = InterpolationMode(self.preprocess.interpolation)
        for level, shape in {w.level: w.shape for w in self.windows if w.photo is photo}.items():
            resized = F.resize(picture, list(shape), mode, antialias=True)
            self._levels[photo.name, level] = F.pil_to_tensor(resized)

    def identity(self) -> Iterator[str]:
        """Yield what a scan is resumed by: all that tells these images from others."""
        yield f"samples {self.size} {self.names}"


def _photo_sizes(size: tuple[int, int]) -> dict[Photo, tuple[int, int]]:
    sizes = {}
    for photo in PHOTOS:
        if photo.small and min(size) < _LARGE:
            continue
        try:
            with Image.open(photo.path) as opened:
                sizes[photo] = (opened.height, opened.width)
        except OSError as error:
            raise ImageError(
                f"the sample photo {photo.path} cannot be read: {error}. Install {photo.place[0]} again, or "
                "give images of your own."
            ) from error
    return sizes


def _cut(photo: Photo, full: tuple[int, int], size: tuple[int, int]) -> Iterator[_Window]:
    fit = max(size[0] / full[0], size[1] / full[1])  # at this scale the largest window just fits
    for level in _LEVELS:
        if level > photo.finest or level * fit > _MAGNIFY:
            break
        shape = _shape(full, size, level)
        for top in _starts(shape[0], size[0]):
            for left in _starts(shape[1], size[1]):
                yield _Window(photo, level, shape, (top, left))


def _middle(photo: Photo, full: tuple[int, int], size: tuple[int, int]) -> _Window:
    """Return the largest window, in the photo's middle: what a network makes of a whole photo."""
    shape = _shape(full, size, 1)
    return _Window(photo, 1, shape, ((shape[0] - size[0]) // 2, (shape[1] - size[1]) // 2))


def _shape(full: tuple[int, int], size: tuple[int, int], level: float) -> tuple[int, int]:
    """Return the size of the photo at which its short side is `level` windows long."""
    fit = max(size[0] / full[0], size[1] / full[1])
    return max(round(full[0] * fit * level), size[0]), max(round(full[1] * fit * level), size[1])


def _starts(length: int, window: int) -> list[int]:
    """Return the starts of windows that cover `length` evenly, at most half a window apart."""
    steps = math.ceil(2 * (length - window) / window)
    return [round(i * (length - window) / steps) for i in range(steps + 1)] if steps else [0]


def _thinned(windows: list[_Window], count: int) -> list[_Window]:
    """Keep at most `count`: the coarse levels whole, the first that doesn't fit thinned, none beyond."""
    kept: set[int] = set()
    for level in _LEVELS:
        ids = [i for i, w in enumerate(windows) if w.level == level]
        free = count - len(kept)
        kept.update(ids if len(ids) <= free else (ids[i * len(ids) // free] for i in range(free)))
    return [w for i, w in enumerate(windows) if i in kept]


def _name(window: _Window, full: tuple[int, int], size: tuple[int, int]) -> str:
    scale = full[0] / window.shape[0]
    top, left = (round(c * scale) for c in window.corner)
    return f"{window.photo.name} {round(size[0] * scale)}px @ ({top},{left})"
