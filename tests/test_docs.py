"""The API reference: it is built without a warning, and every public name is in it. The pages before it: they run."""

import inspect
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import deconvviz
from deconvviz.cli.parser import parse
from deconvviz.images import PHOTOS

pytest.importorskip("sphinx")
pytest.importorskip("furo")

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = "sphinx-build -W --keep-going -q docs build/docs"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", *COMMAND.split()[1:-1], str(out), "-d", str(out / "doctrees")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return out


@pytest.mark.docs
def test_the_reference_has_every_public_name_and_no_other_of_the_package(built):
    from sphinx.util.inventory import InventoryFile

    with open(built / "objects.inv", "rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, page: page)
    kinds = ("py:function", "py:class", "py:exception")
    documented = {name for kind in kinds for name in inventory.get(kind, {})}
    wanted = {f"deconvviz.{name}" for name in deconvviz.__all__ if not inspect.ismodule(getattr(deconvviz, name))}
    wanted |= {f"deconvviz.zoo.{name}" for name in deconvviz.zoo.__all__}
    assert wanted - documented == set()
    assert {n for n in documented if n.count(".") == 1} - wanted == set()


@pytest.mark.docs
def test_names_in_backticks_became_links_and_errors_too(built):
    page = (built / "seeing.html").read_text(encoding="utf-8")
    for name in ("compare_methods", "TopK", "plotting.projections.draw", "UnsupportedOp"):
        assert f'title="deconvviz.{name}"' in page, name


def test_the_readme_says_how_to_build_it():
    assert COMMAND in README


# ---- the pages for who is new ----------------------------------------------------------------------------------------

GUIDES = {name: (ROOT / "docs" / f"{name}.rst").read_text(encoding="utf-8") for name in ("start", "concepts")}


def blocks(page, language):
    found = re.findall(rf"^\.\. code-block:: {language}\n\n((?: {{4}}.*\n|\n)+)", GUIDES[page], re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


@pytest.mark.parametrize("page", GUIDES)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    photos = {photo.name: photo.path for photo in PHOTOS}
    for folder, name in (("cats", "chelsea"), ("cups", "coffee")):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        shutil.copy(photos[name], tmp_path / "photos" / folder / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block, f"{page}.rst", "exec"), names)


def test_the_commands_of_the_first_page_are_ones():
    lines = "".join(blocks("start", "bash")).splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("deconvviz ")]
    assert len(commands) == 5 and [parse(command).command for command in commands] == [c[0] for c in commands]


def plain(text):
    return " ".join(re.sub(r"[`*]|-(?= )", "", text).split())


def test_the_families_are_those_of_the_readme():
    table = README.split("| family |")[1].split("\n\n")[0].splitlines()[2:]
    wanted = [plain(row.replace("|", " ")) for row in table]
    assert len(wanted) == 4 and all(row in plain(GUIDES["concepts"]) for row in wanted)


def papers(text):
    return set(re.findall(r"arXiv:\d{4}\.\d{4,5}", text))


def test_every_paper_with_a_number_is_listed():
    cited = [papers(path.read_text(encoding="utf-8")) for path in (ROOT / "deconvviz").rglob("*.py")]
    assert len(set().union(*cited)) > 20 and set().union(*cited) <= papers(GUIDES["concepts"])
