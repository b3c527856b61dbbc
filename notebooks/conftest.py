"""Where the tests execute notebooks, warnings are errors, as they are in the tests themselves."""

from collections.abc import Iterator

import pytest
from execute import QUIET


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        return (yield)
