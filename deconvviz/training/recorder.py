"""The recorder: what units see at chosen epochs of a training run, in one file that grows."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import ranks
from ..calls import Call, called
from ..checks import whole
from ..errors import LayerError, StoreError
from ..guard import placement, untouched
from ..images import Images, ImageSet, open_images
from ..images.preprocess import Preprocess, of_card
from ..images.sources import Tensors
from ..model.table import Layers
from ..projection.project import project
from ..rules.table import Saving
from ..tape.arguments import bound
from ..tape.record import record
from ..topk.result import TopK
from ..topk.scan import top
from ..zoo import Card
from .recording import Recording, Track, add

__all__ = ["EPOCHS", "Recorder", "Recording", "Track"]

EPOCHS = (1, 2, 5, 10, 20, 30, 40, 64)  # Fig. 4 of the paper

Units = Sequence[int] | str | None


class Recorder:
    """Keeps what units see at chosen epochs of a training run, for Fig. 4 of the ZFNet paper.

    Example:
        >>> model, images = zoo.create("resnet-8"), torch.randn(20, 3, 32, 32)
        >>> recorder = Recorder("recording.safetensors", images, layers=[1, 2])  # doctest: +SKIP
        >>> for epoch in range(1, 11):  # doctest: +SKIP
        ...     train_one_epoch(model)
        ...     recorder(model, epoch)
        >>> recorder.recording[2].projections.shape  # epochs 1, 2, 5 and 10; 16 units  # doctest: +SKIP
        torch.Size([4, 16, 3, 32, 32])
        >>> recorder.recording.plot(layer=2).savefig("fig-4.png")  # doctest: +SKIP

    At each of `epochs` one scan of `images` finds the strongest image of every unit, whose activation is carried
    back to pixels; the file is then replaced by one with this epoch in it, so a kill at any moment leaves a whole
    file. The next run goes on with it, and several processes may record into one file: they take turns. An epoch that
    is recorded again replaces the first. At other epochs nothing is done. `train(recorder=...)` makes the calls by
    itself. Kept checkpoints can be recorded afterwards:
    `for epoch, file in files: recorder(zoo.create("zfnet64", weights=file), epoch)`. In a process group every process makes
    the call, and they share the work; one of them writes.

    Args:
        path: the file, safetensors; `Recorder.load(path)` reads it at any time.
        images: the fixed set of images, as for `project`; None: the sample photos. The paper's are its training set.
        layers: numbers or module paths; None: those of the numbers 1 to 5 that the network has.
        units: of every layer, as for `project`; or a mapping from layer to that. None: 16, spread evenly.
        epochs: which to record, counted from 1; None: every one that the recorder is called with.
        rule: of the way back, see `project`.
        allow_gradient: give operations without a rule their plain gradient instead of refusing.
        preprocess: how a picture becomes the model's input, where the model does not say.
        call: how the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        batch_size: images per forward pass of the scan; None: what a `DataLoader` says, else 64.
        workers: processes that read images.

    Raises:
        OptionError: an epoch below 1.
        StoreError: `path` holds something else than a recording; on a call also: it cannot be written, or was
            recorded with other images, layers or units.

    Source: Zeiler & Fergus 2014, section 4.1, Fig. 4.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        images: Images = None,
        *,
        layers: Layers | None = None,
        units: Units | Mapping[int | str, Units] = None,
        epochs: Collection[int] | None = EPOCHS,
        rule: str = "deconvnet",
        allow_gradient: bool = False,
        preprocess: Preprocess | None = None,
        call: Call | None = None,
        batch_size: int | None = None,
        workers: int = 0,
    ) -> None:
        """Read what is in `path`, if there is anything; the images are opened with the first model."""
        self.path, self.layers, self.units = Path(path), layers, units
        self.epochs = None if epochs is None else tuple(sorted(_check_epoch(epoch) for epoch in epochs))
        self._images, self._preprocess, self._call = images, preprocess, call
        self._way = {"rule": rule, "allow_gradient": allow_gradient}
        self._reading = {"batch_size": batch_size, "workers": workers}
        self._opened: ImageSet | None = None
        self._identity = ""
        Saving(rule, "pass", allow_gradient)  # refuses a rule that is not known
        if self.path.exists():
            _ = self.recording

    def __repr__(self) -> str:
        """Say where and what."""
        done = self.recording.epochs if self.path.exists() else ()
        return f"Recorder({str(self.path)!r}, recorded epochs: {', '.join(map(str, done)) or 'none'})"

    @property
    def recording(self) -> Recording:
        """What has been recorded so far."""
        return Recording.load(self.path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Recording:
        """Read the recording in a file, also of a run that has not ended."""
        return Recording.load(path)

    @ranks.together
    def __call__(self, model: nn.Module, epoch: int) -> bool:
        """Record the model as it is after `epoch`, if this is one to keep; return whether it is.

        The model is left as it was found, in its modes, on its device.
        """
        if self.epochs is not None and epoch not in self.epochs:
            return False
        _check_epoch(epoch)
        if self._opened is None:
            self.prepare(model)
        assert self._opened is not None
        self._add(self._snapshot(called(model, self._call), self._opened, (epoch,)))
        return True

    def _add(self, snapshot: Recording) -> None:
        """Put it into the file: of several processes one does, and the others learn whether it could."""
        ranks.team().share(lambda: add(self.path, snapshot))

    @ranks.together
    def prepare(self, model: nn.Module, *, card: Card | None = None) -> None:
        """Find out now what would go wrong at a recorded epoch, on one image; make the file if there is none.

        `card` says how pictures become the input of the network, where the recorder was not told so.
        """
        model, known = called(model, self._call), self._preprocess
        if known is None and card is not None:
            known = of_card(card)
        self._opened = open_images(model, self._images, known)
        self._identity = self._opened.fingerprint()
        one = ImageSet(Tensors(self._opened.take([0])), self._opened.preprocess)
        self._add(self._snapshot(model, one, ()))

    def follow(self, epoch: int) -> None:
        """Refuse a file that cannot belong to a training that goes on after `epoch`.

        It may hold the next one: a run that was killed between recording an epoch and its checkpoint repeats it.
        """
        last = ranks.team().share(lambda: max(self.recording.epochs, default=0))
        if last > epoch + 1:
            raise StoreError(
                f"{self.path} holds epoch {last}, but the training goes on after epoch {epoch}: it is another "
                "run's. Give another path, or remove it."
            )

    def _snapshot(self, model: nn.Module, images: ImageSet, epochs: tuple[int, ...]) -> Recording:
        """Record the model as it is; the arrays have `len(epochs)` entries, 1 or 0."""
        best = top(model, images, layers=self.layers, k=1, **self._reading, progress=False)  # type: ignore[arg-type]
        chosen = self._choose_units(best)
        tracks = tuple(self._track(model, images, best, name, chosen[name], epochs) for name in best.layers)
        kept = first_filters(model, images.take([0]))[None][: len(epochs)]
        seen = images.preprocess.inverse
        mean, std = (None, None) if seen.order is not None else (seen.mean, seen.std)
        assert self._opened is not None
        return Recording(epochs, tracks, kept, len(self._opened), self._identity, str(self._way["rule"]), mean, std)

    def _track(
        self, model: nn.Module, images: ImageSet, best: TopK, name: str, units: Units, epochs: tuple[int, ...]
    ) -> Track:
        found = project(model, images, layer=name, units=units, top=best, progress=False, **self._way)  # type: ignore[arg-type]
        fields = (found.activations, found.image_ids, found.positions, found.boxes, found.patches, found.projections)
        arrays = (array[:, 0][None][: len(epochs)] for array in fields)
        return Track(name, found.number, epochs, found.units, *arrays)

    def _choose_units(self, best: TopK) -> dict[str, Units]:
        """Return the units for each layer by name."""
        if not isinstance(self.units, Mapping):
            return dict.fromkeys(best.layers, self.units)
        for layer in self.units:
            if layer not in best:
                raise LayerError(f"units names layer {layer!r}, but the recorded layers are {', '.join(best.layers)}.")
        return {t.name: self.units.get(t.name, self.units.get(t.number or 0)) for t in best.tops}


def _check_epoch(epoch: int) -> int:
    return whole(epoch, "epoch", 1)


def first_filters(model: nn.Module, image: Tensor) -> Tensor:
    """Return a copy (F, C, h, w) of the weights of the convolution that runs first, (0, 1, 1, 1) if none does."""
    device, dtype = placement(model)
    with untouched(model) as network:
        tape = record(network, image[:1].to(device, dtype), saver=Saving())
    weights = (bound(op)["weight"] for op in tape.ops if op.short == "conv2d")
    return next((w.detach().float().cpu().clone() for w in weights), torch.zeros(0, 1, 1, 1))
