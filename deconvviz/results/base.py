"""What the results of the studies share: one file each on disk, one picture each in a notebook."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from . import store as _store

_Kind = TypeVar("_Kind", bound="Result")


class Result:
    """A frozen dataclass of tensors, plain values, and tuples or other results of them.

    A subclass says in `plot` how it is drawn; `holds` are the kinds of results that it may hold.
    """

    holds: ClassVar[tuple[type[Result], ...]] = ()

    def plot(self, figure: Any = None) -> Any:
        """Draw the result into `figure`, a new one if None, and return it."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, all or nothing."""
        arrays: dict[str, Tensor] = {}
        tree = _pack(self, "", arrays)
        # The widest numbers first: every array then starts at a multiple of its numbers' size.
        ordered = dict(sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize))
        _store.save(path, ordered, {"kind": type(self).__name__, "tree": tree})

    @classmethod
    def load(cls: type[_Kind], path: str | os.PathLike[str]) -> _Kind:
        """Read a file that `save` wrote.

        Raises:
            StoreError: The file cannot be read, or holds something else.
        """
        arrays, meta = _store.load(path, cls.__name__)
        return _unpack(meta["tree"], arrays, {kind.__name__: kind for kind in (cls, *cls.holds)})

    def _repr_png_(self) -> bytes:
        from ..plotting import projections as plot

        return plot.png(self.plot())


def _pack(value: Any, path: str, arrays: dict[str, Tensor]) -> Any:
    """Return `value` as JSON holds it; its tensors go to `arrays`."""
    if isinstance(value, Tensor):
        arrays[path] = value
        return {"array": path}
    if isinstance(value, Result):
        fields = dataclasses.fields(value)  # type: ignore[arg-type]
        packed = {f.name: _pack(getattr(value, f.name), f"{path}.{f.name}".lstrip("."), arrays) for f in fields}
        return {"result": type(value).__name__, "fields": packed}
    if isinstance(value, tuple):
        return [_pack(item, f"{path}.{n}", arrays) for n, item in enumerate(value)]
    return value


def _unpack(tree: Any, arrays: dict[str, Tensor], kinds: dict[str, type]) -> Any:
    if isinstance(tree, list):
        return tuple(_unpack(item, arrays, kinds) for item in tree)
    if isinstance(tree, dict) and "array" in tree:
        return arrays[tree["array"]]
    if isinstance(tree, dict):
        return kinds[tree["result"]](**{name: _unpack(item, arrays, kinds) for name, item in tree["fields"].items()})
    return tree
