"""What the command line understands: one entry of `_COMMANDS` per subcommand."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

_EPILOG = """MODEL is a name of the zoo (zfnet, zfnet64, alexnet, alexnet64, resnet-20, …), torchvision:NAME or the bare
NAME, timm:NAME, or path/to/file.py:FUNCTION, a function of no arguments that returns the network."""


def parser(run: Mapping[str, Callable[[argparse.Namespace], None]]) -> argparse.ArgumentParser:
    """Return the parser; the options it gives hold as `.run` what `run` has for the command."""
    from .studies import STUDIES  # which builds on the functions below

    whole = argparse.ArgumentParser(prog="deconvviz", description="Shows what a convolutional network sees.")
    whole.add_argument("--version", action=_Version, nargs=0, help="print the version and stop")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (does, add) in {**_COMMANDS, **STUDIES}.items():
        one = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.", epilog=_EPILOG)
        one.set_defaults(run=run[name])
        add(one)
    return whole


def _number_or_name(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def _layer_list(text: str) -> list[int | str]:
    return [_number_or_name(part) for part in text.split(",")]


def _unit_list(text: str) -> list[int] | str:
    """Read "all", "3", "0,5,9" or "0-15"."""
    if text == "all":
        return text
    units: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            units += range(int(first), int(last) + 1) if dash else [int(first)]
        except ValueError:
            raise argparse.ArgumentTypeError(f'{text!r}: expected "all", "3", "0,5,9" or "0-15"') from None
    return units


def _pair(text: str) -> tuple[int, int]:
    """Read "224" or "224,320"; one number stands for both."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise argparse.ArgumentTypeError(f"{text!r}: expected one number or two with a comma: 224 or 224,320")
    return numbers[0], numbers[-1]


def _position(text: str) -> tuple[int, int]:
    """Read "3,4"."""
    if text.count(",") != 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected row,col, such as 3,4")
    return _pair(text)


def _share_or_folder(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _fill(text: str) -> float | tuple[float, ...] | str:
    """Read "0.5", "1,0,0", or a word or path."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        return text
    return numbers if len(numbers) > 1 else numbers[0]


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import deconvviz

        print(f"deconvviz {deconvviz.__version__}")
        parser.exit()


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--weights", help='a .safetensors or .pth file, "DEFAULT" (published) or "random"')
    parser.add_argument("--device", help="such as cuda; default: cpu")


def _add_layers(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--input-size", type=_pair, help="224 or 224,320 (height,width)")


def _add_audit(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_images(parser)


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", metavar="DIR", help="folder of images; default: the sample photos")


def _add_layer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layer", type=_number_or_name, required=True, help='5, or a module path: "features.10"')


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", default="deconvviz-demo", help="default: %(default)s")
    parser.add_argument("--network", choices=("zfnet64", "alexnet64", "both"), default="zfnet64")
    parser.add_argument("--seed", type=int, help="draws the units that are shown; default: spread evenly")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _add_project(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_images(parser)
    _add_layer(parser)
    parser.add_argument("--units", type=_unit_list, help='"all", "0,5,9" or "0-15"; default: 16 spread evenly')
    parser.add_argument("--top", type=int, default=9, help="images per unit; default: %(default)s")
    parser.add_argument(
        "--scale", choices=("unit", "projection"), default="unit", help="what shares one scale; default: unit"
    )
    parser.add_argument("--out", metavar="FILE.png", help="default: layer-LAYER.png")
    parser.add_argument("--save", metavar="FILE.safetensors", help="keep the numbers as well")


def _add_deconv(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--images", metavar="PATH", required=True, help="folder of images")
    _add_layer(parser)
    parser.add_argument("--unit", type=int, required=True)
    parser.add_argument("--position", type=_position, help="row,col in the layer's map; default: the strongest")
    parser.add_argument("--rule", choices=("deconvnet", "guided", "backprop"), default="deconvnet")
    parser.add_argument("--out", metavar="FILE.png", default="deconv.png", help="default: %(default)s")


def _add_occlude(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    add = parser.add_argument
    add("image", metavar="IMAGE", help="an image file")
    add("--out", metavar="FILE.png", default="occlusion.png", help="the five panels; default: %(default)s")
    add("--overlay", metavar="FILE.png", help="the attribution over the image")
    add("--animation", metavar="FILE.gif", help="the occluder moving, and the map it makes")
    add("--save", metavar="FILE.safetensors", help="keep the numbers")
    add("--target", type=int, help="class; default: the most probable one")
    add("--layer", type=_number_or_name, help="whose strongest map is followed; default: the deepest with a number")
    add("--size", type=_pair, help="pixels, 32 or 32,48 (height,width); default: a seventh of the short side")
    add("--stride", type=_pair, help="pixels between positions; default: half the size")
    add("--fill", type=_fill, default="gray", help="gray, mean, blur, noise, 0 to 1, r,g,b or an image file")
    add("--edge", choices=("clip", "align"), default="clip", help="the last window; default: %(default)s")
    add("--method", choices=("incremental", "full"), help="default: incremental")
    add("--refine", type=int, help="measure every n-th position first, more only where the map changes")
    add("--others", metavar="DIR", help="images whose top patches for the same unit are shown")
    add("--memory", type=int, help="bytes for a batch; default: 1 GB on a CPU, half of what is free on a GPU")
    add("--amp", choices=("float16", "bfloat16"), help="lower precision, faster")
    add("--seed", type=int, default=0, help="of --fill noise")
    add("--quiet", action="store_true", help="no progress")


def _add_top(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_images(parser)
    parser.add_argument("--layers", type=_layer_list, required=True, help="such as 1,2,3")
    parser.add_argument("--k", type=int, default=9, help="images per unit; default: %(default)s")
    parser.add_argument("--out", metavar="FILE", default="top.safetensors", help="default: %(default)s")


def _add_report(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_images(parser)
    add = parser.add_argument
    add("--layers", type=_layer_list, help="such as 1,2,3 or layer3,layer4; default: those of 1 to 5 there are")
    add("--units", type=_unit_list, help='"all", "0,5,9" or "0-15"; default: the strongest of each layer')
    add("--most", type=int, default=64, help="how many of the strongest; default: %(default)s")
    add("--k", type=int, default=9, help="images per unit; default: %(default)s")
    add("--occlusion", type=int, help="images with occlusion maps; default: 4 where the network classifies")
    add("--classes", metavar="FILE", help="names of the classes, one a line; default: those that are known")
    add("--rule", choices=("deconvnet", "guided", "backprop"), default="deconvnet", help="default: %(default)s")
    add("--allow-gradient", action="store_true", help="plain gradient for operations without a rule")
    add("--batch-size", type=int, default=32, help="images per forward pass; default: %(default)s")
    add("--workers", type=int, default=0, help="processes that read images")
    add("--title", help="the page's heading")
    add("--out", metavar="PAGE.html", default="report.html", help="default: %(default)s")
    add("--quiet", action="store_true", help="no progress")


def _add_recording(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="what train --record wrote, also while it runs")
    add("--layer", type=_number_or_name, help="default: six units of every layer")
    add("--units", type=_unit_list, help='with --layer: "0,5,9" or "0-15"; default: all that were recorded')
    add("--out", metavar="FILE.png", default="recording.png", help="default: %(default)s")
    add("--convergence", metavar="FILE.png", help="the layers' curves")
    add("--animation", metavar="FILE.gif")


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL")
    add("--data", metavar="DIR", required=True, help="DIR/<class>/*.jpg, or DIR/train/… and DIR/val/…")
    add("--out", metavar="DIR", default="training", help="weights, card and checkpoint; default: %(default)s")
    recipes = ("modern", "paper", "cifar", "cifar-warm", "cifar-short")
    add("--recipe", choices=recipes, default="modern", help="default: %(default)s")
    add("--epochs", type=int)
    add("--batch-size", type=int)
    add("--lr", type=float, help="highest learning rate")
    add("--clamp-rms", type=float, help="limit of a filter's root mean square; the paper: 0.1")
    add("--seed", type=int, default=0)
    add("--device", help="default: cuda where there is one")
    add("--amp", choices=("float16", "bfloat16"), help="mixed precision")
    add("--image-size", type=int, help="default: the network's own")
    add("--validation", type=_share_or_folder, help="a folder, or a share between 0 and 1 to hold out")
    add("--restart", action="store_true", help="do not go on from the checkpoint in --out")
    add("--record", metavar="FILE", help="keep what units see at epochs 1, 2, 5, 10, 20, 30, 40, 64")
    add("--licence", default="not stated", help="of the weights, for the card")
    add("--cache", metavar="DIR", help="keep the decoded images there")
    add("--workers", type=int, help="threads that decode")
    add("--quiet", action="store_true", help="no progress")


_COMMANDS = {
    "demo": ("layers 1-5 of a trained ZFNet as top-9 grids, with a page", _add_demo),
    "layers": ("table of the layers: numbers, names, units, receptive fields", _add_layers),
    "audit": ("every operation on the path and the rule it gets", _add_audit),
    "project": ("top images of units beside their projections", _add_project),
    "deconv": ("full-size projection of one unit for given images", _add_deconv),
    "occlude": ("what the network's answer depends on: five panels of an occlusion scan", _add_occlude),
    "top": ("strongest images of every unit of several layers", _add_top),
    "report": ("one page to look through: units, projections, filters, occlusion maps", _add_report),
    "recording": ("what units saw over the epochs of a training", _add_recording),
    "train": ("train a network on a folder of images", _add_train),
}
