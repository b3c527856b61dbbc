"""A `Recorder` as a callback of Hugging Face's `Trainer`."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from ..training.recorder import Recorder
from .trackers import Tracked, Tracker


class RecorderCallback(TrainerCallback):
    """Records what units see after training epochs.

    Example:
        >>> recorder = Recorder("record.safetensors", images, preprocess=preprocess)  # doctest: +SKIP
        >>> Trainer(model, arguments, callbacks=[RecorderCallback(recorder)], …).train()  # doctest: +SKIP

    Args:
        recorder: Says which epochs, counted from 1, and keeps the file.
        trackers: Where pictures and numbers go as well, see `deconvviz.integrations.trackers`.
        network: The attribute of the model that is the network; None: the model itself.
    """

    def __init__(self, recorder: Recorder, *trackers: Tracker, network: str | None = None) -> None:
        self.tracked, self.network = Tracked(recorder, *trackers), network

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Record; in several processes all of them do, as all of them call this."""
        network = model if self.network is None else model.get_submodule(self.network)
        self.tracked(network, max(1, round(state.epoch)))
