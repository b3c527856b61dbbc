"""The command line: each command runs, each mistake is one line and exit code 2."""

import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from pictures import noise
from PIL import Image
from safetensors.torch import save_file

import deconvviz
from deconvviz.cli import demo as pages
from deconvviz.cli import main as cli
from deconvviz.cli import options as reading
from deconvviz.cli.demo import run as run_demo
from deconvviz.cli.networks import load_model
from deconvviz.errors import ModelError, StoreError
from deconvviz.explorer import blocks

NET = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU())

def number():
    return 7

def broken():
    raise RuntimeError("no such luck")

def preprocess(picture):
    return torch.zeros(3, 16, 16)

ready = build()
"""


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for shade in (40, 120, 240):
        noise((80, 70), shade, seed=shade).convert("RGB").save(folder / f"{shade}.png")
    return str(folder)


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "my_net.py"
    path.write_text(NET)
    return str(path)


def test_layers_prints_the_table(capsys):
    assert cli.main(["layers", "squeezenet1_1", "--input-size", "64,48"]) == 0
    assert "receptive field" in capsys.readouterr().out


def test_any_cifar_network_goes_by_its_name(capsys, monkeypatch):
    assert cli.main(["layers", "resnet-26"]) == 0
    assert "receptive field" in capsys.readouterr().out
    assert load_model("resnet18").model.fc.out_features == 1000  # without the dash it is torchvision's
    assert cli.main(["layers", "resnet-21"]) == 2
    assert "Did you mean 'resnet-20'" in capsys.readouterr().err
    seen = []
    result = type("Result", (), {"history": ["epoch 1"], "weights": "w", "card": "c", "page": None})
    monkeypatch.setattr(deconvviz, "train", lambda model, data, **options: seen.append(model) or result)
    assert cli.main(["train", "preresnet-26", "--data", "photos", "--out", "runs"]) == 0
    assert seen == ["preresnet-26"]


def test_audit_prints_the_rules(capsys):
    assert cli.main(["audit", "zfnet64", "--weights", "random"]) == 0
    assert "max(signal, 0)" in capsys.readouterr().out


def test_project_writes_the_picture_and_the_numbers(photos, tmp_path, capsys):
    out, numbers = tmp_path / "out" / "grid.png", tmp_path / "numbers.safetensors"
    wanted = ["project", "zfnet64", "--weights", "random", "--layer", "2", "--units", "3,7-8", "--k", "2"]
    assert cli.main([*wanted, "--images", photos, "--out", str(out), "--save", str(numbers)]) == 0
    with Image.open(out) as picture:
        assert picture.format == "PNG"
    assert deconvviz.Projections.load(numbers).units.tolist() == [3, 7, 8]
    printed = capsys.readouterr()
    assert f"wrote {out}" in printed.out and "note: zfnet64 has random weights" in printed.err


def test_project_names_its_picture_after_the_layer(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = ["--layer", "features.0", "--units", "0", "--k", "1", "--images", photos]
    assert cli.main(["project", "zfnet64", "--weights", "random", *chosen]) == 0
    assert (tmp_path / "layer-features.0.png").exists()


def test_deconv_writes_a_sheet(photos, tmp_path):
    out = tmp_path / "unit.png"
    chosen = ["--layer", "3", "--unit", "5", "--position", "1,2", "--rule", "guided", "--images", photos]
    assert cli.main(["deconv", "zfnet64", "--weights", "random", *chosen, "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_top_writes_its_file(photos, tmp_path, capsys):
    out = tmp_path / "top.safetensors"
    chosen = ["--layers", "1,features.4", "--k", "2", "--images", photos, "--out", str(out)]
    assert cli.main(["top", "zfnet64", "--weights", "random", *chosen]) == 0
    assert deconvviz.TopK.load(out)[1].values.shape == (64, 2)
    assert "features.4: 160 units" in capsys.readouterr().out


def test_train_passes_its_options_on(monkeypatch, tmp_path, capsys):
    seen = {}

    def train(model, data, **options):
        seen.update(options, model=model, data=data)
        return type("Result", (), {"history": ["epoch 1"], "weights": "w", "card": "c", "page": None})

    monkeypatch.setattr(deconvviz, "train", train)
    asked = ["--epochs", "2", "--validation", "0.2", "--amp", "bfloat16", "--restart", "--quiet"]
    assert cli.main(["train", "zfnet64", "--data", "photos", "--out", "runs", *asked]) == 0
    assert seen["model"] == "zfnet64" and seen["epochs"] == 2 and seen["validation"] == 0.2
    assert seen["dtype"] is torch.bfloat16 and seen["resume"] is False and seen["progress"] is False
    assert capsys.readouterr().out == "epoch 1\nwrote w and c\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layers", "nothing"], "no network 'nothing' from torchvision"),
        (["layers", "timm:nothing"], "no network 'nothing' from timm"),
        (["layers", "other:net"], "no network 'other:net'"),
        (["layers", "nowhere.py:build"], "no Python file nowhere.py"),
        (["layers", "resnet18", "--weights", "nowhere.pth"], "cannot read the weights nowhere.pth"),
        (["audit", "zfnet64", "--weights", "random", "--images", "/no/where"], "/no/where"),
        (["project", "zfnet64", "--weights", "random", "--layer", "9"], "9"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    error = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("note: ")]
    assert error[0].startswith(f"deconvviz {arguments[0]}: ") and message in error[0]
    assert "Traceback" not in "".join(error)


@pytest.mark.parametrize("units", ["a", "1,b", "3-x"])
def test_units_that_are_no_numbers_are_refused(units, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["project", "zfnet64", "--layer", "1", "--units", units])
    assert 'expected "all", "3", "0,5,9" or "0-15"' in capsys.readouterr().err


def test_a_position_has_a_row_and_a_column(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["deconv", "zfnet64", "--images", "a", "--layer", "1", "--unit", "0", "--position", "5"])
    assert "expected row,col, such as 3,4" in capsys.readouterr().err


def test_lists_of_units_and_sizes():
    assert reading.unit_list("all") == "all"
    assert reading.unit_list("3") == [3]
    assert reading.unit_list("0,5-7") == [0, 5, 6, 7]
    assert reading.pair("224") == (224, 224) and reading.pair("224,320") == (224, 320)
    assert reading.layer_list("1,features.3") == [1, "features.3"]


def test_ctrl_c_says_so(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(deconvviz, "layers", interrupted)
    assert cli.main(["layers", "zfnet64", "--weights", "random"]) == 130
    assert capsys.readouterr().err == "deconvviz layers: interrupted\n"


def test_a_picture_that_cannot_be_written_leaves_nothing(photos, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    chosen = ["--layer", "1", "--units", "0", "--images", photos, "--out", str(tmp_path / "file" / "a.png")]
    assert cli.main(["project", "zfnet64", "--weights", "random", *chosen]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "in the way"


def test_sigterm_is_an_interrupt_with_a_code_of_its_own(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(deconvviz, "layers", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert cli.main(["layers", "zfnet64", "--weights", "random"]) == 143
    assert capsys.readouterr().err == "deconvviz layers: terminated\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("out", ["x.xyz", "x", "x.safetensors", "x.gif"])
def test_a_picture_of_unknown_kind_is_refused_before_the_work(out, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["project", "zfnet64", "--layer", "1", "--out", out])
    assert "a picture is written as .png, .pdf, .svg, .jpg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("jpg", b"\xff\xd8"), ("PNG", b"\x89PNG")]
)
def test_the_suffix_says_how_a_picture_is_written(photos, tmp_path, suffix, start):
    out = tmp_path / f"unit.{suffix}"
    chosen = ["--layer", "1", "--units", "0", "--k", "1", "--images", photos, "--out", str(out)]
    assert cli.main(["project", "zfnet64", "--weights", "random", *chosen]) == 0
    assert out.read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.SVG"])
def test_numbers_are_not_saved_as_a_picture(name, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["project", "zfnet64", "--layer", "1", "--save", name])
    assert "numbers are kept in a .safetensors file" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cuda:99", "nothing", "xla", "meta:x"])
def test_a_device_that_is_not_there_is_a_mistake(device, capsys):
    assert cli.main(["layers", "zfnet64", "--device", device]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"deconvviz layers: device='{device}' is not there. There are: ") and "cpu" in error


def test_device_auto_is_one_that_is_there(capsys):
    assert cli.main(["layers", "zfnet64", "--device", "auto"]) == 0
    assert "receptive field" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["project", "zfnet64", "--layer", "1", "--batchsize", "4"], "--batch-size"),
        (["projct", "zfnet64"], "project"),
        (["project", "zfnet64", "--layer", "1", "--rule", "guide"], "guided"),
    ],
)
def test_a_slip_of_the_pen_is_told_what_there_is(arguments, meant, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert f"Did you mean {meant}?" in capsys.readouterr().err


def test_an_unknown_option_shows_the_usage_of_its_command(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["layers", "zfnet64", "--nonsense"])
    assert "usage: deconvviz layers" in capsys.readouterr().err


def test_networks_with_a_slip_are_told_what_there_is(capsys):
    assert cli.main(["layers", "zfnet65"]) == 2
    assert "Did you mean zfnet64" in capsys.readouterr().err
    assert cli.main(["layers", "resnet19"]) == 2
    assert "resnet18" in capsys.readouterr().err


def test_a_missing_package_comes_with_its_pip_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert cli.main(["layers", "timm:resnet18"]) == 2
    assert "timm:resnet18 needs the package timm: pip install timm." in capsys.readouterr().err


@pytest.mark.parametrize("command", [["layers"], ["audit"], ["top", "--layers", "1"]])
def test_tables_as_json(command, photos, tmp_path, capsys):
    name, *more = command
    more += ["--images", photos, "--out", str(tmp_path / "top")] if name == "top" else []
    assert cli.main([name, "zfnet64", "--weights", "random", "--json", *more]) == 0
    read = json.loads(capsys.readouterr().out)
    if name == "layers":
        (first,) = [row for row in read["rows"] if row["number"] == 1]
        assert first == first | {"name": "features.1", "units": 64, "height": 32, "receptive_field": [7, 7]}
    elif name == "audit":
        assert {"operation", "module", "status", "rule"} <= set(read["rows"][0])
    else:
        assert len(read["tops"][0]["image_ids"]) == 64 and len(read["tops"][0]["image_ids"][0]) <= 9


def test_the_demo_and_commands_miss_a_bad_folder_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(deconvviz.zoo, "create", lambda *_, **__: pytest.fail("it has begun"))
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--out", str(tmp_path / "file" / "demo")]) == 2
    assert cli.main(["report", "zfnet64", "--out", str(tmp_path / "file" / "r.html")]) == 2
    assert capsys.readouterr().err.count("cannot write") == 2


def test_a_folder_of_images_gives_a_picture_each(photos, tmp_path):
    out = tmp_path / "occlusion.png"
    chosen = ["--size", "32", "--stride", "32", "--out", str(out)]
    assert cli.main(["occlude", "zfnet64", photos, "--weights", "random", *chosen]) == 0
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [f"occlusion-{n}.png" for n in (1, 2, 3)]


# ---- networks by name ----


@pytest.mark.parametrize("name", ["zfnet64", "squeezenet1_1", "torchvision:squeezenet1_1", "timm:resnet10t"])
def test_random_weights_are_the_same_every_time_and_the_global_state_is_kept(name):
    before = torch.get_rng_state()
    first, second = (load_model(name, weights="random") for _ in range(2))
    assert first.random and not first.model.training
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["build", "ready"])
def test_a_network_from_a_file_brings_its_preprocessing(net, name):
    loaded = load_model(f"{net}:{name}")
    assert isinstance(loaded.model, torch.nn.Sequential) and not loaded.random
    assert loaded.preprocess(None).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", r"my_net.py:number gave int, expected a torch.nn.Module"),
        ("broken", "raised RuntimeError: no such luck"),
        ("nothing", "raised AttributeError"),
    ],
)
def test_a_file_without_a_network_is_refused(net, name, message):
    with pytest.raises(ModelError, match=message):
        load_model(f"{net}:{name}")


@pytest.mark.parametrize("kind", ["plain", "checkpoint", "parallel", "safetensors"])
def test_weights_are_read_from_the_usual_files(net, tmp_path, kind):
    source = {k: torch.full_like(v, 0.25) for k, v in load_model(f"{net}:build").model.state_dict().items()}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(source, path)
    elif kind == "parallel":
        torch.save({f"module.{k}": v for k, v in source.items()}, path)
    else:
        torch.save(source if kind == "plain" else {"state_dict": source, "epoch": 3}, path)
    model = load_model(f"{net}:build", weights=str(path)).model
    assert all((p == 0.25).all() for p in model.parameters())


def test_weights_that_do_not_fit_are_refused(net, tmp_path):
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"do not fit .*Missing key"):
        load_model(f"{net}:build", weights=str(tmp_path / "w.pth"))
    (tmp_path / "noise.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match=r"noise.pth do not fit"):
        load_model(f"{net}:build", weights=str(tmp_path / "noise.pth"))


# ---- the demo ----


@pytest.fixture
def few_steps(monkeypatch):
    """Its explorer's optimized images are those of `maximize`, which has tests of its own."""
    monkeypatch.setattr(blocks, "STEPS", 2)


def demo(out, **options):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return run_demo(out, images=images, weights=None, most=2, progress=False, **options)


def test_the_demo_writes_five_pictures_and_a_page_that_shows_them(tmp_path, few_steps):
    (page,) = demo(tmp_path / "demo")
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r'src="([^"]+)"', text)
    assert shown == [f"layer-{n}.png" for n in range(1, 6)]
    assert sorted(p.name for p in page.parent.iterdir()) == ["index.html", *shown, "report.html"]
    assert 'href="report.html"' in text
    for name in shown:
        with Image.open(page.parent / name) as picture:
            picture.verify()
    assert "width=device-width" in text and "squeezenet-1.1" in text
    assert not re.search(r"https?://", text)


def test_the_demo_draws_other_units_for_another_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_explorer", lambda *_, **__: None)  # it shows the strongest, whatever the seed
    monkeypatch.setattr(pages, "LAYERS", (1,))
    found = [demo(tmp_path / str(seed), seed=seed, network="alexnet64")[0].parent for seed in (1, 2)]
    first, second = (Path(page, "layer-1.png").read_bytes() for page in found)
    assert first != second


def test_the_telling_units_are_there():
    network = deconvviz.zoo.create("squeezenet-1.1")
    for number, units in pages.TELLING["squeezenet-1.1"].items():
        assert len(set(units)) == 9 and max(units) < deconvviz.layers(network)[number].units


def test_other_networks_are_taken_and_both_get_a_folder_each(tmp_path, monkeypatch, few_steps):
    monkeypatch.setattr(pages, "LAYERS", (1,))
    found = demo(tmp_path, network="both")
    assert found == [tmp_path / name / "index.html" for name in ("zfnet64", "alexnet64")]
    for page in found:
        assert page.parent.name in page.read_text(encoding="utf-8")


def test_an_interrupted_demo_leaves_whole_files_only(tmp_path, monkeypatch):
    whole, calls = pages.write_figure, []

    def write_figure(path, figure):
        calls.append(figure)
        if len(calls) == 3:
            raise KeyboardInterrupt
        whole(path, figure)

    monkeypatch.setattr(pages, "write_figure", write_figure)
    with contextlib.suppress(KeyboardInterrupt):
        demo(tmp_path, network="alexnet64")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["layer-1.png", "layer-2.png"]


def test_a_demo_that_cannot_write_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        demo(tmp_path / "file" / "demo")


CALLED = """
import torch
from torch import nn

class Beside(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, images, *, gain):
        return {"scores": self.head(self.first(images * gain).relu().mean((2, 3)))}

def call(model, images):
    return model(images, gain=0.5)["scores"]

def preprocess(picture):
    return torch.full((3, 16, 16), picture.getpixel((0, 0))[0] / 255)
"""


def test_a_network_s_file_says_how_it_is_called(tmp_path, capsys):
    net, data = tmp_path / "called_net.py", tmp_path / "classes"
    net.write_text(CALLED)
    for shade in (40, 60, 200, 220):
        folder = data / ("dark", "light")[shade > 100]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (shade,) * 3).save(folder / f"{shade}.png")
    name, quiet = f"{net}:Beside", ["--quiet"]
    assert cli.main(["filters", name, "--out", str(tmp_path / "filters.png"), *quiet]) == 0
    pictures = ["--images", str(data), "--iterations", "1", "--batch-size", "2", "--out", str(tmp_path / "std.png")]
    assert cli.main(["gradients", name, *pictures, *quiet]) == 0
    options = ["--epochs", "1", "--image-size", "16", "--validation", "0.5", "--batch-size", "2", "--device", "cpu"]
    assert cli.main(["train", name, "--data", str(data), "--out", str(tmp_path / "run"), *options, *quiet]) == 0
    assert (tmp_path / "run" / "weights.safetensors").exists()
    assert "error" not in capsys.readouterr().err


def test_the_demo_refuses_a_folder_that_cannot_be_made_before_the_work(monkeypatch, tmp_path, capsys):
    def refuse(self, **options):
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(deconvviz, "top", lambda *_, **__: pytest.fail("it began to work"))
    assert cli.main(["demo", "--out", str(tmp_path / "demo"), "--network", "zfnet64"]) == 2
    assert "demo: No such file or directory. Give a path in a folder you may write to." in capsys.readouterr().err
