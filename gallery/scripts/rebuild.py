"""Draws every figure of the gallery again and says what changed.

    python gallery/scripts/rebuild.py
    python gallery/scripts/rebuild.py --tiny-imagenet TINY_IMAGENET --cifar CIFAR --runs RUNS
    python gallery/scripts/rebuild.py --check --only filters,occlusion_panels

The commands are those in the figures' records. What needs data that was not given is skipped, and said so. With
`--check` the committed files come back afterwards. Exit code 1: something changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GALLERY = Path(__file__).parent.parent
FILES = ("README.md", "SOURCES.md", "pictures/*.png", "records/*.json")
DATA = {"TINY_IMAGENET": "tiny_imagenet", "CIFAR": "cifar", "RUNS": "runs"}  # word in a command -> option
AROUND = ("versions", "hardware")  # of the machine, not of the figure


def main() -> int:
    options = _options()
    before = _files()
    skipped, failed = {}, {}
    for command in _commands(options.only):
        words = [_filled(word, options) for word in shlex.split(command)]
        if None in words:
            skipped[command] = f"needs data: --{DATA[_word(command)].replace('_', '-')} {_word(command)}"
            continue
        print(f"$ {command}", flush=True)
        done = subprocess.run([sys.executable, *words[1:]], cwd=GALLERY.parent)  # type: ignore[list-item]
        if done.returncode:
            failed[command] = f"failed with exit code {done.returncode}"
    subprocess.run([sys.executable, "gallery/scripts/claims.py"], cwd=GALLERY.parent, check=True)
    states = dict(_compared(before, _files(), skipped | failed, options.only))
    width = max(map(len, states), default=0)
    print("", *(f"{name.ljust(width)}  {state}" for name, state in states.items()), sep="\n")
    if options.check:
        _restore(before)
    return int(any(not state.startswith(("unchanged", "needs data")) for state in states.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for word, name in DATA.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar=word, type=Path)
    parser.add_argument("--only", metavar="SCRIPTS", type=lambda text: text.split(","), help="such as filters,probe")
    parser.add_argument("--check", action="store_true", help="leave the committed files as they are")
    return parser.parse_args()


def _commands(only: list[str] | None) -> list[str]:
    """Return the distinct commands of the figures."""
    found = {_facts(path.read_bytes())["command"] for path in (GALLERY / "records").glob("*.json")}
    return sorted(c for c in found if only is None or _script(c) in only)


def _script(command: str) -> str:
    return Path(shlex.split(command)[1]).stem


def _word(command: str) -> str:
    return next(word for word in shlex.split(command) if word in DATA)


def _filled(word: str, options: argparse.Namespace) -> str | None:
    if word not in DATA:
        return word
    given = getattr(options, DATA[word])
    return None if given is None else str(given.resolve())


def _files() -> dict[str, bytes]:
    """Return what the commands write: the path from the gallery's folder, and the content."""
    paths = [path for pattern in FILES for path in sorted(GALLERY.glob(pattern))]
    return {path.relative_to(GALLERY).as_posix(): path.read_bytes() for path in paths}


def _restore(before: dict[str, bytes]) -> None:
    for name in _files().keys() - before.keys():
        (GALLERY / name).unlink()
    for name, content in before.items():
        (GALLERY / name).write_bytes(content)


def _facts(content: bytes) -> dict[str, Any]:
    return json.loads(content.decode("utf-8"))


def _compared(
    before: dict[str, bytes], now: dict[str, bytes], troubles: dict[str, str], only: list[str] | None
) -> Iterator[tuple[str, str]]:
    """Yield each figure, and last README.md, with what became of it."""
    for name in sorted(Path(file).stem for file in now if file.startswith("records/")):
        picture, record = f"pictures/{name}.png", f"records/{name}.json"
        facts = _facts(now[record])
        if only is None or _script(facts["command"]) in only:
            old, new = (before.get(record), before.get(picture)), (now[record], now[picture])
            yield name, troubles.get(facts["command"]) or _difference(old, new)
    yield "README.md", "unchanged" if before.get("README.md") == now.get("README.md") else "changed: the claims"


def _difference(old: tuple[bytes | None, bytes | None], new: tuple[bytes, bytes]) -> str:
    if old[0] is None or old[1] is None:
        return "new"
    then, now = (dict(_leaves(_facts(x))) for x in (old[0], new[0]))
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    values = [f"{key}: {then.get(key)} → {now.get(key)}" for key in keys if key.split("/")[0] not in AROUND]
    same = hashlib.sha256(old[1]).digest() == hashlib.sha256(new[1]).digest()
    parts = [] if same else ["the picture"]
    parts += values[:3] + ([f"and {len(values) - 3} more values"] if len(values) > 3 else [])
    if parts:
        return f"changed: {'; '.join(parts)}"
    return "unchanged" + (" (other versions or machine)" if keys else "")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path/to/number and its value for everything inside of dicts; lists stay whole."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _leaves(one, f"{path}/{key}" if path else key)
    else:
        yield path, value


if __name__ == "__main__":
    sys.exit(main())
