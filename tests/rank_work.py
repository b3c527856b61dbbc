"""What the ranks of the tests do; it is imported once, by the process that they are forks of."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import deconvviz
from deconvviz import ranks
from deconvviz.cli.main import main
from deconvviz.errors import DeconvvizError
from deconvviz.explorer import report as _report  # noqa: F401  # imported here, not in each process
from deconvviz.images import Preprocess
from deconvviz.jobs import draft as _draft
from deconvviz.occlusion import evidence as _evidence  # noqa: F401
from deconvviz.optimization import maximize as _maximize  # noqa: F401
from deconvviz.scan import engine, meetings
from deconvviz.training import train as _train  # noqa: F401

LABELS = [i % 3 for i in range(24)]
IMAGES = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
QUIET: dict[str, Any] = {"progress": False}


def network(seed: int = 0, features: int = 200) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(features, 3)),
        ).eval()


def scans(out: Path | None = None, images: Any = IMAGES, batch_size: int = 4) -> dict[str, Any]:
    """Return the results of all functions that share the images."""
    model, how = network(), {"batch_size": batch_size, **QUIET}
    path = None if out is None else out / "top.safetensors"
    found = {
        "top": deconvviz.top(model, images, layers=["1", "4"], k=4, out=path, **how),
        "response_std": deconvviz.response_std(model, images, **how),
        "nearest": deconvviz.nearest(model, images, query=[0, 1], k=3, **how),
    }
    if len(images) == len(LABELS):
        found["probe"] = deconvviz.probe(model, images, labels=LABELS, folds=2, layers=["1", "4"], **how)
    return found


def jobs(out: Path | None = None) -> dict[str, Any]:
    """Return the results of all functions that share the units; their files, too, with `out`."""
    model, images = network(features=120), IMAGES[:, :, :, :12]

    def path(name: str) -> Any:
        return None if out is None else out / name

    found = {
        "project": deconvviz.project(model, images, layer="4", k=3, units="all", batch_size=4, out=path("p"), **QUIET),
        "evidence": deconvviz.evidence(model, images, layer="4", units=[0, 5, 6], k=2, size=3, out=path("e"), **QUIET),
        "maximize": deconvviz.maximize(
            model, layer="4", units=[1, 2, 5], steps=2, input_size=(16, 12), batch_size=1, out=path("m"), **QUIET
        ),
    }
    if out is not None:
        chosen: dict[str, Any] = {"layers": ["1", "4"], "k": 2, "occlusion": 1, **QUIET}
        deconvviz.report(model, images, out=out / "page.html", **chosen)
        recorder = deconvviz.Recorder(out / "r", images, layers=["4"], epochs=None)
        recorder(model, 1)
        found["recording"] = recorder.recording
    return found


def everything(rank: int, out: Path) -> dict[str, Any]:
    """Share all functions; let this rank also see what goes wrong."""
    found = scans(out) | jobs() | {f"{name} from its file": result for name, result in jobs(out).items()}
    found["mistakes"] = [
        caught(lambda: deconvviz.top(network(), IMAGES, layers=["none"], **QUIET)),
        caught(lambda: deconvviz.top(network(rank), IMAGES, layers=["1"], **QUIET)),
        caught(lambda: deconvviz.top(network(), IMAGES if rank else IMAGES[:0], layers=["1"], **QUIET)),
        caught(lambda: [deconvviz.response_std, deconvviz.top][min(rank, 1)](network(), IMAGES, **QUIET)),
        caught(lambda: deconvviz.top(network(), IMAGES, layers=["1"], out=out, **QUIET)),  # a folder
        caught(lambda: interrupted(rank)),
    ]
    with ranks.alone() if rank == 0 else contextlib.nullcontext():
        found["alone"] = deconvviz.top(network(), IMAGES, layers=["1"], **QUIET) if rank == 0 else None
    found["after all"] = deconvviz.top(network(), IMAGES, layers=["1"], **QUIET)
    return found


def interrupted(rank: int) -> None:
    class Interrupted(nn.Sequential):
        def forward(self, x: Any) -> Any:
            if rank == 1 and len(x) == 4:
                raise KeyboardInterrupt
            return super().forward(x)

    deconvviz.top(Interrupted(*network()), IMAGES, layers=["1"], batch_size=4, **QUIET)


def caught(call: Any) -> Any:
    try:
        return call()
    except (DeconvvizError, KeyboardInterrupt) as error:
        return type(error).__name__, str(error)


class Mixing(nn.Module):
    """Its images see each other: each is divided by the batch's largest."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()[:2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x / x.abs().amax())


def few(rank: int, out: Path) -> Any:
    """Walk 6 images in batches of 4: the third rank has none."""
    mixed = deconvviz.top(Mixing(), IMAGES, layers=["body.1"], batch_size=4, **QUIET)
    made = deconvviz.maximize(network(), layer="4", units=[1], steps=1, **MADE)
    found = scans(images=IMAGES[:6]), mixed, made, damaged(out)
    ranks.ARRIVE = 0.5
    if rank == 2:  # as where only the first ranks make a call
        time.sleep(2)
        return found, None
    return found, caught(lambda: deconvviz.top(network(), IMAGES, layers=["1"], **QUIET))


def damaged(folder: Path) -> Any:
    """Scan photos of which two cannot be read, one of them the first."""
    if not (folder / "photos").exists():
        write_photos(folder / "photos")
        for name in ("blue/0.png", "green/3.png"):
            (folder / "photos" / name).write_bytes(b"no picture")
    how = Preprocess((16, 16), 16, (0.5,) * 3, (0.5,) * 3)
    options: dict[str, Any] = {"layers": ["1"], "k": 3, "batch_size": 4, "on_error": "skip", "preprocess": how}
    return deconvviz.top(network(), str(folder / "photos"), **options, **QUIET)


MADE: dict[str, Any] = {"input_size": (16, 16), "progress": False}


def resumed(rank: int, out: Path) -> Any:
    found = scans(out, batch_size=1)["top"], deconvviz.project(network(), IMAGES, out=out / "project", **PROJECT)
    return found, train(out / "data", out / "run", epochs=3).history


def killed(rank: int, out: Path, call: str) -> Any:
    """Share a call in which rank 1 is killed as if the machine had lost it."""
    meetings.EVERY, _draft.EVERY, engine.SAVE_EVERY = 0, 0, -1e9  # at each step, whatever writing costs

    def die(model: nn.Module, epoch: int) -> None:
        if rank == 1 and epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    if call == "train":
        return train(out / "data", out / "run", epochs=3, on_epoch=die)
    body = network()
    if call == "scan":
        body[0].register_forward_hook(Counting(rank, 8))
        return deconvviz.top(body, IMAGES, layers=["1", "4"], k=4, batch_size=1, out=out / "top.safetensors", **QUIET)
    body[0].register_forward_hook(Counting(rank, 8))
    return deconvviz.project(body, IMAGES, out=out / "project", **PROJECT)


PROJECT: dict[str, Any] = {"layer": "4", "k": 4, "units": "all", "batch_size": 2, "progress": False}


class Counting:
    """Kills the second process when a module has run so often."""

    def __init__(self, rank: int, left: int) -> None:
        self.rank, self.left = rank, left

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left < 0 and self.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


# ---- training


def write_photos(folder: Path) -> None:
    """Write noisy images of three colours, 7 each."""
    random = np.random.default_rng(0)
    for name, colour in {"blue": (20, 30, 200), "green": (30, 180, 40), "red": (210, 20, 30)}.items():
        (folder / name).mkdir(parents=True)
        for i in range(7):
            noise = np.array(colour) + random.normal(0, 60, (18, 20, 3))
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")


class Tiny(nn.Module):
    """Batch normalization, both kinds of dropout, and a layer that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.2)),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 8), nn.BatchNorm1d(8)),
        )
        self.head, self.unread = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def tiny() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny()


def train(data: Path, out: Path, **options: Any) -> Any:
    """Train in batches of 5, 5, 5 and 2 of 17 images: the last one leaves a rank without an image."""
    chosen: dict[str, Any] = {"epochs": 2, "batch_size": 5, "image_size": 16, "device": "cpu", "validation": 0.2}
    return deconvviz.train(options.pop("model", None) or tiny(), data, out=out, **{**chosen, **QUIET, **options})


def trained(rank: int, out: Path) -> Any:
    """Train, with a recorder and cached bytes; return history, weights and statistics."""
    model, seen = tiny(), []
    recorder = deconvviz.Recorder(out / "record", IMAGES, layers=["body.2"], epochs=None)
    options: dict[str, Any] = {"recorder": recorder, "cache": out / "cache", "keep_epochs": (1,)}
    options["call"] = lambda model, images: {"scores": model(images)}["scores"]  # through what shares the batches
    found = train(out / "data", out / "run", model=model, on_epoch=lambda _, epoch: seen.append(epoch), **options)
    return found.history, {name: x.clone() for name, x in model.state_dict().items()}, seen


# ---- the command line


def command(rank: int, folder: Path, port: int, arguments: list[str]) -> tuple[int, str, str]:
    """Run a command as one of two processes of torchrun; return its exit code and what it said."""
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"})
    os.chdir(folder)
    said, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
        try:
            code = main([*arguments, "--quiet"])
        except SystemExit as ended:
            code = int(ended.code or 0)
    return code, said.getvalue(), wrong.getvalue()


def script(rank: int, path: str, *arguments: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a script as this rank does; return what it made of `best`: values and image numbers."""
    sys.argv = [path, *arguments]
    best = runpy.run_path(path)["best"]
    return best[1].values, best[1].image_ids
