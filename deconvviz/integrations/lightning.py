"""A `Recorder` as a callback of Lightning's `Trainer`."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback
except ImportError:  # the same under its older name
    from pytorch_lightning import Callback  # type: ignore[assignment]

from ..training.recorder import Recorder
from .trackers import Tracked, Tracker, trackers_of


class RecorderCallback(Callback):
    """Records what units see after training epochs, and hands it to the trainer's loggers.

    Example:
        >>> recorder = Recorder("record.safetensors", images, preprocess=preprocess)  # doctest: +SKIP
        >>> Trainer(callbacks=[RecorderCallback(recorder, network="model")]).fit(module)  # doctest: +SKIP

    Args:
        recorder: Says which epochs, counted from 1, and keeps the file.
        trackers: See `deconvviz.integrations.trackers`; None given: the trainer's loggers of TensorBoard and W&B.
        network: The attribute of the `LightningModule` that is the network; None: the module itself.
    """

    def __init__(self, recorder: Recorder, *trackers: Tracker, network: str | None = None) -> None:
        self.recorder, self.trackers, self.network = recorder, trackers, network

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Record; in several processes all of them do, as all of them call this."""
        trackers = self.trackers or trackers_of(trainer.loggers if trainer.is_global_zero else ())
        model = pl_module if self.network is None else pl_module.get_submodule(self.network)
        Tracked(self.recorder, *trackers)(model, trainer.current_epoch + 1)
