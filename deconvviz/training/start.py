"""What a training begins with: weights of an earlier one, and parts that stay as they are."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from ..errors import OptionError, StoreError


def load_start(model: nn.Module, path: Path) -> str:
    """Give the model the tensors of a file; return the file's name and a hash of it.

    Those of the last layer that has weights may be of another number of classes: it keeps what was drawn.
    """
    try:
        held = path.read_bytes()
        tensors = load(held)
    except OSError as error:
        raise StoreError(
            f"cannot read the weights {path}: {error.strerror or error}. Give a safetensors file."
        ) from error
    except SafetensorError as error:
        raise StoreError(f"{path} is not a safetensors file, or it is damaged ({error}).") from error
    own = model.state_dict()
    last = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1:]
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} is not part of it" for name in tensors if name not in own]
    other = [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
    for name in other:
        if name.rpartition(".")[0] not in last or tensors[name].shape[1:] != own[name].shape[1:]:
            wrong.append(f"{name} is {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}")
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise StoreError(f"{path} does not fit the network: {'; '.join(wrong[:8])}{more}.")
    model.load_state_dict({**tensors, **{name: own[name] for name in other}})
    return f"{path.name} ({hashlib.sha256(held).hexdigest()[:12]})"


@contextlib.contextmanager
def frozen_parts(model: nn.Module, freeze: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Let the parameters of these modules stay as they are; yield the modules' paths, sorted."""
    if isinstance(freeze, str):
        raise OptionError(f"freeze={freeze!r}: expected a list of module paths.")
    known = dict(model.named_modules())
    if unknown := [path for path in freeze if path not in known or not path]:
        raise OptionError(f"freeze: no module {unknown[0]!r}. There are: {', '.join([n for n in known if n][:20])}.")
    parameters = [p for path in freeze for p in known[path].parameters() if p.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield tuple(sorted(freeze))
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
