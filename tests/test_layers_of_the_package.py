"""The layer order: a folder imports from lower lines alone, whether at the top, in a function or for types only."""

import ast
import graphlib
from pathlib import Path

import deconvviz

ROOT = Path(deconvviz.__file__).parent
LINES = """
cli
plotting integrations
comparison explorer training
occlusion studies
projection optimization
topk
scan
model
images jobs rules zoo
tape results guard checks ranks targets calls
devices modes errors
"""
LINE = {room: number for number, rooms in enumerate(reversed(LINES.split("\n"))) for room in rooms.split()}
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
OF_THE_CLI = {
    "",
    "checks",
    "errors",
    "ranks",
    "results.store",
    "zoo",
    "zoo.create",
}  # "" is the package itself, as its users have it


def module_of(path):
    return ".".join(part for part in path.with_suffix("").parts if part != "__init__")


MODULES = {module_of(path): path for path in FILES}


def imported(path):
    """Yield (module, name, alias) for what a file of the package imports of the package."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "deconvviz":
                    yield alias.name.partition(".")[2], None, alias.asname
        elif isinstance(node, ast.ImportFrom):
            above = path.parent.parts[: len(path.parent.parts) + 1 - node.level] if node.level else ()
            package = (node.module or "").split(".")
            if node.level or package[0] == "deconvviz":
                base = ".".join((*above, *filter(None, package if node.level else package[1:])))
                for alias in node.names:
                    inside = f"{base}.{alias.name}".strip(".")
                    yield (inside, None, alias.asname) if inside in MODULES else (base, alias.name, alias.asname)


ARROWS = {(module_of(path), module) for path in FILES for module, *_ in imported(path) if module_of(path) != module}


def room(module):
    return module.partition(".")[0]


def test_every_room_has_its_line():
    assert {room(module) for module in MODULES} - {"", "__main__"} == set(LINE)
    assert len([line for line in LINES.split("\n") if line]) <= 11


def test_the_picture_in_contributing_has_this_order():
    text = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (picture,) = (part for part in text.split("```") if part.lstrip().startswith("cli "))
    named = [[word for word in row.split("  ") if word.strip() in LINE] for row in picture.splitlines()]
    assert [" ".join(word.strip() for word in row) for row in named if row] == LINES.strip().split("\n")


def test_arrows_run_down():
    outside = [(a, b) for a, b in ARROWS if room(a) not in ("", "__main__", "cli") and room(a) != room(b)]
    assert [f"{a} -> {b}" for a, b in sorted(outside) if b == "" or LINE[room(a)] <= LINE[room(b)]] == []


def test_the_command_line_uses_the_package_as_its_users_do():
    taken = sorted((a, b) for a, b in ARROWS if room(a) == "cli" and room(b) != "cli")
    assert [f"{a} -> {b}" for a, b in taken if b not in OF_THE_CLI] == []


def test_no_file_imports_in_a_circle():
    graph = {module: {b for a, b in ARROWS if a == module and b} for module in MODULES}
    assert list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_at_most_ten_floors():
    below = {name: {room(b) for a, b in ARROWS if room(a) == name and b} - {name} for name in LINE}
    floors = {}
    for name in graphlib.TopologicalSorter(below).static_order():
        floors[name] = 1 + max((floors[other] for other in below[name]), default=0)
    assert max(floors.values()) <= 10


def test_names_come_from_their_owner():
    """No private name of another file, and no name handed on but by a folder's `__init__`."""
    found = set()
    for path in FILES:
        for module, name, alias in imported(path):
            name = name or module.rpartition(".")[2]
            private = name.startswith("_") and not name.startswith("__")
            if private or (name == alias and path.name != "__init__.py"):
                found.add(f"{module_of(path)}: {name}")
    assert sorted(found) == []


def test_matplotlib_is_imported_in_plotting_alone():
    found = set()
    for path in FILES:
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(name.partition(".")[0] == "matplotlib" for name in names):
                found.add(module_of(path))
    assert sorted(m for m in found if room(m) != "plotting") == []
