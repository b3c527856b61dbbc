"""The command line: one subcommand per public function, one public call in each."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DeconvvizError, ImageError, OptionError
from .parser import parser

if TYPE_CHECKING:
    from .networks import Loaded

# Nothing here imports torch before a command runs: `deconvviz --help` answers at once.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a mistake, 130 when interrupted.

    Example:
        >>> main(["layers", "zfnet64"])  # doctest: +SKIP
    """
    options = parser(_COMMANDS).parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except DeconvvizError as error:
        return _say(f"deconvviz {options.command}: {error}", 2)
    except KeyboardInterrupt:
        return _say(f"deconvviz {options.command}: interrupted", 130)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def _demo(options: argparse.Namespace) -> None:
    from .demo import run

    for page in run(options.out, network=options.network, seed=options.seed, progress=not options.quiet):
        print(f"Open {page} in a browser.")


def _layers(options: argparse.Namespace) -> None:
    import deconvviz

    print(deconvviz.layers(_load(options).model, options.input_size))


def _audit(options: argparse.Namespace) -> None:
    import deconvviz

    print(deconvviz.audit(_load(options).model, options.images))


def _project(options: argparse.Namespace) -> None:
    import deconvviz

    model, preprocess, _ = _load(options)
    chosen = {"layer": options.layer, "units": options.units, "top": options.top}
    result = deconvviz.project(model, options.images, **chosen, preprocess=preprocess)
    _write(options.out or f"layer-{options.layer}.png", result.plot(scale=options.scale))
    if options.save:
        result.save(options.save)
        print(f"wrote {options.save}")


def _deconv(options: argparse.Namespace) -> None:
    import deconvviz

    from ..plotting import projections as plot

    model, preprocess, _ = _load(options)
    chosen = {
        "layer": options.layer,
        "unit": options.unit,
        "position": options.position,
        "rule": options.rule,
    }
    result = deconvviz.deconv(model, options.images, **chosen, preprocess=preprocess)
    _write(options.out, plot.sheet(result, title=f"layer {options.layer}, unit {options.unit}"))


def _occlude(options: argparse.Namespace) -> None:
    import torch

    import deconvviz

    if os.path.isdir(options.image):
        raise ImageError(f"{options.image} is a folder; give one image.")
    model, preprocess, _ = _load(options)
    names = "target layer size stride fill edge method refine others seed memory".split()
    chosen = {name: getattr(options, name) for name in names}
    dtype = getattr(torch, options.amp) if options.amp else None
    progress = not options.quiet
    result = deconvviz.occlude(model, options.image, **chosen, dtype=dtype, preprocess=preprocess, progress=progress)
    _write(options.out, result.plot())
    if options.overlay:
        _write(options.overlay, result.overlay())
    for path, write in ((options.animation, result.animate), (options.save, result.save)):
        if path:
            write(path)
            print(f"wrote {path}")


def _compare_methods(options: argparse.Namespace) -> None:
    import deconvviz

    model, preprocess, _ = _load(options)
    names = "target methods layer size stride stages draws seed".split()
    chosen = {name: getattr(options, name) for name in names}
    progress = not options.quiet
    result = deconvviz.compare_methods(model, options.image, **chosen, preprocess=preprocess, progress=progress)
    print(result)
    if options.save:
        result.save(options.save)
        print(f"wrote {options.save}")
    _write(options.out, result.plot())
    if options.randomized:
        _write(options.randomized, result.plot(what="randomized"))


def _top(options: argparse.Namespace) -> None:
    import deconvviz

    model, preprocess, _ = _load(options)
    chosen = {"layers": options.layers, "k": options.k, "out": options.out}
    for found in deconvviz.top(model, options.images, **chosen, preprocess=preprocess).tops:
        units, strongest = len(found.values), found.values[:, 0]
        middle, most = strongest.median(), strongest.max()
        print(f"{found.name}: {units} units; their strongest activation: median {middle:.3g}, most {most:.3g}")
    print(f"wrote {options.out}")


def _report(options: argparse.Namespace) -> None:
    import deconvviz

    loaded = _load(options)
    names = "layers units most k occlusion rule allow_gradient batch_size workers title out".split()
    chosen = {name: getattr(options, name) for name in names}
    classes = options.classes and _lines(options.classes)
    weights = "random" if loaded.random else Path(options.weights or "the ones that come with it").name
    given = {} if hasattr(loaded.model, "card") else {"Network": options.model, "Weights": weights}
    known = {"class_names": classes, "facts": given, "preprocess": loaded.preprocess, "progress": not options.quiet}
    name = options.model.rpartition(":")[2] + " with random weights" * loaded.random
    chosen["title"] = options.title or f"What {name} sees"
    print(f"Open {deconvviz.report(loaded.model, options.images, **chosen, **known)} in a browser.")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot read the class names {path}: {error}. Give a text file, one name a line.") from error


def _recording(options: argparse.Namespace) -> None:
    import deconvviz

    recording = deconvviz.Recording.load(options.file)
    units = None if options.units == "all" else options.units
    _write(options.out, recording.plot(layer=options.layer, units=units))
    if options.convergence:
        _write(options.convergence, recording.plot_convergence())
    if options.animation:
        recording.animate(options.animation, layer=options.layer)
        print(f"wrote {options.animation}")


def _train(options: argparse.Namespace) -> None:
    import torch

    import deconvviz

    result = deconvviz.train(
        options.model if deconvviz.zoo.knows(options.model) else _load(options).model,
        options.data,
        out=options.out,
        recipe=options.recipe,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        clamp_rms=options.clamp_rms,
        seed=options.seed,
        device=options.device,
        dtype=getattr(torch, options.amp) if options.amp else None,
        image_size=options.image_size,
        resume=not options.restart,
        validation=options.validation,
        recorder=options.record,
        licence=options.licence,
        cache=options.cache,
        workers=options.workers,
        progress=not options.quiet,
    )
    print(result.history[-1])
    print(f"wrote {result.weights} and {result.card}")


def _study(options: argparse.Namespace) -> None:
    from .study_commands import run

    _write(options.out, run(options, _load(options)))


def _load(options: argparse.Namespace) -> Loaded:
    from .networks import load_model

    loaded = load_model(options.model, weights=getattr(options, "weights", None))
    if loaded.random and options.command not in ("layers", "audit", "train"):
        print(f"note: {options.model} has random weights; --weights gives it trained ones", file=sys.stderr)
    return loaded._replace(model=loaded.model.to(options.device)) if options.device else loaded


def _write(path: str, figure: Any) -> None:
    from ..plotting import projections as plot
    from ..results import store as _store

    with _store.replacing(path) as temporary:
        temporary.write_bytes(plot.png(figure))
    print(f"wrote {path}")


_COMMANDS = {
    "demo": _demo,
    "layers": _layers,
    "audit": _audit,
    "project": _project,
    "deconv": _deconv,
    "occlude": _occlude,
    "compare-methods": _compare_methods,
    "top": _top,
    "report": _report,
    "recording": _recording,
    "train": _train,
    **dict.fromkeys(("filters", "responses", "nearest", "invariance", "correspondence", "probe"), _study),
}
