"""What the commands share: how a command is described, its options, and the one way it runs.

An entry `Command` builds both the parser and the call. Nothing here imports torch before a command runs.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import difflib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError, StoreError

if TYPE_CHECKING:
    from .networks import Loaded

PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")


@dataclasses.dataclass(frozen=True)
class Option:
    """One argument of a command.

    Attributes:
        flag: "--batch-size", or "image" for one that goes by its position.
        help: one line; the default is added to it.
        argument: the function's argument that gets the value; "" is the flag's own name, None is none of them.
        default: as `argparse` would have read it.
        type: reads the text; a picture's or file's path is checked before the work.
        called: turns the value into the argument, when the function is called.
        more: anything else that `add_argument` takes.
    """

    flag: str
    help: str | None = None
    argument: str | None = ""
    default: Any = None
    type: Callable[[str], Any] | None = None
    called: Callable[[Any], Any] | None = None
    more: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The attribute of the parsed options that holds the value."""
        return self.flag.lstrip("-").replace("-", "_")

    @property
    def to(self) -> str | None:
        """The function's argument."""
        return self.name if self.argument == "" else self.argument

    def but(self, **changes: Any) -> Option:
        """Return the option with some of its fields changed; unknown ones are for `add_argument`."""
        own = {field.name for field in dataclasses.fields(self)}
        more = {name: value for name, value in changes.items() if name not in own}
        changes = {name: value for name, value in changes.items() if name in own}
        return dataclasses.replace(self, **changes, more={**self.more, **more})

    def value(self, parsed: argparse.Namespace) -> Any:
        """Return what the function gets."""
        value = getattr(parsed, self.name)
        return value if self.called is None else self.called(value)

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add the option to a parser."""
        more = dict(self.more)
        if self.flag.startswith("-") and self.default is not None:
            more["default"] = self.default
        if self.type is not None:
            more["type"] = self.type
        said = self.help or ""
        if isinstance(self.default, (int, float, str)) and "default" not in said and more.get("action") is None:
            said = f"{said}; default: {self.default}".removeprefix("; ")
        parser.add_argument(self.flag, help=said or None, **more)


@dataclasses.dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
        name: as it is typed.
        function: the public function that it calls.
        help: one line.
        options: its options, in the order of the help text.
        example: a line to try.
        run: does the work in place of `call`, where more than one call or picture is wanted.
    """

    name: str
    function: str
    help: str
    options: tuple[Option, ...]
    example: str
    run: Callable[[Command, argparse.Namespace], None] | None = None

    def arguments(self, parsed: argparse.Namespace) -> dict[str, Any]:
        """Return what the function is called with, beside the model and its preprocessing."""
        return {option.to: option.value(parsed) for option in self.options if option.to is not None}

    def __call__(self, parsed: argparse.Namespace) -> None:
        """Check where the outputs go, then do the work."""
        for option in self.options:
            if option.type in (picture, animation, file, page, folder) and getattr(parsed, option.name):
                check_writable(getattr(parsed, option.name))
        (self.run or report_result)(self, parsed)

    def call(self, parsed: argparse.Namespace, loaded: Loaded, **changed: Any) -> Any:
        """Call the public function as the options say."""
        import deconvviz

        arguments = {**self.arguments(parsed), **changed}
        if "preprocess" not in arguments and self.takes_preprocess:
            arguments["preprocess"] = loaded.preprocess
        if loaded.call is not None:
            arguments["call"] = loaded.call
        return followed(getattr(deconvviz, self.function)(loaded.model, **arguments))

    def check_shared(self) -> None:
        """Refuse to run on several processes what they would each do again."""
        import deconvviz

        if not getattr(getattr(deconvviz, self.function or "_", None), "is_shared", False):
            raise OptionError(
                f"{self.name} is the work of one process, torchrun started {os.environ['WORLD_SIZE']}: run it without."
            )

    @property
    def takes_preprocess(self) -> bool:
        """Whether the function reads or makes images; `layers` alone does not."""
        return self.function == "maximize" or any(option.name in ("images", "image") for option in self.options)


class Followed(Exception):
    """This process is none that prints and draws: another one does."""


def is_launched() -> bool:
    """Say whether torchrun started this process and others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def followed(result: Any) -> Any:
    """Return a result on the process that prints and draws it; the others of torchrun are done.

    Raises:
        Followed: This is one of the others.
    """
    if is_launched() and int(os.environ["RANK"]) > 0:
        raise Followed
    return result


def report_result(command: Command, parsed: argparse.Namespace) -> None:
    """Make the call, print its numbers, keep them if asked to, draw the picture if there is one."""
    result = command.call(parsed, load(parsed))
    tell(result, parsed)
    if hasattr(parsed, "out"):
        write(parsed.out, result.plot())


def tell(result: Any, parsed: argparse.Namespace) -> None:
    """Print a result, as a table or as JSON, and save it if asked to."""
    if getattr(parsed, "json", False):
        print(json.dumps(plain(result), ensure_ascii=False))
    else:
        print(result.table() if hasattr(result, "table") else result)
    save(result, parsed)


def save(result: Any, parsed: argparse.Namespace) -> None:
    """Keep the numbers where --save says."""
    if getattr(parsed, "save", None):
        result.save(parsed.save)
        say(f"wrote {parsed.save}", parsed)


def say(line: str, parsed: argparse.Namespace) -> None:
    """Print a line for people: on stderr where stdout holds numbers."""
    numbers = getattr(parsed, "json", False) or getattr(parsed, "csv", False)
    print(line, file=sys.stderr if numbers else sys.stdout)


def plain(value: Any) -> Any:
    """Return a result as JSON holds it: dataclasses as objects, tensors as lists, what is no number as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [field.name for field in dataclasses.fields(value) if field.repr]
        return {name: plain(getattr(value, name)) for name in shown}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def load(parsed: argparse.Namespace, *, placed: bool = True) -> Loaded:
    """Build the network that the options name, and place it on the device that they name."""
    from .networks import load_model

    weights, device = getattr(parsed, "weights", None), parsed.device if placed else None
    loaded = load_model(parsed.model, weights=weights, device=device)
    if loaded.random and parsed.command not in ("layers", "audit", "cost", "train"):
        print(f"note: {parsed.model} has random weights; --weights gives it trained ones", file=sys.stderr)
    return loaded


def numbers(result: Any, parsed: argparse.Namespace) -> bool:
    """Print the rows of a result as --json or --csv ask for; return whether they did."""
    if not (parsed.json or parsed.csv):
        return False
    columns = plain(result.columns())
    rows = list(zip(*columns.values(), strict=True))
    if parsed.json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], ensure_ascii=False))
    else:
        csv.writer(sys.stdout, lineterminator="\n").writerows([list(columns), *rows])
    return True


def write(path: str, figure: Any, parsed: argparse.Namespace | None = None) -> None:
    """Write a figure and say so."""
    write_figure(path, figure)
    print(f"wrote {path}") if parsed is None else say(f"wrote {path}", parsed)


def write_figure(path: str | os.PathLike[str], figure: Any) -> None:
    """Write a figure in the format of the path's suffix, all or nothing."""
    from ..results.store import replacing

    suffix = Path(path).suffix.lower()
    with replacing(path) as temporary:
        whole = figure.figure or figure  # a part of a figure is drawn with all of it
        dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # the same numbers give the same file
        whole.savefig(temporary, format=suffix[1:], metadata=dated.get(suffix))


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse a path that cannot be written, before the work.

    Raises:
        StoreError: It is a folder where a file is wanted, or lies in no folder that may be written to.
    """
    above = Path(path).absolute()
    while not os.path.lexists(above):
        above = above.parent
    if above == Path(path).absolute() and not above.is_dir():  # it is there: its folder must take the new one
        above = above.parent
    if not above.is_dir():
        raise StoreError(f"cannot write {path}: {above} is no folder. Give a path in a folder you may write to.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise StoreError(f"cannot write {path}: {above} is not yours to write to. Give a path in another folder.")


# ---- how a text is read ----


def number_or_name(text: str) -> int | str:
    """Read a layer: 5, or "features.10"."""
    return int(text) if text.lstrip("-").isdigit() else text


def layer_list(text: str) -> list[int | str]:
    """Read "1,features.3"."""
    return [number_or_name(part) for part in text.split(",")]


def unit_list(text: str) -> list[int] | str:
    """Read "all", "3", "0,5,9" or "0-15"."""
    if text == "all":
        return text
    units: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            units += range(int(first), int(last) + 1) if dash else [int(first)]
        except ValueError:
            raise argparse.ArgumentTypeError(f'{text!r}: expected "all", "3", "0,5,9" or "0-15"') from None
    return units


def pair(text: str) -> tuple[int, int]:
    """Read "224" or "224,320"; one number stands for both."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise argparse.ArgumentTypeError(f"{text!r}: expected one number or two with a comma: 224 or 224,320")
    return numbers[0], numbers[-1]


def rules(text: str) -> str | tuple[str, ...]:
    """Read "guided", or "deconvnet,guided" for one beside the other."""
    named = tuple(text.split(","))
    unknown = [name for name in named if name not in RULES]
    if unknown or len({*named}) < len(named):
        close = [meant for name in unknown for meant in difflib.get_close_matches(name, RULES, 1)]
        hint = f". Did you mean {close[0]}?" if close else ""
        raise argparse.ArgumentTypeError(f"{text!r}: expected one of {', '.join(RULES)}, or several with commas{hint}")
    return named if len(named) > 1 else text


def position(text: str) -> tuple[int, int]:
    """Read "3,4"."""
    if text.count(",") != 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected row,col, such as 3,4")
    return pair(text)


def number_or_text(text: str) -> float | str:
    """Read "0.5", or a word or path."""
    try:
        return float(text)
    except ValueError:
        return text


def whole_or_name(text: str) -> int | str:
    """Read a class: 207, or "goldfish"."""
    return int(text) if text.isdigit() else text


def numbers_or_text(text: str) -> float | tuple[float, ...] | str:
    """Read "0.5", "1,0,0", or a word or path."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        return text
    return numbers if len(numbers) > 1 else numbers[0]


def indices_or_text(text: str) -> list[int] | str:
    """Read "0,5,9", or a path or word."""
    parts = text.split(",")
    return [int(part) for part in parts] if all(part.isdigit() for part in parts) else text


def names(text: str) -> list[str]:
    """Read "a,b,c"."""
    return text.split(",")


def picture(text: str) -> str:
    """Read the path of a picture; its suffix says which kind."""
    return _ending_in(text, PICTURES, "a picture")


def animation(text: str) -> str:
    """Read the path of an animation."""
    return _ending_in(text, (".gif",), "an animation")


def file(text: str) -> str:
    """Read the path of a file with numbers, which is no picture."""
    if Path(text).suffix.lower() in (*PICTURES, ".gif"):
        raise argparse.ArgumentTypeError(f"{text!r}: numbers are kept in a .safetensors file")
    return text


def page(text: str) -> str:
    """Read the path of a page."""
    return _ending_in(text, (".html", ".htm"), "a page")


def folder(text: str) -> str:
    """Read the path of a folder to write to."""
    return text


def _ending_in(text: str, suffixes: tuple[str, ...], kind: str) -> str:
    if Path(text).suffix.lower() not in suffixes:
        raise argparse.ArgumentTypeError(f"{text!r}: {kind} is written as {', '.join(suffixes)}")
    return text


# ---- options that several commands have ----

_RANDOM_OR_TRAINED = "a .safetensors or .pth file, DEFAULT (published) or random"
_WEIGHTS_DEFAULT = "default: the trained ones that come with it (zfnet64, alexnet64, …), else random"
MODEL = (
    Option("model", argument=None, more={"metavar": "MODEL"}),
    Option("--weights", f"{_RANDOM_OR_TRAINED}; {_WEIGHTS_DEFAULT}", argument=None),
    Option("--device", "cpu, cuda, cuda:1, mps, … or auto; default: cpu", argument=None),
)
IMAGES = Option("--images", "folder of images; default: the sample photos", more={"metavar": "DIR"})
LAYER = Option("--layer", '5, or a module path: "features.10"', type=number_or_name)
LAYERS = Option("--layers", "such as 1,2,3 or 5,classifier.3", type=layer_list)
UNITS = Option("--units", '"all", "0,5,9" or "0-15"; default: 16 spread evenly', type=unit_list)
K = Option("--k", "images per unit", default=9, type=int)
RULES = ("deconvnet", "guided", "backprop")
RULE = Option("--rule", "what happens at the rectifiers", default="deconvnet", more={"choices": RULES})
ALLOW_GRADIENT = Option(
    "--allow-gradient",
    "plain gradient for operations without a rule",
    default=False,
    more={"action": "store_true"},
)
LRN = Option("--lrn", "local response normalization, as in the paper or its gradient", default="pass")
HOW = (RULE, LRN.but(choices=("pass", "gradient")), ALLOW_GRADIENT)
BATCH_SIZE = Option("--batch-size", "images per forward pass; default: the data's own, else one that fits", type=int)
WORKERS = Option("--workers", "processes that read images", default=0, type=int)
ON_ERROR = Option("--on-error", "at an image that cannot be read", default="raise", more={"choices": ("raise", "skip")})
READING = (BATCH_SIZE, WORKERS)
DISTINCT = Option(
    "--distinct", "of each photo, file or label at most one per unit", more={"choices": ("source", "label")}
)
SEED = Option("--seed", default=0, type=int)
QUIET = Option(
    "--quiet",
    "no progress",
    argument="progress",
    default=False,
    called=lambda quiet: not quiet,
    more={"action": "store_true"},
)
SAVE = Option("--save", "keep the numbers", argument=None, type=file, more={"metavar": "FILE.safetensors"})
JSON = Option("--json", "print the numbers as JSON", argument=None, default=False, more={"action": "store_true"})
CSV = Option("--csv", "print the numbers as CSV", argument=None, default=False, more={"action": "store_true"})
INTERIOR = Option(
    "--interior",
    "take only places whose receptive field lies inside the image",
    default=False,
    more={"action": "store_true"},
)
FILL = Option("--fill", type=number_or_text)


def out(default: str | None, text: str = "the picture: png, pdf, svg, jpg or webp") -> Option:
    """Return the option that says where the picture goes."""
    return Option("--out", text, argument=None, default=default, type=picture, more={"metavar": "FILE.png"})


def lower_precision(name: str | None) -> Any:
    """Return torch's type for --amp."""
    if name is None:
        return None
    import torch

    return getattr(torch, name)


AMP = Option(
    "--amp",
    "lower precision, faster",
    argument="dtype",
    called=lower_precision,
    more={"choices": ("float16", "bfloat16")},
)


def read_lines(path: str) -> list[str]:
    """Read a text file, one name a line."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot read the class names {path}: {error}. Give a text file, one name a line.") from error
