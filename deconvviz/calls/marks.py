"""A hash of a function: its code and the numbers that it works with."""

from __future__ import annotations

import functools
import hashlib
import re
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def mark(*things: Any) -> bytes:
    """Return 16 bytes that differ where functions, or the values that they hold, do.

    Code, defaults, what a function closes over and the numbers, arrays and tensors among the globals that it names are
    looked at; what a function that it calls is made of is not.
    """
    digest = hashlib.blake2b(digest_size=16)
    _feed(things, digest, set())
    return digest.digest()


def _feed(thing: Any, digest: Any, seen: set[int]) -> None:
    if isinstance(thing, (types.FunctionType, types.MethodType, nn.Module, dict, list, tuple)) or hasattr(
        thing, "__dict__"
    ):
        if id(thing) in seen:
            return
        seen.add(id(thing))
    digest.update(type(thing).__qualname__.encode())
    if isinstance(thing, Tensor):
        thing = thing.detach().cpu().contiguous()
        digest.update(f"{thing.dtype} {tuple(thing.shape)}".encode())
        digest.update(thing.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(thing, np.ndarray):
        digest.update(f"{thing.dtype} {thing.shape}".encode() + thing.tobytes())
    elif isinstance(thing, nn.Module):
        _feed(thing.state_dict(), digest, seen)
    elif isinstance(thing, types.CodeType):
        digest.update(thing.co_code + repr(thing.co_names).encode())
        _feed(thing.co_consts, digest, seen)
    elif isinstance(thing, types.FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        known = (int, float, complex, str, bytes, Tensor, np.ndarray, np.generic)
        used = {n: v for n in thing.__code__.co_names if isinstance(v := thing.__globals__.get(n), known)}
        _feed([thing.__code__, thing.__defaults__, thing.__kwdefaults__, cells, used], digest, seen)
    elif isinstance(thing, types.MethodType):
        _feed([thing.__func__, thing.__self__], digest, seen)
    elif isinstance(thing, functools.partial):
        _feed([thing.func, thing.args, thing.keywords], digest, seen)
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            digest.update(repr(key).encode())
            _feed(value, digest, seen)
    elif isinstance(thing, (list, tuple)):
        for item in thing:
            _feed(item, digest, seen)
    elif not isinstance(thing, (type, types.ModuleType)) and hasattr(thing, "__dict__"):
        _feed(vars(thing), digest, seen)
    else:
        digest.update(re.sub(r" at 0x[0-9a-f]+", "", repr(thing)).encode())
