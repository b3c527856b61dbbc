"""The files of a training run: its checkpoint, which only the same run continues, and its weights."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import nn

from .. import ranks
from ..errors import StoreError
from ..results.store import replacing
from .result import Epoch

# A checkpoint ends with the checksum of all before it, and with these bytes.
_SUM, _MARK = 32, b"deconvviz"


class Stateful(Protocol):
    """A model, an optimizer or a gradient scaler."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take it back."""


def write(path: Path, signature: Mapping[str, Any], history: Sequence[Epoch], parts: Mapping[str, Stateful]) -> None:
    """Write the run's whole state with its checksum, all or nothing."""
    state = {name: part.state_dict() for name, part in parts.items()}
    rows = [dataclasses.asdict(epoch) for epoch in history]
    held = io.BytesIO()
    torch.save({"signature": dict(signature), "history": rows, **state}, held)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(held.getbuffer())
        file.write(hashlib.blake2b(held.getbuffer(), digest_size=_SUM).digest() + _MARK)


def read(path: Path, signature: Mapping[str, Any], parts: Mapping[str, Stateful]) -> list[Epoch]:
    """Take the state back, if there is any, after checking that it is this run's; return its history.

    Of several processes rank 0 reads the file, and all take the same state.
    """

    def contents() -> bytes | None:
        try:
            return _contents(path) if path.exists() else None
        except (OSError, ValueError) as error:
            raise _unreadable(path) from error

    found = ranks.team().share(contents)
    if found is None:
        return []
    try:
        # On the CPU: what loads its state copies it to where it is, and no GPU has to hold both.
        state = torch.load(io.BytesIO(found), map_location="cpu", weights_only=True)
        before, history = dict(state["signature"]), [Epoch(**row) for row in state["history"]]
        states = {name: state[name] for name in parts}
    except Exception as error:  # whatever a damaged file makes of itself
        raise _unreadable(path) from error
    for key, value in signature.items():
        if before.get(key) != value:
            raise StoreError(
                f"{path} is the checkpoint of another run: {_difference(key, before.get(key), value)}. "
                "Give another out, the same options, or resume=False."
            )
    for name, part in parts.items():
        part.load_state_dict(states[name])
    return history


def _contents(path: Path) -> bytes:
    """Return what `torch.save` wrote, if its checksum is right; checkpoints of earlier versions have none."""
    data = path.read_bytes()
    if not data.endswith(_MARK):
        return data
    end = len(data) - len(_MARK) - _SUM
    if hashlib.blake2b(data[:end], digest_size=_SUM).digest() != data[end : end + _SUM]:
        raise ValueError("the checksum is wrong")
    return data[:end]


def _unreadable(path: Path) -> StoreError:
    return StoreError(f"{path} is no checkpoint of deconvviz, or damaged. Try resume=False.")


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        changed = next(name for name in {**now, **before} if before.get(name) != now.get(name))
        return _difference(f"{key}'s {changed}", before.get(changed), now.get(changed))
    return f"its {key} was {before!r}, now it is {now!r}"


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights in float16 (a tensor that leaves its range stays as it is), all or nothing."""
    held = save({name: _half(tensor.detach()) for name, tensor in model.state_dict().items()})
    with replacing(path) as temporary:
        temporary.write_bytes(held)


def _half(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.cpu().contiguous()
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half if torch.isfinite(half).all() else tensor
