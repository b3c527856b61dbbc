"""What a recorded pass saves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from deconvviz.rules import saving
from deconvviz.rules.table import Saving
from deconvviz.tape.record import record


class Pool(torch.nn.Module):
    def __init__(self, *how):
        super().__init__()
        self.how = how

    def forward(self, x):
        return F.max_pool2d(x, *self.how)


def switches(x, how):
    (op,) = record(Pool(*how), x, saver=Saving()).ops
    return op.saved.switches


sizes = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(sizes, sizes, sizes, sizes, st.integers(5, 19), st.integers(5, 19), st.booleans())
def test_switches_say_the_tap_of_each_maximum(kernel, stride, padding, dilation, height, width, up):
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    x = torch.rand(2, 3, height, width)
    how = kernel, stride, padding, dilation, up
    found = switches(x, how)
    out, index = F.max_pool2d(x, *how, return_indices=True)
    first = [torch.arange(n) * s - p for n, s, p in zip(out.shape[2:], stride, padding, strict=True)]
    down, across = (found // kernel[1]).long() * dilation[0], (found % kernel[1]).long() * dilation[1]
    inside = out > -torch.inf  # a window may lie in the padding alone
    assert torch.equal(((first[0][:, None] + down) * width + first[1] + across)[inside], index[inside])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "_EXACT", 0)
        assert torch.equal(switches(x, how)[inside], found[inside])


@pytest.mark.parametrize("width", [1, 3, 41, 1023, 1024, 29_959, saving._EXACT // 2, saving._EXACT - 1])
def test_the_largest_map_is_divided_without_a_mistake(width):
    height = (saving._EXACT - 1) // width
    x = torch.arange(height * width).float().view(1, 1, height, width)
    assert not switches(x, ((1, 1), (1, 1))).any()
