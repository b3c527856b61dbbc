"""A network from one word on the command line."""

from __future__ import annotations

import difflib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import zoo
from ..checks import find_device
from ..errors import ModelError
from ..zoo.create import bundled

_FORMS = "a zoo name, torchvision:NAME, timm:NAME or path/to/file.py:FUNCTION"


class Loaded(NamedTuple):
    """A network, how it wants its images (None: as is known of it), whether its weights are random, how it is called."""

    model: nn.Module
    preprocess: Any = None
    random: bool = False
    call: Any = None


def load_model(name: str, *, weights: str | None = None, device: str | None = None, seed: int = 0) -> Loaded:
    """Build the network that `name` stands for, in eval mode.

    Example:
        >>> load_model("torchvision:resnet18").random  # doctest: +SKIP
        True
        >>> load_model("my_nets.py:build", weights="best.safetensors").model  # doctest: +SKIP

    Args:
        name: A name of the zoo, "torchvision:NAME" (or the bare name), "timm:NAME", or "FILE.py:FUNCTION",
            where the function takes no arguments and returns the network; a `preprocess` in the file is used
            for pictures, a `call` is how the network is called with images, see `deconvviz.project`.
        weights: None for the bundled weights of a zoo network where there are some, else the ones it is built
            with; "random"; "bundled" (zoo); "DEFAULT" (torchvision, timm: fetched by these libraries); or the
            path of a .safetensors or .pth file with a state dict.
        device: Where the network goes, "auto" for the accelerator where there is one; None leaves it on the CPU.
        seed: Of the random weights.

    Raises:
        ModelError: No such network, or weights that do not fit it.
        OptionError: No such device.
    """
    place = None if device is None else find_device(device)  # it is missed before the network is built
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.simplefilter("ignore", FutureWarning)  # torchvision on two networks' first weights
        loaded = _build(name, weights)
    loaded.model.eval()
    return loaded if place is None else loaded._replace(model=loaded.model.to(place))


def _build(name: str, weights: str | None) -> Loaded:
    kind, _, rest = name.rpartition(":")
    if kind.endswith(".py"):
        return _from_file(Path(kind), rest, weights)
    if not kind and zoo.knows(name):
        usual = "bundled" if bundled(name) else None
        chosen = {None: usual, "random": None}.get(weights, weights)
        return Loaded(zoo.create(name, weights=chosen), random=chosen is None)
    if kind == "timm":
        return _from_library(_timm, rest, weights, "timm")
    if kind in ("", "torchvision"):
        return _from_library(_torchvision, rest, weights, "torchvision")
    raise ModelError(f"no network {name!r}. Give {_FORMS}.")


def _from_library(create: Callable[[str, bool], Loaded], name: str, weights: str | None, library: str) -> Loaded:
    published = weights == "DEFAULT"
    try:
        loaded = create(name, published)
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        # Downloads fail as OSError, unknown names as ValueError (torchvision) and RuntimeError (timm).
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            raise ModelError(f"{library}:{name} needs the package {library}: pip install {library}.") from error
        close = difflib.get_close_matches(name, [*zoo.names(), *_names_in(library)], 3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ModelError(
            f"no network {name!r} from {library} ({why}).{hint} Give {_FORMS}; the zoo: {', '.join(zoo.names())}."
        ) from error
    if published:
        return loaded
    return Loaded(_filled(loaded.model, weights, name), random=weights in (None, "random"))


def _names_in(library: str) -> list[str]:
    module = importlib.import_module("torchvision.models" if library == "torchvision" else library)
    return list(module.list_models())


def _torchvision(name: str, published: bool) -> Loaded:
    from torchvision import models

    if not published:
        return Loaded(models.get_model(name, weights=None))
    chosen = models.get_model_weights(name).DEFAULT
    return Loaded(models.get_model(name, weights=chosen), chosen)


def _timm(name: str, published: bool) -> Loaded:
    import timm

    return Loaded(timm.create_model(name, pretrained=published))


def _from_file(path: Path, function: str, weights: str | None) -> Loaded:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ModelError(f"no Python file {path}. Give path/to/file.py:FUNCTION.")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickles look their module up by name
    try:
        spec.loader.exec_module(module)
        found = getattr(module, function)
        model = found if isinstance(found, nn.Module) else found()
    except Exception as error:
        raise ModelError(f"{path}:{function} raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{path}:{function} gave {type(model).__name__}, expected a torch.nn.Module.")
    filled = _filled(model, weights, str(path))
    return Loaded(filled, getattr(module, "preprocess", None), call=getattr(module, "call", None))


def _filled(model: nn.Module, weights: str | None, name: str) -> nn.Module:
    if weights in (None, "random"):
        return model
    path = Path(str(weights))
    try:
        model.load_state_dict(_state(path))
    except OSError as error:
        raise ModelError(f"cannot read the weights {path}: {error.strerror or error}.") from error
    except Exception as error:  # damaged files raise whatever their unpickling stumbles over
        lines = " ".join(str(error).split())
        raise ModelError(f"the weights {path} do not fit {name}: {lines[:300]}") from error
    return model


def _state(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state: Any = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model", "model_state_dict"):  # checkpoints hold more than the weights
        if isinstance(state.get(key), Mapping):
            state = state[key]
    return {key.removeprefix("module."): value for key, value in state.items()}
