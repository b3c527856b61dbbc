"""The explorer's page: what it holds agrees with the package, fetches nothing, and cannot be broken by a name."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import noise
from PIL import Image
from report_helpers import MODULE, Net, Page, images, write
from torch import nn

import deconvviz
from deconvviz.cli import main as cli
from deconvviz.errors import ImageError, ModelError, OptionError, UnitError
from deconvviz.explorer import blocks
from deconvviz.images.display import signed

EVIL = "</script><script>alert('x')</script><!--"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return write(tmp_path_factory.mktemp("report"))


# ---- numbers and pictures ----


def test_its_numbers_are_those_of_top(page):
    found = deconvviz.top(Net(), images(), layers=[1, 2], k=4, progress=False)
    for layer, number in zip(page.data["layers"], (1, 2), strict=True):
        best = found[number]
        assert (layer["name"], layer["number"], layer["of"]) == (best.name, number, len(best.values))
        order = best.values[:, 0].argsort(descending=True, stable=True)
        assert layer["units"] == order.tolist() and layer["ranks"] == list(range(1, len(order) + 1))
        assert np.allclose(layer["activations"], best.values[order], rtol=1e-5)
        assert layer["images"] == best.image_ids[order].tolist()
        assert layer["positions"] == best.positions[order].tolist()


@pytest.mark.parametrize("number", [1, 2])
def test_its_projections_are_those_of_project_on_the_scale_of_the_unit(page, number):
    layer = page.data["layers"][number - 1]
    result = deconvviz.project(Net(), images(), layer=number, units=layer["units"], top=4, progress=False)
    assert layer["boxes"] == result.boxes.tolist()
    expected = signed(result.projections, per="block")
    for at, unit in enumerate(layer["units"]):
        for i, contrast in enumerate(layer["contrasts"][at]):
            stored = page.tile(f"u{number - 1}-{unit}", layer, i).astype(float)
            shown = np.clip(128 + (stored - 128) * contrast, 0, 255) / 255
            # The 5-pixel tiles are kept without loss, the larger ones as JPEG: about as many of 255 levels off.
            assert np.abs(shown - expected[at, i].permute(1, 2, 0).numpy()).mean() < (0.005 if number == 1 else 0.03)


def test_each_projection_is_stored_on_its_own_scale(page):
    layer = page.data["layers"][0]
    tile = page.tile(f"u0-{layer['units'][0]}", layer, 3)
    assert tile.min() == 1 or tile.max() == 255
    assert min(map(min, layer["contrasts"])) < 0.9 < max(map(max, layer["contrasts"]))


def test_its_patches_are_pieces_of_the_whole_images(page):
    layer = page.data["layers"][0]
    pixels = images()
    for at in (0, 3):
        for i, (top, left, bottom, right) in enumerate(layer["boxes"][at]):
            patch = page.tile(f"u0-{layer['units'][at]}", layer, 4 + i) / 255  # two rows of projections come first
            whole = pixels[layer["images"][at][i]].permute(1, 2, 0).numpy()
            assert np.abs(patch - whole[top:bottom, left:right]).max() < 0.005


def test_each_image_that_is_shown_is_there_whole_and_no_other(page):
    used = {i for layer in page.data["layers"] for ids in layer["images"] for i in ids if i >= 0}
    assert {int(name[1:]) for name in page.scripts if re.fullmatch(r"i\d+", name)} == used
    assert set(map(int, page.data["images"]["names"])) == used
    facts = page.data["images"]
    assert facts["pixels"] == [30, 22] and facts["count"] == 7
    for i in used:
        assert np.abs(page.tile(f"i{i}", facts, 0) / 255 - images()[i].permute(1, 2, 0).numpy()).mean() < 0.06


def test_its_filters_are_those_of_the_first_layer(page):
    found = deconvviz.filters(Net())
    shown = page.data["filters"]
    assert shown["name"] == "features.0" and shown["pixels"] == [5, 5] and shown["layers"] == ["features.1"]
    assert np.allclose(shown["rms"], found.rms, rtol=1e-3)
    expected = signed(found.weights[None].float(), per="block")[0]
    for i, contrast in enumerate(shown["contrast"]):
        pixels = 128 + (page.tile("f", shown, i).astype(float) - 128) * contrast
        assert np.abs(pixels / 255 - expected[i].permute(1, 2, 0).numpy()).max() < 0.01


def test_its_occlusion_maps_are_those_of_occlude(page):
    (scan,) = page.data["occlusion"]["scans"]
    result = deconvviz.occlude(Net(), images()[:1], progress=False)
    assert scan["rows"] == result.rows.tolist() and scan["cols"] == result.cols.tolist()
    probability, activity = scan["maps"]
    assert np.allclose(probability["values"], result.probability.flatten(), rtol=1e-3)
    assert np.allclose(activity["values"], result.activation.flatten(), rtol=1e-3)
    assert activity["title"] == f"Activity of unit {result.unit} of {result.layer}"
    assert (scan["down"][0], scan["down"][-1]) == (0, 30) and len(scan["across"]) == len(scan["cols"]) + 1
    assert page.picture("o0").shape[:2] == (32, 24)  # whole blocks of JPEG


def test_it_states_network_images_versions_and_layers(page):
    facts = dict(page.data["facts"])
    assert facts["Network"] == f"Net, {sum(p.numel() for p in Net().parameters()):,} parameters"
    assert f"torch {torch.__version__.split('+')[0]}" in facts["Versions"] and facts["Rule"] == "deconvnet"
    names = [line[1] for line in page.data["table"]["rows"]]
    assert names == [row.name for row in deconvviz.layers(Net(), (3, 30, 22))]
    assert "It is not a gradient" in page.text and page.title == "What Net sees"


@pytest.mark.parametrize("channels", [1, 5])
def test_gray_and_many_channels_are_shown_in_gray(channels, tmp_path):
    page = write(tmp_path, Net(channels), images(channels))
    layer = page.data["layers"][1]
    for name in ("i0", "o0", "f", f"u1-{layer['units'][0]}"):
        pixels = page.picture(name).astype(int)
        assert np.ptp(pixels, axis=2).max() <= 2 and np.ptp(pixels) > 50


def test_large_images_are_reduced(tmp_path):
    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 171, 50)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).relu()

    page = write(tmp_path, Still(), torch.rand(2, 3, 300, 240), layers=[1], k=2, occlusion=0)
    layer, whole = page.data["layers"][0], page.data["images"]
    assert layer["pixels"] == [171, 171] and layer["size"] == [112, 112]
    assert whole["size"] == [224, 179] and page.tile("i0", whole, 0).shape == (224, 179, 3)


# ---- what it holds ----


def test_units_are_the_strongest_a_list_or_all(tmp_path):
    strongest = write(tmp_path, most=3).data["layers"]
    assert [len(layer["units"]) for layer in strongest] == [3, 3]
    chosen = write(tmp_path, units=[7, 0, 2]).data["layers"][0]
    assert sorted(chosen["units"]) == [0, 2, 7] and chosen["ranks"] == sorted(chosen["ranks"])
    assert [len(layer["units"]) for layer in write(tmp_path, units="all", most=1).data["layers"]] == [8, 12]


def test_layers_go_by_path_once_each(tmp_path):
    page = write(tmp_path, layers=["features.3", 1, "features.1"], most=1)
    assert [layer["name"] for layer in page.data["layers"]] == ["features.3", "features.1"]
    assert [layer["number"] for layer in page.data["layers"]] == [None, 1]


def test_without_a_word_on_layers_it_shows_those_with_a_number(tmp_path):
    assert [layer["number"] for layer in write(tmp_path, layers=None, most=1).data["layers"]] == [1, 2]


def test_a_scan_that_was_made_before_is_not_made_again(tmp_path, monkeypatch):
    scan = deconvviz.top(Net(), images(), layers=[2, 1], k=3, progress=False)
    monkeypatch.setattr(MODULE, "scan_top", None)
    assert [layer["number"] for layer in write(tmp_path, top=scan, layers=None).data["layers"]] == [2, 1]
    (layer,) = write(tmp_path, top=scan, layers=[1]).data["layers"]
    assert layer["activations"][0] == pytest.approx(scan[1].values[layer["units"][0]].tolist(), rel=1e-5)


def test_projections_that_were_made_before_are_not_made_again(tmp_path, monkeypatch):
    scan = deconvviz.top(Net(), images(), layers=[1, 2], k=3, progress=False)
    chosen = {"top": scan, "most": 4, "evidence": 0}
    expected = write(tmp_path, **chosen)
    made = [deconvviz.project(Net(), images(), layer=n, units="all", top=scan, progress=False) for n in (1, 2)]
    monkeypatch.setattr(MODULE, "project", None)
    assert write(tmp_path, projections=made, **chosen).text == expected.text
    with pytest.raises(OptionError, match=r"projections: those of features\.1 are not by rule='guided' of the images"):
        write(tmp_path, projections=made, rule="guided", **chosen)
    with pytest.raises(OptionError, match="are not by rule='deconvnet' of the images that the scan holds"):
        write(tmp_path, projections=[replace(made[0], image_ids=made[0].image_ids.flip(1)), made[1]], **chosen)
    with pytest.raises(UnitError, match="is not in this result, it holds 1 unit"):
        write(tmp_path, projections=[made[0].select([0]), made[1]], **chosen)


def test_in_pieces_and_twice_it_is_the_same_page(page, tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "_BYTES", 1)
    assert write(tmp_path).text == page.text


def test_folders_give_names_labels_and_nothing_of_the_machine(tmp_path):
    folder = tmp_path / "private" / "photos"
    for kind, label in enumerate(("cats", "dogs")):
        (folder / label).mkdir(parents=True)
        for i in range(2):
            noise((22, 30), 90, 2 * kind + i).convert("RGB").save(folder / label / f"{i}.png")
    prepare = {"preprocess": _to_tensor, "occlusion": 2}
    page = write(tmp_path, shown=folder, **prepare)
    assert page.data["images"]["names"]["2"] == "dogs/0.png" and page.data["images"]["labels"]["2"] == "dogs"
    assert [scan["name"] for scan in page.data["occlusion"]["scans"]] == ["cats/0.png", "dogs/0.png"]
    assert str(tmp_path) not in page.text and dict(page.data["facts"])["Images"] == "4, from photos"
    files = sorted(folder.rglob("*.png"))
    assert str(tmp_path) not in write(tmp_path, shown=files, **prepare).text


def _to_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def test_a_network_that_does_not_classify_gets_a_note_instead_of_maps(tmp_path):
    model = Net().features
    page = write(tmp_path, model, occlusion=None)
    assert "expected (1, classes)" in page.data["occlusion"]["note"] and page.data["occlusion"]["scans"] == []
    with pytest.raises(ModelError, match=r"expected \(1, classes\)"):
        write(tmp_path, model, occlusion=2)
    assert write(tmp_path, model, occlusion=0).data["occlusion"] == {"scans": []}


def test_occlusion_takes_the_images_that_are_asked_for(tmp_path):
    assert [scan["image"] for scan in write(tmp_path, occlusion=[5, 2]).data["occlusion"]["scans"]] == [5, 2]


def test_empty_places_and_dead_units_are_shown_as_that(tmp_path):
    scan = deconvviz.top(Net(), images(), layers=[1, 2], k=4, progress=False)
    for best in scan.tops:
        best.image_ids[3], best.values[3] = -1, 0
        best.image_ids[5, 2:], best.values[5, 2:] = -1, 0
    page = write(tmp_path, top=scan, layers=None, units=[3, 5])
    for number, layer in enumerate(page.data["layers"]):
        assert layer["images"][layer["units"].index(3)] == [-1] * 4
        assert layer["images"][layer["units"].index(5)][2:] == [-1, -1]
        assert len(layer["contrasts"][layer["units"].index(3)]) == 4 and f"u{number}-3" in page.scripts
    assert "i-1" not in page.scripts and "-1" not in page.data["images"]["names"]


def test_a_layer_whose_projections_are_nearly_one_says_so(tmp_path):
    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            parts = [nn.Sequential(nn.Conv2d(3, 3, 5, padding=2), nn.ReLU()) for _ in range(3)]
            self.parts = nn.Sequential(*parts)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts(x)

    page = write(tmp_path, Still(), layers=[1, 3], occlusion=0)
    assert [bool(layer["note"]) for layer in page.data["layers"]] == [False, True]
    assert "no max-pool below this layer" in page.data["layers"][1]["note"]


def test_where_a_signal_was_lost_is_on_its_tile(tmp_path):
    net = Net()
    with torch.no_grad():
        net.features[0].bias.fill_(-9)  # the first rectifier is off everywhere
        net.features[3].bias.fill_(2)
    page = write(tmp_path, net, layers=[2], most=2, occlusion=0, evidence=0, rule="guided")
    (layer,) = page.data["layers"]
    assert layer["lost"] == {str(unit): ["features.1"] * 4 for unit in layer["units"]}
    assert "Of 8 of 8 signals nothing reached the pixels, lost at features.1 (8)." in layer["note"]
    (layer,) = write(tmp_path, net, layers=[2], most=2, occlusion=0, evidence=0).data["layers"]
    assert layer["lost"] == {} and "reached" not in layer["note"]


# ---- one file, safe ----


def test_nothing_is_fetched(page):
    links = [value for _, name, value in page.attributes if name in ("src", "href", "action", "srcset", "poster")]
    assert all(value.startswith(("#", "data:")) for value in links)
    assert not re.search(r"https?://|@import|url\(", page.text)
    policy = next(v for tag, name, v in page.attributes if tag == "meta" and name == "content" and "default-src" in v)
    assert "default-src 'none'" in policy


def test_no_name_can_end_the_script_it_stands_in(tmp_path):
    names = [EVIL, "a & b", "c\u2028d", "<!--data-->"]
    page = write(tmp_path, class_names=names, title=f"{EVIL} <!--script--> & more", facts={EVIL: "<!--style-->"})
    assert page.title == f"{EVIL} <!--script--> & more" and page.data["title"] == page.title
    assert dict(page.data["facts"])[EVIL] == "<!--style-->"
    assert "alert" not in page.scripts["code"]
    assert {key for key in page.scripts if not re.fullmatch(r"[uio][\d-]+|f", key)} == {"data", "code"}
    assert any(scan["answer"] in names for scan in page.data["occlusion"]["scans"])


def broken_folder(path):
    for i in range(5):
        noise((30, 22), 40 + 40 * i, i).convert("RGB").save(path / f"{i}.png")
    for i in (0, 3):
        (path / f"{i}.png").write_bytes(b"no picture")
    return path


def test_what_cannot_be_read_is_skipped_and_named(tmp_path, caplog):
    from torchvision.transforms.functional import pil_to_tensor

    (tmp_path / "photos").mkdir()
    folder = broken_folder(tmp_path / "photos")
    given = {"preprocess": lambda picture: pil_to_tensor(picture).float() / 255, "layers": [1], "units": [0, 5]}
    with pytest.raises(ImageError, match=r'cannot read the image .*on_error="skip"'):
        write(tmp_path, shown=folder, **given)
    page = write(tmp_path, shown=folder, on_error="skip", **given)
    (layer,) = page.data["layers"]
    shown = {i for ids in layer["images"] for i in ids} - {-1}  # -1: a place that no image excites
    assert shown == {1, 2, 4} and set(page.data["images"]["names"]) == {"1", "2", "4"}
    assert dict(page.data["facts"])["Not read"] == "0.png, 3.png"
    assert [scan["image"] for scan in page.data["occlusion"]["scans"]] in ([1], [])
    lines = [record.getMessage() for record in caplog.records]
    assert [line[:24] for line in lines] == ["report: skipped image 0:", "report: skipped image 3:"]
    found = deconvviz.evidence(
        Net(), folder, layer=1, units=[0], k=2, preprocess=given["preprocess"], on_error="skip", progress=False
    )
    assert [i for i, _ in found.skipped] == [0, 3]
    found.save(tmp_path / "evidence")
    assert deconvviz.Evidence.load(tmp_path / "evidence") == found


def test_the_command_names_what_it_skipped(tmp_path, capsys):
    chosen = ["--images", str(broken_folder(tmp_path)), "--on-error", "skip", "--layers", "1", "--most", "1"]
    words = ["report", "zfnet64", "--weights", "random", *chosen, "--occlusion", "0", "--quiet"]
    assert cli.main([*words, "--out", str(tmp_path / "a.html")]) == 0
    assert "Open" in capsys.readouterr().out
    assert dict(Page(tmp_path / "a.html").data["facts"])["Not read"] == "0.png, 3.png"


# ---- optimized images ----


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(blocks, "STEPS", 5)


def test_optimized_images_are_those_of_maximize(tmp_path, capsys, monkeypatch):
    real = blocks.seconds
    monkeypatch.setattr(
        blocks, "seconds", lambda *a, **o: 1.0 if real(*a, **o) >= 0 else -1.0
    )  # how long: the machine's
    page = write(tmp_path, maximize=2, most=3, layers=[2], highlights={2: [7]}, progress=True, occlusion=0)
    (layer,) = page.data["layers"]
    held = layer["optimized"]
    assert list(held["units"]) == ["7", str(next(unit for unit in layer["units"] if unit != 7))]
    chosen = {"units": [int(unit) for unit in held["units"]], "n": 4, "steps": 5, "input_size": (30, 22)}
    found = deconvviz.maximize(Net(), layer=2, **chosen, progress=False)
    assert held["pixels"] == [30, 22] and held["steps"] == 5
    for at, unit in enumerate(held["units"]):
        assert np.allclose(held["units"][unit]["activations"], found.activations[at, :, -1], rtol=1e-4)
        photo = layer["activations"][layer["units"].index(int(unit))][0]
        assert held["units"][unit]["photo"] == pytest.approx(max(photo, 0), rel=1e-4)
        for i in range(4):
            expected = found.images[at, i].permute(1, 2, 0).numpy()
            assert np.abs(page.tile(f"m0-{unit}", held, i) / 255 - expected).mean() < 0.03
    told = capsys.readouterr().err
    assert "report: 4 optimized images of each of 2 units take about 1 s." in told
    assert told.index("optimized images") < told.index("top:")  # before the scan


def test_without_maximize_there_are_none(page):
    assert [layer["optimized"] for layer in page.data["layers"]] == [{"units": {}}] * 2


def test_what_cannot_be_optimized_is_refused_before_the_scan(tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "scan_top", None)
    prepared = {"preprocess": lambda picture: picture}
    with pytest.raises(ImageError, match="how pixels become this model's input cannot be told"):
        write(tmp_path, maximize=1, **prepared)
    with pytest.raises(OptionError, match="maximize=-1"):
        write(tmp_path, maximize=-1)
    assert list(tmp_path.iterdir()) == []


# ---- the command ----


def test_the_command_writes_the_page(tmp_path, capsys):
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(f"kind {i}" for i in range(200)))
    for i in range(3):
        noise((64, 64), 40 + 40 * i, i).convert("RGB").save(tmp_path / f"{i}.png")
    out = tmp_path / "pages" / "zf.html"
    chosen = ["--images", str(tmp_path), "--layers", "1,2", "--most", "2", "--k", "2", "--occlusion", "1", "--quiet"]
    chosen += ["--maximize", "1"]
    words = ["report", "zfnet64", "--weights", "random", "--classes", str(classes), *chosen, "--out", str(out)]
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    assert printed.out == f"Open {out} in a browser.\n" and "random weights" in printed.err
    page = Page(out)
    assert page.title == "What zfnet64 with random weights sees" and dict(page.data["facts"])["Weights"] == "random"
    assert page.data["occlusion"]["scans"][0]["answer"].startswith("kind ")
    assert len(page.data["layers"][1]["units"]) == 2
    assert [len(layer["optimized"]["units"]) for layer in page.data["layers"]] == [1, 1]


def test_the_command_says_what_is_wrong_with_the_class_names(tmp_path, capsys):
    assert cli.main(["report", "zfnet64", "--classes", str(tmp_path / "none.txt")]) == 2
    assert "cannot read the class names" in capsys.readouterr().err
