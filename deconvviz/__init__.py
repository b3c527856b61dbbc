"""Shows what a convolutional network sees: deconvnet projections, top-9 grids and the papers' studies.

Example:
    >>> import deconvviz
    >>> model = deconvviz.zoo.create("zfnet64")
    >>> deconvviz.layers(model)  # doctest: +SKIP
    >>> deconvviz.project(model, layer=5).plot().savefig("layer-5.png")  # doctest: +SKIP

Nothing is imported before a name is used. The public names are listed in `__init__.pyi` beside this file.
"""

import lazy_loader

_load, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _load(name)


def __dir__() -> list[str]:
    return sorted({*_names(), "__version__"})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version(__name__)
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"
