"""The rule table: operation -> what the deconvnet does with it. A new operation is one entry here and one oracle.

Anything that is linear in its input has its own vector-Jacobian product; anything without an entry is refused by
name. `audit` prints what a model's operations get.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import OptionError, UnsupportedOp
from ..tape.arguments import IDENTITIES, VIEWS, constant_factor, is_scaled
from ..tape.operations import Op, Slot, Tape
from ..tape.receptive_field import Reach, Span
from . import backward as windows
from . import limits, reach, saving, whole
from .kinds import Kind
from .pullback import pullback
from .signals import Back

Carry = Callable[[Op, list[Reach], Tape], list[Reach]]

RECTIFIERS = ("deconvnet", "guided", "backprop")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What happens to one kind of operation.

    `back` carries signals back on windows, `whole` (by default the same) where they have none; `local(op, tape)` says
    whether `back` can do this call. `reach` carries receptive fields forward. `save` runs the operation and keeps what
    the way back needs. `refuse` returns the reason why a call cannot have this rule. `exact`: as in the paper, or an
    extension of it. `derivative`: where rectifiers do as backprop, `back` is the operation's derivative; else the
    gradient rules take that in its place.
    """

    kind: Kind
    note: str
    back: Back
    whole: Back | None = None
    local: Callable[[Op, Tape], bool] = limits.nowhere
    reach: Carry
    save: saving.Save | None = None
    refuse: Callable[[Op], str | None] = lambda op: None
    exact: bool = True
    derivative: bool = True


@dataclass(frozen=True)
class Saving:
    """Runs each operation of a recorded pass and saves what its rule will need.

    `rectifier` is what rectifiers do, one of `RECTIFIERS`: the deconvnet keeps gates and statistics constant, "guided"
    and "backprop" are gradients but for what the first does at rectifiers. `lrn`, "pass" or "gradient", is the
    deconvnet's at a local response normalization; `allow_gradient` gives operations without a rule their gradient.
    """

    rectifier: str = "deconvnet"
    lrn: str = "pass"
    allow_gradient: bool = False

    def __post_init__(self) -> None:
        """Check the names."""
        if self.rectifier not in RECTIFIERS:
            raise OptionError(f"rule={self.rectifier!r} is not known; choose one of {', '.join(RECTIFIERS)}.")
        if self.lrn not in ("pass", "gradient"):
            raise OptionError(f"lrn={self.lrn!r} is not known; choose 'pass' (as in the paper) or 'gradient'.")

    @property
    def gradient(self) -> bool:
        """Whether signals go where autograd's do: not through what is detached."""
        return self.rectifier != "deconvnet"

    def __call__(self, tape: Tape, op: Op, tensors: list[Tensor], run: Callable[[], Any]) -> Any:
        """Run `op`."""
        rule = RULES.get(op.short)
        # A product's gate is found by saving it; a cast is judged by its result.
        late = op.short in ("mul", "div", "pow", "square", "to", "type", "type_as", "maximum", "fmax")
        refused = rule is None or (not late and rule.refuse(op) is not None)
        op.saved.own = self._takes_gradient(op, rule, refused)
        if op.saved.own or (self.allow_gradient and (refused or late)):
            op.saved.at = [x.clone() for x in tensors]
        if op.saved.own or refused or rule is None or rule.save is None:
            return run()
        return rule.save(self.rectifier, tape, op, tensors, run)

    def _takes_gradient(self, op: Op, rule: Rule | None, refused: bool) -> bool:
        """Whether the way back is the operation's own gradient, whatever its rule would do."""
        if op.short == _LRN and self.lrn == "gradient":
            return True
        if self.rectifier == "deconvnet" or rule is _DROPOUT:
            return False
        return rule is None or refused or not (rule.derivative or is_scaled(op))


_LRN = "local_response_norm"
_ATTENTIONS = ("scaled_dot_product_attention", "multi_head_attention_forward")
_ATTENTION = (
    "attention mixes positions by weights that it takes from the image, and the deconvnet has no way back through it; "
    "evidence, occlude and maximize need none"
)


def find(op: Op) -> Rule:
    """Return the rule for an operation that ran, or raise UnsupportedOp naming it and its module."""
    rule = RULES.get(op.short)
    if op.saved.own:
        return GRADIENT
    reason = _ATTENTION if op.short in _ATTENTIONS else "there is no rule for it"
    if rule is not None:
        reason = rule.refuse(op) or ("its result is not floating-point" if op.integral else "")
        if not reason:
            return rule
    if op.saved.at is not None:
        return GRADIENT
    raise UnsupportedOp(
        f"{op.where}: {reason}. Choose a layer before it, or pass allow_gradient=True to use its plain gradient."
    )


def kind_of(op: Op) -> Kind | None:
    """Return what kind of operation it is, None if there is no rule for it."""
    rule = RULES.get(op.short)
    return None if rule is None else rule.kind


# These have no rule, but each element is made of the one in its place.
_ELEMENTWISE = frozenset(
    (
        "hardsigmoid logsigmoid softsign hardshrink softshrink tanhshrink exp expm1 log log1p sqrt rsqrt "
        "reciprocal abs square sin cos erf sign floor ceil round clamp_max minimum"
    ).split()
)


def reach_of(op: Op, reaches: list[Reach], tape: Tape) -> list[Reach]:
    """Carry receptive fields through an operation; one without a rule mixes everything."""
    rule = RULES.get(op.short)
    carried: Carry = reach.mixed
    if op.saved.own and rule is not None and rule.kind is Kind.NORMALIZATION:
        carried = reach.statistics  # the gradient goes into them
    elif rule is not None and (rule.reach is reach.same or rule.refuse(op) is None):
        carried = rule.reach
    elif op.short in _ELEMENTWISE:
        carried = reach.same
    found = carried(op, reaches, tape)
    return [each.fitted(tape.shapes[v]) for v, each in zip(op.outputs, found, strict=True)]


# Activations that are flat at an end, where no gradient comes through.
_SATURATING = frozenset("relu6 hardtanh clamp clamp_max hardsigmoid sigmoid tanh softsign".split())


def entry(tape: Tape, value: int, rectifier: str) -> int:
    """Return where the signal of a layer starts: at its value, for the gradient rules before a saturating activation.

    A unit at the activation's end has no gradient through it; the one of what went in says what the unit looks for.
    """
    if rectifier == "deconvnet":
        return value
    makers, found = tape.producer(), value
    while (op := makers.get(found)) is not None and tape.shapes[op.inputs[0]] == tape.shapes[value]:
        if op.cut is not None:
            break
        if op.short in _SATURATING and len(op.inputs) == 1:
            return op.inputs[0]
        rule = RULES.get(op.short)
        passes = rule is not None and rule.kind is Kind.IDENTITY and rule.refuse(op) is None
        if not (passes or (is_scaled(op) and _grows(op))):
            break
        found = op.inputs[0]
    return value


def _grows(op: Op) -> bool:
    """Whether an operation with constants keeps the order of values: a hard sigmoid written out ends in one."""
    if op.short in ("mul", "div"):
        factor = constant_factor(op)
        return isinstance(factor, (int, float)) and factor > 0
    return op.short == "add" or (op.short == "sub" and isinstance(op.args[0] if op.args else None, Slot))


def reach_all(tape: Tape) -> dict[int, Reach]:
    """Return what every value of a tape sees of the images."""
    height, width = tape.shapes[0][-2:]
    reaches = {0: Reach(Span.of_input(height), Span.of_input(width), (2, 3))}
    for op in tape.ops:
        if op.whole:  # what it ran has been followed
            continue
        reaches.update(zip(op.outputs, reach_of(op, [reaches[v] for v in op.inputs], tape), strict=True))
    return reaches


_RECTIFIER = Rule(
    kind=Kind.RECTIFIER,
    note="max(signal, 0), as in the paper",
    back=windows.rectify,
    local=limits.is_nchw,
    reach=reach.same,
    save=saving.slope,
    refuse=limits.one_input,
)
_CLIP = replace(_RECTIFIER, refuse=limits.refuse_clamp)
_SMOOTH = replace(_RECTIFIER, note="max(signal, 0): the ReLU's rule for its relatives", exact=False)
_POWER = replace(_SMOOTH, save=saving.after_rectifier, refuse=limits.refuse_power, derivative=False)
_SQUASH = replace(
    _RECTIFIER, note="passed through: its activations have both signs", back=windows.unsquash, exact=False
)
_LOGISTIC = replace(
    _RECTIFIER,
    kind=Kind.SQUASHING,
    note="max(signal, 0): its activations are never negative",
    save=None,
    exact=False,
    derivative=False,
)
_MAXOUT = Rule(
    kind=Kind.MAXOUT,
    note="to the larger operand",
    back=windows.to_larger,
    local=limits.is_nchw,
    reach=reach.same,
    save=saving.larger,
    refuse=limits.refuse_maximum,
    exact=False,
)
_LP_POOL = Rule(
    kind=Kind.AVERAGE_POOL,
    note="each its share of the norm: the pool's derivative",
    back=whole.unpool_norm,
    reach=reach.slide,
    save=saving.input_itself,
    refuse=limits.refuse_lp_pool,
    exact=False,
)
_REGION_POOL = Rule(
    kind=Kind.MAX_POOL,
    note="unpooled by the switches; overlaps add",
    back=whole.unpool_regions,
    reach=reach.regions,
    save=saving.input_itself,
    refuse=limits.refuse_regions,
    exact=False,
)
_REGION_ALIGN = replace(_REGION_POOL, kind=Kind.AVERAGE_POOL, note="transposed")
_CONVOLUTION = Rule(
    kind=Kind.CONVOLUTION,
    note="the transposed convolution, without bias",
    back=windows.convolve,
    whole=whole.convolve,
    local=limits.local_conv,
    reach=reach.slide,
    refuse=limits.refuse_conv,
)
_MAX_POOL = Rule(
    kind=Kind.MAX_POOL,
    note="unpooled by the switches; overlaps add",
    back=windows.unpool,
    whole=whole.unpool,
    local=limits.is_nchw,
    reach=reach.slide,
    save=saving.switches,
)
_ADAPTIVE_MAX_POOL = Rule(
    kind=Kind.MAX_POOL,
    note="unpooled by the switches; overlaps add",
    back=whole.unpool_adaptive,
    reach=reach.adapt,
    save=saving.indices,
)
_AVERAGE_POOL = Rule(
    kind=Kind.AVERAGE_POOL,
    note="transposed",
    back=windows.average,
    whole=pullback,
    local=limits.local_average,
    reach=reach.slide,
    exact=False,
)
_ADAPTIVE_AVERAGE_POOL = Rule(
    kind=Kind.AVERAGE_POOL,
    note="transposed",
    back=pullback,
    reach=reach.adapt,
    exact=False,
)
_BATCH_NORM = Rule(
    kind=Kind.NORMALIZATION,
    note="times its scale",
    back=windows.scale,
    local=limits.is_nchw,
    reach=reach.normalize,
    refuse=limits.refuse_norm,
    exact=False,
)
_NORM = replace(
    _BATCH_NORM,
    note="times its scale; the statistics are constants",
    save=saving.scale,
    derivative=False,
)
_LOCAL_RESPONSE = Rule(
    kind=Kind.NORMALIZATION,
    note="passed through, as in the paper",
    back=windows.identity,
    local=limits.is_nchw,
    reach=reach.same,
    refuse=limits.one_input,
    derivative=False,
)
_SUM = Rule(
    kind=Kind.SUM,
    note="the signal to every branch",
    back=windows.to_all,
    whole=whole.to_all,
    local=limits.local_sum,
    reach=reach.same,
    exact=False,
)
_JOIN = Rule(
    kind=Kind.CONCATENATION,
    note="each branch its part",
    back=windows.split,
    whole=pullback,
    local=limits.local_join,
    reach=reach.join,
    exact=False,
)
_PRODUCT = Rule(
    kind=Kind.PRODUCT,
    note="times the constant or the gate, which is a constant",
    back=windows.product,
    whole=whole.product,
    local=limits.local_product,
    reach=reach.same,
    save=saving.gate,
    refuse=limits.refuse_product,
    exact=False,
    derivative=False,
)
_IDENTITY = Rule(
    kind=Kind.IDENTITY,
    note="passed through",
    back=windows.identity,
    local=limits.is_nchw,
    reach=reach.same,
)
_DROPOUT = replace(_IDENTITY, refuse=limits.refuse_dropout)
_BORDER = Rule(
    kind=Kind.BORDER,
    note="dropped",
    back=windows.unpad,
    whole=pullback,
    local=limits.local_pad,
    reach=reach.border,
    exact=False,
)
_MATRIX = Rule(
    kind=Kind.LINEAR,
    note="the transposed matrix",
    back=whole.linear,
    reach=reach.matrix,
    refuse=limits.one_input,
)
_VIEW = Rule(
    kind=Kind.VIEW,
    note="moved back",
    back=pullback,
    reach=reach.move,
    refuse=limits.refuse_view,
)
GRADIENT = Rule(
    kind=Kind.GRADIENT,
    note="its plain gradient",
    back=pullback,
    reach=reach.mixed,
    exact=False,
)


def _linear(carried: Carry) -> Rule:
    return Rule(
        kind=Kind.LINEAR,
        note="its own transpose",
        back=pullback,
        reach=carried,
        refuse=limits.refuse_linear,
        exact=False,
    )


_BY_RULE: tuple[tuple[str, Rule], ...] = (
    ("relu relu6", _RECTIFIER),
    ("hardtanh clamp clamp_min threshold", _CLIP),
    ("leaky_relu prelu rrelu elu selu celu silu gelu hardswish mish softplus", _SMOOTH),
    ("pow square", _POWER),
    ("tanh", _SQUASH),
    ("sigmoid expit", _LOGISTIC),
    ("maximum fmax", _MAXOUT),
    ("lp_pool2d", _LP_POOL),
    ("roi_pool", _REGION_POOL),
    ("roi_align", _REGION_ALIGN),
    ("conv2d", _CONVOLUTION),
    ("max_pool2d max_pool2d_with_indices", _MAX_POOL),
    ("adaptive_max_pool2d adaptive_max_pool2d_with_indices", _ADAPTIVE_MAX_POOL),
    ("avg_pool2d", _AVERAGE_POOL),
    ("adaptive_avg_pool2d", _ADAPTIVE_AVERAGE_POOL),
    ("batch_norm", _BATCH_NORM),
    ("layer_norm rms_norm group_norm instance_norm", _NORM),
    (_LRN, _LOCAL_RESPONSE),
    ("add sub rsub", _SUM),
    ("cat", _JOIN),
    ("mul div", _PRODUCT),
    ("linear", _MATRIX),
    ("pad", _BORDER),
    ("dropout alpha_dropout feature_dropout dropout1d dropout2d dropout3d feature_alpha_dropout", _DROPOUT),
    (" ".join(IDENTITIES), _IDENTITY),
    (" ".join(VIEWS), _VIEW),
    ("neg masked_fill where addcmul", _linear(reach.elementwise)),
    ("interpolate upsample", _linear(reach.resample)),
    ("mean sum", _linear(reach.reduce)),
    ("pixel_shuffle pixel_unshuffle", _linear(reach.shuffle)),
    ("conv_transpose2d", _linear(reach.spread)),
    ("unfold fold repeat tile repeat_interleave index_select diagonal", _linear(reach.nowhere)),
    ("stack", _linear(reach.stack)),
    ("cumsum", _linear(reach.mixed)),
    ("matmul mm", _linear(reach.product)),
    ("conv1d conv3d conv_transpose1d conv_transpose3d avg_pool1d avg_pool3d", _linear(reach.nowhere)),
    ("bmm einsum tensordot", _linear(reach.nowhere)),
)
RULES: dict[str, Rule] = {name: rule for names, rule in _BY_RULE for name in names.split()}
