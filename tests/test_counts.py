"""Kernels and waits on the simulated device stay within their bounds, which no machine's speed moves."""

from dataclasses import astuple

import pytest
from counted_work import STEP, WORKS, counted, counted_step


def within(found, most):
    return all(a <= b for a, b in zip(astuple(found), astuple(most), strict=True))


@pytest.mark.parametrize("name", WORKS)
def test_a_call_causes_few_kernels_and_waits(name):
    found = counted(WORKS[name])
    assert found.kernels > 100 and within(found, WORKS[name].most), found


@pytest.mark.parametrize("dtype", STEP)
def test_a_step_of_training_waits_once(dtype):
    found = counted_step(dtype)
    assert found.kernels > 100 and within(found, STEP[dtype]), found
