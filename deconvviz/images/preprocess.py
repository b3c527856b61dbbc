"""From a picture to a network's input and back; which preprocessing a model was trained with."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models import WeightsEnum
from torchvision.transforms import functional as F

from ..checks import is_whole
from ..errors import DeconvvizError, ForwardError, ImageError, LayerError, OptionError, UnreadableImage
from ..guard import check_module, placement, untouched, unwrapped
from ..tape.arguments import bound
from ..tape.operations import Op, Tape
from ..tape.record import Stop, record
from .inverse import Inverse, measured
from .spent import transforming

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
_MOST_PIXELS = 1 << 26  # of a resized picture: beyond it memory runs out before anybody sees why
# Modes that a transform of the user's own gets as they are; palettes, CMYK and the like would be read as colours.
_OWN_MODES = frozenset(("L", "LA", "RGB", "RGBA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"))
_GIVE = (
    "Give preprocess=: a torchvision weights enum, a torchvision Compose, deconvviz.images.Preprocess(size, "
    "resize, mean, std), or any function from a PIL image to a float tensor (C, H, W)."
)


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From a PIL image to a network's input, and back for display.

    Example:
        >>> p = Preprocess(size=(64, 64), resize=64, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> x = p(Image.new("RGB", (100, 80)))
        >>> x.shape, p.invert(x).shape
        (torch.Size([3, 64, 64]), torch.Size([3, 64, 64]))

    Resizes (with antialiasing) and crops the centre as torchvision's presets do, scales to 0–1, subtracts
    `mean`, divides by `std`; a transparent picture is laid on white first. A `transform` does all that instead. It
    gets each picture in its own mode (L, RGBA, 16 bits), and in RGB where it fails on that or makes another number of
    channels of it than the model takes; its inverse is measured, see `inverse`.

    Attributes:
        size: (height, width) of the network's input, or None where only `transform` knows it.
        resize: length of the short side before the crop, (height, width) to squash the picture, None for no
            resize.
        mean: per channel, on the 0–1 scale; one number = a gray image. None: not known.
        std: per channel, on the 0–1 scale.
        interpolation: "bilinear", "bicubic", "nearest" or "lanczos".
        transform: the user's own function from a PIL image to a float tensor (C, H, W).
        source: who says so.
        channels: how many the model takes, where that is known and a `transform` was given.
    """

    size: tuple[int, int] | None
    resize: int | tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bilinear"
    transform: Callable[[Any], Any] | None = None
    source: str = "given"
    channels: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be inverted."""
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise OptionError(f"mean {self.mean} and std {self.std} must both be given, with one number per channel.")
        if any(s <= 0 for s in self.std or ()):
            raise OptionError(f"std {self.std} must be positive.")

    def __call__(self, picture: Image.Image) -> Tensor:
        """Return the network's input (C, H, W) for one PIL image."""
        if isinstance(picture, Image.Image):
            picture.load()  # decoded here, so that the time it takes is none of the preprocessing's
        with transforming():
            return self._made(picture)

    def _made(self, picture: Image.Image) -> Tensor:
        if self.transform is not None:
            return self._transformed(picture)
        gray = self.mean is not None and len(self.mean) == 1
        picture = upright(picture, "L" if gray else "RGB")
        mode = F.InterpolationMode(self.interpolation)
        if self.resize is not None:
            self.check_size(picture.size)
            size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
            picture = F.resize(picture, size, mode, antialias=True)
        if self.size is not None:
            picture = F.center_crop(picture, list(self.size))
        return self.normalize(F.pil_to_tensor(picture))

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse a picture of `size` (width, height) whose resized copy would explode."""
        if self.transform is None and isinstance(self.resize, int):
            check_resized(size, self.resize)

    def _transformed(self, picture: Image.Image) -> Tensor:
        """Let the user's transform have the picture in its own mode, or in RGB if it cannot take that."""
        assert self.transform is not None
        own = picture.mode if picture.mode in _OWN_MODES else "RGB"
        upright_own = ImageOps.exif_transpose(picture) if own == picture.mode else upright(picture)
        if own in ("LA", "L", "RGBA"):
            try:
                made = checked(self.transform(upright_own))
                if self.channels in (None, made.shape[0]):
                    return made
            except Exception:  # whatever a function made for RGB raises; its word on RGB counts
                pass
            upright_own = upright(picture)
        try:
            made = self.transform(upright_own)
        except DeconvvizError:
            raise
        except Exception as error:
            raise ImageError(
                f"preprocess failed on a picture of mode {upright_own.mode}, {picture.width}×{picture.height} pixels: "
                f"{type(error).__name__}: {error}. It must take PIL images."
            ) from error
        return checked(made)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return uint8 pixels (…, C, H, W) in the network's input space, float32."""
        values = pixels.float().div_(255)
        if self.mean is None or self.std is None:
            return values
        return values.sub_(_column(self.mean, values)).div_(_column(self.std, values))

    @functools.cached_property
    def inverse(self) -> Inverse:
        """How inputs become pixels again; a `transform` is shown pictures of one colour each to find out."""
        if self.transform is None:
            return Inverse(self.mean, self.std)
        return measured(self, self.mean, self.std)

    def invert(self, values: Tensor) -> Tensor:
        """Return (…, C, H, W) of the network's input space as pixels (…, 3, H, W) from 0 to 1, float32.

        Where the inverse is not known, pictures are stretched from their own minimum to their maximum.
        """
        return self.inverse(values)

    def colour(self, pixels: Sequence[float]) -> Tensor:
        """Return a colour, one number or three from 0 to 1, as (C,) of the network's input space."""
        if self.transform is None and self.mean is not None and self.std is not None:
            each = (list(pixels) * len(self.mean))[: len(self.mean)]
            return torch.tensor([(p - m) / s for p, m, s in zip(each, self.mean, self.std, strict=True)])
        # Only the user's own function knows: show it a picture of that colour.
        colour = tuple(round(255 * p) for p in (list(pixels) * 3)[:3])
        made = self(Image.new("RGB", (_PROBE, _PROBE), colour))
        return made[:, made.shape[1] // 2, made.shape[2] // 2]

    def describe(self) -> str:
        """Return a text that is the same in every process, for fingerprints."""
        fields = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]
        name = getattr(self.transform, "__qualname__", "")
        return name + re.sub(r" at 0x[0-9a-f]+", "", repr(fields))


_PROBE = 512  # pixels a side of the pictures that a transform is shown: larger than what most crop


def upright(picture: Image.Image, mode: str = "RGB") -> Image.Image:
    """Return a PIL image turned as its EXIF data says, in `mode`, whatever mode it has; what is transparent is white."""
    if picture.mode.startswith(("I", "F")):
        raise UnreadableImage(
            f"the picture has mode {picture.mode!r}, more than 8 bits a channel. Convert it to 8 bits first, or give a "
            "preprocess function that takes it."
        )
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema() != (255, 255):
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == mode else picture.convert(mode)


def check_resized(size: tuple[int, int], side: int) -> None:
    """Refuse a picture of `size` (width, height) that would explode when its short side becomes `side`."""
    short, long = min(size), max(size)
    if side * (side * long / short) > _MOST_PIXELS:
        raise UnreadableImage(
            f"the picture has {size[0]}×{size[1]} pixels: with its short side resized to {side} its long one would "
            f"have {side * long // short}. Crop it or take it away."
        )


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)


def checked(item: object) -> Tensor:
    """Return one image of a dataset or a transform if it is a float tensor (C, H, W)."""
    if not isinstance(item, Tensor) or item.dim() != 3 or not item.is_floating_point():
        what = f"a {item.dtype} tensor {tuple(item.shape)}" if isinstance(item, Tensor) else f"{type(item).__name__}"
        raise ImageError(
            f"the dataset or its transform gave {what}, expected a float tensor (C, H, W) in the model's "
            "input space. Scale and normalize the pixels as the model's training did."
        )
    return item


def preprocess_for(model: nn.Module, preprocess: object = None) -> Preprocess:
    """Return the preprocessing that `model` was trained with, or the one given.

    Example:
        >>> import torchvision
        >>> preprocess_for(torchvision.models.alexnet()).size
        (224, 224)

    Looks for a zoo card, timm's configuration, then torchvision's classification networks. Those don't say
    which weights they hold, so they get the usual ImageNet preset: 224 of 256 pixels, bilinear (Inception v3:
    299 of 342); weights with another one need `preprocess=Weights.transforms()`. A plain `nn.Sequential` of
    identities, torchvision `Normalize` and one such network counts as that network.

    Args:
        model: the network; `DataParallel` is looked through.
        preprocess: a `Preprocess`, a torchvision weights enum or its transforms, a torchvision `Compose`, an image
            processor of Hugging Face, or any function from a PIL image to a float tensor (C, H, W).

    Raises:
        ImageError: nothing is known of the model and nothing was given.
    """
    if preprocess is not None:
        given = _given(preprocess)
        return given if given.transform is None else dataclasses.replace(given, channels=_channels(unwrapped(model)))
    network = unwrapped(model)
    found = _known(network)
    if found is None:
        raise ImageError(f"how {type(network).__name__} wants its images is not known. {_GIVE}")
    channels = _channels(network) or len(found.mean or ())
    if channels != len(found.mean or ()):
        raise ImageError(
            f"{type(network).__name__} takes {channels} channels, the {found.source} preset has "
            f"{len(found.mean or ())}"
            f": the network was changed. {_GIVE}"
        )
    return found


def input_size(model: nn.Module, size: int | tuple[int, ...] | None = None) -> tuple[int, int, int]:
    """Return (channels, height, width) of a model's input from a side, (height, width), all three, or what is known."""
    check_module(model)
    if size is None:
        try:
            size = preprocess_for(model).size or configured_size(model) or 224
        except ImageError:
            size = configured_size(model) or 224
    sides: list[Any] = [size, size] if is_whole(size) else list(size) if isinstance(size, Iterable) else []
    if len(sides) not in (2, 3) or not all(is_whole(side) and side > 0 for side in sides):
        raise LayerError(f"input_size must be a side, (height, width) or (channels, height, width), got {size!r}.")
    *channels, height, width = map(int, sides)
    return channels[0] if channels else _channels_read(model, height, width), height, width


def configured_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the (height, width) that the configuration of a Hugging Face model states, if it does."""
    size: Any = getattr(getattr(unwrapped(model), "config", None), "image_size", None)
    if is_whole(size):
        return int(size), int(size)
    return (int(size[0]), int(size[1])) if isinstance(size, (list, tuple)) and len(size) == 2 else None


def _channels_read(model: nn.Module, height: int, width: int) -> int:
    """Return how many channels the convolution wants that runs first; modules may be registered in another order."""
    registered = [int(p.shape[1]) for p in model.parameters() if p.dim() == 4]
    for channels in dict.fromkeys((_channels(model) or (registered or [3])[0], 3, 1)):
        try:
            given, wanted = _first_convolution(model, (channels, height, width))
            if given != wanted:  # it may see more than the images: coordinates beside them, or their pixels unshuffled
                channels = channels * wanted // given if channels * wanted % given == 0 else channels + wanted - given
                given, wanted = _first_convolution(model, (max(1, channels), height, width))
        except ForwardError:
            continue
        if given == wanted:
            return channels
    return (registered or [3])[0]


def _first_convolution(model: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Run a blank image up to the first convolution: the channels that it gets, and those that it wants."""
    found = []

    def look(tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
        if op.short == "conv2d" and len(tensors) == 1:
            p = bound(op)
            found.append((int(tensors[0].shape[-3]), int(p["weight"].shape[1]) * p["groups"]))
            raise Stop
        return run()

    device, dtype = placement(model)
    with untouched(model) as network:
        record(network, torch.zeros(1, *shape, device=device, dtype=dtype), saver=look)
    return found[0] if found else (0, 0)


def _channels(network: nn.Module) -> int | None:
    return next((m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)), None)


def _known(network: nn.Module) -> Preprocess | None:
    if hasattr(network, "card") and hasattr(network.card, "input_size"):
        return of_card(network.card)
    config = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    if config:
        return _of_timm(config if isinstance(config, dict) else config.to_dict())
    if re.fullmatch(r"torchvision\.models\.\w+", type(network).__module__):
        return _of_torchvision(network)
    if type(network) is nn.Sequential:
        return _of_sequential(network)
    return None


def of_card(card: Any) -> Preprocess:
    """Return the preprocessing that a card of the zoo states."""
    mean, std = tuple(card.mean), tuple(card.std)
    return Preprocess(tuple(card.input_size), card.resize, mean, std, card.interpolation, source="zoo card")


def _of_timm(config: dict[str, Any]) -> Preprocess:
    height, width = config["input_size"][-2:]
    crop = config.get("crop_pct") or 1.0
    squash = config.get("crop_mode") == "squash" or height != width
    resize = (int(height / crop), int(width / crop)) if squash else int(height / crop)
    mode = config.get("interpolation") or "bicubic"
    mode = mode if mode in ("bilinear", "bicubic", "nearest", "lanczos") else "bicubic"  # timm's "random"
    return Preprocess((height, width), resize, tuple(config["mean"]), tuple(config["std"]), mode, source="timm")


def _of_torchvision(network: nn.Module) -> Preprocess:
    if type(network).__name__ == "Inception3":
        return Preprocess((299, 299), 342, _MEAN, _STD, source="torchvision ImageNet")
    side = int(getattr(network, "image_size", 224))  # vision transformers fix it
    return Preprocess((side, side), round(side / 0.875), _MEAN, _STD, source="torchvision ImageNet")


def _of_sequential(network: nn.Sequential) -> Preprocess | None:
    normalized = False
    for child in network:
        if isinstance(child, transforms.Normalize):
            normalized = True
        elif not isinstance(child, nn.Identity):
            found = _known(child)
            if found is None or not normalized:
                return found
            channels = len(found.mean or ())  # the wrapper normalizes by itself: it wants pixels from 0 to 1
            return dataclasses.replace(found, mean=(0.0,) * channels, std=(1.0,) * channels)
    return None


def _given(preprocess: Any) -> Preprocess:
    if isinstance(preprocess, Preprocess):
        return preprocess
    if isinstance(preprocess, WeightsEnum):
        preprocess = preprocess.transforms()
    if is_processor(preprocess):
        return _of_processor(preprocess)
    if not callable(preprocess):
        raise OptionError(f"preprocess is a {type(preprocess).__name__}, which cannot be called. {_GIVE}")
    if isinstance(preprocess, type):
        raise OptionError(f"preprocess is the class {preprocess.__name__}, not one of its objects. {_GIVE}")
    if type(preprocess).__name__ == "ImageClassification" and hasattr(preprocess, "crop_size"):
        (crop,), (side,) = preprocess.crop_size, preprocess.resize_size
        mode = preprocess.interpolation.value
        mean, std = tuple(preprocess.mean), tuple(preprocess.std)
        return Preprocess((crop, crop), side, mean, std, mode, source="torchvision weights")
    norms = [t for t in getattr(preprocess, "transforms", ()) if type(t).__name__ == "Normalize"]
    if len(norms) != 1 or not isinstance(norms[0].mean, Sequence) or not isinstance(norms[0].std, Sequence):
        return Preprocess(None, transform=preprocess)
    mean, std = tuple(map(float, norms[0].mean)), tuple(map(float, norms[0].std))
    return Preprocess(None, mean=mean, std=std, transform=preprocess)


def is_processor(given: object) -> bool:
    """Say whether something is an image processor of Hugging Face's `transformers`."""
    return hasattr(given, "image_mean") and any(
        kind.__module__.startswith("transformers.") for kind in type(given).__mro__
    )


@dataclasses.dataclass(frozen=True)
class _Processor:
    """Takes one PIL image through an image processor of Hugging Face."""

    processor: Any

    def __call__(self, picture: Image.Image) -> Tensor:
        made: Tensor = self.processor(images=picture, return_tensors="pt")["pixel_values"]
        return made[0]


def _of_processor(processor: Any) -> Preprocess:
    """Return what an image processor does; its size where it is one for all pictures."""
    crops = getattr(processor, "do_center_crop", None)
    side = _size_of(getattr(processor, "crop_size", None) if crops else getattr(processor, "size", None))
    mean, std = processor.image_mean, processor.image_std
    known = getattr(processor, "do_rescale", True) and mean is not None and std is not None
    if not getattr(processor, "do_normalize", True):
        mean, std = [0.0] * len(mean or (0, 0, 0)), [1.0] * len(mean or (0, 0, 0))
    own = (tuple(map(float, mean)), tuple(map(float, std))) if known else (None, None)
    return Preprocess(side, mean=own[0], std=own[1], transform=_Processor(processor), source="Hugging Face")


def _size_of(size: Any) -> tuple[int, int] | None:
    """Return (height, width) of a size in any of the forms that processors have."""
    height, width = (
        (size.get(name) if hasattr(size, "get") else getattr(size, name, None)) for name in ("height", "width")
    )
    if height is None and isinstance(size, int):
        return size, size
    return None if height is None or width is None else (int(height), int(width))
