"""How the calls of torch's functions are read: the names of their arguments, their families."""

from __future__ import annotations

from typing import Any

from .operations import Op, Slot, Tape

Pair = tuple[int, int]

# Only move values about.
VIEWS = (
    "view reshape flatten unflatten permute transpose swapaxes swapdims movedim moveaxis t T mT adjoint squeeze "
    "unsqueeze expand expand_as view_as reshape_as narrow getitem select chunk split tensor_split unbind roll flip "
    "unsafe_chunk unsafe_split split_with_sizes hsplit vsplit channel_shuffle native_channel_shuffle rot90"
).split()
# Leave values as they are.
IDENTITIES = (
    "clone contiguous detach data to float double half bfloat16 type type_as cpu cuda requires_grad identity positive "
    "alias pin_memory"
).split()
# Work position by position; tensors among their arguments are broadcast against each other.
POINTWISE = frozenset(
    (
        "add sub subtract rsub mul multiply div divide true_divide floor_divide remainder fmod pow float_power neg negative "
        "abs absolute sign square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p sigmoid expit logsigmoid "
        "hardsigmoid tanh sinh cosh sin cos tan asin acos atan atan2 erf erfc softsign tanhshrink softshrink hardshrink "
        "relu relu6 leaky_relu elu selu celu silu gelu hardswish mish softplus hardtanh clamp clip clamp_min clamp_max "
        "threshold maximum minimum fmax fmin where masked_fill lerp addcmul addcdiv hypot logaddexp floor ceil round trunc "
        "frac nan_to_num isnan isinf isfinite eq ne lt le gt ge logical_not logical_and logical_or logical_xor heaviside"
    ).split()
)
# Take numbers out of tensors.
READS = frozenset(
    "item tolist numpy array bool float int index complex contains equal allclose is_nonzero dlpack to_dlpack storage "
    "untyped_storage".split()
)

_PARAMETERS = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": (
        "input",
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    ),
    "lp_pool2d": ("input", "norm_type", "kernel_size", "stride", "ceil_mode"),
    "roi_pool": ("input", "rois", "spatial_scale", "pooled_height", "pooled_width"),
    "roi_align": (*("input", "rois", "spatial_scale", "pooled_height", "pooled_width", "sampling_ratio", "aligned"),),
    "batch_norm": (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
        "momentum",
        "eps",
    ),
    "linear": ("input", "weight", "bias"),
    "conv_transpose2d": (
        "input",
        "weight",
        "bias",
        "stride",
        "padding",
        "output_padding",
        "groups",
        "dilation",
    ),
    # The functions of `torch` itself have their own order.
    "torch.batch_norm": ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
    "torch.instance_norm": (
        "input",
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "use_input_stats",
        "momentum",
        "eps",
    ),
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "instance_norm": ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
    "dropout": ("input", "p", "training", "inplace"),
    "cat": ("tensors", "dim"),
    "pad": ("input", "pad", "mode", "value"),
    "adaptive_avg_pool2d": ("input", "output_size"),
    "adaptive_max_pool2d": ("input", "output_size", "return_indices"),
    "hardtanh": ("input", "min_val", "max_val", "inplace"),
    "clamp": ("input", "min", "max"),
    "clamp_min": ("input", "min"),
    "clamp_max": ("input", "max"),
    "threshold": ("input", "threshold", "value", "inplace"),
    "mean": ("input", "dim", "keepdim"),
    "sum": ("input", "dim", "keepdim"),
}
_DEFAULTS: dict[str, Any] = {
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
    "training": False,
    "eps": 1e-5,
    "dim": 0,
    "mode": "constant",
    "value": None,
    "weight": None,
    "bias": None,
    "min_val": -1.0,
    "max_val": 1.0,
    "min": None,
    "max": None,
    "p": 0.5,
    "return_indices": False,
    "running_mean": None,
    "running_var": None,
    "use_input_stats": True,
    "keepdim": False,
    "output_padding": 0,
}


# Other names of the same operation, and NumPy's names of the same arguments.
_SAME = {"max_pool2d_with_indices": "max_pool2d"}
_SAME["adaptive_max_pool2d_with_indices"] = "adaptive_max_pool2d"
_NUMPY = {"axis": "dim", "x": "input", "a": "input", "self": "input"}


def bound(op: Op) -> dict[str, Any]:
    """Name the arguments of a call; spatial ones come as pairs (vertical, horizontal)."""
    short = op.short
    names = _PARAMETERS[_kind(op)]
    keywords = {_NUMPY.get(name, name): value for name, value in op.kwargs.items()}
    named = {**dict(zip(names, op.args, strict=False)), **keywords}
    given = {**_DEFAULTS, **named}
    if "pool2d" in short and "kernel_size" in given:
        stride = named.get("stride")
        given["stride"] = given["kernel_size"] if stride is None or stride == [] else stride
    for name in ("kernel_size", "stride", "padding", "dilation"):
        if name in given and not isinstance(given[name], str):
            given[name] = pair(given[name])
    return given


def _kind(op: Op) -> str:
    if "dropout" in op.short:
        return "dropout"
    foreign = f"torch.{op.short}"
    if foreign in _PARAMETERS and not op.name.startswith("torch.nn.functional."):
        return foreign
    return _SAME.get(op.short, op.short)


def pair(value: int | tuple[int, ...] | list[int]) -> Pair:
    """Return (vertical, horizontal) of a number or a sequence of one or two."""
    numbers = [int(value)] if not isinstance(value, (tuple, list)) else [int(x) for x in value]
    return numbers[0], numbers[-1]


def first_operand(op: Op) -> Any:
    """Return the left operand of a sum, difference, product or quotient."""
    return op.args[0] if op.args else op.kwargs.get("input")


def constant_factor(op: Op) -> Any:
    """Return the constant operand of a product or quotient."""
    operands = [*op.args, *(op.kwargs[name] for name in ("input", "other") if name in op.kwargs)]
    return next(x for x in operands if not isinstance(x, Slot))


def is_scaled(op: Op) -> bool:
    """Whether an operation multiplies, divides or moves a tracked tensor by constants alone."""
    if len(op.inputs) != 1 or op.short not in ("mul", "div", "add", "sub", "rsub", "neg"):
        return False
    return op.short != "div" or isinstance(first_operand(op), Slot)


def plain_sum(op: Op, tape: Tape) -> bool:
    """Whether the signal of a sum or difference goes to each tracked summand as it is."""
    same = all(tape.shapes[v] == tape.shapes[op.outputs[0]] for v in op.inputs)
    positive = op.short == "add" or (op.short == "sub" and len(op.inputs) == 1 and isinstance(op.args[0], Slot))
    return same and positive and not op.kwargs
