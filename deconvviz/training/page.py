"""The page that links the pictures of a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from ..results.store import replacing
from ..zoo import Card


class Section(NamedTuple):
    """One part of the page: a heading, a line, and the name of a picture beside the page, if there is one."""

    title: str
    words: str
    picture: str | None = None


def write(path: Path, card: Card, sections: Sequence[Section], words: str) -> None:
    """Write the page, all or nothing."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in _facts(card, words))
    links = "".join(f'<li><a href="#s{n}">{escape(s.title)}</a></li>' for n, s in enumerate(sections))
    parts = "\n".join(_section(number, section) for number, section in enumerate(sections))
    with replacing(path) as temporary:
        text = _PAGE.format(name=escape(card.name), style=_STYLE, rows=rows, links=links, sections=parts)
        temporary.write_text(text, encoding="utf-8")


def _section(number: int, section: Section) -> str:
    shown = ""
    if section.picture is not None:
        source, words = escape(section.picture, quote=True), escape(section.title, quote=True)
        shown = f'<a href="{source}"><img src="{source}" alt="{words}" loading="lazy"></a>'
    return (
        f'<section id="s{number}">\n<h2>{escape(section.title)}</h2>\n<p>{escape(section.words)}</p>\n{shown}</section>'
    )


def _facts(card: Card, words: str) -> list[tuple[str, str]]:
    facts = [("Network", card.name), ("Paper", card.paper)]
    facts += [("Differs from it", " ".join(card.deviations))] if card.deviations else []
    for name, value in (card.training or {}).items():
        if isinstance(value, (str, int)):
            facts.append((name.replace("_", " ").capitalize(), str(value)))
    return [*facts, ("Pictures", words)]


_STYLE = """
:root { color-scheme: light; --ink: #1d2129; --soft: #5c6370; --line: #e3e5e9; --accent: #c2410c; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 17px/1.6 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .25rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
p { max-width: 44rem; margin: .5rem 0; color: var(--soft); }
a { color: var(--accent); }
ul { columns: 2; max-width: 44rem; padding-left: 1.2rem; }
section { overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; margin-top: 1rem; }
table { border-collapse: collapse; font-size: .9rem; max-width: 60rem; margin-top: 1rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem 1rem .4rem 0; border-bottom: 1px solid var(--line); }
th { white-space: nowrap; font-weight: 600; }
td { overflow-wrap: anywhere; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What {name} sees</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>What {name} sees after its training</h1>
<p>Each block of nine belongs to one unit; its number stands above. At the right are the nine pieces of validation
images that excite the unit most, at the left, in the same order, what excited it: the one activation, carried back
through the network to pixels. Gray is nothing.</p>
<ul>{links}</ul>
{sections}
<section><h2>The network</h2>
<table>{rows}</table></section>
</main>
</body>
</html>
"""
