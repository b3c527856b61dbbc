"""The commands that show what a network sees."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import OptionError
from .options import (
    AMP,
    BATCH_SIZE,
    CSV,
    DISTINCT,
    HOW,
    IMAGES,
    INTERIOR,
    JSON,
    LAYER,
    LAYERS,
    MODEL,
    ON_ERROR,
    QUIET,
    READING,
    RULE,
    SAVE,
    SEED,
    UNITS,
    Command,
    K,
    Option,
    animation,
    file,
    folder,
    load,
    numbers,
    numbers_or_text,
    out,
    page,
    pair,
    picture,
    position,
    read_lines,
    rules,
    save,
    say,
    tell,
    whole_or_name,
    write,
)

INPUT_SIZE = Option("--input-size", "224 or 224,320 (height,width)", type=pair)
FILL = Option("--fill", "gray, mean, blur, noise, 0 to 1, r,g,b or an image file", default="gray", type=numbers_or_text)
CROP = Option(
    "--crop",
    "what of a patch is shown: its whole field, or what the unit responds to",
    argument=None,
    default="field",
    more={"choices": ("field", "effective")},
)
SHOWN = (
    Option(
        "--scale",
        "which projections share one scale",
        argument=None,
        default="unit",
        more={"choices": ("unit", "projection", "sheet")},
    ),
    Option("--smooth", "show projections through a Gaussian of so many pixels", argument=None, default=0.0, type=float),
    Option("--gray", "show projections in gray", argument=None, default=False, more={"action": "store_true"}),
    Option("--percentile", "how many percent of the values span the colours", argument=None, default=99.5, type=float),
)
IMAGE = Option("image", "an image file", more={"metavar": "IMAGE"})
TARGETS = Option("--target", "in place of a layer: a class, by number or name", type=whole_or_name)
STEPS = Option("--steps", "steps of the optimizer", type=int)
RATE = Option("--rate", "their length; default: what suits the parametrization", type=float)
STILL = Option(
    "--still",
    "do not move the image at each step",
    argument="robust",
    default=False,
    called=lambda still: not still,
    more={"action": "store_true"},
)


def table(command: Command, parsed: argparse.Namespace) -> None:
    """Make the call and print the table."""
    tell(command.call(parsed, load(parsed)), parsed)


def _cost(command: Command, parsed: argparse.Namespace) -> None:
    from .networks import load_model

    result = command.call(parsed, load(parsed))
    others = {name: command.call(parsed, load_model(name, device=parsed.device)) for name in parsed.compare or ()}
    tell(result, parsed)
    for name, other in others.items():
        say(f"{name}: {other.describe()}", parsed)
    if parsed.accuracy is not None and len(parsed.accuracy) != 1 + len(others):
        raise OptionError(f"--accuracy holds {len(parsed.accuracy)} numbers for {1 + len(others)} networks.")
    if parsed.out:
        accuracy = parsed.accuracy and dict(zip([parsed.model, *others], parsed.accuracy, strict=True))
        write(parsed.out, result.plot(name=parsed.model, others=others or None, accuracy=accuracy))


def _percents(text: str) -> list[float]:
    """Read "63.3,59.1"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers with commas between them: 63.3,59.1") from None


def _convolutional(command: Command, parsed: argparse.Namespace) -> None:
    import deconvviz

    loaded = load(parsed)
    how = {"preprocess": loaded.preprocess}
    dense = deconvviz.convolutional(loaded.model, **command.arguments(parsed))
    result = dense.look(parsed.image, target=parsed.target, side=parsed.side, **how)
    tell(result, parsed)
    scan = None
    if parsed.side is None:
        scan = deconvviz.occlude(loaded.model, parsed.image, target=result.target, progress=not parsed.quiet, **how)
    write(parsed.out, result.plot(occlusion=scan))


def _demo(command: Command, parsed: argparse.Namespace) -> None:
    from .demo import run

    for path in run(**command.arguments(parsed)):
        print(f"Open {path} in a browser.")


def _project(command: Command, parsed: argparse.Namespace) -> None:
    result = command.call(parsed, load(parsed))
    _show(result, parsed, parsed.out or f"layer-{parsed.layer}.png")


def _show(result: Any, parsed: argparse.Namespace, path: str) -> None:
    """Draw patches with what belongs to them, print and keep the numbers as asked, and say what was noticed."""
    look = {name: getattr(parsed, name) for name in ("scale", "crop", "smooth", "gray", "percentile")}
    numbers(result, parsed)
    write(path, result.plot(**look), parsed)
    save(result, parsed)
    if result.note:
        say(result.note, parsed)
    _tell_skipped(result, parsed)


def _tell_skipped(result: Any, parsed: argparse.Namespace) -> None:
    for number, reason in result.skipped:
        say(f"skipped image {number}: {reason}", parsed)


def _deconv(command: Command, parsed: argparse.Namespace) -> None:
    import deconvviz

    result = command.call(parsed, load(parsed))
    title = f"layer {parsed.layer}, unit {parsed.unit}"
    write(parsed.out, deconvviz.plotting.projections.sheet(result, title=title))


def _occlude(command: Command, parsed: argparse.Namespace) -> None:
    results = command.call(parsed, load(parsed))
    several = isinstance(results, list)
    for number, result in enumerate(results if several else [results], 1):
        paths = {
            name: path and (_numbered(path, number) if several else path)
            for name in ("out", "overlay", "animation", "save")
            for path in [getattr(parsed, name)]
        }
        write(paths["out"], result.plot())
        if paths["overlay"]:
            write(paths["overlay"], result.overlay())
        for path, keep in ((paths["animation"], result.animate), (paths["save"], result.save)):
            if path:
                keep(path)
                print(f"wrote {path}")


def _evidence(command: Command, parsed: argparse.Namespace) -> None:
    result = command.call(parsed, load(parsed))
    _show(result, parsed, parsed.out or f"evidence-{parsed.layer or parsed.target}.png")


def _numbered(path: str, number: int) -> str:
    """Return occlusion-3.png for the third image of occlusion.png."""
    return str(Path(path).with_stem(f"{Path(path).stem}-{number}"))


def _top(command: Command, parsed: argparse.Namespace) -> None:
    found = command.call(parsed, load(parsed), out=parsed.out)
    if parsed.json:
        tell(found, parsed)
    elif not numbers(found, parsed):
        for layer in found.tops:
            strongest = layer.values[:, 0]
            middle, most = strongest.median(), strongest.max()
            units = f"{layer.name}: {len(layer.values)} units"
            silent = f"; {layer.silent} units: no response in {found.count} images" if layer.silent else ""
            print(f"{units}; their strongest activation: median {middle:.3g}, most {most:.3g}{silent}")
        for number, reason in found.skipped:
            print(f"skipped image {number}: {reason}")
    say(f"wrote {parsed.out}", parsed)


def _report(command: Command, parsed: argparse.Namespace) -> None:
    loaded = load(parsed)
    weights = "random" if loaded.random else Path(parsed.weights or "the ones that come with it").name
    facts = {} if hasattr(loaded.model, "card") else {"Network": parsed.model, "Weights": weights}
    name = parsed.model.rpartition(":")[2] + " with random weights" * loaded.random
    title = parsed.title or f"What {name} sees"
    print(f"Open {command.call(parsed, loaded, facts=facts, title=title)} in a browser.")


COMMANDS = (
    Command(
        "demo",
        "",
        "layers 1-5 of a trained network as top-9 grids, with a page",
        (
            Option("--out", default="deconvviz-demo", type=folder, more={"metavar": "DIR"}),
            Option(
                "--network",
                default="squeezenet-1.1",
                more={"choices": ("squeezenet-1.1", "zfnet64", "alexnet64", "both")},
            ),
            Option("--seed", "draws the units that are shown; default: telling ones", type=int),
            QUIET,
        ),
        "deconvviz demo --out pages",
        _demo,
    ),
    Command(
        "layers",
        "layers",
        "table of the layers: numbers, names, units, receptive fields",
        (*MODEL, INPUT_SIZE, *HOW, JSON),
        "deconvviz layers resnet18 --input-size 224,320",
        table,
    ),
    Command(
        "cost",
        "cost",
        "parameters, multiply-adds, outputs and connections of each layer and in sum",
        (
            *(*MODEL, INPUT_SIZE),
            Option(
                "--compare",
                "another network in the picture; repeat",
                argument=None,
                more={"metavar": "MODEL", "action": "append"},
            ),
            Option(
                "--accuracy",
                "percent of each network, in their order; default: the picture shows their depth",
                argument=None,
                type=_percents,
                more={"metavar": "63.3,59.1"},
            ),
            *(out(None), SAVE, JSON),
        ),
        "deconvviz cost alexnet --compare vgg-d --compare googlenet --out cost.png",
        _cost,
    ),
    Command(
        "convolutional",
        "convolutional",
        "a classifier's answer at every place of an image, beside what covering its parts takes away",
        (
            *(*MODEL, IMAGE.but(argument=None)),
            TARGETS.but(help="class, by number or name; default: the most probable one", argument=None),
            Option("--side", "look at the whole picture, its shorter side so long", argument=None, type=int),
            Option("--fine", "the last max-pool at every offset", default=False, more={"action": "store_true"}),
            Option(
                "--unpooled",
                "leave out a last mean over the whole map: an answer for each of its positions",
                argument="pooled",
                default=False,
                called=lambda unpooled: not unpooled,
                more={"action": "store_true"},
            ),
            *(INPUT_SIZE, out("class-map.png"), SAVE, JSON, QUIET.but(argument=None, called=None)),
        ),
        "deconvviz convolutional squeezenet-1.1 cat.jpg --unpooled",
        _convolutional,
    ),
    Command(
        "audit",
        "audit",
        "every operation on the path and the rule it gets",
        (*MODEL, IMAGES.but(help="folder of images; default: a blank one"), INPUT_SIZE, *HOW, JSON),
        "deconvviz audit timm:convnext_tiny",
        table,
    ),
    Command(
        "project",
        "project",
        "top images of units beside their projections",
        (
            *(
                *MODEL,
                IMAGES,
                LAYER.but(required=True),
                UNITS,
                K,
                DISTINCT,
                INTERIOR,
                Option(RULE.flag, f"{RULE.help}; deconvnet,guided shows both", default=RULE.default, type=rules),
                *HOW[1:],
                *READING,
                ON_ERROR,
            ),
            *(CROP, *SHOWN),
            *(out(None, "the picture: png, pdf, svg, jpg or webp; default: layer-LAYER.png"), SAVE, JSON, CSV, QUIET),
        ),
        "deconvviz project zfnet64 --layer 5 --units 0-15 --out layer-5.png",
        _project,
    ),
    Command(
        "deconv",
        "deconv",
        "full-size projection of one unit for given images",
        (
            *(*MODEL, IMAGES.but(help="an image or a folder", metavar="PATH", required=True)),
            *(LAYER.but(required=True), Option("--unit", type=int, more={"required": True})),
            Option("--position", "row,col in the layer's map; default: the strongest", type=position),
            *(*HOW, *READING, out("deconv.png"), QUIET),
        ),
        "deconvviz deconv zfnet64 --images cat.jpg --layer 5 --unit 12",
        _deconv,
    ),
    Command(
        "evidence",
        "evidence",
        "which part of the patches excites each unit, found by covering them place by place",
        (
            *(*MODEL, IMAGES, LAYER, UNITS, TARGETS, K),
            Option("--size", "pixels of the occluder, 32 or 32,48; default: a seventh of the patch", type=pair),
            Option("--stride", "pixels between its places; default: half the size", type=pair),
            FILL,
            Option("--refine", "measure every n-th place first, more only where the map changes", type=int),
            Option("--method", "default: incremental", more={"choices": ("incremental", "full")}),
            RULE.but(help="draw the projections, too, by this rule", default=None),
            *(*READING, ON_ERROR, SEED.but(help="of --fill noise"), DISTINCT, INTERIOR),
            *(CROP, *SHOWN),
            *(
                out(None, "the picture: png, pdf, svg, jpg or webp; default: evidence-LAYER.png"),
                SAVE,
                JSON,
                CSV,
                QUIET,
            ),
        ),
        "deconvviz evidence squeezenet-1.1 --layer 4 --units 225,246 --rule deconvnet --out evidence-4.png",
        _evidence,
    ),
    Command(
        "occlude",
        "occlude",
        "what the network's answer depends on: five panels of an occlusion scan",
        (
            *(*MODEL, Option("image", "an image file, or a folder: a picture for each", more={"metavar": "IMAGE"})),
            Option("--target", "class, by number or name; default: the most probable one", type=whole_or_name),
            LAYER.but(help="whose strongest map is followed; default: the deepest with a number"),
            Option("--size", "pixels, 32 or 32,48 (height,width); default: a seventh of the short side", type=pair),
            Option("--stride", "pixels between positions; default: half the size", type=pair),
            FILL,
            Option("--edge", "the last window", default="clip", more={"choices": ("clip", "align")}),
            Option("--method", "default: incremental", more={"choices": ("incremental", "full")}),
            Option("--refine", "measure every n-th position first, more only where the map changes", type=int),
            Option("--others", "images whose top patches for the same unit are shown", more={"metavar": "DIR"}),
            Option("--memory", "bytes for a batch; default: 1 GB on a CPU, half of what is free on a GPU", type=int),
            *(AMP, SEED.but(help="of --fill noise")),
            *(option.but(help=f"{option.help}, for --others and panel (c)") for option in HOW),
            *(option.but(help=f"{option.help}, for --others") for option in READING),
            out("occlusion.png", "the five panels: png, pdf, svg, jpg or webp"),
            Option(
                "--overlay", "the attribution over the image", argument=None, type=picture, more={"metavar": "FILE.png"}
            ),
            Option(
                "--animation",
                "the occluder moving, and the map it makes",
                argument=None,
                type=animation,
                more={"metavar": "FILE.gif"},
            ),
            *(SAVE, QUIET),
        ),
        "deconvviz occlude zfnet64 cat.jpg --target 'tabby, tabby cat' --size 16",
        _occlude,
    ),
    Command(
        "top",
        "top",
        "strongest images of every unit of several layers",
        (
            *(*MODEL, IMAGES, LAYERS.but(required=True), K, DISTINCT, INTERIOR, *READING, ON_ERROR),
            Option("--out", "the scan", default="top.safetensors", argument=None, type=file, more={"metavar": "FILE"}),
            *(JSON, CSV, QUIET),
        ),
        "deconvviz top zfnet64 --images photos --layers 1,2,3",
        _top,
    ),
    Command(
        "report",
        "report",
        "one page to look through: units, projections, filters, occlusion maps",
        (
            *(*MODEL, IMAGES),
            LAYERS.but(help="such as 1,2,3 or layer3,layer4; default: those of 1 to 5 there are"),
            UNITS.but(help='"all", "0,5,9" or "0-15"; default: the strongest of each layer'),
            Option("--most", "how many of the strongest", default=64, type=int),
            K,
            Option("--evidence", "of how many units per layer it is measured; default: 3 where that is fast", type=int),
            Option("--maximize", "of how many units per layer optimized images are made; default: none", type=int),
            Option("--occlusion", "images with occlusion maps; default: 4 where the network classifies", type=int),
            Option(
                "--classes",
                "names of the classes, one a line; default: those that are known",
                argument="class_names",
                called=lambda path: path and read_lines(path),
                more={"metavar": "FILE"},
            ),
            *(*HOW, *READING, ON_ERROR, DISTINCT, INTERIOR, Option("--title", "the page's heading")),
            Option("--out", default="report.html", type=page, more={"metavar": "PAGE.html"}),
            QUIET,
        ),
        "deconvviz report zfnet64 --images photos --most 32",
        _report,
    ),
    Command(
        "maximize",
        "maximize",
        "images that excite units or classes most, made by optimization",
        (
            *(*MODEL, LAYER, UNITS, TARGETS, Option("--n", "different images per unit", default=1, type=int)),
            Option(
                "--at",
                "a map's mean, its strongest place ten times more, or its center",
                default="mean",
                more={"choices": ("mean", "center")},
            ),
            Option("--negative", "excite as little as can be", default=False, more={"action": "store_true"}),
            Option("--diversity", "how much a unit's images are kept apart", default=1.0, type=float),
            Option("--parametrization", default="fourier", more={"choices": ("fourier", "maco", "pixels")}),
            *(
                STEPS.but(default=128),
                RATE,
                STILL,
                INPUT_SIZE,
                SEED,
                AMP,
                BATCH_SIZE,
                out("maximized.png"),
                SAVE,
                QUIET,
            ),
        ),
        "deconvviz maximize squeezenet-1.1 --layer 4 --units 192,240,246,312",
    ),
    Command(
        "accentuate",
        "accentuate",
        "an image changed as little as needed to excite a unit more, and less",
        (
            *(*MODEL, IMAGE, LAYER.but(required=True), Option("--unit", type=int, more={"required": True})),
            Option("--strength", "how much the unit counts beside the image", default=1.0, type=float),
            *(STEPS.but(default=64), RATE.but(help="their length", default=0.02), STILL),
            *(SEED, AMP, out("accentuated.png"), SAVE, QUIET),
        ),
        "deconvviz accentuate squeezenet-1.1 parrot.jpg --layer 4 --unit 246",
    ),
    Command(
        "invert",
        "invert",
        "an image rebuilt from the response of layers alone",
        (
            *(*MODEL, IMAGE, LAYERS.but(argument="layer")),
            Option("--starts", "different starts per layer", default=1, type=int),
            Option("--parametrization", default="fourier", more={"choices": ("fourier", "pixels")}),
            Option("--total-variation", "weight; default: what suits the parametrization", type=float),
            Option("--alpha-norm", "weight; default: what suits the parametrization", type=float),
            *(STEPS.but(default=400), RATE, SEED, AMP, out("inversion.png"), SAVE, QUIET),
        ),
        "deconvviz invert squeezenet-1.1 parrot.jpg --layers 1,2,5",
    ),
)
