"""Runs a function in several processes that are one process group, each a fork of one that has imported everything."""

from __future__ import annotations

import datetime
import functools
import multiprocessing
import os
import pickle
import sys
import time
import traceback
import warnings
from multiprocessing import forkserver
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
LIMIT = 120  # seconds for all of it; far more than it takes


@functools.cache
def start_server() -> None:
    """Start the process that imports everything; before 3.13 it does not know where we import from."""
    _CONTEXT.set_forkserver_preload(["rank_work"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        os.environ.update({} if before is None else {"PYTHONPATH": before})


def run_ranks(folder: Any, size: int, function: Any, *arguments: Any, grouped: bool = True) -> list[Any]:
    """Call `function(rank, *arguments)` on every rank; return what each gave, an exception where it raised.

    `folder` is a new one for each call: the processes find each other by a file in it, so no port has to be free. Those
    that are not `grouped` find each other by themselves.
    """
    start_server()
    store = f"{folder}/store" if grouped else None
    ends, processes = [], []
    for rank in range(size):
        here, there = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_call, args=(there, store, rank, size, function, arguments), daemon=True)
        process.start()
        there.close()
        ends.append(here)
        processes.append(process)
    end = time.monotonic() + LIMIT
    found: list[Any] = []
    for process, here in zip(processes, ends, strict=True):
        try:
            given = (
                pickle.loads(here.recv_bytes()) if here.poll(max(0.0, end - time.monotonic())) else "no answer in time"
            )
        except EOFError:
            process.join(10)
            given = process.exitcode
        found.append(given)
    for process in processes:
        process.join(10)
        process.kill()
    return found


def _call(there: Any, store: str | None, rank: int, size: int, function: Any, arguments: Any) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    if store is not None:
        limit = datetime.timedelta(seconds=LIMIT)
        known: Any = {"init_method": f"file://{store}", "rank": rank, "world_size": size, "timeout": limit}
        distributed.init_process_group("gloo", **known)
    try:
        found = function(rank, *arguments)
    except BaseException as error:
        found = type(error)(f"{error}\n{traceback.format_exc()}")
    there.send_bytes(pickle.dumps(found))  # `send` would pass tensors on by files that end with this process
    there.close()
