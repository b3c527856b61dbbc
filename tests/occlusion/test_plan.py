"""The plan of the fast path, without a run: how each operation is computed, on which windows, in which groups."""

import dataclasses

import pytest
import torch
from occlusion_helpers import build, photo
from random_networks import Block
from torch import nn

from deconvviz.guard import untouched
from deconvviz.occlusion.incremental import Runner
from deconvviz.occlusion.plan import SIZES, Plan, Unbatched, Way
from deconvviz.occlusion.windows import Part, Unoccluded, Window
from deconvviz.rules import table as rules
from deconvviz.tape.record import record

BOXES = torch.tensor([[0, 0, 5, 4], [3, 6, 8, 10], [15, 13, 20, 17], [9, 2, 14, 6]])


def planned(network, image=None, boxes=BOXES):
    with untouched(network) as inner:
        tape = record(inner, photo()[None] if image is None else image, keep=None)
    return Plan.of(tape, None, boxes)


def test_each_operation_has_its_way():
    plan = planned(build())
    ways = {step.op.short: step.way for step in plan.steps}
    assert ways["conv2d"] is ways["max_pool2d"] is Way.SLIDE and ways["batch_norm"] is Way.CHANNELS
    assert ways["relu"] is ways["add"] is Way.POINTWISE and ways["mean"] is Way.WHOLE
    assert plan.steps[plan.cut - 1].op.short == "mean" and plan.crossing == plan.steps[plan.cut - 1].op.outputs
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.cut = 0


def test_windows_hold_what_the_receptive_fields_say_and_lie_on_the_map():
    plan = planned(build())
    reaches, windows, seen = rules.reach_all(plan.tape), plan.windows(BOXES, cover=9.0), 0
    for value, window in windows.items():
        if window is None:
            continue
        spans = ((window.rows, reaches[value].rows, 0), (window.cols, reaches[value].cols, 1))
        for place, span, axis in spans:
            length = plan.tape.shapes[value][-2 + axis]
            assert (place.start >= 0).all() and (place.start + place.size <= length).all()
            for i, box in enumerate(BOXES.tolist()):
                touched = [n for n in range(length) if span.lo[n] < box[2 + axis] and span.hi[n] > box[axis]]
                assert touched == list(range(int(place.low[i]), int(place.high[i])))
                assert place.start[i] <= touched[0] and touched[-1] < place.start[i] + place.size
                seen += 1
    assert seen > 40


def test_windows_that_cover_most_of_a_map_are_not_cut():
    plan = planned(build())
    whole = plan.windows(torch.tensor([[0, 0, 20, 17]]))
    assert all(window is None for value, window in whole.items() if value)
    assert plan.largest(BOXES) < plan.largest(torch.tensor([[0, 0, 20, 17]])) == 6 * 20 * 17


def test_groups_hold_every_position_once():
    boxes = torch.tensor([[r, c, r + 5, c + 4] for r in range(0, 16, 3) for c in range(0, 14, 3)])
    groups = list(planned(build(), boxes=boxes).groups())
    assert torch.equal(torch.cat(groups).sort().values, torch.arange(len(boxes)))
    assert 1 < len(groups) <= SIZES**2


@pytest.mark.parametrize(("kind", "message"), [
    ("normalized", r"torch.Tensor.mean in module '0' gives \(\) for one image"),
    ("branched", r"__bool__ in module '0' takes numbers out of the image's own pass"),
    ("batch_norm_of_its_own", "batch_norm in module '0' normalizes with the statistics of its batch"),
    ("folded", "gives .* for one image, not one row per image"),
])  # fmt: skip
def test_what_was_recorded_for_one_image_alone_is_refused(kind, message):
    import random

    between = Block(kind, 3, (20, 17), random.Random(0))
    network = nn.Sequential(between, nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(4)).double().eval()
    network(photo()[None])
    with pytest.raises(Unbatched, match=message + r".*Use method='full'\."):
        planned(network)


def test_windows_that_are_joined_hold_what_changed_in_either():
    a, b = (Window.around(torch.tensor(box), (20, 17)) for box in ([[2, 3, 5, 6], [9, 9, 12, 10]], [[2, 3, 7, 4]] * 2))
    both = Window.joined([a, b], (20, 17))
    assert both.rows.low.tolist() == [2, 2] and both.rows.high.tolist() == [7, 12] and both.size == (10, 7)
    assert Window.joined([a, a], (20, 17)) is a and a.covers(a) and not a.covers(both)


@pytest.mark.parametrize("shape", [(1, 6, 5), (1, 3, 6, 5), (1, 2, 3, 6, 5)])
def test_windows_are_cut_and_pasted_whatever_the_rank(shape):
    from deconvviz.tape.operations import Tape

    maps = torch.randn(shape)
    kept = Unoccluded(Tape(shapes=[maps.shape], kept={0: maps}))
    window = Window.around(torch.tensor([[0, 1, 2, 4], [3, 0, 6, 2]]), (6, 5))
    cut = kept.gather(0, None, window.rows.start, window.cols.start, window.size)
    assert torch.equal(cut[1], maps[0, ..., 3:6, 0:3])
    expected = maps.repeat(2, *[1] * (maps.dim() - 1))
    expected[0, ..., 0:3, 1:4] = expected[1, ..., 3:6, 0:3] = 7.0
    assert torch.equal(kept.whole(0, Part(torch.full_like(cut, 7.0), window)), expected)
    line = torch.arange(5.0)
    assert torch.equal(kept.crop(line, window, maps.shape)[0, ..., 0, :].flatten(), line[1:4])
    assert kept.crop(torch.tensor(2.0), window, maps.shape) == 2


def test_the_index_is_built_where_it_is_used_from_one_small_copy(monkeypatch):
    """No loop over positions, and no index that travels: one copy of the corners for each operation."""
    network, image = build().eval(), photo()[None]
    plan = planned(network, image)
    copies, plain = [], torch.Tensor.to

    def counted(self, *args, **options):
        if args and isinstance(args[0], torch.device):
            copies.append(self.numel())
        return plain(self, *args, **options)

    runner = Runner(plan, None, torch.zeros(3, 20, 17, dtype=torch.float64), 1 << 20, exact=True)
    monkeypatch.setattr(torch.Tensor, "to", counted)
    with torch.no_grad():
        runner._early(torch.arange(len(BOXES)))
    assert 0 < len(copies) <= 2 * len(plan.steps) + 2 and max(copies) <= 6 * len(BOXES)
