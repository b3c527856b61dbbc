"""The state of one training run, what identifies it and what its card says of it."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..calls import Call, called
from ..calls.marks import mark
from ..devices import sent
from ..errors import ModelError, OptionError
from ..model.output import scores_of
from ..zoo import Card
from . import pixels as _pixels
from .augment import Colours
from .checkpoint import Stateful
from .recipe import RECIPES, Recipe
from .result import Epoch
from .sharing import Part


@dataclasses.dataclass
class Run:
    """What the loop needs; the model, the optimizer and the scaler change, the rest does not."""

    model: nn.Module
    recipe: Recipe
    card: Card
    train: _pixels.Pixels
    val: _pixels.Pixels
    device: torch.device
    amp: torch.dtype | None
    seed: int
    bar: bool
    part: Part
    frozen: tuple[str, ...] = ()
    started: str = ""
    call: Call | None = None
    crops: int = 1
    optimizer: torch.optim.Optimizer = dataclasses.field(init=False)
    scaler: torch.amp.GradScaler = dataclasses.field(init=False)
    network: nn.Module = dataclasses.field(init=False)  # the model as it is called: with images alone
    called: nn.Module = dataclasses.field(init=False)  # the network in training mode, or what shares its batches
    mean: torch.Tensor = dataclasses.field(init=False)
    std: torch.Tensor = dataclasses.field(init=False)
    colours: Colours | None = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not parameters:
            raise ModelError("no parameter of the model has requires_grad=True: there is nothing to train.")
        self.called = self.network = called(self.model, self.call)
        r = self.recipe
        scaled = self.amp == torch.float16
        # The fused optimizer learns on the device whether to leave a step out; any other makes the host wait for that.
        self.optimizer = torch.optim.SGD(
            parameters, r.lr, r.momentum, weight_decay=r.weight_decay, nesterov=r.nesterov, fused=scaled or None
        )
        self.mean, self.std = (torch.tensor(v, device=self.device) for v in (self.card.mean, self.card.std))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.colours = Colours.of(self.train) if r.colour else None

    @property
    def parts(self) -> dict[str, Stateful]:
        """Return all whose state a checkpoint holds."""
        return {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}

    def scores(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run bytes (N, C, H, W) through the model: its logits (N, classes) float32, then those of its heads."""
        pixels = _pixels.normalise(sent(batch, self.device), self.mean, self.std)
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            out = (self.called if self.model.training else self.network)(pixels)
        return tuple(one.float() for one in scores_of(out, len(self.card.classes or ())))

    def begin_epoch(self) -> None:
        """Put the model into training mode, but for what is frozen."""
        self.model.train()
        for path in self.frozen:
            self.model.get_submodule(path).eval()

    def signature(self, files: _pixels.Files, val_files: _pixels.Files | None) -> dict[str, Any]:
        """Return what must be equal for a checkpoint to be continued."""
        tensors = [(name, tuple(value.shape)) for name, value in self.model.state_dict().items()]
        counts = f"{len(self.train.good)} + {len(self.val.good)}"
        listed = [files.facts(), val_files and val_files.facts(), self.train.good.tolist(), self.val.good.tolist()]
        return {
            "network": self.card.name,
            "tensors": _digest(tensors),
            "recipe": describe_recipe(self.recipe),
            "seed": self.seed,
            "dtype": str(self.amp),
            "input size": list(self.card.input_size),
            "pixels": [self.card.resize, self.card.interpolation, list(self.card.mean), list(self.card.std)],
            "classes": list(files.classes),
            "images": f"{counts}, {_digest(listed)[:12]}",
            # None in the checkpoints of earlier versions, too
            "frozen modules": list(self.frozen) or None,
            "start": self.started or None,
            "crops": None if self.crops == 1 else self.crops,
            "call": None if self.call is None else mark(self.call).hex(),
        }

    def card_entry(self, data: Path, files: _pixels.Files, last: Epoch) -> dict[str, Any]:
        """Return the card's account of the run."""
        counts = f"{len(self.train.good):,} training and {len(self.val.good):,} validation images"
        recipe = self.recipe
        usual = RECIPES.get(recipe.name, recipe)
        views = "" if self.crops == 1 else f"{self.crops} crops of "
        options = [f"--recipe {recipe.name}", f"--epochs {recipe.epochs}", f"--seed {self.seed}"]
        for name in ("batch_size", "lr", "clamp_rms"):
            if getattr(recipe, name) != getattr(usual, name):
                options.append(f"--{name.replace('_', '-')} {getattr(recipe, name)}")
        if self.crops > 1:
            options.append(f"--crops {self.crops}")
        if self.frozen:
            options.append(f"--freeze {','.join(self.frozen)}")
        if self.started:
            options.append(f"--start-from {self.started.partition(' ')[0]}")
        if self.amp is not None:
            options.append(f"--amp {str(self.amp).removeprefix('torch.')}")
        return {
            "data": f"{data.name}: {counts} of {len(files.classes)} classes",
            "recipe": recipe.name,
            "epochs": last.epoch,
            "accuracy": f"{last.top1:.1%} top-1 and {last.top5:.1%} top-5 on {views}the validation images",
            "top1": last.top1,
            "top5": last.top5,
            "val_loss": last.val_loss,
            "torch": str(torch.__version__),
            "command": f"deconvviz train {self.card.name} --data {data.name} {' '.join(options)}",
            "settings": describe_recipe(recipe),
            "folders": list(files.classes),
        }


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's fields but for later ones at their default: older checkpoints do not have them."""
    return {f.name: v for f in dataclasses.fields(recipe) if (v := getattr(recipe, f.name)) != f.default}


def _digest(facts: object) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def autocast_dtype(dtype: torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """Return the type for autocast, None for plain float32, after checking that the device has it."""
    if dtype in (None, torch.float32):
        return None
    allowed = (torch.float16, torch.bfloat16) if device.type == "cuda" else (torch.bfloat16,)
    if dtype not in allowed:
        names = " or ".join(map(str, allowed))
        raise OptionError(f"dtype={dtype}: expected None or {names} on {device.type}.")
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise OptionError("dtype=torch.bfloat16: this processor has no bfloat16 arithmetic; leave dtype out.")
    return dtype
