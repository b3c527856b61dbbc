"""The API reference: it is built without a warning, and every public name is in it."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import deconvviz

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


def test_names_in_backticks_became_links_and_errors_too(built):
    page = (built / "seeing.html").read_text(encoding="utf-8")
    for name in ("compare_methods", "TopK", "plotting.projections.draw", "UnsupportedOp"):
        assert f'title="deconvviz.{name}"' in page, name


def test_the_readme_says_how_to_build_it():
    assert COMMAND in README
