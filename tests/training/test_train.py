"""A run is reproducible to the bit, says what is wrong, and leaves everything else as it was."""

import dataclasses
import importlib
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision.transforms import v2

from deconvviz import zoo
from deconvviz.errors import ImageError, ModelError, OptionError, StoreError
from deconvviz.training import pixels as _pixels
from deconvviz.training import recipe as _recipe
from deconvviz.training import render as _render
from deconvviz.training.recipe import RECIPES
from deconvviz.training.recorder import Recorder
from deconvviz.training.result import Training
from deconvviz.training.train import train

module = importlib.import_module("deconvviz.training.loop")
COLOURS = {"blue": (20, 30, 200), "green": (30, 180, 40), "red": (210, 20, 30)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noisy images of three colours, 12 each, at two depths."""
    root = tmp_path_factory.mktemp("colours")
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name / "more").mkdir(parents=True)
        for i in range(12):
            noise = random.normal(0, 25, (18, 20, 3))
            image = Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))
            image.save(root / name / ("more" if i % 2 else "") / f"{i}.png")
    (root / "blue" / "notes.txt").write_text("not an image")
    return root


def tiny(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 3)),
        )


def run(model, data, out, **options):
    options = {"epochs": 3, "batch_size": 8, "image_size": 16, "device": "cpu", "progress": False, **options}
    return train(model, data, out=out, **options)


def same(a, b):
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def equal(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


class Beside(nn.Module):
    """Takes a number beside the images, by keyword, and returns a mapping."""

    def __init__(self):
        super().__init__()
        self.body = tiny()

    def forward(self, x, *, gain):
        return {"scores": self.body(x * gain)}


def half(model, images):
    return model(images, gain=0.5)["scores"]


def test_a_call_says_how_the_model_is_called(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(_render.Rendering, "_picture", lambda self, name, plot: (self.folder / name).touch())

    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = tiny()

        def forward(self, x):
            return self.body(x * 0.5)

    model, plain = Beside(), Halved()
    recorder = Recorder(tmp_path / "seen", torch.zeros(2, 3, 16, 16), layers=["body.0"], units=[0], epochs=(1, 2))
    seen, options = [], {"epochs": 2, "validation": 0.25}
    kept = {"recorder": recorder, "keep_epochs": (1,), "on_epoch": lambda model, epoch: seen.append(model)}
    found = run(model, folder, tmp_path / "a", call=half, render=tmp_path / "drawn", **kept, **options)
    wanted = run(plain, folder, tmp_path / "b", **options)
    assert [e.val_loss for e in found.history] == [e.val_loss for e in wanted.history]
    assert same(found.weights, wanted.weights)  # the same names, too: a call is no weight
    assert load_file(tmp_path / "a" / "epoch-001.safetensors").keys() == load_file(found.weights).keys()
    assert seen == [model, model] and recorder.recording.epochs == (1, 2) and found.page.exists()
    again = run(Beside(), folder, tmp_path / "a", call=half, **options)
    assert again.history == found.history  # it goes on, here: has nothing left to do
    with pytest.raises(StoreError, match="another run: its call"):
        run(Beside(), folder, tmp_path / "a", call=lambda model, images: model(images, gain=2.0)["scores"], **options)
    with pytest.raises(OptionError, match="call="):
        run(Beside(), folder, tmp_path / "c", call="half", **options)


def test_ten_crops_are_those_of_a_plain_loop(folder, tmp_path):
    model = tiny()
    recipe = dataclasses.replace(RECIPES["modern"], shift=0.0)
    result = run(model, folder, tmp_path, recipe=recipe, validation=folder, crops=10, epochs=2)
    card = zoo.Card.read(result.card)
    mean, std = np.array(card.mean), np.array(card.std)
    losses, right = [], []
    for label, name in enumerate(sorted(COLOURS)):
        for path in sorted((folder / name).rglob("*.png")):
            pixels = np.asarray(Image.open(path).convert("RGB"))[:, 1:19]  # 18 of 20: the middle
            views = [pixels[r : r + 16, c : c + 16] for r, c in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1))]
            views += [view[:, ::-1] for view in views]
            batch = torch.tensor(np.stack([(view / 255 - mean) / std for view in views])).permute(0, 3, 1, 2).float()
            with torch.no_grad():
                probability = model.eval()(batch).double().softmax(1).mean(0)
            losses.append(-math.log(probability[label]))
            right.append(int(probability.argmax()) == label)
    assert result.history[-1].val_loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert result.history[-1].top1 == sum(right) / len(right)
    assert "10 crops of the validation images" in card.training["accuracy"] and "--crops 10" in card.training["command"]
    with pytest.raises(StoreError, match="its crops was 10, now it is None"):
        run(tiny(), folder, tmp_path, recipe=recipe, validation=folder, epochs=2)
    with pytest.raises(OptionError, match="crops=10 are cut from images larger than the input"):
        run(tiny(), folder, tmp_path / "b", crops=10)
    with pytest.raises(OptionError, match="crops=5: expected 1 or 10"):
        run(tiny(), folder, tmp_path / "b", crops=5)


def test_ten_crops_of_larger_pixels_are_those_of_the_smaller():
    seed = torch.Generator().manual_seed(0)
    images = (
        torch.randint(0, 256, (2, 9, 9, 3), dtype=torch.uint8, generator=seed)
        .repeat_interleave(2, 1)
        .repeat_interleave(2, 2)
    )
    found = list(_pixels.ten_crops(images, 7, 9))  # 14 of 18, halved
    assert len(found) == 10 and all(crops.shape == (2, 3, 7, 7) for crops in found)
    plain = images.permute(0, 3, 1, 2)
    for got, (row, col) in zip(found[::2], ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)), strict=True):
        window = plain[:, :, row : row + 14, col : col + 14]
        assert torch.equal(got, v2.functional.resize(window, [7, 7], antialias=True))
    assert all(torch.equal(b, a.flip(3)) for a, b in zip(found[::2], found[1::2], strict=True))


def test_it_learns_and_reports(folder, tmp_path):
    model = tiny()
    result = run(model, folder, tmp_path, epochs=25, lr=0.05, validation=0.25)
    assert [e.epoch for e in result.history] == list(range(1, 26))
    last = result.history[-1]
    assert last.top1 == last.top5 == 1.0
    assert last.train_loss < result.history[0].train_loss
    assert last.val_loss < 0.7
    assert result.skipped == ()
    assert load_file(result.weights)["0.weight"].dtype == torch.float16
    assert torch.equal(load_file(result.weights)["0.weight"], model[0].weight.half())


def test_a_zoo_network_by_name(folder, tmp_path):
    names = {"red": "the colour red"}
    result = run("alexnet64", folder, tmp_path, image_size=None, epochs=1, class_names=names, licence="MIT")
    model = zoo.create("alexnet64", weights=result.weights)
    card = model.card
    assert card.classes == ("blue", "green", "the colour red")
    assert (card.licence, card.weights_file) == ("MIT", "weights.safetensors")
    assert card.training["folders"] == ["blue", "green", "red"]
    assert card.training["top1"] == result.history[-1].top1
    assert card.training["data"] == f"{folder.name}: 34 training and 2 validation images of 3 classes"
    assert card.training["command"] == (
        f"deconvviz train alexnet64 --data {folder.name} --recipe modern --epochs 1 --seed 0 --batch-size 8"
    )


def test_a_run_s_files_copied_into_data_are_bundled(folder, tmp_path, monkeypatch):
    result = run("zfnet64", folder, tmp_path / "run", image_size=None, epochs=1)
    shutil.copy(result.weights, tmp_path / "zfnet64.safetensors")
    shutil.copy(result.card, tmp_path / "zfnet64.json")
    monkeypatch.setattr(importlib.import_module("deconvviz.zoo.create"), "_WEIGHTS", tmp_path)
    model = zoo.create("zfnet64", weights="bundled")
    assert model.card.classes == ("blue", "green", "red")
    assert model.card.weights_file == "zfnet64.safetensors"


def test_the_same_seed_gives_the_same_bits(folder, tmp_path):
    first, again, other = (run(tiny(), folder, tmp_path / n, seed=s) for n, s in (("a", 1), ("b", 1), ("c", 2)))
    assert same(first.weights, again.weights)
    assert not same(first.weights, other.weights)


@pytest.mark.parametrize("recipe", ["modern", "paper"])
def test_a_killed_run_goes_on_to_the_same_bits(folder, tmp_path, monkeypatch, recipe):
    whole = run(tiny(), folder, tmp_path / "whole", epochs=4, recipe=recipe)
    step, count = module._step, [0]

    def killed(*arguments):
        count[0] += 1
        if count[0] == 12:  # in the third epoch of five steps
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(module, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), folder, tmp_path / "killed", epochs=4, recipe=recipe)
    monkeypatch.undo()
    torch.manual_seed(99)
    seen = []
    resumed = run(tiny(5), folder, tmp_path / "killed", epochs=4, recipe=recipe, on_epoch=lambda m, n: seen.append(n))
    assert seen == [3, 4]
    assert same(whole.weights, resumed.weights)
    timeless = [[dataclasses.replace(e, seconds=0) for e in r.history] for r in (whole, resumed)]
    assert timeless[0] == timeless[1]


def test_a_finished_run_is_not_repeated(folder, tmp_path):
    first = run(tiny(), folder, tmp_path)
    seen = []
    again = run(tiny(5), folder, tmp_path, on_epoch=lambda m, n: seen.append(n))
    assert again == first
    assert seen == []
    run(tiny(5), folder, tmp_path, resume=False, on_epoch=lambda m, n: seen.append(n))
    assert seen == [1, 2, 3]


def test_the_checkpoint_of_another_run_is_refused(folder, tmp_path):
    run(tiny(), folder, tmp_path)
    with pytest.raises(StoreError, match=r"another run: its recipe's epochs was 3, now it is 5.*resume=False"):
        run(tiny(), folder, tmp_path, epochs=5)
    with pytest.raises(StoreError, match="its seed was 0, now it is 7"):
        run(tiny(), folder, tmp_path, seed=7)
    with pytest.raises(StoreError, match="its network was 'Sequential', now it is 'Small'"):
        run(type("Small", (nn.Sequential,), {})(*tiny()), folder, tmp_path)
    with pytest.raises(StoreError, match=r"its tensors was"):
        run(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), folder, tmp_path)
    with pytest.raises(StoreError, match=r"its images was '34 \+ 2"):
        run(tiny(), folder, tmp_path, validation=0.2)
    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(StoreError, match=r"no checkpoint of deconvviz, or damaged. Try resume=False"):
        run(tiny(), folder, tmp_path)


def test_a_loss_that_is_not_finite(folder, tmp_path):
    class Bomb(nn.Module):
        steps = 0

        def forward(self, x):
            self.steps += self.training
            return x * math.nan if self.steps == 7 else x

    model, seen = tiny().append(Bomb()), {}
    with pytest.raises(ModelError, match=r"the loss became nan at step 6 \(epoch 2, lr 0.0\d+\).*lower lr"):
        run(model, folder, tmp_path, on_epoch=lambda m, n: seen.update({n: state(m)}))
    assert all(p.isfinite().all() for p in model.parameters())
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert equal(seen[1], checkpoint["model"])
    assert list(seen) == [1]
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_run_killed_in_the_callback_repeats_the_epoch(folder, tmp_path):
    whole, seen = run(tiny(), folder, tmp_path / "whole"), []

    def once(model, epoch):
        seen.append(epoch)
        if seen == [1, 2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny(), folder, tmp_path / "killed", on_epoch=once)
    resumed = run(tiny(), folder, tmp_path / "killed", on_epoch=once)
    assert seen == [1, 2, 2, 3]
    assert same(whole.weights, resumed.weights)


def test_the_caller_s_random_state_and_the_modes_are_left(folder, tmp_path, monkeypatch):
    model = tiny().train()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    before = torch.get_rng_state()
    run(model, folder, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None and p.is_contiguous() for p in model.parameters())
    monkeypatch.setattr(module, "_step", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(model, folder, tmp_path, resume=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model.modules()] == modes


def test_frozen_parameters_stay(folder, tmp_path):
    model = tiny()
    model[0].requires_grad_(False)
    first, last = state(model[0]), state(model[-1])
    run(model, folder, tmp_path)
    assert equal(first, state(model[0]))
    assert not equal(last, state(model[-1]))
    with pytest.raises(ModelError, match="nothing to train"):
        run(model.requires_grad_(False), folder, tmp_path)


def test_kept_epochs_are_the_weights_after_them(folder, tmp_path):
    seen = {}
    run(tiny(), folder, tmp_path, keep_epochs=(1, 3), on_epoch=lambda m, n: seen.update({n: state(m)}))
    assert sorted(p.name for p in tmp_path.glob("epoch-*")) == [
        "epoch-001.safetensors",
        "epoch-003.safetensors",
    ]
    stored = load_file(tmp_path / "epoch-001.safetensors")
    assert all(torch.equal(v.half(), stored[k]) for k, v in seen[1].items() if v.is_floating_point())
    assert same(tmp_path / "epoch-003.safetensors", tmp_path / "weights.safetensors")


def test_weights_beyond_float16_are_kept_in_float32(folder, tmp_path):
    result = run(tiny(), folder, tmp_path, on_epoch=lambda m, n: m[1].running_var.fill_(1e6), epochs=1)
    assert load_file(result.weights)["1.running_var"].tolist() == [1e6] * 4


def test_the_first_step_is_the_textbook_s(folder, tmp_path):
    """One batch, one step: the weights move by -lr (gradient + decay · weights), computed apart."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3)).double()
    recipe = dataclasses.replace(RECIPES["modern"], schedule="plateau", patience=9, nesterov=False, shift=0.0)

    class Keep(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            if self.training:
                self.seen = x.double()
            return self.inner(x.double())

    keep, before = Keep(), state(model)
    labels = []
    original = module._step

    def spy(run, crops, given, lr):
        labels.append(given)
        return original(run, crops, given, lr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_step", spy)
        run(keep, folder, tmp_path, recipe=recipe, epochs=1, batch_size=64, lr=0.5)
    x, y = keep.seen.flatten(1), labels[0]
    p = torch.softmax(x @ before["1.weight"].T + before["1.bias"], 1)
    target = nn.functional.one_hot(y, 3) * 0.9 + 0.1 / 3
    gradient = (p - target).T @ x / len(x)
    expected = before["1.weight"] - 0.5 * (gradient + 5e-4 * before["1.weight"])
    torch.testing.assert_close(model[1].weight.detach(), expected, rtol=0, atol=1e-6)


def test_validation_folders(folder, tmp_path):
    for part, classes in (("train", COLOURS), ("val", ("green", "red"))):
        for name in classes:
            shutil.copytree(folder / name, tmp_path / "data" / part / name)
    result = run(tiny(), tmp_path / "data", tmp_path / "out", epochs=1)
    card = zoo.Card.read(result.card)
    assert "36 training and 24 validation images of 3 classes" in card.training["data"]
    other = run(tiny(), tmp_path / "data", tmp_path / "other", epochs=1, validation=folder / ".." / folder.name)
    assert "36 training and 36 validation" in zoo.Card.read(other.card).training["data"]
    (tmp_path / "data" / "val" / "green").rename(tmp_path / "data" / "val" / "pink")
    with pytest.raises(ImageError, match="classes that the training images lack: pink"):
        run(tiny(), tmp_path / "data", tmp_path / "out")


def test_top5_and_the_validation_loss_are_right(folder, tmp_path):
    """A model that always answers 0 > 1 > 2: top-1 is the share of class 0."""

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return x.new_tensor([3.0, 2.0, 1.0]).expand(len(x), 3) + 0 * self.bias

    result = run(Constant(), folder, tmp_path, epochs=1, validation=folder)
    loss = -torch.log_softmax(torch.tensor([3.0, 2.0, 1.0]), 0).mean().item()
    assert result.history[0].top1 == pytest.approx(1 / 3)
    assert result.history[0].top5 == 1.0
    assert result.history[0].val_loss == pytest.approx(loss, abs=1e-6)


def test_the_paper_s_recipe(folder, tmp_path):
    paper = RECIPES["paper"]
    assert (paper.epochs, paper.batch_size, paper.lr, paper.momentum) == (70, 128, 1e-2, 0.9)
    assert (paper.dropout, paper.clamp_rms, paper.init) == (0.5, 0.1, "paper")
    model = tiny()
    with torch.no_grad():
        model[0].weight.mul_(20)
    result = run(model, folder, tmp_path, recipe="paper", epochs=2)
    assert model[0].weight.square().mean((1, 2, 3)).sqrt().max() <= 0.1 * 1.00001
    card = zoo.Card.read(result.card)
    assert card.std == pytest.approx((1 / 255,) * 3)
    assert (card.input_size, card.resize) == ((16, 16), 18)  # as 256 to 224


def test_clamp_scales_only_the_filters_that_are_too_large():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[0], model[0].weight[1], model[0].weight[2] = 0.05, -0.4, 0.0
        model[1].weight.fill_(7.0)
    _recipe.clamp_filters(model, 0.1)
    assert model[0].weight[:, 0, 0, 0].tolist() == pytest.approx([0.05, -0.1, 0.0])
    assert (model[1].weight == 7).all()


def test_learning_rates():
    rates = [_recipe.cycle(1.0, i / 1000) for i in range(1001)]
    assert (rates[0], max(rates), rates.index(max(rates))) == (0.1, 1.0, 100)
    assert rates[-1] == pytest.approx(0)
    assert _recipe.plateau(1.0, 2, []) == 1.0
    assert _recipe.plateau(1.0, 2, [0.5, 0.4, 0.45, 0.39, 0.4]) == 1.0
    assert _recipe.plateau(1.0, 2, [0.5, 0.4, 0.45, 0.4]) == pytest.approx(0.1)
    assert _recipe.plateau(1.0, 2, [0.4] * 5) == pytest.approx(0.01)


def test_bfloat16(folder, tmp_path):
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        with pytest.raises(OptionError, match="no bfloat16 arithmetic"):
            run(tiny(), folder, tmp_path, dtype=torch.bfloat16)
        return
    result = run(tiny(), folder, tmp_path, dtype=torch.bfloat16, epochs=1)
    assert zoo.Card.read(result.card).training["command"].endswith("--amp bfloat16")
    assert math.isfinite(result.history[0].val_loss)


def test_wrong_options(folder, tmp_path):
    for options, text in (
        ({"recipe": "new"}, "no recipe named 'new'. There are: modern, paper"),
        ({"epochs": 0}, "epochs=0: expected a number above 0"),
        ({"lr": -1.0}, "lr=-1.0: expected a number above 0"),
        ({"dtype": torch.float16}, "dtype=torch.float16: expected None or torch.bfloat16 on cpu"),
        ({"validation": 1.5}, "validation=1.5: expected a share between 0 and 1"),
        ({"image_size": None}, "no card that says its input size: give image_size"),
    ):
        with pytest.raises(OptionError, match=text):
            run(tiny(), folder, tmp_path, **options)


def test_a_model_that_does_not_fit(folder, tmp_path):
    wide = zoo.create("alexnet64", num_classes=3)
    wide.card = dataclasses.replace(wide.card, input_size=(32, 64))
    with pytest.raises(OptionError, match="input is 32×64: only square inputs"):
        run(wide, folder, tmp_path, image_size=None)
    with pytest.raises(ModelError, match=r"output is \(8, 5\), expected \(N, 3\)"):
        run(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), folder, tmp_path)
    with pytest.raises(ModelError, match="no network named 'resnet'"):
        run("resnet", folder, tmp_path)


def test_result_survives_its_file_and_draws(folder, tmp_path):
    result = run(tiny(), folder, tmp_path / "out")
    result.save(tmp_path / "training.safetensors")
    assert Training.load(tmp_path / "training.safetensors") == result
    assert len(result.plot().axes) == 2
    assert result._repr_png_().startswith(b"\x89PNG")


def test_progress_is_a_line_per_epoch(folder, tmp_path, capsys):
    run(tiny(), folder, tmp_path, epochs=2, progress=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert "epoch 2: loss " in lines[1]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_on_cuda(folder, tmp_path, dtype):
    model = tiny()
    before = torch.cuda.get_rng_state()
    result = run(model, folder, tmp_path, device="cuda", dtype=dtype, epochs=20, lr=0.05)
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert model[0].weight.device.type == "cpu"
    assert torch.equal(torch.cuda.get_rng_state(), before)
