"""What all results share: one file each on disk, one line in a terminal, one picture in a notebook."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from ..errors import OptionError, StoreError
from . import store

PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")  # what `write_figure` can write
ANIMATIONS = (".gif",)

_Kind = TypeVar("_Kind", bound="Stored")


class Stored:
    """A frozen dataclass of tensors, plain values, and tuples or other such classes of them.

    It is compared by value, written as one line, and kept in one file. Subclasses are declared with
    `@dataclass(frozen=True, eq=False, repr=False)`, so that what is here holds.
    """

    file_kind: ClassVar[str]  # what the header of its files says; the class's name unless it says otherwise
    holds: ClassVar[tuple[type[Stored], ...]] = ()  # the classes that its fields may hold

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "file_kind" not in cls.__dict__:
            cls.file_kind = cls.__name__

    def __eq__(self, other: object) -> bool:
        """Say whether both hold the same numbers, bit by bit, and the same facts; NaN equals NaN."""
        if type(other) is not type(self):
            return NotImplemented
        return all(_same(getattr(self, name), getattr(other, name)) for name in _names(self))

    __hash__ = None  # type: ignore[assignment]  # its tensors can be changed

    def __repr__(self) -> str:
        """Say in one line what this is."""
        return f"{type(self).__name__} of {self.describe()}"

    __str__ = __repr__

    def describe(self) -> str:
        """Say in a few words of what it is and how much."""
        raise NotImplementedError

    def header(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what a file's header says (anything JSON holds), and the arrays in it."""
        arrays: dict[str, Tensor] = {}
        return {"tree": _pack(self, "", arrays)}, arrays

    @classmethod
    def from_header(cls: type[_Kind], facts: dict[str, Any], arrays: dict[str, Tensor]) -> _Kind:
        """Take back what `header` returned."""
        return _unpack(facts["tree"], arrays, {kind.__name__: kind for kind in (cls, *cls.holds)})

    def check_loaded(self, facts: dict[str, Any]) -> None:
        """Refuse what no such result can be; the file that says so may be damaged, or written by someone else."""
        check_fields(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, all or nothing.

        Raises:
            OptionError: The path is that of a picture.
            StoreError: The file cannot be written.
        """
        refuse_picture(path)
        facts, arrays = self.header()
        store.save(path, arrays, {"kind": self.file_kind, **facts})

    @classmethod
    def load(cls: type[_Kind], path: str | os.PathLike[str], *, check: bool = False) -> _Kind:
        """Read a file that `save` wrote.

        Up to 64 MB are read and checked against the checksums in the file. A larger file is mapped: its arrays are
        read when they are looked at, so the file must not be changed in place as long as the result is in use
        (replacing it, as `save` does, is no change of it). `check` reads and checks all of it now.

        Raises:
            StoreError: The file cannot be read, or holds something else.
        """
        return cls.read(path, check=check)[0]

    @classmethod
    def read(cls: type[_Kind], path: str | os.PathLike[str], *, check: bool = False) -> tuple[_Kind, dict[str, Any]]:
        """Read a file as `load` does; return also what its header says."""
        arrays, meta = store.load(path, cls.file_kind, check=check)
        facts: dict[str, Any] = {name: value for name, value in meta.items() if name != "kind"}
        try:
            found = cls.from_header(facts, arrays)
            found.check_loaded(facts)
            return found, facts
        except StoreError:
            raise
        except Exception as error:  # whatever a damaged header makes of itself
            raise StoreError(f"{path} is damaged: {type(error).__name__}: {error}.") from error


class Result(Stored):
    """What a function found: it can be saved, compared and drawn.

    `drawn_by` names the file in `deconvviz.plotting` whose `draw` makes its picture. It is found by name when a
    picture is asked for: results know nothing of matplotlib.
    """

    drawn_by: ClassVar[str]

    def plot(
        self,
        figure: Any = None,
        *,
        ax: Any = None,
        title: str | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        fontsize: float | None = None,
        cmap: str | None = None,
    ) -> Any:
        """Draw the result and return the figure, which is not shown; see its kind in `deconvviz.plotting`.

        Args:
            figure: A matplotlib figure, subfigure or axes to draw into (axes give their place to a subfigure); a new
                figure if None.
            ax: The same, as other libraries call it.
            title: The line above all.
            figsize: Width and height of a new figure in inches; None: what fits the result.
            dpi: Dots per inch.
            fontsize: Of the usual text, in points; larger and smaller text keeps its proportion.
            cmap: One of matplotlib's colour maps.

        Raises:
            OptionError: Something else to draw into, two places, or an unknown colour map.
        """
        look = {"ax": ax, "title": title, "figsize": figsize, "dpi": dpi, "fontsize": fontsize, "cmap": cmap}
        return self.draw("draw", figure, **look)

    def draw(self, name: str, figure: Any, /, **options: Any) -> Any:
        """Call the function of this name that draws this kind of result, with the options that were given."""
        return self.drawing(name)(self, figure, **{key: v for key, v in options.items() if v is not None})

    def drawing(self, name: str, file: str = "") -> Any:
        """Return a function of the file in `deconvviz.plotting` that draws this kind of result, or of another one."""
        return getattr(import_module(f"deconvviz.plotting.{file or self.drawn_by}"), name)

    def table(self) -> str:
        """Return the numbers as text, in lines; what has none says the one line that `print` says."""
        return str(self)

    def columns(self) -> dict[str, Any]:
        """Return the numbers as columns of a table by name, each a tensor or a list of one length.

        Raises:
            OptionError: This kind of result has no rows.
        """
        raise OptionError(f"{type(self).__name__} has no rows, so it is no table; its fields are tensors.")

    def to_dataframe(self) -> Any:
        """Return `columns` as a pandas table.

        Raises:
            OptionError: pandas is not installed, or this kind of result has no rows.
        """
        columns = self.columns()
        try:
            import pandas
        except ImportError as error:
            raise OptionError(
                "to_dataframe needs pandas, which is not installed: pip install 'deconvviz[pandas]'."
            ) from error
        return pandas.DataFrame({name: x.numpy() if isinstance(x, Tensor) else x for name, x in columns.items()})

    def _repr_png_(self) -> bytes:
        return png(self.plot())


def named_columns(ids: Sequence[int], names: Mapping[int, str], labels: Mapping[int, str]) -> dict[str, list[str]]:
    """Return the columns of a table that say what the images `ids` are called, as far as it is known."""
    known = {"name": names, "label": labels}
    return {column: [texts.get(i, "") for i in ids] for column, texts in known.items() if texts}


def as_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the columns of a table that is given row by row."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found


def by_id(texts: Mapping[Any, str]) -> dict[int, str]:
    """Return texts by the images' ids, which are text in JSON."""
    return {int(i): text for i, text in texts.items()}


def refuse_picture(path: str | os.PathLike[str]) -> None:
    """Refuse to write numbers into a file that would be taken for a picture."""
    if Path(path).suffix.lower() in (*PICTURES, *ANIMATIONS):
        raise OptionError(
            f"save({str(path)!r}) writes numbers, not a picture: call plot().savefig({str(path)!r}), or give a path "
            "such as result.safetensors."
        )


def png(figure: Any) -> bytes:
    """Return a figure, or the one that a subfigure is part of, as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.figure.savefig(buffer, format="png", dpi="figure")
    return buffer.getvalue()


def tuples(value: Any) -> Any:
    """Return what JSON gave back with tuples in place of lists."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def _names(value: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(value)]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping) and not isinstance(a, Stored):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    return bool(a == b or (a != a and b != b))


def _pack(value: Any, path: str, arrays: dict[str, Tensor]) -> Any:
    """Return `value` as JSON holds it; its tensors go to `arrays`."""
    if isinstance(value, Tensor):
        arrays[path] = value
        return {"array": path}
    if isinstance(value, Stored):
        packed = {n: _pack(getattr(value, n), f"{path}.{n}".lstrip("."), arrays) for n in _names(value)}
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


def check_fields(value: Any) -> None:
    """Refuse fields of another type than their class says: a file from elsewhere may hold anything."""
    hints = get_type_hints(type(value))
    for name in _names(value):
        if not _fits(getattr(value, name), hints[name]):
            raise ValueError(f"{name} is no {hints[name]}")


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is tuple and parts[-1:] == (Ellipsis,):
        return isinstance(value, tuple) and all(_fits(item, parts[0]) for item in value)
    if kind is tuple:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if hint is Any:
        return True
    if kind in (dict, Mapping):
        return isinstance(value, dict) and all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    if isinstance(value, bool) and hint in (int, float):
        return False
    return isinstance(value, (int, float) if hint is float else hint)
