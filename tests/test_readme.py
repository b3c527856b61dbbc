"""The README: its Python runs, its commands are the ones that are tested, its links lead somewhere."""

import re
from pathlib import Path

import pytest

import deconvviz

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", PYTHON, ids=[f"block {i}" for i in range(len(PYTHON))])
def test_python_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"deconvviz": deconvviz})


def test_there_are_two_set_up_commands_of_one_line():
    set_up = [c for c in COMMANDS if "venv" in c]
    assert len(set_up) == 2 and all(c.count("\n") == 1 for c in set_up)
    assert set_up[0].endswith("deconvviz demo\n") and "pytest" in set_up[1]


def test_continuous_integration_runs_the_same_tests():
    command = next(c for c in COMMANDS if "pytest" in c).strip()
    assert f"    {command}\n" in (ROOT / ".ci" / "run").read_text()


def test_every_public_function_is_named():
    functions = [n for n in deconvviz.__all__ if n.islower() and callable(getattr(deconvviz, n))]
    assert all(f"`{n}(" in README or f"`{n}." in README for n in functions)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_the_citation_is_of_this_version():
    citation = dict(re.findall(r"^([\w-]+): (.+)", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE))
    assert citation["version"] == deconvviz.__version__
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
