"""The explorer: one page that shows what every unit sees, to be opened in any browser without a server."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import ranks
from ..calls import Call, called
from ..checks import at_once, numbers_of, whole
from ..errors import ImageError, LayerError, ModelError, OptionError, StoreError, UnitError, UnsupportedOp
from ..guard import check_weights, hash_weights, placement, unwrapped
from ..images import Images, ImageSet, open_images
from ..model.survey import layers as list_layers
from ..model.table import Layer, Layers, LayerTable, find_all
from ..occlusion.occlude import occlude
from ..projection.project import project
from ..projection.result import Projections, warn_of_likeness, warn_of_loss
from ..results.store import replacing
from ..results.text import skipped_lines
from ..studies.filters import filters
from ..topk.result import LayerTop, TopK
from ..topk.scan import top as scan_top
from . import blocks, page, parts, sprites
from .unfinished import Elsewhere, Unfinished

_log = logging.getLogger("deconvviz")

_BYTES = 3 << 28  # of patches and projections at once; a layer that needs more goes in pieces


@ranks.together
def report(
    model: nn.Module,
    images: Images = None,
    *,
    layers: Layers | None = None,
    units: Sequence[int] | str | None = None,
    most: int = 64,
    k: int = 9,
    top: TopK | None = None,
    evidence: int | None = None,
    maximize: int | None = None,
    occlusion: int | Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    highlights: Mapping[int | str, Sequence[int]] | None = None,
    projections: Sequence[Projections] = (),
    rule: str = "deconvnet",
    lrn: str = "pass",
    allow_gradient: bool = False,
    preprocess: Any = None,
    call: Call | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    on_error: str = "raise",
    distinct: str | None = None,
    interior: bool = False,
    title: str | None = None,
    facts: Mapping[str, str] | None = None,
    out: str | os.PathLike[str] = "report.html",
    progress: bool = True,
) -> Path:
    """Write one page of HTML in which all of this can be looked through: units, filters, occlusion maps.

    Example:
        >>> import deconvviz, pathlib, tempfile, torch
        >>> model, images = deconvviz.zoo.create("zfnet64"), torch.randn(6, 3, 64, 64)
        >>> page = pathlib.Path(tempfile.mkdtemp(), "page.html")
        >>> chosen = {"layers": [1, 2], "most": 4, "occlusion": 1, "progress": False}
        >>> deconvviz.report(model, images, **chosen, out=page).name
        'page.html'

    Everything is in the one file: it needs no server, fetches nothing, and can be sent to others. One scan finds the
    strongest images of all layers; the pictures are written as they are made, so that memory does not depend on
    how many units there are. A report that was interrupted goes on when the same call is made again, from the folder
    `.name.draft` beside the page.

    Args:
        model: Any network whose path to the layers has rules, see `audit`; it is left as it was.
        images: Tensor (N, C, H, W) in the model's input space, a PIL image or a list, a folder, a `Dataset` or
            `DataLoader`, or None for the sample photos.
        layers: Numbers or module paths; None: those of the numbers 1 to 5 that the network has.
        units: A list, a mask of all units, "all", or None for each layer's `most` strongest.
        most: How many units of each layer, by their strongest activation, where `units` does not say.
        k: How many images per unit.
        top: A scan of the same images that was made before, in place of a new one; `layers` and `k` are then its own.
        evidence: Of how many units of each layer it is measured which part of their patches excites them, those first
            that the page opens on, then the strongest; each patch is covered at about 50 places. None: of those that
            the page opens on, where the network is small enough that this is a matter of a minute.
        maximize: Of how many units of each layer four optimized images each are made and shown beside the photos, see
            `maximize`; the same units come first. It takes long without a GPU: about how long is said before it
            starts. Where neither the model nor `preprocess` says how pixels become its input, they are its input. None:
            of none.
        occlusion: How many images get occlusion maps, or their indices; None: four where the network classifies.
        class_names: One per class; None takes those of the zoo's card or torchvision's weights.
        highlights: The units that the page opens on, by layer, such as {5: [33, 112]}, which are shown in any case; where
            a layer has none given, up to three whose images excite them about equally.
        projections: Some that were made before by this `rule` of the images that `top` holds, in place of new ones: of
            each layer those of all units that the page shows, or more.
        rule: "deconvnet", "guided" or "backprop", see `project`.
        lrn: "pass" or "gradient", see `project`.
        allow_gradient: Give operations without a rule their plain gradient instead of refusing.
        preprocess: How a picture becomes the model's input, where the model does not say.
        call: How the model is called with a batch of images, where that is not `model(images)`: lambda model, images: …
        batch_size: Images per forward pass; None: what a `DataLoader` says, else 32.
        workers: Processes that read images.
        on_error: "raise" at an image that cannot be read, or "skip" it; the page lists it, and so does the log.
        distinct: "source": of each photo, file or video at most one image per unit; "label": of each label; see `top`.
        interior: Take only places whose receptive field lies inside the image, see `top`.
        title: The page's heading; None: "What … sees".
        facts: Further lines for what the page says of the network, such as {"Weights": "best.pth"}.
        out: Path of the page.
        progress: Whether to show progress bars.

    Returns:
        The page's path.

    Raises:
        UnsupportedOp: An operation on the path has no rule.
        OptionError, LayerError, UnitError, ImageError, ModelError, StoreError: As their names say.

    Source:
        Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, Figs. 2, 6 and 7.
    """
    _check(model, out)
    most, k = whole(most, "most", 1), whole(k, "k", 1)
    model = called(model, call)
    source = open_images(model, images, preprocess)
    batch_size = at_once(batch_size, source.batch_size, usual=32)
    first_image = source.example(on_error)
    table = list_layers(model, tuple(first_image.shape[1:]))
    rules = {"rule": rule, "lrn": lrn, "allow_gradient": allow_gradient}
    made = {one.layer: one for one in projections}
    how = _How(model, source, rules, batch_size, progress, first_image, on_error, made)
    scan = None if top is None else _scanned_layers(top, source, table, layers)
    rows = _rows(table, layers) if scan is None else [table[one.name] for one in scan]
    how.rehearse(rows, units)
    wanted = blocks.highlights(highlights, rows)
    if evidence is not None:
        whole(evidence, "evidence", 0)
    pictured = 0 if maximize is None else whole(maximize, "maximize", 0)
    key = how.key(*(rows, scan, units, most, k, occlusion, class_names, evidence, pictured, wanted, distinct, interior))
    team = ranks.team()
    team.agree(key, "weights, images or options")
    first = team.rank == 0
    with (
        replacing(out) if first else contextlib.nullcontext(Path(out)) as finished,
        Unfinished(out, key) if first else Elsewhere(out) as unfinished,
    ):
        known = {"preprocess": preprocess, "class_names": class_names, "progress": progress}
        optimizing = {"preprocess": preprocess, "input_size": tuple(first_image.shape[1:])}
        if pictured:
            shown_at_most = most if units is None else len(units) if not isinstance(units, str) else None
            counts = [min(pictured, row.units, shown_at_most or row.units) for row in rows]
            how.announce(rows, counts, unfinished, optimizing)
        readable = parts.readable(source, parts.choose_images(source, occlusion), on_error)
        occlusions = _occlusions(model, source, readable, occlusion is not None, unfinished, **known)
        if scan is None:
            names, path = [row.name for row in rows], unfinished.path("scan")
            options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
            options |= {"distinct": distinct, "interior": interior, "on_error": on_error}
            top = scan_top(model, source, layers=names, k=k, out=path, **options)
            scan = top.tops
        lost = () if top is None else top.skipped
        shown = [_choose(one, units, most, wanted.get(one.name, ())) for one in scan]
        opened_on = [
            wanted.get(one.name) or blocks.telling(one, chosen) for one, chosen in zip(scan, shown, strict=True)
        ]
        affordable = evidence is None and blocks.affordable(model, how.first, rows, k)
        drawn = []
        for number, (row, one) in enumerate(zip(rows, scan, strict=True)):
            layer = how.draw(number, row, one, shown[number], unfinished)
            measured = blocks.measured_units(evidence, opened_on[number], shown[number], affordable)
            layer["highlights"] = opened_on[number]
            layer["evidence"] = how.measure(row, one, measured, unfinished, asked=evidence is not None)
            chosen = blocks.first_units(pictured, opened_on[number], shown[number])
            making = {"progress": progress, **optimizing}
            layer["optimized"] = blocks.optimize(model, number, row, one, chosen, unfinished, **making)
            drawn.append(layer)
        title = title or f"What {_name(model)} sees"
        used = {i for layer in drawn for ids in layer["images"] for i in ids if i >= 0}
        data = {
            "title": title,
            "layers": drawn,
            "filters": unfinished.part("filters", lambda: _filters(model, rows, unfinished)),
            "occlusion": occlusions,
            "facts": parts.facts(model, source, {"Rule": rule, **parts.skipped(source, lost), **(facts or {})}, images),
            "table": parts.table(table),
            "images": unfinished.part("images", lambda: parts.images(source, used, unfinished)),
        }
        if first:
            page.write(finished, title, data, unfinished)
            unfinished.finish()
    for line in skipped_lines(lost if first else ()):
        _log.warning("report: %s", line)
    return Path(out)


def _check(model: nn.Module, out: str | os.PathLike[str]) -> None:
    check_weights(unwrapped(model))
    if os.path.isdir(out):
        raise StoreError(f"{out} is a folder; give the page's path, such as {Path(out) / 'report.html'}.")


def _occlusions(
    model: nn.Module, source: ImageSet, ids: Sequence[int], asked: bool, unfinished: Unfinished, **options: Any
) -> dict[str, Any]:
    """Scan some images; return their maps. Where the network does not classify and none were asked for: a note."""
    if not ids:
        return {"scans": []}
    images = source.take(ids)

    def scan(n: int) -> dict[str, Any]:
        found = occlude(model, images[n : n + 1], **options)
        return parts.occlusion(found[0] if isinstance(found, list) else found, ids[n], source, unfinished)

    try:
        return {"scans": [unfinished.part(f"occlusion of {i}", partial(scan, n)) for n, i in enumerate(ids)]}
    except (ModelError, UnsupportedOp) as error:
        if asked:
            raise
        return {"note": str(error), "scans": []}


def _filters(model: nn.Module, rows: Sequence[Layer], unfinished: Unfinished) -> dict[str, Any]:
    """Look at the first layer's filters; where there are none: a note why."""
    try:
        found = filters(model, progress=False)
    except (LayerError, ModelError) as error:
        return {"note": str(error)}
    return parts.filters(found, rows, unfinished)


def _name(model: nn.Module) -> str:
    network = unwrapped(model)
    card = getattr(network, "card", None)
    return str(getattr(card, "name", None) or type(network).__name__)


def _rows(table: LayerTable, layers: Layers | None) -> list[Layer]:
    """Return the layers asked for, each once; None: those numbered 1 to 5."""
    if layers is None:
        found = [row for row in table.numbered if (row.number or 0) <= 5]
    else:
        found = list({row.name: row for row in find_all(table.rows, layers)}.values())
    if not found:
        raise LayerError(
            "there is no layer to show. Give layers=[…]: module paths; deconvviz.layers(model) lists them."
        )
    return found


def _scanned_layers(top: TopK, source: ImageSet, table: LayerTable, layers: Layers | None) -> tuple[LayerTop, ...]:
    """Return the layers of a scan that was made before."""
    if top.count != len(source):
        raise ImageError(f"the scan saw {top.count} images, these are {len(source)}. Give it the images of that scan.")
    return top.tops if layers is None else tuple(top[row.name] for row in _rows(table, layers))


def _choose(top: LayerTop, units: Sequence[int] | str | None, most: int, also: Sequence[int]) -> list[int]:
    """Return the units to show, those that the page opens on among them, the strongest first."""
    order = top.strongest_first()
    if isinstance(units, str):
        return order
    wanted = order[:most] if units is None else numbers_of(units, len(order), "units", error=UnitError)
    chosen = {*wanted, *also}
    return [unit for unit in order if unit in chosen]


class _How(NamedTuple):
    """What every projection of the page shares."""

    model: nn.Module
    source: ImageSet
    rule: dict[str, Any]
    batch_size: int
    progress: bool
    first: Tensor  # the first image (1, C, H, W) that can be read
    on_error: str
    made: Mapping[str, Projections]  # before, by layer

    def rehearse(self, rows: Sequence[Layer], units: Sequence[int] | str | None) -> None:
        """Project the first image of each layer: a unit or a rule that is not there is refused before the long scan."""
        first, known = self.first, self.source.preprocess
        wanted = [0] if units is None or units == "all" else units
        for row in rows:
            if row.name in self.made:
                continue
            one: dict[str, Any] = {"units": wanted, "k": 1, "preprocess": known, "progress": False, **self.rule}
            with ranks.alone():
                project(self.model, first, layer=row.name, **one)

    def announce(
        self, rows: Sequence[Layer], counts: Sequence[int], unfinished: Unfinished, options: Mapping[str, Any]
    ) -> None:
        """Say how long the optimized images will take; what cannot be optimized is refused here, before the long scan."""
        seconds = unfinished.part("seconds", lambda: blocks.seconds(self.model, rows, counts, **options))
        text = (
            f"report: {blocks.OPTIMIZED} optimized images of each of {sum(counts)} units take about {_time(seconds)}."
        )
        if ranks.team().rank == 0:
            _log.info(text)
            if self.progress:
                tqdm.write(text, sys.stderr)

    def key(self, rows: Sequence[Layer], scan: Sequence[LayerTop] | None, *what: object) -> str:
        """Hash all that the parts of the page depend on."""
        digest = hashlib.blake2b(digest_size=16)
        facts = ([row.name for row in rows], self.rule, self.batch_size, *placement(self.model))
        digest.update(repr((facts, self.source.fingerprint(), what)).encode())
        for one in scan or ():
            digest.update(repr((one.values.tolist(), one.image_ids.tolist(), one.positions.tolist())).encode())
        hash_weights(unwrapped(self.model), digest)
        return digest.hexdigest()

    def draw(
        self, number: int, layer: Layer, top: LayerTop, units: Sequence[int], unfinished: Unfinished
    ) -> dict[str, Any]:
        """Keep a sprite for each unit; return the layer's facts and the units' numbers."""
        count = top.values.shape[1]
        height, width = layer.reach.window()
        shape, large = (
            sprites.Shape.of(height, width, math.ceil(math.sqrt(count)), most) for most in (sprites.MOST, sprites.FINE)
        )

        def project_piece(piece: list[int]) -> dict[str, Any]:
            path = unfinished.path("projections")
            made = self._made(layer, top, piece)
            result = made or self._project(layer, top, piece, path)
            boxes, contrasts = result.boxes.tolist(), []
            for rows in _rounds(len(piece)):
                for row, (encoded, fine, contrast) in zip(rows, _encoded(result, rows, shape, large), strict=True):
                    unfinished.add(f"u{number}-{piece[row]}", encoded)
                    if fine:
                        unfinished.add(f"v{number}-{piece[row]}", fine)
                    contrasts.append(contrast)
            alike = [] if result.likeness is None else result.likeness.tolist()
            if made is None and ranks.team().rank == 0:
                path.unlink()
            lost = {str(piece[row]): _lost(result, row) for row in range(len(piece)) if any(_lost(result, row))}
            return {"boxes": boxes, "contrasts": contrasts, "likeness": alike, "lost": lost}

        pieces = [
            unfinished.part(f"{piece} of layer {number}", partial(project_piece, piece), shared=True)
            for piece in self._pieces(layer, top, units)
        ]
        order = top.strongest_first()
        alike = [value for piece in pieces for value in piece["likeness"]]
        lost = {unit: places for piece in pieces for unit, places in piece["lost"].items()}
        signals = int((top.image_ids[units] >= 0).sum())
        notes = [
            warn_of_likeness(torch.tensor(alike), layer.switches, max(height, width)),
            warn_of_loss([place for places in lost.values() for place in places if place], signals),
        ]
        return {
            "name": layer.name,
            "number": layer.number,
            "kind": layer.kind,
            "of": layer.units,
            "map": (layer.height, layer.width),
            "field": layer.receptive_field,
            "pixels": (height, width),
            **shape.facts(),
            "fine": None if large.size == shape.size else large.facts(),
            "units": list(units),
            "ranks": [order.index(unit) + 1 for unit in units],
            "activations": sprites.shorten_all(top.values[units].tolist(), 6),
            "images": top.image_ids[units].tolist(),
            "positions": top.positions[units].tolist(),
            "shifts": layer.reach.frame_shift(top.positions[units].numpy()).tolist(),
            "boxes": [box for piece in pieces for box in piece["boxes"]],
            "contrasts": [contrast for piece in pieces for contrast in piece["contrasts"]],
            "lost": lost,
            "note": " ".join(filter(None, notes)),
        }

    def measure(
        self, layer: Layer, top: LayerTop, units: Sequence[int], unfinished: Unfinished, *, asked: bool
    ) -> dict[str, Any]:
        """Measure the evidence of some units, into a file from which an interrupted report goes on."""
        chosen: dict[str, Any] = {
            "batch_size": self.batch_size,
            "out": unfinished.path("evidence"),
            "progress": self.progress,
            "on_error": self.on_error,
        }
        return blocks.measure(self.model, self.source, layer, top, units, unfinished.part, asked=asked, **chosen)

    def _pieces(self, layer: Layer, top: LayerTop, units: Sequence[int]) -> Iterator[list[int]]:
        """Cut the units into pieces that fit into memory."""
        channels = self.first.shape[1]
        step = max(1, _BYTES // (2 * 4 * top.values.shape[1] * channels * math.prod(layer.reach.window())))
        for first in range(0, len(units), step):
            yield list(units[first : first + step])

    def _made(self, layer: Layer, top: LayerTop, units: list[int]) -> Projections | None:
        """Return the projections of some units that were made before, or refuse others than the page would make."""
        if layer.name not in self.made:
            return None
        found = self.made[layer.name].select(units)
        same = found.image_ids.equal(top.image_ids[units]) and found.positions.equal(top.positions[units])
        if found.rule != self.rule["rule"] or not same:
            raise OptionError(
                f"projections: those of {layer.name} are not by rule={self.rule['rule']!r} of the images that the scan "
                "holds. Make them with the rule of the page and with top= of its scan."
            )
        return found

    def _project(self, layer: Layer, top: LayerTop, units: list[int], out: Path) -> Projections:
        """Project some units into a file, from which an interrupted report goes on within the layer."""
        scan = TopK((top,), top.values.shape[1], len(self.source))
        chosen: dict[str, Any] = {"batch_size": self.batch_size, "progress": self.progress, **self.rule}
        chosen["on_error"] = self.on_error
        return project(self.model, self.source, layer=layer.name, units=units, top=scan, out=out, **chosen)


def _lost(result: Projections, row: int) -> list[str]:
    return [result.lost_at(row, place) for place in range(result.image_ids.shape[1])]


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _rounds(count: int) -> Iterator[range]:
    """Cut the rows of a result into as many at a time as there are ranks to draw them."""
    size = ranks.team().size
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def _encoded(
    result: Projections, rows: range, shape: sprites.Shape, large: sprites.Shape
) -> list[tuple[str, str, list[float]]]:
    """Return the sprites of at most one row per rank: each draws its own; "" in place of a large one that is no larger."""
    team, mine = ranks.team(), None
    if team.rank < len(rows):
        mine = sprites.units(result, rows[team.rank], shape, large)
    return team.exchange(mine)[: len(rows)]
