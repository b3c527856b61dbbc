"""The package from outside: its names, their documentation, and what an import costs."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import deconvviz

SOURCE = Path(deconvviz.__file__)
CALLABLES = [n for n in deconvviz.__all__ if callable(getattr(deconvviz, n))]
FUNCTIONS = [n for n in CALLABLES if inspect.isfunction(getattr(deconvviz, n))]
FUNCTIONS += ["zoo.create", "zoo.names"]


def find(name):
    found = deconvviz
    for part in name.split("."):
        found = getattr(found, part)
    return found


def python(code, *arguments):
    """Run code in a fresh interpreter and return what it printed."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()


def test_all_is_sorted_and_has_no_name_twice():
    assert deconvviz.__all__ == sorted(set(deconvviz.__all__))


def test_every_name_is_there_and_in_dir():
    assert all(getattr(deconvviz, name) is not None for name in deconvviz.__all__)
    assert dir(deconvviz) == sorted([*deconvviz.__all__, "__version__"])


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'deconvviz' has no attribute 'nothing'"):
        _ = deconvviz.nothing


def test_the_version_is_a_version():
    assert deconvviz.__version__[0].isdigit()


def test_no_module_bears_the_name_of_a_public_function():
    public = {n for n in deconvviz.__all__ if not inspect.ismodule(getattr(deconvviz, n))}
    assert public.isdisjoint(path.stem for path in SOURCE.parent.iterdir())


def test_an_import_loads_nothing_heavy():
    assert python("import deconvviz, sys; print('torch' in sys.modules)") == ["False"]


def test_the_public_functions_load_neither_matplotlib_nor_captum():
    code = "import deconvviz, sys\nfor n in deconvviz.__all__: getattr(deconvviz, n)\n"
    code += "print(*{'matplotlib', 'captum', 'timm', 'skimage'} & set(sys.modules))"
    assert python(code) == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["project", "--help"], ["train", "--help"]])
def test_help_answers_without_torch(arguments):
    code = "import sys\nfrom deconvviz.cli.main import main\ntry: main(sys.argv[1:])\n"
    code += "finally: print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert python(code, *arguments)[-2:] == ["False", "False"]


def test_python_m_runs_the_command():
    command = [sys.executable, "-m", "deconvviz", "--version"]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert output == f"deconvviz {deconvviz.__version__}\n"


@pytest.mark.parametrize("name", [*CALLABLES, "zoo", "zoo.create", "zoo.names"])
def test_everything_public_is_documented(name):
    assert inspect.getdoc(find(name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_an_example(name):
    assert ">>>" in inspect.getdoc(find(name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_at_most_two_positional_arguments(name):
    kinds = [p.kind for p in inspect.signature(find(name)).parameters.values()]
    assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 2
