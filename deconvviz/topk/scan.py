"""The scan: the strongest images of every unit in one pass over the images, resumable."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checks import at_once, whole
from ..errors import ImageError, LayerError, ModelError, OptionError, StoreError
from ..guard import check_weights, hash_weights, placement, untouched, unwrapped
from ..images import Images, ImageSet, open_images
from ..model.survey import observe, resolve_all
from ..model.table import Layer, Layers
from ..tape.record import dislikes_order
from .result import LayerTop, TopK, absorb, arrays, empty, read, write

_SAVE_EVERY = 30.0  # seconds


def top(
    model: nn.Module,
    images: Images = None,
    *,
    layers: Layers | None = None,
    k: int = 9,
    batch_size: int | None = None,
    preprocess: object = None,
    workers: int = 0,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TopK:
    """Find the images that drive each unit of several layers most, in one pass over the images.

    Example:
        >>> result = top(zoo.create("zfnet64"), layers=[1, 5], progress=False)
        >>> result[5].values.shape, result[5].positions.shape
        (torch.Size([192, 9]), torch.Size([192, 9, 2]))

    Per batch and layer the largest value of each map is taken; the units that it can change are sorted and
    merged into their strongest so far, and only for images that enter is the position looked up. So a scan
    costs little more than the forward pass, and its memory doesn't depend on the number of images. With `out`
    the state is written every half minute and when the scan stops, also by Ctrl-C; the same call then goes on
    from there, and its file ends up the same to the byte.

    Args:
        model: the network; left as it was found.
        images: see `open_images`; (N, C, H, W), pictures, a folder, a dataset, or None: the sample photos.
        layers: numbers or module paths; None: those of the numbers 1 to 5 that the network has.
        k: how many images per unit.
        batch_size: images per forward pass; None: what a `DataLoader` says, else 64.
        preprocess: see `preprocess_for`.
        workers: processes that decode files; the result is the same for any number.
        out: path of a file that keeps the scan's state and, at the end, its result.
        progress: show a bar.

    Returns:
        Per layer `values` (units, k), `image_ids` (units, k) and `positions` (units, k, 2), on the CPU; k is
        the number of images where that is smaller.

    Raises:
        LayerError: no such layer.
        ImageError: no images, or unfit ones.
        ModelError: weights or activations that are not finite.
        StoreError: `out` cannot be written, or holds another scan.

    Source: Zeiler & Fergus 2014, section 4: "for a given feature map, we show the top 9 activations".
    """
    k = whole(k, "k", 1)
    check_weights(unwrapped(model))
    opened = open_images(model, images, preprocess)
    batch_size = at_once(batch_size, opened.batch_size)
    scan = _Scan(model, opened, _resolved(model, opened, layers), k, batch_size)
    if out is not None:
        scan.open(out)
    scan.run(workers, progress)
    return scan.result()


def _resolved(model: nn.Module, images: ImageSet, layers: Layers | None) -> list[Layer]:
    found = resolve_all(model, layers, images.take([0]).to(*placement(model)))
    if layers is not None and not found:
        raise OptionError("layers is empty, expected numbers or module paths, or None for layers 1 to 5.")
    if layers is None:
        found = [layer for layer in found if (layer.number or 0) <= 5]
        if not found:
            raise LayerError(
                "this model has no numbered layers. Give module paths; deconvviz.layers(model) lists them."
            )
    return list({layer.name: layer for layer in found}.values())


class _Scan:
    """A pass over the images that can stop after any batch and go on from a file."""

    def __init__(self, model: nn.Module, images: ImageSet, layers: list[Layer], k: int, batch_size: int) -> None:
        self.network, self.images, self.layers = unwrapped(model), images, layers
        self.k, self.batch_size = k, batch_size
        self.device, self.dtype = placement(model)
        # oneDNN runs convolutions a fifth faster in this order (AlexNet, 224 px, 1 core: 124 and 154 ms for
        # 16 images).
        self.look = self.channels_last = self.device.type == "cpu"
        self.path: Path | None = None
        self.key = ""
        tops = tuple(empty(layer, self.device, self.dtype) for layer in layers)
        # Images seen and their strongest: one object, so that no interrupt falls between the two.
        self.state: tuple[int, tuple[LayerTop, ...]] = (0, tops)

    def open(self, path: str | os.PathLike[str]) -> None:
        """Keep the state in `path`, and go on from there if it holds this scan."""
        self.path, self.key = Path(path), self._fingerprint()
        if not self.path.exists():
            self._save()  # a path that cannot be written fails now, not after the scan
            return
        stored, total = read(self.path)
        if stored.scan != self.key:
            raise StoreError(
                f"{path} holds another scan ({stored.count} of {total} images, top {stored.k}, layers "
                f"{', '.join(stored.layers)}): weights, images, preprocessing, layers, k, batch size or "
                "device differ. Give another path, or remove it."
            )
        tops = (LayerTop(t.name, t.number, *(a.to(self.device, copy=True) for a in arrays(t))) for t in stored.tops)
        self.state = stored.count, tuple(tops)

    def run(self, workers: int, progress: bool) -> None:
        """Scan the images that are left."""
        start, total, saved = self.state[0], len(self.images), time.monotonic()
        if start == total:
            return
        batches = self.images.batches(self.batch_size, start, workers, self.device, self.dtype)
        bar = tqdm(total=total, initial=start, unit=" images", disable=not progress, desc="top")
        try:
            with untouched(self.network):
                for index, (first, batch) in enumerate(batches):
                    self.state = self._step(first, batch, check=self.look or index % 16 == 15)
                    bar.update(len(batch))
                    if time.monotonic() - saved > _SAVE_EVERY:
                        self._save()
                        saved = time.monotonic()
            self._check(self.state[1])
        finally:
            bar.close()
            if self.state[0] > 0:
                self._save()
            elif self.path is not None:  # nothing was found: leave nothing
                self.path.unlink(missing_ok=True)

    def _step(self, first: int, batch: Tensor, check: bool) -> tuple[int, tuple[LayerTop, ...]]:
        responses = self._observe(batch)
        for layer, response in zip(self.layers, responses, strict=True):
            if response.shape[2:] != (layer.height, layer.width):
                raise ImageError(
                    f"images {first} to {first + len(batch) - 1} are {tuple(batch.shape[2:])} pixels, image "
                    "0 is not: "
                    "positions would mean different things. Let preprocess bring all images to one size."
                )
        pairs = zip(self.state[1], responses, strict=True)
        tops = tuple(absorb(t, r, first, self.k, self.look) for t, r in pairs)
        if check:  # on a GPU this waits for the batch
            self._check(tops)
        return first + len(batch), tops

    def _observe(self, batch: Tensor) -> list[Tensor]:
        if self.channels_last:
            try:
                return observe(self.network, batch.contiguous(memory_format=torch.channels_last), self.layers)
            except RuntimeError as error:
                if not dislikes_order(error):
                    raise
                self.channels_last = False
        return observe(self.network, batch.contiguous(), self.layers)

    def _check(self, tops: Sequence[LayerTop]) -> None:
        """Refuse NaN and infinity, which are sorted to the front."""
        for top in tops:
            bad = ~torch.isfinite(top.values[:, 0])
            if not bad.any():
                continue
            unit = int(bad.nonzero()[0])
            index = int(top.image_ids[unit, 0])
            name = f"image {index} ({self.images.names[index]})"
            if not torch.isfinite(self.images.take([index])).all():
                raise ImageError(f"{name} holds NaN or infinity, expected finite values. Clean it or leave it out.")
            raise ModelError(
                f"layer {top.name!r}, unit {unit} gives {top.values[unit, 0].item()} for {name}, whose "
                "pixels are finite. Look for a division by zero, or an overflow in half precision."
            )

    def _save(self) -> None:
        if self.path is not None:
            write(self.path, self.result(), len(self.images))

    def result(self) -> TopK:
        """Return what has been found so far, on the CPU."""
        count, tops = self.state
        kept = tuple(LayerTop(t.name, t.number, *(a.cpu() for a in arrays(t))) for t in tops)
        return TopK(kept, self.k, count, self.key)

    def _fingerprint(self) -> str:
        """Hash everything that the file's bytes depend on."""
        names = [layer.name for layer in self.layers]
        what = (repr(self.network), names, self.k, self.batch_size, self.device.type, self.dtype)
        digest = hashlib.blake2b(re.sub(r" at 0x[0-9a-f]+", "", repr(what)).encode(), digest_size=16)
        digest.update(self.images.fingerprint().encode())
        hash_weights(self.network, digest)
        return digest.hexdigest()
