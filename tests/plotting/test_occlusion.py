"""The drawings of an occlusion scan, looked at by their pixels and texts."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from pictures import noise
from PIL import Image
from torch import nn

import deconvviz
from deconvviz.cli import main as cli
from deconvviz.errors import OptionError
from deconvviz.occlusion import cells as _cells
from deconvviz.plotting import occlusion as _panels
from deconvviz.plotting.style import DPI
from deconvviz.results.base import png


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 12),
    )  # fmt: skip


@pytest.fixture(scope="module")
def image():
    return torch.rand(3, 24, 18, generator=torch.Generator().manual_seed(2))


def scan(net, image, **options):
    return deconvviz.occlude(net, image, progress=False, **options)


def texts(figure):
    found = [t.get_text() for t in figure.texts]
    for axes in figure.axes:
        found += [axes.get_title(loc="left"), axes.get_xlabel(), *(t.get_text() for t in axes.texts)]
        if axes.get_legend():
            found += [t.get_text() for t in axes.get_legend().get_texts()]
    return "\n".join(found)


def rendered(figure):
    return np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB"))


def with_labels(result, label, usual):
    return deconvviz.Occlusion(
        **{**vars(result), "label": label, "unoccluded": result.unoccluded | {"label": torch.tensor(usual)}}
    )


def test_the_five_panels_say_what_they_are(net, image):
    others = torch.rand(5, 3, 24, 18)
    result = scan(net, image, size=(6, 5), stride=(4, 3), others=others, class_names=[f"animal {i}" for i in range(12)])
    figure = result.plot(title="a scan")
    said = texts(figure)
    for part in ("a scan", "(a)  image", "occluder 6×5 px, 4×3 px apart", "6×6 positions", "(b)  layer 2, unit",
                 "summed activation   (▼ unoccluded:", "projected", "the same unit in other images", "(d)  p(animal",
                 "probability   (▼ unoccluded:", "(e)  most probable class"):  # fmt: skip
        assert part in said, part
    picture = rendered(figure)
    assert picture.shape == (round(_panels.HEIGHT * DPI), round(_panels.WIDTH * DPI), 3)
    assert (picture == 255).all(2).mean() > 0.2 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 500


def test_nothing_is_cut_off(net, image):
    result = scan(net, image, size=6, stride=4, class_names=["a very long name of a class, and more " * 3] * 12)
    figure = with_labels(result, torch.arange(result.label.numel()).view(result.label.shape) % 12, 3).plot()
    figure.canvas.draw()
    frame = figure.bbox
    everything = [axes.get_tightbbox() for axes in figure.axes] + [t.get_window_extent() for t in figure.texts]
    for box in everything:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1


def test_a_map_is_drawn_cell_by_cell_where_the_occluder_was(net, image):
    result = scan(net, image, size=4, stride=4)
    figure = result.plot()
    mesh = next(axes for axes in figure.axes if "(d)" in axes.get_title(loc="left")).collections[0]
    assert np.allclose(mesh.get_array().reshape(result.probability.shape), result.probability)
    corners = mesh.get_coordinates()
    assert corners[0, 0].tolist() == [0, 0] and corners[1, 1].tolist() == [4, 4]
    axes = mesh.axes
    assert axes.get_xlim() == (0, 18) and axes.get_ylim() == (24, 0)


def test_the_occluder_is_shown_where_the_probability_is_lowest(net, image):
    result = scan(net, image, size=6, stride=3, fill=0.5)
    worst = int(result.probability.flatten().argmin())
    covered, mask = _cells.covered(result, worst)
    row, col = divmod(worst, len(result.cols))
    top, left = int(result.rows[row]), int(result.cols[col])
    assert mask.sum() == mask[top : top + 6, left : left + 6].sum() > 0
    assert torch.allclose(covered[:, mask > 0], torch.tensor(0.5))
    assert torch.equal(covered[:, mask == 0], image[:, mask == 0])


def test_cells_lie_around_the_centres_of_what_is_covered():
    assert _cells.cell_edges(torch.tensor([0, 4, 8]), 4, 12).tolist() == [0, 4, 8, 12]
    assert _cells.cell_edges(torch.tensor([0, 4, 8]), 4, 10).tolist() == [
        0,
        4,
        7.5,
        10.5,
    ]  # the last is cut to 2 pixels
    assert _cells.cell_edges(torch.tensor([0]), 9, 9).tolist() == [0, 9]


def test_the_legend_stays_short_and_adds_up(net, image):
    result = scan(net, image, size=4, stride=2)
    count = result.label.numel()
    label = torch.arange(count) % 12
    label[: count // 2] = 7
    result = with_labels(result, label.view(result.label.shape), 3)
    index, legend = _cells.label_index(result)
    assert len(legend) == 8 and legend[0][0].startswith("class 3 ") and legend[1][0].startswith("class 7 ")
    assert legend[-1][0].startswith("5 others ") and legend[-1][1] == _cells.OTHER
    assert (index == 1).sum() == (label == 7).sum() and (index == 7).sum() > 0
    assert len({colour for _, colour in legend}) == 8
    one, legend = _cells.label_index(with_labels(result, torch.full_like(result.label, 5), 5))
    assert (one == 0).all() and legend == [("class 5  100 %", _cells.COLOURS[0])]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999, 1.0])
def test_shares_are_never_rounded_to_all_or_nothing(share):
    expected = {0.0: "0 %", 0.001: "<1 %", 0.5: "50 %", 0.999: ">99 %", 1.0: "100 %"}
    assert _cells._percent(share) == expected[share]


def test_masks_are_painted_with_their_values(net, image):
    masks = torch.zeros(2, 24, 18, dtype=torch.bool)
    masks[0, :10] = True
    masks[1, 5:15, 3:9] = True
    masks[1, 14, 8] = False
    result = scan(net, image, masks=masks)
    array = _cells.over_image(result, torch.tensor([[1.0], [3.0]]))
    assert array[0, 0] == 1 and array[12, 4] == 3 and array[7, 5] == 2 and np.isnan(array[20, 10])
    figure = result.plot()
    assert "2 masks" in texts(figure) and rendered(figure).std() > 10


def test_a_given_figure_is_drawn_into(net, image):
    result = scan(net, image, size=8)
    figure = Figure(figsize=(8, 6))
    upper, _ = figure.subfigures(2, 1)
    assert result.plot(upper) is upper and len(figure.axes) == len(upper.axes) > 5
    assert result._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("target", [lambda y: y[:, 0], [2, 5], (1, 3)])
def test_every_kind_of_target_can_be_drawn(net, image, target, tmp_path):
    result = scan(net, image, size=8, target=target)
    figure = result.plot(target=result.target[1]) if isinstance(target, list) else result.plot()
    assert ("p(class 5)" if isinstance(target, list) else result.target) in texts(figure)
    assert rendered(result.overlay()).std() > 10
    result.animate(tmp_path / "a.gif")


def test_a_scan_without_a_layer_or_a_rule_is_drawn_and_says_so(image):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 18, 4))
    assert "no layer was followed" in texts(scan(model, image, size=8).plot())


def test_a_map_that_does_not_change_is_drawn(net, image):
    result = scan(net, image, size=8, fill=image)
    assert result.probability.std() < 1e-6
    for figure in (result.plot(), result.overlay()):
        assert rendered(figure).std() > 10


def test_the_overlay_is_red_where_covering_costs_most(net, image):
    result = scan(net, image, size=6, stride=3)
    for of in (None, "logit", "activation"):
        figure = result.overlay(of=of)
        shown = np.asarray(figure.axes[0].images[1].get_array())
        assert np.allclose(shown, result.attribution(of))
        low, high = figure.axes[0].images[1].get_clim()
        assert low == -high and high >= np.abs(shown).max()
    with pytest.raises(OptionError, match="of='nothing': give"):
        result.overlay(of="nothing")


def test_the_animation_covers_and_fills(net, image, tmp_path):
    result = scan(net, image, size=6, stride=4)
    path = tmp_path / "a.gif"
    result.animate(path, rate=10)
    with Image.open(path) as gif:
        assert gif.n_frames == result.label.numel() and gif.info["duration"] == 100
        frames = []
        for i in (0, gif.n_frames - 1):
            gif.seek(i)
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
    first, last = frames
    half = first.shape[1] // 2
    gray = np.abs(np.stack(frames)[:, :, half:] - 237).max(3) < 12
    assert gray[0].sum() > gray[1].sum()  # the map fills
    assert np.abs(first[:, :half] - last[:, :half]).max() > 60  # the occluder moves
    with pytest.raises(OptionError, match="rate=0: give frames per second"):
        result.animate(path, rate=0)


def test_an_animation_of_masks(net, image, tmp_path):
    masks = torch.rand(3, 24, 18) > 0.5
    scan(net, image, masks=masks).animate(tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3


def test_the_command_writes_everything(tmp_path, capsys):
    picture = tmp_path / "photo.png"
    noise((90, 70), 90).convert("RGB").save(picture)
    paths = {name: tmp_path / f"{name}.{end}" for name, end in
             (("out", "png"), ("overlay", "png"), ("animation", "gif"), ("save", "safetensors"))}  # fmt: skip
    options = [x for name, path in paths.items() for x in (f"--{name}", str(path))]
    asked = ["--size", "20,24", "--stride", "20", "--fill", "0.2", "--target", "7", "--layer", "2", "--edge", "align"]
    assert cli.main(["occlude", "zfnet64", str(picture), "--weights", "random", "--quiet", *asked, *options]) == 0
    printed = capsys.readouterr().out
    assert all(path.exists() and f"wrote {path}" in printed for path in paths.values())
    result = deconvviz.Occlusion.load(paths["save"])
    assert (result.size, result.stride, result.target, result.number) == ((20, 24), (20, 20), 7, 2)
    assert result.fill_name == "0.2" and result.rows[-1] == 44


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert cli.main(["occlude", "zfnet64", str(tmp_path / "none.png"), "--weights", "random"]) == 2
    assert "no such file" in capsys.readouterr().err
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    asked = ["--size", "400", "--quiet", "--out", str(tmp_path / "out.png")]
    assert cli.main(["occlude", "zfnet64", str(tmp_path), "--weights", "random", *asked]) == 2
    assert "400" in capsys.readouterr().err and not (tmp_path / "out.png").exists()
