"""The commands of the papers' studies: one public call in each, then the numbers and the picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OptionError
from .options import (
    BATCH_SIZE,
    IMAGES,
    JSON,
    LAYER,
    LAYERS,
    MODEL,
    ON_ERROR,
    QUIET,
    READING,
    SAVE,
    SEED,
    UNITS,
    Command,
    K,
    Option,
    indices_or_text,
    layer_list,
    load,
    names,
    number_or_name,
    number_or_text,
    out,
    pair,
    picture,
    position,
    tell,
    whole_or_name,
    write,
)

if TYPE_CHECKING:
    from .networks import Loaded

NUMBERS = (SAVE, JSON, QUIET)
DATA = IMAGES.but(required=True)
SIFT = Option("--sift", "a row for SIFT, too", default=False, more={"action": "store_true"})


def _filters(command: Command, parsed: argparse.Namespace) -> None:
    loaded = load(parsed)
    result = command.call(parsed, loaded) if not parsed.compare else _compare_filters(command, parsed, loaded)
    tell(result, parsed)
    write(parsed.out, result.plot(scale=parsed.scale))


def _compare_filters(command: Command, parsed: argparse.Namespace, first: Loaded) -> Any:
    import deconvviz

    from .networks import load_model

    loaded = {parsed.model: first}
    for name, *weights in parsed.compare:
        if len(weights) > 1:
            raise OptionError(f"--compare takes MODEL and WEIGHTS, got {name} {' '.join(weights)}.")
        title = name if name not in loaded else " ".join([name, *weights, f"({len(loaded) + 1})"])
        loaded[title] = load_model(name, weights=weights[0] if weights else None, device=parsed.device)
    networks, calls = ({name: getattr(one, what) for name, one in loaded.items()} for what in ("model", "call"))
    return deconvviz.compare_filters(networks, call=calls, **command.arguments(parsed))


def _compare_methods(command: Command, parsed: argparse.Namespace) -> None:
    result = command.call(parsed, load(parsed))
    tell(result, parsed)
    write(parsed.out, result.plot())
    if parsed.randomized:
        write(parsed.randomized, result.plot(what="randomized"))


def _read_parts(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot read the parts {path}: {error}.") from error


def _class_or_unit(text: str) -> int | str | tuple[int | str, int | None]:
    """Read "207", "goldfish", "features.8:12", or "5:" for the strongest unit of layer 5."""
    layer, colon, unit = text.rpartition(":")
    if not colon or " " in text:  # a name may hold a colon, a module path holds no blank
        return whole_or_name(text)
    if unit and not unit.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a class, LAYER:UNIT, or LAYER: for its strongest")
    return number_or_name(layer), int(unit) if unit else None


def _maps(command: Command, parsed: argparse.Namespace) -> None:
    result = command.call(parsed, load(parsed))
    tell(result, parsed)
    write(parsed.out, result.plot(shown=parsed.shown))


def _changes(text: str) -> list[str] | dict[str, list[float]]:
    """Read "vertical,noise", or "vertical=4,vertical=8,noise=0.5" with amounts."""
    amounts: dict[str, list[float]] = {}
    parts = text.split(",")
    if not any("=" in part for part in parts):
        return parts
    for part in parts:
        kind, _, size = part.partition("=")
        try:
            amounts.setdefault(kind, []).append(float(size))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: expected kinds, or KIND=AMOUNT for each") from None
    return amounts


def _evaluate(command: Command, parsed: argparse.Namespace) -> None:
    from .networks import load_model

    loaded = load(parsed)
    if parsed.also:
        others = [load_model(name, device=parsed.device).model for name in parsed.also]
        loaded = loaded._replace(model=[loaded.model, *others])  # type: ignore[arg-type]
    result = command.call(parsed, loaded)
    tell(result, parsed)
    write(parsed.out, result.plot())


COMMANDS = (
    Command(
        "maps",
        "maps",
        "every response map of one image, strongest first, and what changing the image does to them",
        (
            *(*MODEL, Option("image", "an image file", more={"metavar": "IMAGE"})),
            LAYERS.but(help="such as 1,2,features.4; default: all that have a number"),
            Option(
                "--changes",
                "out of vertical,horizontal,scale,rotation,noise, or with amounts: vertical=4,noise=0.5",
                type=_changes,
            ),
            Option("--fill", "0 to 1, edge or reflect; default: the mean colour", type=number_or_text),
            Option("--shown", "maps of each layer in the picture", argument=None, default=12, type=int),
            *(SEED.but(help="of the noise"), out("maps.png"), SAVE, JSON),
        ),
        "deconvviz maps squeezenet-1.1 cat.jpg --layers 1,2,3 --changes vertical,noise",
        _maps,
    ),
    Command(
        "filters",
        "filters",
        "first-layer filters as a picture and as numbers, of one network or several",
        (
            *(*MODEL, IMAGES),
            Option(
                "--compare",
                "another network beside it; repeat",
                argument=None,
                more={"metavar": ("MODEL", "WEIGHTS"), "nargs": "+", "action": "append"},
            ),
            Option(
                "--aliasing",
                "score layer 2 as well, which takes a scan over the images",
                called=lambda asked: asked or None,
                default=False,
                more={"action": "store_true"},
            ),
            UNITS.but(help='of layer 2, "all", "0,5,9" or "0-15"; default: 16 spread evenly'),
            Option(
                "--scale", "what shares one scale", argument=None, default="all", more={"choices": ("all", "filter")}
            ),
            *(ON_ERROR, out("filters.png"), *NUMBERS),
        ),
        "deconvviz filters zfnet64 --compare alexnet64",
        _filters,
    ),
    Command(
        "responses",
        "response_std",
        "standard deviation of each layer's responses",
        (
            *(*MODEL, IMAGES, LAYERS.but(help="such as 1,5,classifier.3; default: by --kind")),
            Option("--kind", '"conv" or a size such as "3x3"; default: 3x3 if there are any, else conv'),
            *(*READING, ON_ERROR, out("responses.png"), *NUMBERS),
        ),
        "deconvviz responses resnet-56",
    ),
    Command(
        "gradients",
        "gradient_std",
        "standard deviation of the loss's gradient at each layer, over the first steps of a training",
        (
            *(*MODEL, DATA.but(help="DIR/<class>/*.jpg", argument="data")),
            LAYERS.but(help="such as 1,5,classifier.3; default: by --kind"),
            Option("--kind", '"conv" or a size such as "3x3"; default: 3x3 if there are any, else conv'),
            Option("--iterations", "steps", default=20, type=int),
            BATCH_SIZE.but(help="images per step; default: 64"),
            Option("--lr", "learning rate", default=0.01, type=float),
            Option("--momentum", default=0.9, type=float),
            Option("--auxiliary", "weight of each auxiliary head's loss", default=0.3, type=float),
            *(SEED, out("gradients.png"), *NUMBERS),
        ),
        "deconvviz gradients plain-56 --weights random --images photos-by-class",
    ),
    Command(
        "residual-share",
        "residual_share",
        "what each residual block adds beside what it is given",
        (*MODEL, IMAGES, *READING, ON_ERROR, out("residual-share.png"), *NUMBERS),
        "deconvviz residual-share resnet-56",
    ),
    Command(
        "nearest",
        "nearest",
        "images nearest to others in the features of a layer",
        (
            *(*MODEL, IMAGES),
            Option(
                "--query",
                "a file, a folder, or indices: 0,5,9",
                type=indices_or_text,
                more={"required": True, "metavar": "PATH"},
            ),
            LAYER.but(help="default: the last features"),
            K.but(help="neighbours per query", default=6),
            SIFT.but(help="compare by SIFT in place of a layer"),
            Option("--metric", default="l2", more={"choices": ("l2", "cosine")}),
            *(*READING, ON_ERROR, out("nearest.png"), *NUMBERS),
        ),
        "deconvviz nearest zfnet64 --images photos --query cat.jpg",
    ),
    Command(
        "invariance",
        "invariance",
        "how features change when images move, grow and turn",
        (
            *(*MODEL, IMAGES, LAYERS.but(help="such as 1,7; default: the first and the last features")),
            Option(
                "--transforms",
                "out of vertical,horizontal,scale,rotation; default: all but horizontal",
                type=names,
                default=("vertical", "scale", "rotation"),
            ),
            Option("--targets", 'class indices or "labels"; default: the most probable classes', type=indices_or_text),
            Option("--fill", "0 to 1, edge or reflect; default: the mean colour", type=number_or_text),
            *(BATCH_SIZE, out("invariance.png"), *NUMBERS),
        ),
        "deconvviz invariance zfnet64 --transforms vertical,rotation",
    ),
    Command(
        "correspondence",
        "correspondence",
        "whether masking a part means the same in several images",
        (
            *(*MODEL, DATA.but(help="folder of images")),
            Option(
                "--parts",
                '{"nose": [[top, left, bottom, right], …]}, one per image',
                called=_read_parts,
                more={"metavar": "FILE.json", "required": True},
            ),
            LAYERS.but(help="such as 5,7; default: the 5th and the last features"),
            Option("--draws", "random sets of boxes per part", default=20, type=int),
            Option("--fill", "the mask, 0 to 1; default: the mean colour", type=float),
            *(SEED, BATCH_SIZE, out("correspondence.png"), *NUMBERS),
        ),
        "deconvviz correspondence zfnet64 --images faces --parts faces.json",
    ),
    Command(
        "compare-methods",
        "compare_methods",
        "deconvnet, gradient, Grad-CAM, … side by side, and with random weights",
        (
            *(*MODEL, Option("image", "an image file", more={"metavar": "IMAGE"})),
            Option(
                "--target",
                "class by number or name, LAYER:UNIT or LAYER: (its strongest); default: the most probable class",
                type=_class_or_unit,
            ),
            Option(
                "--methods", "out of deconvnet,guided,gradient,gradcam,integrated,occlusion; default: all", type=names
            ),
            LAYER.but(help="whose maps Grad-CAM weighs; default: the deepest with a number"),
            Option("--size", "of the occluder, pixels; default: a seventh of the short side", type=pair),
            Option("--stride", "pixels between its positions; default: half the size", type=pair),
            Option("--steps", "of the integrated gradients", default=50, type=int),
            Option("--stages", "depths of random weights, 0 for none", default=8, type=int),
            Option("--draws", "how often weights are drawn", default=1, type=int),
            SEED,
            Option(
                "--randomized",
                "the same maps with random weights, from the output down",
                argument=None,
                type=picture,
                more={"metavar": "FILE.png"},
            ),
            *(out("methods.png"), *NUMBERS),
        ),
        "deconvviz compare-methods zfnet64 cat.jpg --stages 0",
        _compare_methods,
    ),
    Command(
        "top-regions",
        "top_regions",
        "the regions of images that excite units most, each warped to the network's input (R-CNN)",
        (
            *(*MODEL, IMAGES, LAYER.but(required=True), UNITS, K),
            Option("--position", "row,col in the layer's map; default: each region's strongest", type=position),
            Option("--overlap", "from which the weaker of two regions is left out", default=0.3, type=float),
            Option("--context", "pixels of the input around a region; default: 16 of 227", type=int),
            *(BATCH_SIZE, ON_ERROR, out("regions.png"), *NUMBERS),
        ),
        "deconvviz top-regions squeezenet-1.1 --layer 5 --units 0-7",
    ),
    Command(
        "evaluate",
        "evaluate",
        "how often a classifier is right: top-1, top-5 and confusion, over one crop of each image, many, or densely",
        (
            *(*MODEL, DATA.but(help="DIR/<class>/*.jpg", argument="data")),
            Option(
                "--also",
                "another network, whose answers are averaged with these; repeat",
                argument=None,
                more={"metavar": "MODEL", "action": "append"},
            ),
            Option("--crops", "1, 10 (AlexNet), 144 (GoogLeNet) or 150 (VGG)", default=1, type=int),
            Option(
                "--scales", "shorter sides, such as 256,384,512; default: those of the crops' paper", type=layer_list
            ),
            Option("--dense", "in place of crops: mean (VGG) or max (OverFeat)", more={"choices": ("mean", "max")}),
            K.but(help="guesses, of the error beside top-1", default=5),
            *(*READING, ON_ERROR, out("evaluation.png"), *NUMBERS),
        ),
        "deconvviz evaluate zfnet64 --images photos-by-class --crops 10",
        _evaluate,
    ),
    Command(
        "probe",
        "probe",
        "accuracy of a linear classifier on each layer's features",
        (
            *(*MODEL, DATA.but(help="DIR/<class>/*.jpg")),
            LAYERS.but(help="such as 1,3,5; default: 1 to 5 and the last features"),
            Option("--folds", "of the cross-validation", default=5, type=int),
            Option("--most", "features per layer", default=1024, type=int),
            Option("--strength", "of the regularization", default=1.0, type=float),
            SIFT,
            *(SEED, *READING, ON_ERROR, out("probe.png"), *NUMBERS),
        ),
        "deconvviz probe zfnet64 --images photos-by-class",
    ),
)
