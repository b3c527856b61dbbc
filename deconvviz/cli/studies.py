"""What the command line understands of the studies: one entry of `STUDIES` per subcommand."""

from __future__ import annotations

import argparse
from typing import Any

from .parser import _add_images, _add_model, _layer_list, _number_or_name, _pair, _unit_list


def _add_out(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("--out", metavar="FILE.png", default=f"{name}.png", help="default: %(default)s")
    parser.add_argument("--save", metavar="FILE.safetensors", help="keep the numbers")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _add_layers(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--layers", type=_layer_list, help=f"such as 1,5,classifier.3; default: {default}")


def _indices_or_path(text: str) -> list[int] | str:
    """Read "0,5,9", or a path."""
    parts = text.split(",")
    return [int(part) for part in parts] if all(part.isdigit() for part in parts) else text


def _names(text: str) -> list[str]:
    return text.split(",")


def _fill(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _add_responses(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_images(parser)
    _add_layers(parser, "by --kind")
    parser.add_argument("--kind", help='"conv" or a size such as "3x3"; default: 3x3 if there are any, else conv')
    _add_out(parser, "responses")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_images(parser)
    add: Any = parser.add_argument
    add("--compare", metavar=("MODEL", "WEIGHTS"), nargs="+", action="append", help="another network beside it; repeat")
    add("--aliasing", action="store_true", help="score layer 2 as well, which takes a scan over the images")
    add("--units", type=_unit_list, help='of layer 2, "all", "0,5,9" or "0-15"; default: 16 spread evenly')
    add("--scale", choices=("all", "filter"), default="all", help="what shares one scale; default: all")
    _add_out(parser, "filters")


def _add_invariance(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_images(parser)
    _add_layers(parser, "the first and the last features")
    add = parser.add_argument
    add("--transforms", type=_names, help="out of vertical,horizontal,scale,rotation; default: all but horizontal")
    add("--targets", type=_indices_or_path, help='class indices or "labels"; default: the most probable classes')
    add("--fill", type=_fill, help="0 to 1, edge or reflect; default: the mean colour")
    _add_out(parser, "invariance")


def _add_correspondence(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    add = parser.add_argument
    add("--images", metavar="DIR", required=True, help="folder of images")
    add("--parts", metavar="FILE.json", required=True, help='{"nose": [[top, left, bottom, right], …]}, one per image')
    _add_layers(parser, "the 5th and the last features")
    add("--draws", type=int, default=20, help="random sets of boxes per part; default: %(default)s")
    add("--fill", type=float, help="the mask, 0 to 1; default: the mean colour")
    add("--seed", type=int, default=0)
    _add_out(parser, "correspondence")


def _add_nearest(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_images(parser)
    add = parser.add_argument
    add("--query", type=_indices_or_path, required=True, metavar="PATH", help="a file, a folder, or indices: 0,5,9")
    add("--layer", type=_number_or_name, help="default: the last features")
    add("--k", type=int, default=6, help="neighbours per query; default: %(default)s")
    add("--metric", choices=("l2", "cosine"), default="l2", help="default: %(default)s")
    _add_out(parser, "nearest")


def _add_probe(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--images", metavar="DIR", required=True, help="DIR/<class>/*.jpg")
    _add_layers(parser, "1 to 5 and the last features")
    add = parser.add_argument
    add("--folds", type=int, default=5, help="of the cross-validation; default: %(default)s")
    add("--most", type=int, default=1024, help="features per layer; default: %(default)s")
    add("--seed", type=int, default=0)
    _add_out(parser, "probe")


def _add_compare_methods(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    add = parser.add_argument
    add("image", metavar="IMAGE", help="an image file")
    add(
        "--target",
        type=_class_or_unit,
        help="class, LAYER:UNIT or LAYER: (its strongest); default: the most probable class",
    )
    add("--methods", type=_names, help="out of deconvnet,guided,gradient,gradcam,integrated,occlusion; default: all")
    add("--layer", type=_number_or_name, help="whose maps Grad-CAM weighs; default: the deepest with a number")
    add("--size", type=_pair, help="of the occluder, pixels; default: a seventh of the short side")
    add("--stride", type=_pair, help="pixels between its positions; default: half the size")
    add("--stages", type=int, default=8, help="depths of random weights, 0 for none; default: %(default)s")
    add("--draws", type=int, default=1, help="how often weights are drawn; default: %(default)s")
    add("--seed", type=int, default=0)
    add("--randomized", metavar="FILE.png", help="the same maps with random weights, from the output down")
    _add_out(parser, "methods")


def _class_or_unit(text: str) -> int | tuple[int | str, int | None]:
    """Read "207", "features.8:12", or "5:" for the strongest unit of layer 5."""
    layer, colon, unit = text.rpartition(":")
    try:
        return (_number_or_name(layer), int(unit) if unit else None) if colon else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a class, LAYER:UNIT, or LAYER: for its strongest"
        ) from None


STUDIES = {
    "filters": ("first-layer filters as a picture and as numbers, of one network or several", _add_filters),
    "responses": ("standard deviation of each layer's responses", _add_responses),
    "nearest": ("images nearest to others in the features of a layer", _add_nearest),
    "invariance": ("how features change when images move, grow and turn", _add_invariance),
    "correspondence": ("whether masking a part means the same in several images", _add_correspondence),
    "compare-methods": ("deconvnet, gradient, Grad-CAM, … side by side, and with random weights", _add_compare_methods),
    "probe": ("accuracy of a linear classifier on each layer's features", _add_probe),
}
