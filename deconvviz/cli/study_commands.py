"""The subcommands of the studies: one public call in each, then the numbers and the picture."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deconvviz

from ..errors import OptionError

if TYPE_CHECKING:
    from ..results.base import Result
    from .networks import Loaded


def _filters(options: argparse.Namespace, loaded: Loaded) -> Result:
    from .networks import load_model

    chosen = {"aliasing": options.aliasing or None, "units": options.units, "progress": not options.quiet}
    if not options.compare:
        return deconvviz.filters(loaded.model, options.images, **chosen, preprocess=loaded.preprocess)
    networks = {options.model: loaded.model}
    for name, *weights in options.compare:
        if len(weights) > 1:
            raise OptionError(f"--compare takes MODEL and WEIGHTS, got {name} {' '.join(weights)}.")
        called = name if name not in networks else " ".join([name, *weights, f"({len(networks) + 1})"])
        networks[called] = load_model(name, weights=weights[0] if weights else None).model
    return deconvviz.compare_filters(networks, options.images, **chosen)


def _responses(options: argparse.Namespace, loaded: Loaded) -> Result:
    return deconvviz.response_std(
        loaded.model,
        options.images,
        layers=options.layers,
        kind=options.kind,
        preprocess=loaded.preprocess,
        progress=not options.quiet,
    )


def _nearest(options: argparse.Namespace, loaded: Loaded) -> Result:
    return deconvviz.nearest(
        loaded.model,
        options.images,
        query=options.query,
        layer=options.layer,
        k=options.k,
        metric=options.metric,
        preprocess=loaded.preprocess,
        progress=not options.quiet,
    )


def _invariance(options: argparse.Namespace, loaded: Loaded) -> Result:
    return deconvviz.invariance(
        loaded.model,
        options.images,
        layers=options.layers,
        targets=options.targets,
        fill=options.fill,
        preprocess=loaded.preprocess,
        progress=not options.quiet,
        **({"transforms": options.transforms} if options.transforms else {}),
    )


def _correspondence(options: argparse.Namespace, loaded: Loaded) -> Result:
    try:
        parts = json.loads(Path(options.parts).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot read the parts {options.parts}: {error}.") from error
    return deconvviz.correspondence(
        loaded.model,
        options.images,
        parts=parts,
        layers=options.layers,
        draws=options.draws,
        fill=options.fill,
        seed=options.seed,
        preprocess=loaded.preprocess,
        progress=not options.quiet,
    )


def _probe(options: argparse.Namespace, loaded: Loaded) -> Result:
    return deconvviz.probe(
        loaded.model,
        options.images,
        layers=options.layers,
        folds=options.folds,
        most=options.most,
        seed=options.seed,
        preprocess=loaded.preprocess,
        progress=not options.quiet,
    )


_STUDIES = {
    "filters": _filters,
    "responses": _responses,
    "nearest": _nearest,
    "invariance": _invariance,
    "correspondence": _correspondence,
    "probe": _probe,
}


def run(options: argparse.Namespace, loaded: Loaded) -> Any:
    """Run one study, print its numbers, keep them if asked to, and return its picture."""
    result = _STUDIES[options.command](options, loaded)
    print(result)
    if options.save:
        result.save(options.save)
        print(f"wrote {options.save}")
    return result.plot(**({"scale": options.scale} if options.command == "filters" else {}))
