"""Tables for a terminal and for a notebook, and what layers are called in texts: written once for all results."""

from __future__ import annotations

import html
from collections.abc import Sequence


def as_text(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in columns."""
    widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in (headings, *rows))
    return "\n".join(lines)


def as_html(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out for a notebook."""

    def line(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    return f"<table>{line('th', headings)}{''.join(line('td', row) for row in rows)}</table>"


def layer_name(name: str, number: int | None) -> str:
    """Return what texts call a layer: its number, where it has one, and its module path."""
    return name if number is None else f"layer {number}: {name}"


def amount(number: int, noun: str) -> str:
    """Return a number of things: "1 layer", "2 layers"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def skipped_lines(skipped: Sequence[tuple[int, str]]) -> list[str]:
    """Return a line for each image that could not be read."""
    return [f"skipped image {number}: {reason}" for number, reason in skipped]


def listed(names: Sequence[str], numbers: Sequence[int | None] | None = None) -> str:
    """Return the layers that a result has, for an error message."""
    pairs = zip(names, numbers or [None] * len(names), strict=True)
    return ", ".join(f"{name!r}" if number is None else f"{name!r} ({number})" for name, number in pairs)
