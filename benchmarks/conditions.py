"""What every benchmark states beside its figures: machine, versions, command; and how it times."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

PEERS = ("torch", "torchvision", "captum", "numpy", "deconvviz")


def conditions(threads: int, device: str = "cpu") -> str:
    """Return one paragraph: processor, threads, versions, command."""
    torch.set_num_threads(threads)
    chip = (
        torch.cuda.get_device_name() if device == "cuda" else f"{_processor()}, {threads} thread{'s' * (threads > 1)}"
    )
    versions = ", ".join(f"{name} {version(name)}" for name in PEERS)
    script = Path(sys.argv[0])
    given = [Path(word).name if os.path.isabs(word) else word for word in sys.argv[1:]]  # a folder's place is nobody's
    command = shlex.join(["python", f"{script.parent.name}/{script.name}", *given])
    return f"{chip}; Python {platform.python_version()}, {versions}; `{command}`"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """Time one call, to the end of the device's work."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(works: dict[str, Callable[[], object]], rounds: int, device: str = "cpu") -> dict[str, float]:
    """Time several works in turn, A B C A B C …, so that all see the same machine; return each one's median."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work, device))
    return {name: statistics.median(values) for name, values in times.items()}


def report(name: str, title: str, text: str, table: list[str]) -> None:
    """Print a Markdown table and write it beside the script."""
    content = "\n".join([f"# {title}", "", text, "", *table, ""])
    (Path(__file__).parent / f"{name}.md").write_text(content)
    print(content)


def load() -> str:
    """Say how busy the machine was, where the system tells."""
    return f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
