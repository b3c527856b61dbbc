"""Whether numbers are the network's own: it is asked again, where the answer changed most and where it could fail."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..devices import lacks_memory
from ..errors import DeconvvizError, ModelError
from .answer import Answer, Pass
from .plan import FULL, SIZED_BY_VALUES, Unbatched

# Of a type's eps and the answer's largest number: what other orders of summation differ by, in deep networks too.
ROUNDING = 64
TRIALS = 3  # more passes of a model that draws random numbers


def agree(found: Answer, expected: Answer, usual: Answer, dtype: torch.dtype | None = None) -> bool:
    """Whether two answers are the same up to rounding; `usual` is the one for the unoccluded image."""
    pairs = [(found.output, expected.output, usual.output), (found.response, expected.response, usual.response)]
    there = [(a, b, c) for a, b, c in pairs if a is not None and b is not None and c is not None]
    return all(a.shape == b.shape and close(a, b, c, dtype) for a, b, c in there)


def close(
    found: Tensor, expected: Tensor, usual: Tensor, dtype: torch.dtype | None = None, among: Tensor | None = None
) -> bool:
    """Compare by the type's eps, and by what the occluder changes: a map of small changes must be right, too.

    `among` are the numbers that these are some of, whose largest says how much is rounded.
    """
    types = {x.dtype for x in (found, expected)} | {dtype or found.dtype}
    eps = max(torch.finfo(t).eps for t in types)
    a, b, c = (x.detach().cpu().double() for x in (found, expected, usual))
    same = (a == b) | (a.isnan() & b.isnan())
    finite = b[b.isfinite()]
    change = (b - c).abs().nan_to_num(0, 0, 0)  # of the usual answer, which is one row
    if not len(finite):
        return bool(same.all())
    largest = float((finite if among is None else among).abs().max())
    allowed = ROUNDING * eps * largest + eps**0.5 * float(change.max())
    return bool((same | ((a - b).abs() <= allowed)).all())


class Confirmation:
    """Compares what was found with the network itself, and remembers where the answer changed most."""

    def __init__(self, ask: Pass, usual: Answer, dtype: torch.dtype | None) -> None:
        self.ask, self.usual, self.dtype = ask, usual, dtype
        self._most: list[tuple[Tensor, Tensor, Answer]] = []  # per measure: the change, the position, the answer

    def check(self, found: Answer, occluded: Tensor) -> None:
        """Ask the network itself about occluded images (b, C, H, W) and refuse another answer."""
        if not agree(found, self.ask(occluded), self.usual, self.dtype):
            raise Unbatched(
                "the network's output for an image depends on the other images of its batch, or on more than its "
                f"input, such as a number that it takes out of the data. {FULL}"
            )

    def watch(self, positions: Tensor, answer: Answer) -> None:
        """Remember where any class changed most, and where the most probable one did; nothing waits for it."""
        change = (answer.output - self.usual.output).abs().flatten(1)
        best = self.usual.output.flatten(1).argmax(1)
        for i, amount in enumerate((change.amax(1), change.index_select(1, best)[:, 0])):
            most, where = amount.max(0)
            row = where[None]
            response = None if answer.response is None else answer.response.index_select(0, row)
            one = (
                most,
                positions.to(row.device).index_select(0, row),
                Answer(answer.output.index_select(0, row), response),
            )
            if len(self._most) <= i:
                self._most.append(one)
            else:
                self._most[i] = _larger(self._most[i], one)

    def most_changed(self) -> tuple[Tensor, Answer]:
        """Return these positions and what was found there."""
        found = {int(position): answer for _, position, answer in self._most}
        responses = [answer.response for answer in found.values() if answer.response is not None]
        outputs = torch.cat([answer.output for answer in found.values()])
        return torch.tensor(list(found)), Answer(outputs, torch.cat(responses) if responses else None)


def _larger(a: tuple[Tensor, Tensor, Answer], b: tuple[Tensor, Tensor, Answer]) -> tuple[Tensor, Tensor, Answer]:
    second = b[0] > a[0]

    def choose(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(second, y, x)

    ours, theirs = a[2], b[2]
    response = None
    if ours.response is not None and theirs.response is not None:
        response = choose(ours.response, theirs.response)
    return choose(a[0], b[0]), choose(a[1], b[1]), Answer(choose(ours.output, theirs.output), response)


# ---- images that see each other, models that answer otherwise each time ------------------------------------------


def sees_its_batch(ask: Pass, usual: Answer) -> str:
    """Say why images must be asked about one by one, "" if they need not.

    An image between two that are far from it must get the answer that it gets alone, `usual`.

    Raises:
        ModelError: The model gives another answer for the same image each time.
    """
    why = _by_structure(ask) or _by_trial(ask, usual)
    if why:
        check_repeats(ask, usual)
    return why


def _by_structure(ask: Pass) -> str:
    tape = ask.tape
    if tape.reads:
        return f"{tape.reads[0].where} takes numbers out of the data, which may depend on the whole batch"
    for op in tape.ops:
        if op.short in SIZED_BY_VALUES:
            return f"{op.where} gives as many numbers as the data says"
    for op in tape.needed_for({ask.output}):
        if any(not tape.shapes[value] for value in op.outputs):
            return f"{op.where} makes one number of the whole batch"
    return ""


def _by_trial(ask: Pass, usual: Answer) -> str:
    try:
        between = ask(between_strangers(ask.tape.kept[0]))
    except (RuntimeError, ValueError, IndexError, DeconvvizError) as error:
        if lacks_memory(error):
            return ""  # the batches shrink, and what changed most is compared
        return "the model does not take other images beside this one"
    if between.output.shape == (3, *usual.output.shape[1:]) and agree(between.row(1), usual, usual, ask.dtype):
        return ""
    return "the model's answer for an image depends on the other images of its batch"


def between_strangers(data: Tensor) -> Tensor:
    """Put data (1, …) between two others, one far above and one far below: the maximum, minimum and mean of a batch move.

    Not NaN, though it would show more: kernels from elsewhere may take it for an index, and the process dies.
    """
    size = data.abs().max() + 1
    return torch.cat([data.flip(-1) + 8 * size, data, -2 * data - 3 * size])


def check_repeats(ask: Pass, usual: Answer, trials: int = 1) -> None:
    """Refuse a model that gives another answer for the same image."""
    if not all(agree(ask(ask.tape.kept[0]), usual, usual, ask.dtype) for _ in range(trials)):
        raise unrepeatable()


def unrepeatable() -> ModelError:
    """Return the error of a model that gives another answer for the same image."""
    return ModelError(
        "the model gives another answer each time it is asked about the same image: its forward pass draws random "
        "numbers (noise, a dropout that is always on) or keeps something from call to call. What a covered part "
        "changes cannot be told from that. Switch it off for the evaluation."
    )


class Dice:
    """Tells whether random numbers were drawn since it was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = self._states()

    def rolled(self) -> bool:
        """Whether any of the generators moved on."""
        return not all(np.array_equal(a, b) for a, b in zip(self.before, self._states(), strict=True))

    def _states(self) -> list[np.ndarray]:
        states = [torch.get_rng_state().numpy(), np.array(random.getstate()[1])]
        state: Any = np.random.get_state()
        states += [np.asarray(state[1]), np.asarray(state[2])]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device).cpu().numpy())
        return states
