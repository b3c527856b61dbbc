"""The rule table: operation -> what the deconvnet does with it. A new operation is one entry here and one oracle.

Anything that is linear in its input has its own vector-Jacobian product; anything without an entry is refused by
name. `audit` prints what a model's operations get.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import OptionError, UnsupportedOp
from ..tape.arguments import IDENTITIES, VIEWS
from ..tape.operations import Op, Tape
from ..tape.receptive_field import Reach
from . import backward as back
from . import limits, reach
from . import saving as _saving
from .backward import Back

RULE_NAMES = ("deconvnet", "guided", "backprop")


@dataclass(frozen=True)
class Rule:
    """What happens to one kind of operation.

    `back` carries signals back; `reach` carries receptive fields forward; `local(op, tape)` says whether `back` works
    on windows. `save` runs the operation and keeps what `back` needs. `refuse` returns the reason why a call cannot
    have this rule. `exact`: as in the paper, or an extension of it.
    """

    kind: str
    note: str
    back: Back
    reach: Callable[[Op, list[Reach], Tape], list[Reach]]
    local: Callable[[Op, Tape], bool] = limits.nowhere
    save: _saving.Save | None = None
    refuse: Callable[[Op], str | None] = lambda op: None
    exact: bool = True


@dataclass(frozen=True)
class Saving:
    """Runs each operation of a recorded pass and saves what its rule will need.

    `rule` is the rule at rectifiers; `lrn` is "pass" or "gradient"; `allow_gradient` gives operations without a rule
    their plain gradient.
    """

    rule: str = "deconvnet"
    lrn: str = "pass"
    allow_gradient: bool = False

    def __post_init__(self) -> None:
        """Check the names."""
        if self.rule not in RULE_NAMES:
            raise OptionError(f"rule={self.rule!r} is not known; choose one of {', '.join(RULE_NAMES)}.")
        if self.lrn not in ("pass", "gradient"):
            raise OptionError(f"lrn={self.lrn!r} is not known; choose 'pass' (as in the paper) or 'gradient'.")

    def __call__(self, tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
        """Run `op`."""
        rule = RULES.get(op.short)
        # A product's gate is found by saving it; a cast is judged by its result.
        late = op.short in ("mul", "div", "to", "type", "type_as")
        refused = rule is None or (not late and rule.refuse(op) is not None)
        if (self.allow_gradient and (refused or late)) or (op.short == _LRN and self.lrn == "gradient"):
            op.saved["at"] = [x.clone() for x in tensors]
        if refused or rule is None or rule.save is None:
            return run()
        return rule.save(self.rule, tape, op, tensors, run)


_LRN = "local_response_norm"


def find(op: Op) -> Rule:
    """Return the rule for an operation that ran, or raise UnsupportedOp naming it and its module."""
    rule = RULES.get(op.short)
    if op.short == _LRN and "at" in op.saved:
        return GRADIENT
    reason = "there is no rule for it"
    if rule is not None:
        reason = rule.refuse(op) or ("its result is not floating-point" if op.integral else "")
        if not reason:
            return rule
    if "at" in op.saved:
        return GRADIENT
    raise UnsupportedOp(
        f"{op.where}: {reason}. Choose a layer before it, or pass allow_gradient=True to use its plain gradient."
    )


def reach_of(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Carry receptive fields through an operation; one without a rule mixes everything."""
    rule = RULES.get(op.short)
    if rule is None or (rule.refuse(op) is not None and rule.reach is not reach.same):
        return reach.nowhere(op, reaches, tape)
    return rule.reach(op, reaches, tape)


_RECTIFY = ("rectifier", "max(signal, 0), as in the paper", back.rectify, reach.same, limits.maps, _saving.slope)
_RECTIFIER = Rule(*_RECTIFY, limits.one_input)
_CLIP = Rule(*_RECTIFY, limits.refuse_clamp)
_SMOOTH = Rule(
    "rectifier",
    "max(signal, 0): the ReLU's rule for its relatives",
    back.rectify,
    reach.same,
    limits.maps,
    _saving.slope,
    limits.one_input,
    exact=False,
)
_MAX_POOL = Rule(
    "max-pool", "unpooled by the switches; overlaps add", back.unpool, reach.slide, limits.maps, _saving.switches
)
_ADAPTIVE_MAX_POOL = Rule(
    "max-pool", "unpooled by the switches; overlaps add", back.unpool_adaptive, reach.adapt, save=_saving.indices
)
_NORM = Rule(
    "normalization",
    "times its scale; the statistics are constants",
    back.scale,
    reach.same,
    limits.maps,
    _saving.scale,
    limits.refuse_norm,
    exact=False,
)
_SUM = Rule("sum", "the signal to every branch", back.to_all, reach.same, limits.local_sum, exact=False)
_JOIN = Rule("concatenation", "each branch its part", back.split, reach.join, limits.local_join, exact=False)
_PRODUCT = Rule(
    "product",
    "times the constant or the gate, which is a constant",
    back.product,
    reach.same,
    limits.local_product,
    _saving.gate,
    limits.refuse_product,
    exact=False,
)
_IDENTITY = Rule("identity", "passed through", back.identity, reach.same, limits.maps)
_DROPOUT = Rule("identity", "passed through", back.identity, reach.same, limits.maps, None, limits.refuse_dropout)


def _linear(carried: Callable[[Op, list[Reach], Tape], list[Reach]]) -> Rule:
    return Rule("linear", "its own transpose", back.pullback, carried, refuse=limits.refuse_linear, exact=False)


GRADIENT = Rule("gradient", "its plain gradient", back.pullback, reach.nowhere, exact=False)

RULES: dict[str, Rule] = {
    **dict.fromkeys("relu relu6".split(), _RECTIFIER),
    **dict.fromkeys("leaky_relu prelu rrelu elu selu celu silu gelu hardswish mish softplus".split(), _SMOOTH),
    **dict.fromkeys("hardtanh clamp clip clamp_min threshold".split(), _CLIP),
    "conv2d": Rule(
        "convolution",
        "the transposed convolution, without bias",
        back.convolve,
        reach.slide,
        limits.local_conv,
        None,
        limits.refuse_conv,
    ),
    **dict.fromkeys("max_pool2d max_pool2d_with_indices".split(), _MAX_POOL),
    **dict.fromkeys("adaptive_max_pool2d adaptive_max_pool2d_with_indices".split(), _ADAPTIVE_MAX_POOL),
    "avg_pool2d": Rule("average pool", "transposed", back.average, reach.slide, limits.local_average, exact=False),
    "adaptive_avg_pool2d": Rule("average pool", "transposed", back.pullback, reach.adapt, exact=False),
    "batch_norm": Rule(
        "normalization", "times its scale", back.scale, reach.same, limits.maps, None, limits.refuse_norm, exact=False
    ),
    _LRN: Rule(
        "normalization",
        "passed through, as in the paper",
        back.identity,
        reach.same,
        limits.maps,
        None,
        limits.one_input,
    ),
    **dict.fromkeys("layer_norm group_norm instance_norm".split(), _NORM),
    **dict.fromkeys("add sub rsub".split(), _SUM),
    **dict.fromkeys("cat concat concatenate".split(), _JOIN),
    **dict.fromkeys("mul div".split(), _PRODUCT),
    "linear": Rule("linear", "the transposed matrix", back.linear, reach.matrix, refuse=limits.one_input),
    "pad": Rule("border", "dropped", back.unpad, reach.border, limits.local_pad, exact=False),
    **dict.fromkeys(
        "dropout alpha_dropout feature_dropout dropout1d dropout2d dropout3d feature_alpha_dropout".split(), _DROPOUT
    ),
    **dict.fromkeys(IDENTITIES, _IDENTITY),
    **dict.fromkeys(VIEWS, Rule("view", "moved back", back.pullback, reach.move, refuse=limits.refuse_view)),
    **dict.fromkeys("neg masked_fill where".split(), _linear(reach.elementwise)),
    **dict.fromkeys("interpolate upsample".split(), _linear(reach.resample)),
    **dict.fromkeys("mean sum".split(), _linear(reach.reduce)),
    **dict.fromkeys("pixel_shuffle pixel_unshuffle".split(), _linear(reach.shuffle)),
    "conv_transpose2d": _linear(reach.spread),
    **dict.fromkeys(
        (
            "unfold fold repeat tile repeat_interleave index_select conv1d conv3d conv_transpose1d conv_transpose3d "
            "avg_pool1d avg_pool3d matmul mm bmm einsum stack cumsum diagonal tensordot"
        ).split(),
        _linear(reach.nowhere),
    ),
}
