"""One eager forward pass, recorded as the list of operations that ran.

A `TorchFunctionMode` sees functional, in-place, reused and module calls alike, which neither module hooks nor graph
tracing do. Only tensors that depend on the images are tracked: each gets a number, its *value*; an operation that
changes a tensor in place gives the same object a new value. Everything else (weights, masks) is a constant. What
the mode cannot see, such as a change through a view, is noted as an operation without a rule.
"""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointFunction

from ..devices import of_the_device
from ..errors import ForwardError, UnsupportedOp, form_of
from ..modes import is_observer, modes_as_before
from .arguments import READS
from .autograd import cut, functions_seen, gradients_on
from .operations import Op, Slot, Tape, mapped, short_name, tensors_in


class Stop(BaseException):
    """Ends a forward pass when the last value that was asked for exists; no `except Exception` swallows it."""


# Runs each operation: (tape so far, op, its tracked tensors, run) -> the operation's result. May fill `op.saved`.
Saver = Callable[[Tape, Op, "list[Tensor]", Callable[[], Any]], Any]

# What torch and a model's own checks raise when images do not fit; exactly these types, not their subclasses.
_MISFITS = (RuntimeError, ValueError, AssertionError, IndexError)

# Their results take the first tensor's shape, not its values.
_VALUE_FREE = frozenset(
    "new_zeros new_ones new_full new_empty new_tensor zeros_like ones_like full_like empty_like rand_like "
    "randn_like".split()
)
# Their results take the values of the first tensor alone.
_LIKE_ANOTHER = frozenset("to type_as expand_as view_as reshape_as".split())


def record(
    network: nn.Module,
    images: Tensor,
    *,
    until: int | None = None,
    keep: Collection[int] | None = (),
    saver: Saver | None = None,
    gradient: bool = False,
) -> Tape:
    """Run `network` once on `images` and return the tape.

    Must be called inside `guard.untouched`. Stops when value `until` exists. `keep` names the values whose tensors
    stay on the tape, None keeps them all. `saver` runs the operations and may save what a rule needs. `gradient`: note
    as well where autograd passes nothing back, and take functions with a backward of their own as one operation.
    """
    recorder = _Recorder(until, keep, saver, gradient)
    source = images.clone()  # a model may change its input in place; the caller's images stay as they are
    recorder.bind(source)
    if until == 0:  # the images themselves
        return recorder.tape
    with recorder.paths(network), contextlib.suppress(Stop):
        try:
            with (
                modes_as_before(),
                contextlib.closing(recorder),
                recorder.as_autograd(network),
                recorder,
                _Watch(recorder),
            ):
                result = network(source)
        except TypeError as error:
            if not str(error).startswith(f"{type(network).__name__}.forward()"):
                raise
            raise ForwardError(
                f"the model takes something else than images alone: {error}. Say how it is called with a batch of images "
                "(N, C, H, W): call=lambda model, images: model(images, …)."
            ) from error
        except _MISFITS as error:
            if type(error) not in _MISFITS or of_the_device(error):
                raise
            kind = str(images.dtype).removeprefix("torch.")
            raise ForwardError(
                f"the model failed on images of shape {tuple(images.shape)}, {kind}: {error or type(error).__name__}. "
                f"{_remedy(network)}"
            ) from error
        recorder.tape.output = recorder.value_of(result) if isinstance(result, Tensor) else None
        recorder.tape.returned = form_of(result)
    recorder.check_kept()
    return recorder.tape


def _remedy(network: nn.Module) -> str:
    kinds = {type(module) for module in network.modules()}
    if kinds & {nn.Conv1d, nn.Conv3d} and nn.Conv2d not in kinds:
        return "Images have two dimensions and its convolutions do not: such networks are not supported."
    return "Check that it takes images of this size and number of channels."


def record_fast(
    network: nn.Module,
    images: Tensor,
    *,
    until: int | None = None,
    keep: Collection[int] | None,
    saver: Saver | None = None,
    gradient: bool = False,
) -> Tape:
    """Do what `record` does, in channels_last memory, where convolutions are faster, if the model allows it."""
    try:
        fast = images.contiguous(memory_format=torch.channels_last)
        return record(network, fast, until=until, keep=keep, saver=saver, gradient=gradient)
    except RuntimeError as error:
        if not dislikes_order(error):
            raise
    return record(network, images, until=until, keep=keep, saver=saver, gradient=gradient)


def dislikes_order(error: RuntimeError) -> bool:
    """Whether a pass failed because a `view` in the model does not like channels_last memory."""
    return "view size is not compatible with input tensor's size and stride" in str(error)


class _Recorder(TorchFunctionMode):
    def __init__(
        self, until: int | None, keep: Collection[int] | None, saver: Saver | None, gradient: bool = False
    ) -> None:
        super().__init__()
        self.tape = Tape()
        self.depth = 0  # above 0 while a function runs that the mode has seen
        self._until, self._keep, self._saver, self._gradient = until, keep, saver, gradient
        self._on = True  # whether the model has gradients on; inside a custom function they are off
        self._bound: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self._versions: dict[int, int] = {}
        self._path: list[str] = [""]
        self.alive: list[Any] = []
        self.closed = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.closed:
            return func(*args, **(kwargs or {}))
        self.depth += 1
        try:
            return self._call(func, args, kwargs or {})
        finally:
            self.depth -= 1

    @contextlib.contextmanager
    def as_autograd(self, network: nn.Module) -> Iterator[None]:
        """Let the network run so that it shows what autograd would make of it, if that is asked for."""
        with contextlib.ExitStack() as stack:
            if self._gradient:
                stack.enter_context(gradients_on(network))
                stack.enter_context(functions_seen(self._custom))
            yield

    def _custom(self, cls: Any, args: tuple[Any, ...], run: Callable[[], Any]) -> Any:
        """Note a function with a backward of its own behind the operations that it ran: signals meet it first.

        Values keep their numbers, so that a layer has the same in every pass.
        """
        tensors, on = [x for x in tensors_in(args) if self._depends(x)], self._on
        if self.closed or self.depth or not tensors:
            return run()
        try:
            if issubclass(cls, CheckpointFunction):  # its backward runs the same operations again, with gradients
                with torch.set_grad_enabled(on):
                    return _viewed(args[0](*args[2:]), tensors)
            index = {id(x): Slot(i) for i, x in enumerate(tensors)}
            inputs, versions = tuple(self._current(x) for x in tensors), [_version(x) for x in tensors]
            name = f"{cls.__module__}.{cls.__qualname__}.apply"
            op = Op(name, cls.apply, self._path[-1], _empty(args, index), {}, inputs)
            op.saved.own, op.saved.at, op.whole = True, self._copies(tensors), True
            new = len(self.tape.shapes)
            result = run()
        finally:
            self._on = on
        changed = [x for x, version in zip(tensors, versions, strict=True) if _version(x) != version]
        result = _viewed(result, [x for x in tensors if not any(x is y for y in changed)])
        made = list(tensors_in(result))
        places = [i for i, x in enumerate(made) if (self.value_of(x) or 0) >= new]
        op.func = lambda *inputs: [list(tensors_in(cls.apply(*inputs)))[i] for i in places]
        op.outputs = tuple(value for i in places if (value := self.value_of(made[i])) is not None)
        op.in_place, op.cut = bool(changed), cut(name, tensors, [made[i] for i in places], changed, on=on)
        if places:
            self.tape.ops.append(op)
        return result

    def _copies(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        self.closed = True  # copying is no operation of the model
        try:
            return [x.clone() for x in tensors]
        finally:
            self.closed = False

    def close(self) -> None:
        """See nothing from here on, and hold nothing that only the pass needed."""
        self.closed = True
        self.alive.clear()

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plain = {key: x for key, x in kwargs.items() if key != "out"}
        tensors = [x for x in tensors_in((args, plain)) if self._depends(x)]
        name = _NAMES.get(func) or _name(func)
        if name == "torch._C._set_grad_enabled":
            self._on = bool(args[0])
        if not tensors or _value_free(name, args, tensors):
            if torch._C._functorch.peek_interpreter_stack() is not None and not self.tape.hidden:
                # Inside vmap, grad and the like tensors are others, of another shape.
                op = Op(f"torch.func (vmap, grad …) around {name}", func, self._path[-1], (), {}, ())
                self.tape.hidden.append(op)
                self.tape.reads.append(op)
            return func(*args, **kwargs)
        if name == "torch.Tensor.data.__get__":
            func = torch.Tensor.detach  # the same tensor, but changes through it can be noticed
        index = {id(x): Slot(i) for i, x in enumerate(tensors)}
        inputs = tuple(self._current(x) for x in tensors)
        op = Op(name, func, self._path[-1], _empty(args, index), _empty(plain, index), inputs)
        everything = list(tensors_in((args, kwargs)))
        if _may_mutate(name, args, kwargs):
            self._copy_before_change(everything)
        versions = [(x, _version(x)) for x in everything]

        def run() -> Any:
            return func(*args, **kwargs)

        result = run() if self._saver is None else self._saver(self.tape, op, tensors, run)
        changed = [x for x, version in versions if _version(x) != version]
        if name == "torch.Tensor.data.__set__":
            changed = [args[0]]
        self._made(op, tensors, result, changed, list(tensors_in(kwargs.get("out"))))
        return result

    def _made(
        self, op: Op, tensors: Sequence[Tensor], result: Any, changed: Sequence[Tensor], out: Sequence[Tensor]
    ) -> None:
        """Put `op`, which took `tensors`, on the tape with what it returned, and what it changed besides."""
        made = list(tensors_in(result))
        made += [x for x in changed if not any(x is y for y in made)]
        op.in_place = any(not any(x is y for y in out) for x in changed)
        if not made:
            if op.short in READS:
                self.tape.reads.append(op)
            return
        op.integral = not any(x.is_floating_point() or x.is_complex() for x in made)
        if self._gradient:
            op.cut = cut(op.name, tensors, made, changed, on=torch.is_grad_enabled())
        op.outputs = tuple(self.bind(x) for x in made)
        self.tape.ops.append(op)
        for x in changed:  # a constant whose view now depends on the images does so, too
            if not x.is_inference() and x._base is not None and self.value_of(x._base) is None:
                self._unseen_op("an in-place change through a view", self._bound[id(x)][1], x._base)
        if self._until is not None and self._until in op.outputs:
            raise Stop

    def bind(self, tensor: Tensor) -> int:
        """Give `tensor` as it is now the next number."""
        value = len(self.tape.shapes)
        self.tape.shapes.append(tensor.shape)
        self._bound[id(tensor)] = (weakref.ref(tensor), value, _version(tensor))
        if self._keep is None or value in self._keep:
            self._hold(value, tensor)
        return value

    def value_of(self, tensor: Tensor) -> int | None:
        """Return the number of a tracked tensor, None for any other."""
        entry = self._bound.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def _depends(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the images."""
        if self.value_of(tensor) is not None:
            return True
        base = None if tensor.is_inference() else tensor._base
        value = None if base is None else self.value_of(base)
        if value is not None:  # a view of a constant that the images were written into later
            self._unseen_op("an in-place change under a view", value, tensor)
        return value is not None

    def _current(self, tensor: Tensor) -> int:
        # A tensor whose version moved without us was changed through another tensor that shares its memory.
        _, value, version = self._bound[id(tensor)]
        if _version(tensor) != version:
            value = self._unseen_op("an in-place change through a view", value, tensor)
        return value

    def _unseen_op(self, name: str, value: int, *made: Tensor) -> int:
        """Note that something without a rule made tensors of a value; return the first one's number."""
        op = Op(name, _unseen, self._path[-1], (Slot(0),), {}, (value,))
        op.outputs = tuple(self.bind(x) for x in made)
        self.tape.ops.append(op)
        return op.outputs[0]

    def _hold(self, value: int, tensor: Tensor) -> None:
        self.tape.kept[value], self._versions[value] = tensor, _version(tensor)

    def _copy_before_change(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            value = self.value_of(tensor)
            if value is not None and self.tape.kept.get(value) is tensor:
                self._hold(value, tensor.clone())

    def check_kept(self) -> None:
        """Refuse when a kept tensor was changed behind the recorder's back."""
        for value, tensor in self.tape.kept.items():
            if _version(tensor) != self._versions[value]:
                maker = self.tape.producer().get(value)
                raise UnsupportedOp(
                    f"the result of {maker.where if maker else 'the input'} is changed in place through a view; "
                    "its values are lost. Write the model without that in-place operation."
                )

    @contextlib.contextmanager
    def paths(self, network: nn.Module) -> Iterator[None]:
        """Keep track of the module that runs, and of what each module returns; the hooks go at the end."""
        counts: dict[str, int] = {}
        handles = []

        def enter(path: str) -> Callable[..., None]:
            return lambda *_: self._path.append(path)

        def leave(paths: list[str]) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                self._path.pop()
                self._returned(paths, output, counts)

            return hook

        names: dict[nn.Module, list[str]] = {}
        for path, module in network.named_modules(remove_duplicate=False):
            names.setdefault(module, []).append(path)  # a module that several places share has several names
        self.tape.silent.update(path for paths in names.values() for path in paths if path)

        def look_away(module: nn.Module, inputs: Any) -> None:
            self.closed = True

        def look_again(module: nn.Module, inputs: Any, output: Any) -> None:
            self.closed = False

        try:
            for module, paths in names.items():
                if is_observer(module):  # it returns what it is given, and its own path depends on what it saw before
                    handles.append(module.register_forward_pre_hook(look_away, prepend=True))
                    handles.append(module.register_forward_hook(look_again))
                elif paths[0]:
                    handles.append(module.register_forward_pre_hook(enter(paths[0]), prepend=True))
                    handles.append(module.register_forward_hook(leave(paths)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _returned(self, paths: list[str], output: Any, counts: dict[str, int]) -> None:
        """Note what a module returned: one tensor by the module's path, several by "path[0]", "path[1]" and so on."""
        found = [(place, value) for place, x in _places(output) if (value := self.value_of(x)) is not None]
        if len({value for _, value in found}) == 1:
            found = [("", found[0][1])]
        for path in paths:
            if found:
                self.tape.silent.discard(path)
            for place, value in found:
                name = path + place
                counts[name] = counts.get(name, 0) + 1
                self.tape.calls[name, counts[name]] = value


class _Watch(TorchDispatchMode):
    """Brings what runs below Python, the operations inside a scripted function, up to where the recorder sees it."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))  # where the recorder has not seen the call, it sees this one
        if self._recorder.depth == 0 and not self._recorder.closed:
            self._recorder.alive.append(result)  # below Python its object could be lost, and its number with it
        return result


def _viewed(result: Any, given: Sequence[Tensor]) -> Any:
    """Make views of what a function returns as it was given, as torch does where it can't be seen."""
    return mapped(result, lambda y: y.view_as(y) if any(y is x for x in given) else y)


def _places(output: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        yield place, output
    elif isinstance(output, (tuple, list, dict)):
        for key, item in output.items() if isinstance(output, dict) else enumerate(output):
            yield from _places(item, f"{place}[{key}]")


_NAMES: dict[Any, str] = {}


def _name(func: Callable[..., Any]) -> str:
    if isinstance(func, torch._ops.OpOverload):
        name = str(func.overloadpacket)
    else:
        name = resolve_name(func) or f"{getattr(func, '__module__', '')}.{getattr(func, '__qualname__', repr(func))}"
    with contextlib.suppress(TypeError):
        _NAMES[func] = name
    return name


def _unseen(tensor: Tensor) -> Tensor:
    raise AssertionError("an operation that was not seen cannot be replayed")


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _value_free(name: str, args: tuple[Any, ...], tensors: Sequence[Tensor]) -> bool:
    short = short_name(name)
    if short in _VALUE_FREE:
        return len(tensors) == 1 and bool(args) and args[0] is tensors[0]
    return short in _LIKE_ANOTHER and bool(args) and not any(x is args[0] for x in tensors)


def _may_mutate(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    bare = name.rsplit(".", 1)[-1]
    flagged = any(x is True for x in args) or kwargs.get("inplace") is True or "out" in kwargs
    return flagged or bool(re.fullmatch(r".*[^_]_|__i\w+__|__set\w*__", bare))


def _empty(tree: Any, index: dict[int, Slot]) -> Any:
    return mapped(tree, lambda x: index.get(id(x), x) if isinstance(x, Tensor) else x)
