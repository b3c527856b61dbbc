"""What every result shares: a line in a terminal, `==`, a file, a drawing that is found by name."""

import dataclasses
import inspect
from importlib import import_module

import pytest
import torch
from saved_results import FOLDER, SAVED, saved

import deconvviz
from deconvviz import StoreError
from deconvviz.results.base import Result, Stored
from deconvviz.training.result import Training


def subclasses(kind):
    for one in kind.__subclasses__():
        if one.__module__.startswith("deconvviz."):
            yield one
        yield from subclasses(one)


for _name in deconvviz.__all__:
    getattr(deconvviz, _name)  # every class is there
RESULTS = sorted(set(subclasses(Result)), key=lambda kind: kind.__name__)
EVERY = sorted(set(subclasses(Stored)) - {Result}, key=lambda kind: kind.__name__)


def arrays(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple):
        for one in value:
            yield from arrays(one)
    elif isinstance(value, Stored):
        for field in dataclasses.fields(value):
            yield from arrays(getattr(value, field.name))


@pytest.mark.parametrize("name", SAVED)
def test_files_of_the_version_before_are_read_and_written_again(name, tmp_path):
    result = saved(name)
    assert any(len(array) for array in arrays(result)) or len(result.history) == 2
    result.save(tmp_path / "again.safetensors")
    again = type(result).load(tmp_path / "again.safetensors")
    assert again == result and not again != result
    for one, other in zip(arrays(result), arrays(again), strict=True):
        assert one.dtype == other.dtype and torch.equal(one.nan_to_num(7), other.nan_to_num(7))


@pytest.mark.parametrize("name", SAVED)
def test_repr_and_print_are_one_line(name):
    result, line = saved(name), SAVED[name][1]
    assert repr(result) == str(result) == line and len(result.table()) > 10


@pytest.mark.parametrize("name", SAVED)
def test_a_result_is_drawn_in_a_notebook(name):
    assert saved(name)._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", SAVED)
def test_one_number_or_fact_that_differs_makes_results_differ(name):
    result = saved(name)
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if isinstance(value, torch.Tensor) and value.numel():
            other = value.clone()
            flat = other.view(-1)
            flat[-1] = ~flat[-1] if flat.dtype == torch.bool else flat[-1] + 1 if flat[-1] == flat[-1] else 0
        elif isinstance(value, str):
            other = value + "x"
        elif isinstance(value, tuple) and value and not isinstance(value[0], float):
            other = value[1:]
        else:
            continue
        changed = dataclasses.replace(result, **{field.name: other})
        assert changed != result and not changed == result, field.name
    assert result != 1 and result != "x"


@pytest.mark.parametrize("name", SAVED)
def test_results_have_no_hash_for_their_numbers_can_change(name):
    with pytest.raises(TypeError, match="unhashable"):
        hash(saved(name))


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_a_subclass_changes_nothing_of_what_is_shared(kind):
    for name in ("__eq__", "__repr__", "__str__", "__hash__"):
        assert getattr(kind, name) is getattr(Stored, name), f"{kind.__name__} has its own {name}"
    assert kind.__dataclass_params__.frozen


@pytest.mark.parametrize("kind", RESULTS, ids=lambda kind: kind.__name__)
def test_the_drawing_of_every_result_is_found_by_name(kind):
    draw = import_module(f"deconvviz.plotting.{kind.drawn_by}").draw
    parameters = list(inspect.signature(draw).parameters.values())
    assert parameters[1].name == "figure" and parameters[1].default is None
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_a_file_of_another_kind_is_refused(kind, tmp_path):
    name = "training" if kind is not Training else "filters"
    with pytest.raises(StoreError, match="holds"):
        kind.load(FOLDER / f"{name}.safetensors")
