"""The options that every picture takes, and names in pictures: as they are, whatever is in them."""

import dataclasses
import functools
import inspect
import io
from importlib import import_module

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from saved_results import SAVED, saved

from deconvviz.errors import OptionError
from deconvviz.results.base import Result, Stored, png

LOOK = ("ax", "title", "figsize", "dpi", "fontsize", "cmap")
DRAWN = {name: ("plot",) for name in SAVED} | {
    "occlusion": ("plot", "overlay"),
    "recording": ("plot", "plot_filters", "plot_convergence"),
}
PLOTS = [(name, method) for name, methods in DRAWN.items() for method in methods]
every_plot = pytest.mark.parametrize(("name", "method"), PLOTS, ids=lambda x: x)


def plot(name, method, *args, **options):
    return getattr(saved(name), method)(*args, **options)


@functools.cache
def usual(name, method):
    """The figure without options, to be read only."""
    return plot(name, method)


def texts(figure):
    return [text for text in figure.findobj(Text) if text.get_text().strip()]


def pixels(figure):
    return np.asarray(bytearray(png(figure)))


@every_plot
def test_the_signature_names_every_option(name, method):
    kind = SAVED[name][0]
    own = inspect.signature(getattr(kind, method)).parameters
    drawn_by = {"plot": "draw", "overlay": "overlay", "plot_filters": "draw_filters"}.get(method, "draw_convergence")
    draw = inspect.signature(getattr(import_module(f"deconvviz.plotting.{kind.drawn_by}"), drawn_by)).parameters
    assert set(LOOK) <= set(own) and set(list(own)[1:]) == set(list(draw)[1:])
    for option in set(draw) - {"result", "recording", "cmap"}:
        assert own[option].default == draw[option].default, option


@every_plot
def test_axes_give_their_place(name, method):
    figure = Figure(figsize=(12, 8), dpi=40, layout="constrained")
    left, right = figure.subplots(1, 2)
    for given in ({"figure": left}, {"ax": right}):
        part = plot(name, method, **given)
        assert part.figure is figure and part is not figure and (part.axes or part.subfigs)
        own = next(iter(given.values())).get_position()
        assert part.bbox_relative.x0 == pytest.approx(own.x0) and part.bbox_relative.y1 == pytest.approx(own.y1)
    assert len(pixels(figure)) > 1000
    with pytest.raises(OptionError, match="these axes have no place in their figure's layout"):
        plot(name, method, ax=figure.add_axes((0.1, 0.1, 0.2, 0.3)))
    free = Figure(figsize=(12, 8), dpi=40).add_axes((0.1, 0.1, 0.2, 0.3))
    part = plot(name, method, ax=free)
    assert len(pixels(part)) > 1000 and part.bbox_relative.width == pytest.approx(0.2)


@every_plot
def test_size_resolution_and_title(name, method):
    figure = plot(name, method, figsize=(9, 7), dpi=50, title="a title $x^2$")
    assert tuple(figure.get_size_inches()) == (9, 7) and figure.dpi == 50
    with Image.open(io.BytesIO(png(figure))) as saved_as:  # and without a warning that nothing was laid out
        assert saved_as.size == (450, 350)
    (title,) = [text for text in texts(figure) if text.get_text() == "a title $x^2$"]
    assert title.get_parse_math()  # the user's own may hold a formula
    assert tuple(plot(name, method, dpi=50).get_size_inches()) == tuple(usual(name, method).get_size_inches())


@every_plot
def test_letters_keep_their_proportion(name, method):
    plain, large = usual(name, method), plot(name, method, fontsize=20)
    factor = 20 / np.median([text.get_fontsize() for text in texts(plain)])
    pairs = list(zip(beside_ticks(plain), beside_ticks(large), strict=True))
    pairs += [(a, b) for a, b in zip(ticks(plain), ticks(large), strict=True) if a is not None]
    assert len(pairs) > 1
    for before, after in pairs:
        assert after == pytest.approx(factor * before)


def beside_ticks(figure):
    axes = [axis for one in figure.findobj(Axes) for axis in (one.xaxis, one.yaxis)]
    of_ticks = {id(text) for axis in axes for tick in axis.majorTicks for text in (tick.label1, tick.label2)}
    return [text.get_fontsize() for text in texts(figure) if id(text) not in of_ticks]


def ticks(figure):
    labels = [get() for axes in figure.findobj(Axes) for get in (axes.get_xticklabels, axes.get_yticklabels)]
    return [some[0].get_fontsize() if some else None for some in labels]


@every_plot
def test_a_colour_map_changes_the_colours(name, method):
    if name == "neighbours":
        with pytest.raises(OptionError, match="these are photos in their own colours"):
            plot(name, method, cmap="plasma")
        return
    plain = png(plot(name, method, dpi=40))
    assert png(plot(name, method, cmap="plasma", dpi=40)) != plain
    assert png(plot(name, method, dpi=40)) == plain
    with pytest.raises(OptionError, match="cmap='nothing' is none of matplotlib's colour maps"):
        plot(name, method, cmap="nothing")


@every_plot
def test_another_place_is_refused(name, method):
    with pytest.raises(OptionError, match=r"figure=5: expected a matplotlib figure, a subfigure or axes"):
        plot(name, method, 5)
    with pytest.raises(OptionError, match="figure, ax and figsize exclude each other"):
        plot(name, method, Figure(), figsize=(3, 3))


def hostile(value, text):
    """Return the same result with `text` for every name in it."""
    if isinstance(value, Stored):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        plain = ("kind", "metric", "rule", "fill_name", "images", "scan")
        changed = {k: v if k in plain else hostile(v, text) for k, v in fields.items()}
        return dataclasses.replace(value, **changed)
    if isinstance(value, tuple):
        return tuple(hostile(item, text) for item in value)
    return text + value if isinstance(value, str) else value


@every_plot
def test_names_are_written_as_they_are(name, method, text=r"$\foo$ US$ 5 and 6$ " + "bad\udcff <b>"):
    result = hostile(saved(name), text)
    if name == "method-comparison":
        result = dataclasses.replace(result, stages=tuple((f"{text}{i}",) for i in range(len(result.stages))))
    figure = getattr(result, method)(dpi=40)
    assert len(png(figure)) > 500 and isinstance(result, Result)
    assert all(not text.get_parse_math() for text in figure.findobj(Text) if "$" in text.get_text())


def test_the_colours_of_curves_are_given_back():
    plot("responses", "plot", cmap="plasma")
    assert plot("responses", "plot").axes[0].lines[0].get_color() == "#0072B2"
    assert matplotlib.rcParams["text.parse_math"] and isinstance(plot("topk", "plot").axes[0], Axes)
    assert torch.is_tensor(saved("topk").tops[0].values)
