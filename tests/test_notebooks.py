"""The notebooks as they are committed: pictures present, in order, light, free of this machine's traces.

That they run, and without a warning, `pytest notebooks` says, which executes each of them; `.ci/run` calls it.
"""

from __future__ import annotations

import ast
import base64
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = [
    "01_what_a_convnet_sees",
    "02_occlusion",
    "03_alexnet_vs_zfnet",
    "04_training_watched",
    "05_resnet_responses",
    "06_any_model",
    "07_what_would_this_unit_like_to_see",
    "08_what_a_layer_still_knows",
]
each = pytest.mark.parametrize("name", NAMES)


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(name: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def prose(name: str) -> str:
    return "\n\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")


def parsed(cell: nbformat.NotebookNode) -> ast.Module:
    return ast.parse(re.sub("^%.*$", "", cell.source, flags=re.MULTILINE))


def shows(cell: nbformat.NotebookNode) -> bool:
    """Say whether a cell prints or ends with a value that the notebook displays; widgets are not saved."""
    last = parsed(cell).body[-1]
    return "print(" in cell.source or (isinstance(last, ast.Expr) and not cell.source.endswith(";"))


def test_these_are_all():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@each
def test_valid_and_stable(name: str):
    notebook = read(name)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3" and notebook.metadata.language_info == {"name": "python"}
    assert not any(cell.metadata for cell in notebook.cells)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 2_000_000


@each
def test_every_cell_that_shows_something_has_its_output(name: str):
    cells = code(name)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    missing = [cell.source for cell in cells if shows(cell) and not cell.outputs]
    assert not missing
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


@each
def test_pictures_can_be_read(name: str):
    data = [output.data for cell in code(name) for output in cell.outputs if "data" in output]
    files = [d[kind] for d in data for kind in ("image/png", "image/jpeg") if kind in d]
    pictures = [Image.open(io.BytesIO(base64.b64decode(file))) for file in files]
    assert len(pictures) >= 3
    for picture in pictures:
        assert min(picture.size) >= 150 and max(picture.size) <= 1600
        assert np.asarray(picture.convert("RGB")).std() > 5  # not blank


@each
def test_no_trace_of_the_machine(name: str):
    texts = []
    for output in (output for cell in code(name) for output in cell.outputs):
        texts.append(output.get("text", ""))
        texts += [str(text) for kind, text in output.get("data", {}).items() if not kind.startswith("image/")]
    found = [text for text in texts if re.search(r"/(tmp|root|home|work|Users|private|var|usr)/|0x[0-9a-f]{6,}", text)]
    assert not found
    assert "Warning" not in "".join(texts)


@each
def test_the_text_is_a_lesson(name: str):
    text = prose(name)
    assert text.startswith("# ") and "arxiv.org" in text and re.search(r"[Ss]ection \d|Fig\. \d|arXiv:", text)
    assert all(f"**{said}" in read(name).cells[0].source for said in ("After it", "Before", "About"))
    answered = re.findall(r"\*\*Question\.\*\*.*?(?=\n\n)\n\n<details><summary>Answer</summary>\n\n", text, re.DOTALL)
    assert 0 < text.count("**Question.**") == len(answered) == text.count("\n\n</details>")
    assert "interact_manual(" in "".join(cell.source for cell in code(name))
    assert not re.search(r"TODO|CAPTION", text)
    assert re.findall(r"^## (.*)", text, re.MULTILINE)[-1].startswith("With your own model")


@each
def test_functions_are_short(name: str):
    functions = [n for cell in code(name) for n in ast.walk(parsed(cell)) if isinstance(n, ast.FunctionDef)]
    assert functions and all(len(f.body) <= 5 and (f.end_lineno or 0) - f.lineno < 8 for f in functions)


def test_the_readme_lists_them():
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert all(f"(notebooks/{name}.ipynb)" in readme for name in NAMES)
    assert "python notebooks/execute.py" in readme


# ---- the two ways to run them ----------------------------------------------------------------------------------------


def scratch(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source, id=f"c{i}") for i, source in enumerate(sources)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_execution_fails_on_a_warning_or_an_exception(tmp_path: Path):
    for helper in ("conftest.py", "execute.py"):
        shutil.copy(FOLDER / helper, tmp_path)
    scratch(tmp_path / "fine.ipynb", "import warnings; print(warnings)")
    scratch(tmp_path / "warns.ipynb", "import warnings; warnings.warn('mind the gap')")
    scratch(tmp_path / "raises.ipynb", "1 / 0")
    command = [sys.executable, "-m", "pytest", "--nbmake", "-p", "no:cacheprovider", "-p", "no:xdist"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert run.returncode == 1 and "2 failed, 1 passed" in run.stdout, run.stdout
    assert re.search("FAILED warns.*mind the gap", run.stdout) and re.search("FAILED raises.*division", run.stdout)


@pytest.fixture(scope="module")
def execute():
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_large_picture_becomes_a_jpeg(execute):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8))
    for size, kind in (((40, 40), "image/png"), ((400, 400), "image/jpeg")):
        file = io.BytesIO()
        noise.resize(size).save(file, "PNG")
        output = nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(file.getvalue()).decode()})
        assert set(execute.lighter(output).data) == {kind}
        assert Image.open(io.BytesIO(base64.b64decode(output.data[kind]))).size == size


def test_execution_is_repeatable_and_drops_the_noise(tmp_path: Path):
    source = "import sys, ipywidgets\nprint('bar', file=sys.stderr)\ndisplay(ipywidgets.IntSlider())\nprint('kept')"
    path = scratch(tmp_path / "scratch.ipynb", source, "6 * 7")
    files = []
    for _ in range(2):
        subprocess.run([sys.executable, FOLDER / "execute.py", path], check=True, capture_output=True, timeout=240)
        files.append(path.read_text())
    first, second = (cell["outputs"] for cell in json.loads(files[0])["cells"])
    assert [output["text"] for output in first] == [["kept\n"]] and second[0]["data"]["text/plain"] == ["42"]
    assert files[0] == files[1]
