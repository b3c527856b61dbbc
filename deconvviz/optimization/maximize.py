"""Images that excite units, classes or directions of a network most."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ranks
from ..calls import Call, called
from ..checks import at_once, whole
from ..devices import Portions
from ..errors import DeconvvizError, OptionError
from ..guard import hash_weights, unwrapped
from ..jobs.draft import Draft
from ..jobs.runner import Memory, Place, Step, laid_out, run
from ..model.output import class_names, find_class, known_names, measuring
from ..topk.result import TopK
from . import objectives, robustness
from .climb import Settings, check_number, climb, settings_of
from .objectives import Objective, Read
from .parameters import PARAMETRIZATIONS, Parameters, make
from .pictures import pixels_of, size_of
from .reading import Network, Readings, Source, reading
from .result import Maximized
from .robustness import Robustness

STEPS = 128
RATES = {"fourier": 0.05, "maco": 0.3, "pixels": 0.05}
_BATCH = 8  # images at once on the CPU: above it memory, not arithmetic, bounds a step
_BATCH_CUDA = 64


@ranks.together
def maximize(
    model: nn.Module,
    *,
    layer: int | str | None = None,
    units: Sequence[int] | str | None = None,
    target: Any = None,
    directions: Tensor | None = None,
    at: str = "mean",
    negative: bool = False,
    n: int = 1,
    diversity: float = 1.0,
    parametrization: str = "fourier",
    robust: bool | Robustness = True,
    steps: int = STEPS,
    rate: float | None = None,
    input_size: int | tuple[int, ...] | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    top: TopK | None = None,
    preprocess: Any = None,
    call: Call | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Maximized:
    """Make images that excite units of a layer, classes or directions most, by gradient ascent.

    Example:
        >>> import deconvviz
        >>> model = deconvviz.zoo.create("zfnet64", weights="bundled")
        >>> result = deconvviz.maximize(model, layer=2, units=[3, 7], steps=8, progress=False)
        >>> result.images.shape, result.activations.shape
        (torch.Size([2, 1, 3, 64, 64]), torch.Size([2, 1, 9]))

    Every image starts from nearly gray noise and follows the gradient of what goes *into* its unit's activation, so
    that a unit that is silent on gray is found, too. Many images climb in one batch; the network runs as far as the
    layer, and no gradient of a weight is computed. Each image depends on the seed, its unit and the settings alone, up
    to rounding not on the others in its batch.

    Args:
        model: The network; left as it was found.
        layer: Number or module path, see `layers`; None for `target`.
        units: Of the layer: a list, "all", or None for 16 spread evenly.
        target: In place of units: a class by number or name, an `objectives.Objective`, a function of what the model
            returns for N images with one number for each, (N,), see `deconvviz.targets`; or a list of these.
        directions: In place of units: (units,) or (n, units), directions in the layer's response.
        at: "mean" of the unit's map, its strongest place ten times more, or its activation at the "center".
        negative: Excite as little as can be.
        n: Different images per unit.
        diversity: How much the n images of a unit are kept from being alike; 0 leaves it to their starts.
        parametrization: "fourier": a spectrum with decorrelated colours; "maco": the phases of a spectrum whose
            magnitudes are those of photographs; "pixels".
        robust: Whether the image is moved a little at each step, or a `Robustness` that says how.
        steps: Steps of Adam.
        rate: Its step length; None: what suits the parametrization.
        input_size: Side, (height, width) or (channels, height, width) in pixels; None takes the model's own, where
            it is known.
        seed: Of the starts and the moves.
        dtype: torch.bfloat16 runs the network in autocast; None as it is.
        batch_size: Images at once; None: what suits the device.
        top: A scan of photos, to compare with: fills `best_photo`.
        preprocess: How pixels become the model's input, where the model does not say; with neither, pixels from 0 to 1
            are its input.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        out: File that is written unit by unit; the same call goes on where a killed one stopped.
        progress: Show a bar with the time left.

    Returns:
        `Maximized`: `images` (U, D, C, H, W), `activations` (U, D, S), `steps`, `transparency`, `seed`. After Ctrl-C
        the units that are done, with a warning.

    Raises:
        OptionError, UnitError, LayerError: An argument has no meaning for this model, or its images' size is not known.
        ModelError: A gradient is not finite (the message names whose), or nothing depends on the image. The
            units before it are kept: in `out`, without it in the error's `done`.

    Source:
        Simonyan, Vedaldi & Zisserman, "Deep Inside Convolutional Networks", 2013; Olah, Mordvintsev & Schubert,
        "Feature Visualization", Distill 2017; Fel et al., "Unlocking Feature Visualization for Deeper Networks with
        MAgnitude Constrained Optimization", NeurIPS 2023.
    """
    settings = _settings(parametrization, robust, steps, rate, seed, dtype)
    check_number("diversity", diversity)
    n, at_most = whole(n, "n", 1), at_once(batch_size, None, 0)
    model = called(model, call)
    model, target = _measuring(model, target, preprocess)
    known = pixels_of(model, preprocess)
    shape = size_of(model, known, input_size)
    task = _Task(parametrization, settings, n, diversity, shape)
    with reading(model, known, shape) as network:
        goals = _goals(model, network, layer, units, target, directions, at, negative, preprocess)
        best = _best_photos(goals, top)
        size = at_most or (_BATCH_CUDA if network.device.type == "cuda" else _BATCH)
        per = max(1, size // n)
        blocks = [range(i, min(i + per, len(goals.names))) for i in range(0, len(goals.names), per)]
        portions = Portions(per)

        def climb_block(block: range, place: Place) -> Iterator[Step]:
            def some(chosen: Tensor) -> Iterator[Step]:
                own = place._replace(rows=place.rows[chosen])
                return _climb(network, goals, task, block[int(chosen[0]) : int(chosen[-1]) + 1], own)

            return portions.steps(some, torch.arange(len(block)))

        sizes = [len(b) * n * settings.steps for b in blocks]
        options: Any = {"sizes": sizes, "name": "maximize", "unit": "steps", "progress": progress}
        options["rows"] = lambda block: torch.tensor(block)
        scale = known and (known.mean, known.std)
        team, fields = ranks.team(), _laid_out(goals, task)
        if team.size > 1:
            team.agree(_hash(model, goals, task, best, size, scale), "weights or options")
        if out is None or team.rank > 0:
            new = (
                laid_out(fields)
                if team.rank > 0
                else {name: torch.zeros(of, dtype=d) for name, (d, of) in fields.items()}
            )

            def part(count: int) -> Maximized:
                return _result(goals, task, new, count, best)

            done = _run_in_memory(blocks, climb_block, new, options, part)
            found = team.deliver(lambda: part(done), Maximized, out)
        else:
            with Draft(out) as draft:
                run(blocks, climb_block, draft, arrays=_open(draft, model, goals, task, best, size, scale), **options)

                def finish() -> Maximized:
                    draft.finish()
                    return Maximized.load(out)

                found = team.deliver(finish, Maximized, out)
    result: Maximized = found
    return result


def _run_in_memory(
    blocks: Sequence[range],
    compute: Callable[[range, Place], Iterator[Step]],
    arrays: dict[str, Tensor],
    options: dict[str, Any],
    part: Callable[[int], Maximized],
) -> int:
    """Run a job whose blocks go to memory; return how many objectives are done.

    Ctrl-C keeps those; an error carries their result, `part` of their number.
    """
    done = _Counted()
    try:
        run(blocks, compute, done, arrays=arrays, **options)
    except (KeyboardInterrupt, DeconvvizError) as error:
        if not done.blocks or ranks.team().size > 1:
            raise
        kept = f"{done.count(blocks)} of {sum(map(len, blocks))} objectives are done"
        if isinstance(error, DeconvvizError):
            error.keep(part(done.count(blocks)), f"{kept}:")
            raise
        warnings.warn(f"interrupted: {kept} and returned.", stacklevel=4)
    return done.count(blocks)


class _Counted(Memory):
    """Counts the blocks that are done; they are done in order."""

    blocks = 0

    def mark(self, block: int) -> None:
        """Count one more."""
        self.blocks = block + 1

    def count(self, blocks: Sequence[range]) -> int:
        """Return how many items those blocks hold that are done."""
        return sum(map(len, blocks[: self.blocks]))


def _open(
    draft: Draft,
    model: nn.Module,
    goals: Goals,
    task: _Task,
    best: Tensor | None,
    batch_size: int,
    scale: object,
) -> dict[str, Tensor]:
    """Lay out the result's file, or go on with one that a job like this left; return the arrays to be filled."""
    facts, own, large = _header(goals, task, best)
    own = dict(sorted(own.items(), key=lambda item: -item[1].dtype.itemsize))
    fields = {name: (array.dtype, tuple(array.shape)) for name, array in own.items()}
    known = {name: array for name, array in own.items() if name not in large}
    key = _hash(model, goals, task, best, batch_size, scale)
    arrays = draft.open(key, fields, {"kind": Maximized.file_kind, **facts}, known)
    return {name: arrays[name] for name in large}


def _header(
    goals: Goals, task: _Task, best: Tensor | None
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Return what the result's file says, its arrays, and those of them that the job fills, which hold nothing yet."""
    large = {name: torch.zeros((), dtype=dtype).expand(of) for name, (dtype, of) in _laid_out(goals, task).items()}
    facts, own = _result(goals, task, large, len(goals.names), best).header()
    return facts, own, large


def _hash(model: nn.Module, goals: Goals, task: _Task, best: Tensor | None, batch_size: int, scale: object) -> str:
    """Hash all that the images depend on."""
    facts = _header(goals, task, best)[0]
    keys = [(objective.name, objective.key) for objective in goals.objectives]
    digest = hashlib.blake2b(repr((facts, batch_size, task, keys, scale)).encode(), digest_size=16)
    hash_weights(unwrapped(model), digest)
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Goals:
    """What U items are to excite, and how they are called."""

    layer: str
    number: int | None
    objectives: tuple[Objective, ...]
    names: tuple[str, ...]
    units: tuple[int, ...]
    negative: bool = False
    at: str = ""


@dataclasses.dataclass(frozen=True)
class _Task:
    """How each image is made."""

    parametrization: str
    settings: Settings
    n: int
    diversity: float
    shape: tuple[int, int, int]

    def parameters(self, keys: Sequence[int]) -> Parameters:
        """Return n images for each of some units, from the starts that belong to the units' numbers."""
        seeds = [(self.settings.seed * 1_000_003 + key) * 1009 + d for key in keys for d in range(self.n)]
        return make(self.parametrization, seeds, self.shape)


def _settings(
    parametrization: str, robust: Any, steps: int, rate: float | None, seed: int, dtype: torch.dtype | None
) -> Settings:
    if parametrization not in PARAMETRIZATIONS:
        known = ", ".join(map(repr, PARAMETRIZATIONS))
        raise OptionError(f"parametrization={parametrization!r}: expected one of {known}.")
    rate = RATES[parametrization] if rate is None else rate
    return settings_of(steps, rate, robustness.read(robust), seed, dtype)


def _goals(
    model: nn.Module,
    network: Network,
    layer: int | str | None,
    units: Any,
    target: Any,
    directions: Tensor | None,
    at: str,
    negative: bool,
    preprocess: Any,
) -> Goals:
    """Make sense of what is to be excited."""
    if (layer is None) == (target is None):
        raise OptionError("give either layer=, with units= or directions=, or target=.")
    if target is not None:
        if units is not None or directions is not None:
            raise OptionError(
                "units and directions are of a layer: leave them out, or give layer= in place of target=."
            )
        goals = _targets(model, network, target, preprocess)
    else:
        assert layer is not None
        goals = _of_layer(network, layer, units, directions, at)
    if negative:
        opposite = tuple(-objective for objective in goals.objectives)
        goals = dataclasses.replace(goals, objectives=opposite, negative=True)
    return goals


def _of_layer(network: Network, layer: int | str, units: Any, directions: Tensor | None, at: str) -> Goals:
    found = network.find(layer).layer
    if directions is None:
        chosen = found.choose(units)
        each = tuple(objectives.unit(found.name, number, at) for number in chosen)
        return Goals(found.name, found.number, each, tuple(f"unit {u}" for u in chosen), tuple(chosen), at=at)
    if units is not None:
        raise OptionError("units and directions exclude each other.")
    vectors = torch.as_tensor(directions)
    vectors = vectors[None] if vectors.dim() == 1 else vectors
    if vectors.dim() != 2 or vectors.shape[1] != found.units:
        raise OptionError(
            f"directions have shape {tuple(vectors.shape)}, expected (n, {found.units}): one number per unit of "
            f"layer {found.name!r}."
        )
    each = tuple(objectives.direction(found.name, vector, at) for vector in vectors)
    names = tuple(f"direction {i}" for i in range(len(vectors)))
    return Goals(found.name, found.number, each, names, (-1,) * len(names), at=at)


def _targets(model: nn.Module, network: Network, target: Any, preprocess: Any) -> Goals:
    wanted = list(target) if isinstance(target, (list, tuple, Tensor)) else [target]
    if not wanted:
        raise OptionError("target is an empty list: give a class or an objective.")
    classes = network.classes()
    known = class_names(model, preprocess, None, classes)
    each, names, numbers = [], [], []
    for one in wanted:
        if isinstance(one, Objective):
            each.append(one)
            names.append(one.name)
            numbers.append(-1)
            continue
        number = find_class(one, known, classes)
        name = known[number] if known else f"class {number}"
        each.append(objectives.output(number, name))
        names.append(name)
        numbers.append(number)
    return Goals("", None, tuple(each), tuple(names), tuple(numbers))


def _measuring(model: nn.Module, target: Any, preprocess: Any) -> tuple[nn.Module, Any]:
    """Return a network whose output is the numbers of target functions, and the objectives of these, if there are any."""
    wanted = list(target) if isinstance(target, (list, tuple)) else [target]
    if not any(callable(one) for one in wanted):
        return model, target
    if any(isinstance(one, Objective) for one in wanted):
        raise OptionError("target holds functions of the output and objectives. Give them in calls of their own.")
    network = measuring(model, wanted, known_names(model, preprocess, None))
    return network, [objectives.output(i, name) for i, name in enumerate(network.names)]


def _laid_out(goals: Goals, task: _Task) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Say which arrays a result has."""
    items, (channels, height, width) = (len(goals.objectives), task.n), task.shape
    return {
        "images": (torch.float32, (*items, channels, height, width)),
        "activations": (torch.float32, (*items, task.settings.steps + 1)),
        "transparency": (torch.float32, (*items, height, width)),
    }


def _climb(network: Network, goals: Goals, task: _Task, chosen: Sequence[int], place: Place) -> Iterator[Step]:
    """Make the images of some objectives, D each, and put them into their place; yield after each step."""
    own = [goals.objectives[i] for i in chosen for _ in range(task.n)]
    layers = list(dict.fromkeys(layer for objective in own for layer in objective.layers))
    sources = {layer: network.find(layer) for layer in layers if layer is not None}
    # Of a class the output has no map, in which its images could differ.
    apart = list(sources.values()) or [network.deepest_map()] * (task.n > 1)
    parameters = task.parameters([goals.units[i] if goals.units[i] >= 0 else i for i in chosen])
    seen: list[Tensor] = []

    def loss(readings: Readings, pixels: Tensor) -> Tensor:
        scores = _each(own, readings, sources, Objective.score)
        return _likeness(scores, readings, apart, task) - scores

    def look(step: int, readings: Readings) -> None:
        with torch.no_grad():
            seen.append(_each(own, readings, sources, Objective.measure).float())

    felt = torch.zeros(len(own), *task.shape[1:])
    names = [goals.names[i] for i in chosen for _ in range(task.n)]
    wanted = list(sources.values()) or apart
    for gradient in climb(network, parameters, wanted, None in layers, loss, look, task.settings, names):
        felt += gradient.float().cpu()
        yield len(own), ()
    made = {
        "images": parameters.images().detach().float().cpu(),
        "activations": torch.stack(seen, 1).cpu(),
        "transparency": felt / felt.amax((1, 2), keepdim=True).clamp(min=1e-30),
    }
    for name, value in made.items():
        place.arrays[name][place.rows] = value.unflatten(0, (len(chosen), task.n))


def _each(
    own: Sequence[Objective], readings: Readings, sources: dict[Any, Source], what: Callable[[Objective, Read], Tensor]
) -> Tensor:
    """Return a number per image (B,), of its own objective and its own readings."""
    taken: dict[tuple[Any, str], tuple[Tensor, ...]] = {}

    def read(image: int, layer: Any, how: str) -> Tensor:
        key = (layer, how)
        if key not in taken:
            taken[key] = readings.take(sources.get(layer), how).unbind(0)
        return taken[key][image]

    return torch.stack([what(goal, functools.partial(read, i)) for i, goal in enumerate(own)])


def _likeness(scores: Tensor, readings: Readings, apart: Sequence[Source], task: _Task) -> Tensor:
    """Return what images of one unit lose by being alike (B,): their Gram matrices' mean cosine, times the score."""
    if task.n == 1 or not task.diversity:
        return torch.zeros_like(scores)
    lost = []
    for source in apart:
        flat = readings.response(source).flatten(2)
        gram = torch.nn.functional.normalize((flat @ flat.mT).flatten(1), dim=1, eps=1e-12)
        groups = gram.unflatten(0, (-1, task.n))
        alike = (groups @ groups.mT).sum(-1) - 1  # without each image's likeness to itself
        lost.append((alike / (task.n - 1)).flatten())
    return task.diversity * scores.detach().abs() * torch.stack(lost).sum(0)


def _best_photos(goals: Goals, top: TopK | None) -> Tensor | None:
    if top is None:
        return None
    if not goals.layer or min(goals.units) < 0:
        raise OptionError("top= compares units of a layer with photos: give layer= and units=.")
    return top[goals.layer].values[list(goals.units), 0].float()


def _result(goals: Goals, task: _Task, arrays: dict[str, Tensor], done: int, best: Tensor | None) -> Maximized:
    facts = {
        "parametrization": task.parametrization,
        "rate": task.settings.rate,
        **dataclasses.asdict(task.settings.robust),
        "diversity": task.diversity,
        "negative": goals.negative,
        **({"at": goals.at} if goals.at else {}),
    }
    return Maximized(
        goals.layer,
        goals.number,
        goals.names[:done],
        torch.tensor(goals.units[:done]),
        arrays["images"][:done],
        arrays["activations"][:done],
        torch.arange(task.settings.steps + 1),
        arrays["transparency"][:done],
        task.settings.seed,
        tuple(facts.items()),
        best if best is None else best[:done],
    )
