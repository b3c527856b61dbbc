"""Train, then render: the pictures are those of `project`, the page links them all, a kill anywhere loses nothing."""

import importlib
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import deconvviz
from deconvviz.cli.main import main
from deconvviz.errors import LayerError, StoreError, UnsupportedOp
from deconvviz.training import render as _render
from deconvviz.training.recorder import Recorder
from deconvviz.training.train import train

loop, recorder = (importlib.import_module(f"deconvviz.training.{name}") for name in ("loop", "recorder"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, noise = tmp_path_factory.mktemp("shades"), np.random.default_rng(0)
    for i in range(24):
        name = root / ("train" if i < 16 else "val") / ("dark", "light")[i % 2]
        name.mkdir(parents=True, exist_ok=True)
        pixels = noise.normal((60, 190)[i % 2], 40, (16, 16, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(name / f"{i}.png")
    return root


def tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)),
        )


def run(data, out, model=None, **options):
    options = {"epochs": 2, "batch_size": 8, "image_size": 16, "device": "cpu", "progress": False, **options}
    return train(model or tiny(), data, out=out / "run", render=out / "grids", **options)


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    model = tiny()
    result = run(folder, out, model, recorder=Recorder(out / "record", folder, layers=[1], epochs=[1, 2]))
    return out, model, result


def test_the_grids_are_the_validation_images_that_excite_each_unit_most(folder, whole):
    out, model, result = whole
    assert result.page == out / "grids" / "index.html"
    pixels = []
    for path in sorted((folder / "val").rglob("*.png")):
        with Image.open(path) as picture:
            pixels.append(np.array(picture))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = torch.stack([(torch.from_numpy(p).permute(2, 0, 1) / 255 - mean) / std for p in pixels])
    for layer in (1, 2):
        found = deconvviz.Projections.load(out / "grids" / f"layer-{layer}.safetensors")
        wanted = deconvviz.project(model, images, layer=layer, progress=False)
        assert torch.equal(found.image_ids, wanted.image_ids) and found.count == 8
        assert torch.allclose(found.projections, wanted.projections, atol=1e-5)


def test_the_page_links_every_picture_and_nothing_that_is_not_there(whole):
    out, _, result = whole
    text = result.page.read_text()
    linked = set(re.findall(r'src="([^"]+)"', text))
    assert linked == {p.name for p in result.page.parent.glob("*.png")}
    assert linked >= {"layer-1.png", "layer-2.png", "filters.png", "responses.png", "training.png", "recording-1.png"}
    assert all(f'href="{name}"' in text for name in linked)
    for name in linked:
        with Image.open(out / "grids" / name) as picture:
            assert picture.size[0] > 200


class Killed(BaseException):
    pass


def kill_at(monkeypatch, owner, name, call):
    """Let the n-th call of a function be the end."""
    original, count = getattr(owner, name), [0]

    def killed(*given, **named):
        count[0] += 1
        if count[0] == call:
            raise Killed
        return original(*given, **named)

    monkeypatch.setattr(owner, name, killed)


def test_a_kill_anywhere_loses_nothing_and_the_same_call_goes_on(folder, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(_render, "png", lambda figure: b"a picture")  # drawing takes a second each
    expected, steps, drawn = whole[0], [], []
    moments = [(loop, "_step", 1), (loop, "_step", 3), (recorder, "add", 2), (_render, "top", 1)]
    moments += [(_render, "project", 3), (_render, "png", 1), (_render, "png", 2), (_render, "png", 3)]
    moments += [(_render, "response_std", 1), (_render.page, "write", 1)]
    for owner, name, call in moments:
        with monkeypatch.context() as patch:
            kill_at(patch, owner, name, call)
            with pytest.raises(Killed):
                run(folder, tmp_path, recorder=Recorder(tmp_path / "record", folder, layers=[1], epochs=[1, 2]))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", lambda *a: steps.append(a))
        patch.setattr(_render, "project", lambda m, i, **o: drawn.append(o["layer"]) or deconvviz.project(m, i, **o))
        run(folder, tmp_path, recorder=Recorder(tmp_path / "record", folder, layers=[1], epochs=[1, 2]))
    assert steps == [] and drawn == ["1", "4"]  # the rehearsal alone: all was there
    made, wanted = files(tmp_path / "grids"), files(expected / "grids")
    assert made.keys() == wanted.keys()
    assert all(made[name] == b"a picture" for name in made if name.endswith(".png"))
    assert [name for name in made if name.endswith(".safetensors") and made[name] != wanted[name]] == []
    kept = [Recorder.load(path / "record") for path in (tmp_path, expected)]
    assert kept[0] == kept[1]


def test_a_picture_that_was_deleted_is_drawn_again_and_another_training_redraws_all(folder, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(_render, "png", lambda figure: shown.append(figure) or b"picture %d" % len(shown))
    run(folder, tmp_path)
    before = files(tmp_path / "grids")
    assert len(shown) == 5
    (tmp_path / "grids" / "layer-2.png").unlink()
    run(folder, tmp_path)
    assert len(shown) == 6 and {n for n, b in files(tmp_path / "grids").items() if before[n] != b} <= {
        "layer-2.png",
        ".pictures",
    }
    run(folder, tmp_path, seed=1, resume=False)
    after = files(tmp_path / "grids")
    assert len(shown) == 11 and after.keys() == before.keys()
    assert after["layer-1.safetensors"] != before["layer-1.safetensors"]


def test_what_cannot_be_drawn_is_refused_before_the_training(folder, tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.sort(x, dim=1).values

    model = tiny()
    model[1] = Odd()
    with pytest.raises(UnsupportedOp, match="sort"):
        run(folder, tmp_path, model)
    with pytest.raises(LayerError, match="no numbered layers to draw"):
        run(folder, tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(768, 2)))
    assert not (tmp_path / "run" / "checkpoint.pt").exists() and not list((tmp_path / "grids").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        train(tiny(), folder, out=tmp_path / "run", render=tmp_path / "file", image_size=16, progress=False)


def test_the_command_says_what_it_wrote(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_render, "png", lambda figure: b"a picture")
    assert main(["train", "resnet-8", "--data", str(folder), "--epochs", "1", "--batch-size", "8", "--quiet", "--out",
                 str(tmp_path / "run"), "--render", str(tmp_path / "grids")]) == 0  # fmt: skip
    assert capsys.readouterr().out.endswith(f"wrote {tmp_path / 'grids' / 'index.html'}\n")
    text = (tmp_path / "grids" / "index.html").read_text()
    assert "What resnet-8 sees" in text and "He, Zhang, Ren &amp; Sun" in text
