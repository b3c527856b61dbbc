"""Shows what a convolutional network sees: deconvnet projections, top-9 grids and the papers' studies.

Example:
    >>> import deconvviz
    >>> model = deconvviz.zoo.create("zfnet64")
    >>> deconvviz.layers(model)  # doctest: +SKIP
    >>> deconvviz.project(model, layer=5).plot().savefig("layer-5.png")  # doctest: +SKIP

Nothing is imported before a name is used: a new public name is one line in each of the three lists below.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import zoo as zoo
    from .audit import audit as audit
    from .correspondence import Correspondence as Correspondence
    from .correspondence import correspondence as correspondence
    from .errors import DeconvvizError as DeconvvizError
    from .errors import ImageError as ImageError
    from .errors import LayerError as LayerError
    from .errors import ModelError as ModelError
    from .errors import OptionError as OptionError
    from .errors import StoreError as StoreError
    from .errors import UnitError as UnitError
    from .errors import UnsupportedOp as UnsupportedOp
    from .filters import FilterComparison as FilterComparison
    from .filters import Filters as Filters
    from .filters import compare_filters as compare_filters
    from .filters import filters as filters
    from .invariance import Invariance as Invariance
    from .invariance import invariance as invariance
    from .layers import layers as layers
    from .methods import MethodComparison as MethodComparison
    from .methods import compare_methods as compare_methods
    from .neighbours import Neighbours as Neighbours
    from .neighbours import nearest as nearest
    from .occlusion import Occlusion as Occlusion
    from .occlusion import occlude as occlude
    from .probe import Probe as Probe
    from .probe import probe as probe
    from .project import Projections as Projections
    from .project import deconv as deconv
    from .project import project as project
    from .recorder import Recorder as Recorder
    from .recorder import Recording as Recording
    from .report import report as report
    from .responses import Responses as Responses
    from .responses import response_std as response_std
    from .topk import TopK as TopK
    from .topk import top as top
    from .train import train as train

    __version__: str

__all__ = [
    "Correspondence",
    "DeconvvizError",
    "FilterComparison",
    "Filters",
    "ImageError",
    "Invariance",
    "LayerError",
    "MethodComparison",
    "ModelError",
    "Neighbours",
    "Occlusion",
    "OptionError",
    "Probe",
    "Projections",
    "Recorder",
    "Recording",
    "Responses",
    "StoreError",
    "TopK",
    "UnitError",
    "UnsupportedOp",
    "audit",
    "compare_filters",
    "compare_methods",
    "correspondence",
    "deconv",
    "filters",
    "invariance",
    "layers",
    "nearest",
    "occlude",
    "probe",
    "project",
    "report",
    "response_std",
    "top",
    "train",
    "zoo",
]

# public name -> the file it lives in
_HOME = {
    "Correspondence": "correspondence",
    "DeconvvizError": "errors",
    "FilterComparison": "filters",
    "Filters": "filters",
    "ImageError": "errors",
    "Invariance": "invariance",
    "LayerError": "errors",
    "MethodComparison": "methods",
    "ModelError": "errors",
    "Neighbours": "neighbours",
    "Occlusion": "occlusion",
    "OptionError": "errors",
    "Probe": "probe",
    "Projections": "project",
    "Recorder": "recorder",
    "Recording": "recorder",
    "Responses": "responses",
    "StoreError": "errors",
    "TopK": "topk",
    "UnitError": "errors",
    "UnsupportedOp": "errors",
    "audit": "audit",
    "compare_filters": "filters",
    "compare_methods": "methods",
    "correspondence": "correspondence",
    "deconv": "project",
    "filters": "filters",
    "invariance": "invariance",
    "layers": "layers",
    "nearest": "neighbours",
    "occlude": "occlusion",
    "probe": "probe",
    "project": "project",
    "report": "report",
    "response_std": "responses",
    "top": "topk",
    "train": "train",
    "zoo": "",  # a module of its own
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = _version()
    elif name in _HOME:
        module = import_module(f".{_HOME[name] or name}", __name__)
        value = getattr(module, name) if _HOME[name] else module
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version(__name__)
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"


class _Package(ModuleType):
    """Keeps `deconvviz.layers` the function: importing layers.py would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (_HOME.get(name) and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
