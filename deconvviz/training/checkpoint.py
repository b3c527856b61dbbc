"""The files of a training run: its checkpoint, which only the same run continues, and its weights."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor, nn

from .. import ranks
from ..errors import StoreError
from ..results.base import check_fields
from ..results.store import open_file, replacing
from .result import Epoch

# A checkpoint ends with the checksum of all before it, and with these bytes.
_SUM, _MARK = 32, b"deconvviz"
_NUMBERS = ("lr", "momentum", "dampening", "weight_decay")  # of the optimizer


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
    contents = sealed({"signature": dict(signature), "history": rows, **state})
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(contents)


def sealed(state: Any) -> bytes:
    """Return what `torch.save` writes, with its checksum."""
    held = io.BytesIO()
    torch.save(state, held)
    contents = held.getvalue()
    return contents + hashlib.blake2b(contents, digest_size=_SUM).digest() + _MARK


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
        before, history = _plain(state["signature"]), _history(state["history"])
        changed = [key for key, value in signature.items() if not bool(before.get(key) == value)]
        states = {name: state[name] for name in parts}
    except Exception as error:  # whatever a damaged file makes of itself
        raise _unreadable(path) from error
    if changed:
        key = changed[0]
        raise StoreError(
            f"{path} is the checkpoint of another run: {_difference(key, before.get(key), signature[key])}. "
            "Give another out, the same options, or resume=False."
        )
    _take_back(path, parts, states)
    return history


def _plain(tree: Any) -> Any:
    """Return nested texts and numbers as they are; compared with anything else they might take hours, or all memory."""
    if isinstance(tree, dict):
        return {_plain(key): _plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map(_plain, tree))
    if tree is None or isinstance(tree, (str, int, float)):
        return tree
    raise TypeError(f"{type(tree).__name__} in its signature")


def _history(rows: Sequence[Mapping[str, Any]]) -> list[Epoch]:
    history = [Epoch(**row) for row in rows]
    for number, epoch in enumerate(history, 1):
        check_fields(epoch)
        if epoch.epoch != number:
            raise ValueError(f"epoch {number} is called {epoch.epoch}")
    return history


def _take_back(path: Path, parts: Mapping[str, Stateful], states: Mapping[str, Any]) -> None:
    """Give each part its state; where one does not fit, all are as they were."""
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    try:
        for name, part in parts.items():
            _check_shapes(part, states[name])
        for name, part in parts.items():
            part.load_state_dict(states[name])
    except Exception as error:
        for name, part in parts.items():
            part.load_state_dict(before[name])
        raise StoreError(f"{path} does not fit this model, or is damaged ({error}). Try resume=False.") from error


def _check_shapes(part: Stateful, state: Mapping[str, Any]) -> None:
    """Refuse tensors that are not of their parameters' shapes, before any is copied: they may be of any size."""
    if isinstance(part, torch.optim.Optimizer):
        parameters = [p for group in part.param_groups for p in group["params"]]
        for number, held in state["state"].items():
            _compare(held, dict.fromkeys(held, parameters[number]))
        for group in state["param_groups"]:
            if not all(isinstance(group[name], (int, float)) for name in _NUMBERS):
                raise ValueError("the optimizer's options are no numbers")
    elif isinstance(part, nn.Module):
        _compare(state, part.state_dict())


def _compare(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, value in found.items():
        own = expected[name]
        if isinstance(own, Tensor) and isinstance(value, Tensor) and value.shape not in (own.shape, ()):
            raise ValueError(f"{name} is {tuple(value.shape)}, expected {tuple(own.shape)}")


def _contents(path: Path) -> bytes:
    """Return what `torch.save` wrote, if its checksum is right; checkpoints of earlier versions have none."""
    with open_file(path) as file:
        data = file.read()
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
