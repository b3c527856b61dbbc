"""Methods that explain an answer, side by side, and which of them still draw the same when the weights are random."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..calls import Call, called
from ..errors import ImageError, ModelError, OptionError
from ..guard import check_weights, placement, untouched, unwrapped
from ..images import ImageSet, open_one
from ..model.output import class_names, known_names
from ..model.randomize import cascade, stages_of, steps_of
from ..modes import sound_gradients
from ..occlusion.occlude import occlude
from ..tape.record import record
from ..targets import named
from . import attributions
from .case import Case, Own, cam_module, start_of
from .result import MethodComparison
from .similarity import rank_correlation, ssim, strength


def compare_methods(
    model: nn.Module,
    image: Any,
    *,
    target: Any = None,
    methods: Sequence[str] | None = None,
    own: Mapping[str, Own] | None = None,
    layer: int | str | None = None,
    size: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    steps: int = 50,
    stages: int = 8,
    draws: int = 1,
    seed: int = 0,
    preprocess: object = None,
    call: Call | None = None,
    progress: bool = True,
) -> MethodComparison:
    """Explain one answer by several methods, and again with random weights: who still draws the same picture?

    Example:
        >>> import deconvviz, torch
        >>> model = deconvviz.zoo.create("zfnet64")
        >>> chosen = {"methods": ["deconvnet", "guided", "occlusion"], "stages": 2, "progress": False}
        >>> result = deconvviz.compare_methods(model, torch.randn(3, 64, 64), **chosen)
        >>> result["guided"].shape, result["occlusion"].shape, result.rank_correlation.shape
        (torch.Size([3, 64, 64]), torch.Size([1, 64, 64]), torch.Size([3, 2, 1]))

    All methods explain one and the same number f: a class's logit, or one activation.

    - "deconvnet", "guided": this package's rules, which see functional ReLUs as well, from f down with a seed of 1. The
      ZFNet paper starts at one activation of a feature layer, `target=(layer, None)`; from a class, as by default here
      and in captum, the signal passes the fully connected layers, too.
    - "gradient": df/dx, captum's `Saliency` without absolute values.
    - "gradcam": captum's `LayerGradCam` with the paper's ReLU, enlarged bilinearly.
    - "integrated": captum's `IntegratedGradients` from a baseline of 0 in input space.
    - "occlusion": the mean drop of f over the gray windows that cover each pixel, `Occlusion.attribution`.

    The check is the cascading randomization of Adebayo et al.: the weights are drawn at random layer by layer from the
    output down, on a copy, and every method explains the same f again. A method whose map stays as it was explains
    the image and the architecture, not what was learned. Weights and biases are drawn from a normal distribution of
    mean 0 with each tensor's own root mean square, so that signals neither vanish nor explode; the channels of a
    normalization trade places, each with its scale, shift and statistics.

    The number is Spearman's rank correlation ρ of the *strength per pixel*, the sum over the channels of the absolute
    values. Ranks, since methods differ in scale and in how far their peaks stick out; absolute values, since random
    weights flip signs without moving what the eye sees, as that paper argues. 1 is the same picture, 0 an unrelated
    one; a blank map, such as the gradient of a unit that random weights silence, counts as unrelated. SSIM of the
    strength divided by its maximum stands beside it.

    Args:
        model: Any network that returns (N, classes), or has the target's layer; left as it was found.
        image: One image: (C, H, W) or (1, C, H, W) in the model's input space, a PIL image or a file.
        target: A class, by number or name; (layer, unit): that unit's strongest position in this image; (layer,
            None): the strongest unit of the layer; None: the most probable class. The layer is a number or a module path.
            Or a function of what the model returns for N images, whatever that is, with one number for each, (N,); see
            `deconvviz.targets`.
        methods: Some of "deconvnet", "guided", "gradient", "gradcam", "integrated", "occlusion"; None: all.
        own: Methods of your own: name to a function of (network, image (1, C, H, W), f), f mapping (N, C, H, W) to
            (N,), that returns (C, H, W) or (H, W).
        layer: Whose maps Grad-CAM weighs; None: the deepest with a number, or where that is no module's result, such
            as a functional ReLU's, the last module that returns maps.
        size: Of the occluder, see `occlude`.
        stride: Of the occluder, see `occlude`.
        steps: Points on the way of the integrated gradients.
        stages: At how many depths of randomization to look, spread over the layers; the last is the whole network. 0:
            no randomization.
        draws: How often to draw the weights; each number is then a mean.
        seed: Of the draws.
        preprocess: See `project`.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        progress: Show a bar.

    Returns:
        A `MethodComparison`: `maps` (per method C or 1, H, W), `randomized` (per method S, C or 1, H, W), `stages`,
        `rank_correlation` and `ssim` (M, S, D), `scores` (M,).

    Raises:
        UnsupportedOp: Deconvnet or guided backprop has no rule for an operation: leave them out by `methods`.
        OptionError: A target, method or number that has no meaning.
        ModelError: The output is no (N, classes), something is not finite, or captum is not installed: `pip install
            "deconvviz[compare]"`.
        ImageError, LayerError, UnitError: As their names say.

    Source: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, section 3.
    """
    chosen = _chosen(methods, own or {})
    if stages < 0 or draws < 1 or steps < 1:
        raise OptionError(f"stages={stages}, draws={draws}, steps={steps}: expected at least 0, 1 and 1.")
    model = called(model, call)
    opened = _one(model, image, preprocess)
    occluder = {"size": size, "stride": stride}
    with torch.inference_mode(False):  # copies made in inference mode could not be changed
        case = _case(model, opened, target, chosen, layer, occluder, steps, preprocess)
        order = _steps(case)
        depths = stages_of(len(order), stages) if stages else []
        with tqdm(total=1 + draws * len(depths), disable=not progress, unit=" networks", desc="compare") as bar:
            study = _Study(case, chosen, own or {}, bar)
            generator = torch.Generator().manual_seed(seed)
            for _ in range(draws):
                study.draw(order, depths, generator)
    bounds = zip([0, *depths], depths, strict=False)
    drawn = tuple(tuple(path for step in order[a:b] for path in step) for a, b in bounds)
    return study.result(opened, drawn)


class _Study:
    """Explains the trained network at once, then draw after draw the random ones."""

    def __init__(self, case: Case, methods: Sequence[str], own: Mapping[str, Own], bar: Any) -> None:
        self.case, self.methods, self.own, self.bar = case, methods, own, bar
        self.maps = explain(case, methods, own, "trained")
        self.value = float(_value(case))
        bar.update(1)
        self.first: list[list[Tensor]] = []  # maps of the first draw, stage by stage
        self.numbers: list[list[list[tuple[float, float]]]] = []  # draw, stage, method

    def draw(self, order: Sequence[Sequence[str]], depths: Sequence[int], generator: torch.Generator) -> None:
        """Draw the weights once, from the output down, and explain at each depth."""
        network = copy.deepcopy(self.case.network)
        case = dataclasses.replace(self.case, network=network)
        stages = []
        for stage in cascade(network, order, depths, generator):
            maps = explain(case, self.methods, self.own, f"randomized (stage {stage + 1})")
            stages.append(list(_alike(self.maps, maps)))
            if not self.numbers:
                self.first.append(maps)
            self.bar.update(1)
        self.numbers.append(stages)

    def result(self, opened: ImageSet, drawn: tuple[tuple[str, ...], ...]) -> MethodComparison:
        """Return what was collected."""
        names = (*self.methods, *self.own)
        numbers = torch.tensor(self.numbers, dtype=torch.float64).reshape(len(self.numbers), len(drawn), len(names), 2)
        numbers = numbers.permute(3, 2, 1, 0)
        return MethodComparison(
            methods=names,
            target=_title(opened, self.case),
            value=self.value,
            image=self.case.image[0].cpu().clone(),
            picture=opened.picture(0).mul(255).round().byte().cpu(),
            maps=tuple(self.maps),
            layer=self.case.cam,
            stages=drawn,
            randomized=tuple(torch.stack(maps) for maps in zip(*self.first, strict=True)),
            rank_correlation=numbers[0].contiguous(),
            ssim=numbers[1].contiguous(),
        )


def _alike(trained: Sequence[Tensor], random: Sequence[Tensor]) -> Iterator[tuple[float, float]]:
    for a, b in zip(trained, random, strict=True):
        yield rank_correlation(strength(a), strength(b)), ssim(strength(a), strength(b))


def _title(opened: ImageSet, case: Case) -> str:
    """Return the explained number in words, with the class's name where it is known."""
    start = case.start
    if start.name:
        return start.title
    names = class_names(case.network, opened.preprocess, None, start.layer.units) if start.module is None else None
    return f"{start.title}, {names[start.unit]}" if names else start.title


def _chosen(methods: Sequence[str] | None, own: Mapping[str, Own]) -> tuple[str, ...]:
    """Return the package's methods that were asked for, after checking names and that captum is there."""
    chosen = tuple(METHODS) if methods is None else (methods,) if isinstance(methods, str) else tuple(methods)
    unknown = [name for name in chosen if name not in METHODS]
    if unknown or len(set(chosen)) < len(chosen) or not (chosen or own):
        raise OptionError(f"methods={list(chosen)}: expected some of {', '.join(METHODS)}, each once.")
    if taken := [name for name in own if name in METHODS or not callable(own[name])]:
        raise OptionError(f"own method {taken[0]!r} is no function, or has a name that is taken. Give it another.")
    if needs := [name for name in chosen if name in _CAPTUMS]:
        try:
            import captum.attr  # noqa: F401
        except ImportError as error:
            raise ModelError(
                f'{", ".join(needs)}: needs captum. Install it: pip install "deconvviz[compare]". Or leave them out: '
                "methods=[…]."
            ) from error
    return chosen


def _one(model: nn.Module, image: Any, preprocess: object) -> ImageSet:
    opened = open_one(model, image, preprocess)
    if len(opened) != 1:
        raise ImageError(f"there are {len(opened)} images, expected one: methods are compared image by image.")
    return opened


def _case(
    model: nn.Module,
    opened: ImageSet,
    target: Any,
    methods: Sequence[str],
    layer: int | str | None,
    occluder: Mapping[str, Any],
    steps: int,
    preprocess: object,
) -> Case:
    """Copy the network, so that nothing below can touch the caller's, and find out what is to be explained."""
    check_weights(unwrapped(model))
    image = opened.take([0]).to(*placement(model)).clone()
    with untouched(model) as network:
        try:
            network = copy.deepcopy(network)
        except (RuntimeError, TypeError) as error:
            raise ModelError(f"the model cannot be copied, and its weights must not be touched: {error}.") from error
    network.requires_grad_(False)
    for module in network.modules():
        if getattr(module, "inplace", False):  # captum's hooks need results that nothing overwrites
            module.inplace = False  # type: ignore[assignment]
    if callable(target):
        target = named(target, known_names(network, preprocess, None))
        network = called(network, None, [target])
    with untouched(network):
        start, rows = start_of(network, image, target, preprocess)
    cam = cam_module(rows, start, layer) if "gradcam" in methods else None
    return Case(network, image, start, cam, occluder, steps)


def _steps(case: Case) -> list[tuple[str, ...]]:
    with untouched(case.network) as network:
        return steps_of(network, record(network, case.image, until=case.start.layer.value))


def _value(case: Case) -> Tensor:
    with untouched(case.network):
        return case.number(case.image)[0]


# ---- the methods on one case ------------------------------------------------------------------------------------------


def _occlude(case: Case) -> Tensor:
    start, options = case.start, dict(case.occluder or {})
    row, col = start.position
    target: Any = start.unit if start.module is None else (start.layer.name, lambda r: r[:, start.unit, row, col])
    if start.name:
        target = lambda output: output[:, start.unit]  # noqa: E731
    scan = occlude(case.network, case.image, target=target, progress=False, **options)
    drop = scan.attribution("logit")
    if drop.isnan().any():
        raise OptionError(
            f"occluder stride {scan.stride} is larger than its size {scan.size}: some pixels are never covered. "
            "Give a stride of at most the size."
        )
    return drop[None, None]


METHODS: dict[str, Callable[[Case], Tensor]] = {
    "deconvnet": attributions.deconvnet,
    "guided": attributions.guided,
    "gradient": attributions.gradient,
    "gradcam": attributions.gradcam,
    "integrated": attributions.integrated,
    "occlusion": _occlude,
}
_CAPTUMS = ("gradient", "gradcam", "integrated")


def explain(case: Case, methods: Sequence[str], own: Mapping[str, Own], where: str) -> list[Tensor]:
    """Return each method's map (C or 1, H, W) on the CPU, float32 or float64; own methods come last."""
    found = []
    with untouched(case.network):
        for name in (*methods, *own):
            foreign = name in own or name in _CAPTUMS
            # captum's need gradients; ours switch them off themselves.
            with torch.enable_grad(), sound_gradients() if foreign else contextlib.nullcontext():
                full = own[name](case.network, case.image, case.number) if name in own else METHODS[name](case)
            found.append(_checked(full, case, name, where))
    return found


def _checked(full: Any, case: Case, name: str, where: str) -> Tensor:
    channels, *size = case.image.shape[1:]
    shape = tuple(full.shape) if isinstance(full, Tensor) else type(full).__name__
    if not isinstance(full, Tensor) or full.shape[-2:] != tuple(size) or full.numel() not in (
        channels * size[0] * size[1],
        size[0] * size[1],
    ):  # fmt: skip
        raise OptionError(f"method {name!r} gave {shape}, expected ({channels}, {size[0]}, {size[1]}) or without C.")
    full = full.detach().reshape(-1, *size).cpu()
    if not torch.isfinite(full).all():
        raise ModelError(f"the map of {name!r} of the {where} network holds NaN or infinity. Look for an overflow.")
    return full.contiguous() if full.dtype == torch.float64 else full.float().contiguous()
