"""Whole numbers are taken in every form they come in and in no other; devices are there or refused."""

import numpy as np
import pytest
import torch

import deconvviz
from deconvviz.checks import at_once, find_device, is_whole, numbers_of, whole, wholes
from deconvviz.errors import OptionError, UnitError

WHOLE = [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)]
NOT = [True, np.True_, torch.tensor(True), np.array(True), 3.0, np.float32(3), torch.tensor(3.0), "3", None, [3]]
NOT += [torch.tensor([3]), np.array([3]), 3j]


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_whole_numbers_become_ints(value):
    found = whole(value, "k")
    assert is_whole(value) and found == 3 and type(found) is int


@pytest.mark.parametrize("value", NOT, ids=repr)
def test_what_is_no_whole_number_is_refused_by_name(value):
    assert not is_whole(value)
    with pytest.raises(OptionError, match=r"k=.*: expected a whole number of at least 1\."):
        whole(value, "k", 1)


def test_a_number_below_the_least_is_refused():
    with pytest.raises(OptionError, match=r"k=0: expected a whole number of at least 1\."):
        whole(0, "k", 1)
    assert whole(0, "k", 0) == 0 and whole(-4, "k") == -4


@pytest.mark.parametrize("values", [[1, 2], range(1, 3), (np.int32(1), 2), np.array([1, 2]), torch.tensor([1, 2])])
def test_several_whole_numbers(values):
    found = wholes(values, "units")
    assert found == [1, 2] and all(type(n) is int for n in found)


@pytest.mark.parametrize("values", [[True, False], torch.tensor([True]), np.array([1.0]), 7, ["1"]])
def test_masks_and_floats_are_no_list_of_numbers(values):
    with pytest.raises(UnitError, match="units="):
        wholes(values, "units", error=UnitError)


@pytest.mark.parametrize("name", ["cuda:99", "nothing", "xla", "", "cpu:x", 3.5])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name):
    with pytest.raises(OptionError, match=r"is not there. There are: .*cpu; or 'auto'"):
        find_device(name)


def test_a_training_misses_its_device_before_the_work(tmp_path):
    with pytest.raises(OptionError, match=r"device='cuda:99' is not there"):
        deconvviz.train("zfnet64", tmp_path, out=tmp_path / "out", device="cuda:99", progress=False)
    assert not (tmp_path / "out").exists()


def test_devices_that_are_there():
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")
    assert torch.ones(1, device=find_device("auto")).sum() == 1


@pytest.mark.parametrize("mask", [[False, True, True], np.array([0, 1, 1], bool), torch.tensor([0, 1, 1]).bool()])
def test_a_mask_stands_for_the_places_where_it_is_true(mask):
    assert numbers_of(mask, 3, "units") == [1, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([True, False], "units is a mask of 2 flags, expected 3"),
        ([False] * 3, "units holds no number"),
        ([], "units holds no number"),
        ([True, 2], "units=True: expected a whole number"),
        ("12", "expected a whole number"),
        (3, "units=3: expected whole numbers in a list"),
    ],
)
def test_other_masks_and_lists_are_refused(values, message):
    with pytest.raises(UnitError, match=message):
        numbers_of(values, 3, "units", error=UnitError)


def test_how_many_at_once():
    assert [at_once(None, None), at_once(None, 5), at_once(np.int64(3), 5), at_once(None, None, 32)] == [64, 5, 3, 32]
    with pytest.raises(OptionError, match=r"batch_size=0: expected a whole number of at least 1"):
        at_once(0, None)
