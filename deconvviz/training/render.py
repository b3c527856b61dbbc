"""What a trained network sees, in a folder: grids of its layers, filters, response strengths, a page that links them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LayerError, ModelError
from ..guard import hash_weights, placement
from ..images.image_set import ImageSet
from ..images.preprocess import of_card
from ..images.sources import Tensors
from ..jobs.journal import Journal
from ..model.survey import layers as list_layers
from ..model.table import Layer
from ..projection.project import project
from ..projection.result import Projections
from ..results.base import png
from ..results.store import replacing
from ..studies.filters import filters
from ..studies.responses import response_std
from ..topk.result import TopK
from ..topk.scan import top
from ..zoo import Card
from . import page
from . import pixels as _pixels
from .recording import Recording
from .result import Training

TOP = 9  # images per unit, as in Fig. 2 of the ZFNet paper
DEEPEST = 5  # of the layers by number
_STATES = ("strongest.safetensors", "responses.safetensors")  # belong to one network and one set of images


class Decoded:
    """The images that a training has decoded, as the validation shows them to the network."""

    parallel, pictures = False, True

    def __init__(self, pixels: _pixels.Pixels, files: _pixels.Files, card: Card) -> None:
        self.pixels, self.files, self.card = pixels, files, card
        self.rows = pixels.good.tolist()

    @classmethod
    def open(cls, pixels: _pixels.Pixels, files: _pixels.Files, card: Card) -> ImageSet:
        """Give them as every function takes images."""
        source = cls(pixels, files, card)
        paths, labels = [files.paths[i] for i in source.rows], [files.labels[i] for i in source.rows]
        names = card.classes or files.classes
        known = of_card(card)
        return ImageSet(source, known, [path.name for path in paths], [names[i] for i in labels], paths)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, ids: Sequence[int]) -> Tensor:
        images, size = self.pixels.images, self.card.input_size[0]
        rows = torch.tensor([self.rows[i] for i in ids], device=images.device)
        crops = _pixels.centre_crops(images[rows], size, self.card.resize).cpu()
        return _pixels.normalise(crops, torch.tensor(self.card.mean), torch.tensor(self.card.std)).contiguous()

    def identity(self) -> Iterator[Any]:
        """Yield what a scan is resumed by: all that tells these images from others."""
        facts = self.files.facts()
        yield repr([facts[i] for i in self.rows])


class Rendering:
    """Pictures of one network in a folder, each whole as soon as it is there; a kill costs the one being made.

    The folder is claimed at once: one that cannot be written, or that another process writes, is refused before any
    work. What was made of other weights or other images is made again.
    """

    def __init__(self, folder: str | os.PathLike[str], progress: bool) -> None:
        """Claim the folder and read what is done."""
        self.folder, self.progress = Path(folder), progress
        self._journal = Journal(self.folder / ".pictures", self.folder)

    def rehearse(self, model: nn.Module, card: Card) -> None:
        """Carry one unit of each layer back from a blank image: what would be refused is refused before the training."""
        blank = ImageSet(Tensors(torch.zeros(1, len(card.mean), *card.input_size)), of_card(card))
        for layer in _numbered(model, card):
            project(model, blank, layer=layer.name, units=[0], k=1, progress=False)

    def draw(self, model: nn.Module, card: Card, images: ImageSet, training: Training, seen: Recording | None) -> Path:
        """Make what is not there yet; return the page that links it all."""
        self._begin(self._key(model, card, images, training, seen))
        layers = _numbered(model, card)
        names = [layer.name for layer in layers]
        chosen: dict[str, Any] = {"layers": names, "k": TOP, "progress": self.progress}
        scan = top(model, images, **chosen, out=self.folder / _STATES[0])
        sections = [self._grid(model, images, layer, scan) for layer in layers]
        self._picture("training.png", training.plot)
        sections += [page.Section("Training", "Loss and accuracy over the epochs.", "training.png")]
        sections += [self._filters(model), self._responses(model, images), *self._seen(seen)]
        path = self.folder / "index.html"
        page.write(path, card, sections, f"{len(images):,} validation images looked through")
        return path

    def _key(self, model: nn.Module, card: Card, images: ImageSet, training: Training, seen: Recording | None) -> str:
        """Hash all that the pictures depend on."""
        digest = hashlib.blake2b(digest_size=16)
        recorded = None if seen is None else (seen.epochs, seen.images, [track.name for track in seen.layers])
        facts = (placement(model), images.fingerprint(), card.layers, training.history, recorded)
        digest.update(repr(facts).encode())
        hash_weights(model, digest)
        return digest.hexdigest()

    def _begin(self, key: str) -> None:
        if self._journal.belongs_to(key):
            return
        if self._journal.lines:  # of an earlier training into the same folder
            for name in (*_STATES, "index.html"):
                (self.folder / name).unlink(missing_ok=True)
        self._journal.restart(key)

    def _done(self, *names: str) -> bool:
        return names[0] in self._journal.lines[1:] and all((self.folder / name).exists() for name in names)

    def _picture(self, name: str, plot: Callable[[], Any]) -> None:
        """Draw a picture, unless it is there."""
        if not self._done(name):
            with replacing(self.folder / name) as temporary:
                temporary.write_bytes(png(plot()))
            self._journal.add(name)

    def _grid(self, model: nn.Module, images: ImageSet, layer: Layer, scan: TopK) -> page.Section:
        """Draw the strongest images of a layer's units and what excited them there (Fig. 2)."""
        picture, numbers = f"layer-{layer.number}.png", f"layer-{layer.number}.safetensors"
        if self._done(picture, numbers):
            found = Projections.load(self.folder / numbers)
        else:
            chosen: dict[str, Any] = {"layer": layer.name, "top": scan, "progress": self.progress}
            found = project(model, images, **chosen, out=self.folder / numbers)
        self._picture(picture, lambda: found.plot(title=f"layer {layer.number}"))
        units, tiles = found.activations.shape
        height, width = found.patches.shape[-2:]
        words = f"{units} units of {layer.name}, {tiles} images each; one tile is {width}×{height} pixels."
        return page.Section(f"Layer {layer.number}", f"{words} {found.note or ''}".strip(), picture)

    def _filters(self, model: nn.Module) -> page.Section:
        title, name = "Filters of the first layer", "filters.png"
        try:
            found = filters(model, progress=False)
        except (LayerError, ModelError) as error:
            return page.Section(title, str(error))
        self._picture(name, found.plot)
        return page.Section(title, "The weights themselves (Fig. 6 of the ZFNet paper).", name)

    def _responses(self, model: nn.Module, images: ImageSet) -> page.Section:
        title, name = "How strong the layers respond", "responses.png"
        try:
            found = response_std(model, images, out=self.folder / _STATES[1], progress=self.progress)
        except LayerError as error:
            return page.Section(title, str(error))
        self._picture(name, found.plot)
        return page.Section(title, "Standard deviation of each layer's responses (Fig. 7 of the ResNet paper).", name)

    def _seen(self, seen: Recording | None) -> Iterator[page.Section]:
        """Draw what the recorder kept (Fig. 4)."""
        if seen is None or not seen.epochs:
            return
        for number, track in enumerate(seen.layers, 1):
            name, title = (
                f"recording-{track.number or number}.png",
                f"Layer {track.number or track.name} over the epochs",
            )
            self._picture(name, lambda layer=track.name: seen.plot(layer=layer))  # type: ignore[misc]
            yield page.Section(title, "Each unit's strongest image at the recorded epochs.", name)
        self._picture("convergence.png", seen.plot_convergence)
        yield page.Section(
            "When the layers settle", "How like each epoch's pictures are to the last's.", "convergence.png"
        )

    def __enter__(self) -> Rendering:
        """Use it in a `with`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let others have the folder; where nothing is done, leave nothing of it."""
        with self._journal:
            if not self._journal.lines:
                self._journal.remove()


def _numbered(model: nn.Module, card: Card) -> list[Layer]:
    """Return the layers of the numbers 1 to 5 that the network has."""
    table = list_layers(model, (len(card.mean), *card.input_size))
    found = [row for row in table.numbered if (row.number or 0) <= DEEPEST]
    if not found:
        raise LayerError("the network has no numbered layers to draw; deconvviz.layers(model) lists what there is.")
    return sorted(found, key=lambda row: row.number or 0)
