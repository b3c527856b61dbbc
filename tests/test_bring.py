"""The scripts of the page on what users bring: short, they run, and their numbers are those of plain torch."""

import io
import runpy
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import rank_work
import torch
from PIL import Image
from rank_processes import run_ranks

import deconvviz

SCRIPTS = Path(__file__).parent.parent / "docs" / "scripts"


def run(name):
    return runpy.run_path(str(SCRIPTS / f"{name}.py"))


def covered(image, row, col, size):
    image = image.clone()
    image[..., row : row + size, col : col + size] = 0.5  # the middle between black and white
    return image


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_is_short(path):
    code = path.read_text().split('"""', 2)[2].splitlines()
    assert len([line for line in code if line.strip() and not line.startswith("#")]) < 15  # imports are counted, too
    assert f"scripts/{path.name}" in (SCRIPTS.parent / "bring.rst").read_text()


def test_a_hugging_face_resnet_on_a_hugging_face_dataset():
    pytest.importorskip("transformers")
    pytest.importorskip("datasets")
    made = run("hugging_face")
    model, processor, best = made["model"], made["processor"], made["best"]
    pixels = processor(images=[row["image"] for row in made["data"]], return_tensors="pt")["pixel_values"]
    caught = {}
    name = best.tops[0].name
    model.get_submodule(name).register_forward_hook(lambda m, i, output: caught.update(output=output))
    with torch.no_grad():
        model(pixels)
    expected = caught["output"].amax((2, 3)).T.sort(1, descending=True)
    assert torch.allclose(best.tops[0].values, expected.values[:, :3], rtol=0, atol=1e-4)
    alive = expected.values[:, 2] > 1e-3
    assert torch.equal(best.tops[0].image_ids[alive], expected.indices[alive, :3])
    flat = caught["output"].flatten(1).double()
    order = (flat - flat[0]).square().sum(1).argsort()[1:3]
    assert made["near"].image_ids[0].tolist() == order.tolist()
    assert made["near"].names[0] == tuple(("cat", "dog")[i % 2] for i in order.tolist())


def test_a_detections_score():
    made = run("detector")
    model, images, result = made["model"], made["images"], made["result"]
    for i, row in enumerate(result.rows.tolist()):
        for j, col in enumerate(result.cols.tolist()):
            with torch.no_grad():
                expected = float(made["score"](model([covered(images[0], row, col, 32)]))[0])
            assert float(result.logit[i, j]) == pytest.approx(expected, abs=1e-5)
    assert made["regions"].shape == (2, 2, 4)


def test_two_inputs():
    made = run("two_inputs")
    model, images, result, best = made["model"], made["images"], made["result"], made["best"]
    assert result.method == "incremental"
    gray = result.fill
    for i, row in enumerate(result.rows.tolist()):
        for j, col in enumerate(result.cols.tolist()):
            image = images[:1].clone()
            image[..., row : row + 8, col : col + 8] = gray[:, row : row + 8, col : col + 8]
            with torch.no_grad():
                expected = float(model(image, made["age"])["scores"][0, 2])
            assert float(result.logit[i, j]) == pytest.approx(expected, abs=1e-5)
    with torch.no_grad():
        values = model.maps(images).relu().amax((2, 3)).T.sort(1, descending=True).values[:, :2]
    assert torch.allclose(best[1].values, values, rtol=0, atol=1e-5)


def test_a_transformers_blocks():
    made = run("transformer")
    model, images, best, evidence = made["model"], made["images"], made["best"], made["evidence"]
    caught = {}
    model.encoder.layers[2].register_forward_hook(lambda m, i, output: caught.update(output=output))
    with torch.no_grad():
        model(images)
        tokens = caught["output"]
        assert torch.allclose(best[3].values[:, 0], tokens[:, 1:].amax((0, 1)), rtol=0, atol=1e-5)
        assert torch.allclose(best.tops[1].values[:, 0], tokens[:, 0].amax(0), rtol=0, atol=1e-5)
        image, (row, col) = int(evidence.image_ids[1, 0]), evidence.positions[1, 0].tolist()
        for i in range(2):
            for j in range(2):
                hidden = images[image : image + 1].clone()
                hidden[..., 16 * i : 16 * i + 16, 16 * j : 16 * j + 16] = 0
                model(hidden)
                drop = tokens[image, 1 + 4 * row + col, 5] - caught["output"][0, 1 + 4 * row + col, 5]
                assert float(evidence.maps[1, 0, i, j]) == pytest.approx(float(drop), abs=1e-5)


def write_shards(folder, pixels):
    """Write four shards, of a quarter of the pictures each."""
    for number, part in enumerate(np.array_split(np.arange(len(pixels)), 4)):
        with tarfile.open(folder / f"part-{number}.tar", "w") as shard:
            for i in part:
                file = io.BytesIO()
                Image.fromarray(pixels[i]).save(file, "BMP")
                info = tarfile.TarInfo(f"{i:05}.bmp")
                info.size = file.tell()
                shard.addfile(info, io.BytesIO(file.getvalue()))


def test_ten_thousand_pictures_in_shards_on_two_ranks(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (10_000, 8, 8, 3), dtype=np.uint8)
    write_shards(tmp_path, pixels)
    (tmp_path / "ranks").mkdir()
    found = run_ranks(tmp_path / "ranks", 2, rank_work.script, str(SCRIPTS / "shards.py"), str(tmp_path))
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 6, 3)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        expected = layer(images).relu().amax((2, 3)).T.sort(dim=1, descending=True, stable=True)
    for values, numbers in found:
        assert torch.allclose(values, expected.values[:, :5], rtol=0, atol=1e-4)
        assert torch.equal(numbers, expected.indices[:, :5])
    assert deconvviz.TopK.load(tmp_path / "best")[1].image_ids.equal(found[0][1])


@pytest.fixture
def quiet(monkeypatch):
    """Lightning warns of its own defaults, and prints."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_a_lightning_run_with_the_callback(tmp_path, quiet, monkeypatch):
    pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    made = run("lightning_run")
    torch.manual_seed(0)
    images, model = torch.randn(8, 3, 32, 32), deconvviz.zoo.create("resnet-8").train()
    assert torch.equal(made["images"], images)
    optimizer, labels = torch.optim.SGD(model.parameters(), 0.1), torch.tensor([0, 1] * 2)
    recording = made["recorder"].recording
    (track,) = recording.layers
    caught = {}
    model.get_submodule(track.name).register_forward_hook(lambda m, i, output: caught.update(output=output))
    assert recording.epochs == (1, 2)
    for number in range(2):
        for batch in images.split(4):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(batch), labels).backward()
            optimizer.step()
        with torch.no_grad():
            model.eval()(images)
            model.train()
        best = caught["output"].amax((2, 3)).amax(0)[track.units]
        assert torch.allclose(track.activations[number], best, rtol=1e-3, atol=1e-3)  # float32, summed in another order
    assert not torch.allclose(track.activations[0], track.activations[1], atol=1e-2)  # it trained between them
