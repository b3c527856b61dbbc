"""The parser, built from the entries of the commands."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from . import seeing, studies, training
from .options import Command

COMMANDS: tuple[Command, ...] = (*seeing.COMMANDS, *studies.COMMANDS, *training.COMMANDS)

_MODELS = """
MODEL is a name of the zoo (zfnet, zfnet64, alexnet, alexnet64, resnet-20, …), torchvision:NAME or the bare NAME,
timm:NAME, or path/to/file.py:FUNCTION, a function of no arguments that returns the network."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line; `.command` is the name of the command, `.run` does it.

    A mistake prints what is wrong, with what may have been meant, and exits with 2.
    """
    whole, commands = _parsers()
    parsed, rest = whole.parse_known_args(arguments)
    if rest:
        commands[parsed.command].error(f"unrecognized arguments: {' '.join(rest)}")
    return parsed


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    whole = _Parser(prog="deconvviz", description="Shows what a convolutional network sees.", allow_abbrev=False)
    whole.add_argument("--version", action=_Version, nargs=0, help="print the version and stop")
    choice = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        takes_model = any(option.name == "model" for option in command.options)
        one = choice.add_parser(
            command.name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"example: {command.example}\n{_MODELS * takes_model}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        one.set_defaults(run=command)
        for option in command.options:
            option.add_to(one)
    return whole, dict(choice.choices)


class _Parser(argparse.ArgumentParser):
    """Says what may have been meant."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, with a hint where a word looks like one there is."""
        known = {flag for action in self._actions for flag in (*action.option_strings, *(action.choices or ()))}
        words = [word.strip("',:").partition("=")[0] for word in message.split()]
        close = [
            found for word in words if word not in known for found in difflib.get_close_matches(word, known, 1, 0.7)
        ]
        super().error(f"{message}. Did you mean {close[0]}?" if close else message)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import deconvviz

        print(f"deconvviz {deconvviz.__version__}")
        parser.exit()
