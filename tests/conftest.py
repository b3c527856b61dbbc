"""Settings that all tests share: nothing needs an environment variable, and no machine's speed decides."""

import gc
import os
from collections.abc import Iterator

# One thread in each process, in those that tests start as well: pytest's workers share the cores among them, and the
# libraries of numpy read this when they are loaded. A number that the caller has set counts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Looking for garbage took a tenth of the time, most of it in the libraries' own objects, which stay.
gc.set_threshold(20_000)

# The same examples in every run, however slow the machine; a failing one is small already, and shrinking takes minutes.
settings.register_profile(
    "tests",
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile("tests")


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For what forks or compares processes to the bit: a fork has no pool of threads, and sums have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
