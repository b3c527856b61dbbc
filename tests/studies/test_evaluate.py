"""Errors and crops against plain loops; the papers' numbers of crops; every condition that has no meaning is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import deconvviz
from deconvviz.cli import main as cli
from deconvviz.errors import ImageError, ModelError, OptionError
from deconvviz.images import Preprocess
from deconvviz.studies.crops import CROPS, of_googlenet, squares, ten

QUIET = {"progress": False}
HOW = Preprocess(size=(8, 8), resize=10, mean=(0.0,) * 3, std=(1.0,) * 3)


def net(classes=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stages = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, classes)
        return nn.Sequential(*stages).double().eval()


@pytest.fixture
def photos(tmp_path):
    draw = np.random.default_rng(0)
    for number, (label, size) in enumerate(
        [("cat", (24, 18)), ("cat", (16, 30)), ("dog", (20, 20)), ("owl", (15, 22))]
    ):
        (tmp_path / label).mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (*size[::-1], 3), np.uint8)).save(tmp_path / label / f"{number}.png")
    return tmp_path


def test_errors_ranks_and_confusion_are_those_of_a_plain_loop():
    model, images = net(6), torch.randn(20, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = [n % 6 for n in range(20)]
    result = deconvviz.evaluate(model, images, labels=labels, k=2, batch_size=7, **QUIET)
    with torch.no_grad():
        chance = model(images).softmax(1)
    torch.testing.assert_close(result.probabilities, chance.float())
    orders = result.probabilities.argsort(dim=1, descending=True, stable=True).tolist()
    for k in (1, 2, 6):
        wrong = sum(label not in order[:k] for label, order in zip(labels, orders, strict=True))
        assert result.error(k) == wrong / 20
    counts = torch.zeros(6, 6, dtype=torch.int64)
    for label, order in zip(labels, orders, strict=True):
        counts[label, order[0]] += 1
    assert torch.equal(result.confusion, counts)
    assert f"top-1 error {100 * result.error():.2f} %, top-2 error" in result.describe()


def test_equal_probabilities_are_no_advantage():
    class Same(nn.Module):
        def forward(self, x):
            return x.mean((1, 2, 3))[:, None] * torch.zeros(1, 5, dtype=x.dtype)

    result = deconvviz.evaluate(Same(), torch.randn(5, 3, 4, 4), labels=range(5), **QUIET)
    assert result.rank.tolist() == [0, 1, 2, 3, 4] and result.error() == 0.8


def resized(path, side):
    """The picture, its shorter side brought to `side`, as a tensor."""
    return Preprocess(None, resize=side, mean=(0.0,) * 3, std=(1.0,) * 3)(Image.open(path)).double()


FILES = ["cat/0.png", "cat/1.png", "dog/2.png", "owl/3.png"]


def mean_of(views, model):
    with torch.no_grad():
        return torch.stack([model(view[None]).softmax(1)[0] for view in views]).mean(0)


def by_hand(image, size, kind):
    """The papers' crops, written out."""
    height, width = image.shape[1:]
    found = []
    if kind == 150:
        for row in np.linspace(0, height - size, 5):
            for col in np.linspace(0, width - size, 5):
                r, c = round(row), round(col)
                found.append(image[:, r : r + size, c : c + size])
    else:
        side = min(height, width)
        starts = [0, round((max(height, width) - side) / 2), max(height, width) - side]
        for start in starts if kind == 144 else starts[1:2]:
            square = image[:, start : start + side] if height >= width else image[:, :, start : start + side]
            rest, middle = side - size, round((side - size) / 2)
            for r, c in ((0, 0), (0, rest), (rest, 0), (rest, rest), (middle, middle)):
                found.append(square[:, r : r + size, c : c + size])
            if kind == 144:
                small = F.interpolate(square[None], (size, size), mode="bilinear", align_corners=False, antialias=True)
                found.append(small[0])
    return [view for one in found for view in (one, one.flip(2))]


@pytest.mark.parametrize(("crops", "sides"), [(10, [10]), (144, [10, 11, 12, 14]), (150, [10, 15, 20])])
def test_crops_are_the_papers(photos, crops, sides):
    model = net()
    result = deconvviz.evaluate(model, photos, crops=crops, preprocess=HOW, **QUIET)
    assert result.labels.tolist() == [0, 0, 1, 2]
    views = [[view for side in sides for view in by_hand(resized(photos / file, side), 8, crops)] for file in FILES]
    assert {len(v) for v in views} == {crops}
    wanted = torch.stack([mean_of(v, model) for v in views]).float()
    torch.testing.assert_close(result.probabilities, wanted, rtol=0, atol=1e-6)


def test_numbers_of_crops_are_those_in_their_names():
    image = torch.randn(3, 30, 40)
    for crops, (views, parts) in CROPS.items():
        assert len(views(image, (8, 8))) * len(parts) == crops
    assert torch.equal(ten(image, (8, 8))[5:], ten(image, (8, 8))[:5].flip(3))
    assert [s.shape[1:] for s in squares(image)] == [(30, 30)] * 3 and torch.equal(squares(image)[2], image[:, :, 10:])
    assert of_googlenet(image, (8, 8)).shape == (36, 3, 8, 8)


def test_one_crop_is_what_the_preprocessing_cuts(photos):
    model = net()
    result = deconvviz.evaluate(model, photos, preprocess=HOW, **QUIET)
    views = torch.stack([HOW(Image.open(photos / file)) for file in FILES]).double()
    with torch.no_grad():
        torch.testing.assert_close(result.probabilities, model(views).softmax(1).float())
    again = deconvviz.evaluate(model, photos, scales=[10, 12], preprocess=HOW, **QUIET)
    assert again.views == "1 crop at 10, 12 pixels" and not torch.equal(again.probabilities, result.probabilities)


@pytest.mark.parametrize("dense", ["mean", "max"])
def test_dense_answers_are_means_of_scores_or_the_largest_probability(photos, dense):
    model = net()
    result = deconvviz.evaluate(model, photos, dense=dense, scales=[12, 16], preprocess=HOW, **QUIET)
    step = 1 if dense == "max" else 2
    for file, found in zip(FILES, result.probabilities, strict=True):
        answers = []
        for side in (12, 16):
            for image in (resized(photos / file, side), resized(photos / file, side).flip(2)):
                height, width = image.shape[1:]
                windows = [
                    image[:, r : r + 8, c : c + 8]
                    for r in range(0, height - 7, step)
                    for c in range(0, width - 7, step)
                ]
                with torch.no_grad():
                    scores = model(torch.stack(windows))
                answers.append(scores.mean(0).softmax(0) if dense == "mean" else scores.softmax(1).amax(0))
        torch.testing.assert_close(found, torch.stack(answers).mean(0).float(), rtol=0, atol=1e-6)


def test_an_ensemble_is_the_mean_of_its_networks(photos):
    models = [net(seed=1), net(seed=2)]
    both = deconvviz.evaluate(models, photos, crops=10, preprocess=HOW, **QUIET)
    each = [deconvviz.evaluate(m, photos, crops=10, preprocess=HOW, **QUIET).probabilities for m in models]
    torch.testing.assert_close(both.probabilities, sum(each) / 2)
    assert both.networks == 2 and "2 networks, 10 crops at 10 pixels" in both.describe()
    with pytest.raises(ModelError, match="3 and 4 classes"):
        deconvviz.evaluate([net(), net(4)], photos, labels=[0, 0, 1, 2], preprocess=HOW, **QUIET)


def test_an_image_that_cannot_be_read_is_left_out_and_listed(photos):
    (photos / "dog" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageError):
        deconvviz.evaluate(net(), photos, preprocess=HOW, **QUIET)
    result = deconvviz.evaluate(net(), photos, crops=10, preprocess=HOW, on_error="skip", **QUIET)
    assert result.labels.tolist() == [0, 0, 1, 2] and len(result.skipped) == 1 and "skipped image" in result.table()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"crops": 5}, "crops=5: expected one of 1, 10, 144, 150"),
        ({"crops": 10, "dense": "mean"}, "exclude each other"),
        ({"dense": "median"}, "dense='median'"),
        ({"scales": []}, "expected shorter sides"),
        ({"on_error": "hide"}, "on_error='hide'"),
        ({"k": 0}, "k=0"),
        ({"labels": [0, 1]}, "there are 2 labels for 4 images"),
        ({"labels": [0, 1, 2, 3]}, "3 classes"),
        ({"labels": ["a", "b", "c", "d"]}, "'a'"),
    ],
)
def test_what_has_no_meaning_is_refused(photos, options, text):
    with pytest.raises(OptionError, match=text):
        deconvviz.evaluate(net(), photos, preprocess=HOW, **QUIET, **options)


def test_tensors_are_cut_and_not_resized():
    images = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    given = {"labels": [0, 1, 2, 0], "preprocess": HOW, **QUIET}
    model = net()
    result = deconvviz.evaluate(model, images, crops=10, **given)
    wanted = torch.stack([mean_of(by_hand(image, 8, 10), model) for image in images]).float()
    torch.testing.assert_close(result.probabilities, wanted, rtol=0, atol=1e-6)
    with pytest.raises(OptionError, match="tensors are taken as they are"):
        deconvviz.evaluate(model, images, scales=[12], **given)
    with pytest.raises(ImageError, match="holds no crop of 8×8"):
        deconvviz.evaluate(model, images[..., :7, :7], crops=10, **given)


def test_it_is_kept_drawn_and_a_command(photos, tmp_path, capsys):
    result = deconvviz.evaluate(net(), photos, preprocess=HOW, **QUIET)
    result.save(tmp_path / "evaluation.safetensors")
    assert deconvviz.Evaluation.load(tmp_path / "evaluation.safetensors") == result
    matrix = result.plot().axes[1].images[0].get_array()
    assert np.allclose(matrix.sum(1), 1)
    out = tmp_path / "evaluation.png"
    own = tmp_path / "own.py"
    own.write_text(
        "from torch import nn\nfrom deconvviz.images import Preprocess\n"
        "preprocess = Preprocess((8, 8), 10, (0.0,) * 3, (1.0,) * 3)\n"
        "def build(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))\n"
    )
    chosen = ["--images", str(photos), "--crops", "10", "--k", "2", "--out", str(out), "--quiet"]
    assert cli.main(["evaluate", f"{own}:build", *chosen]) == 0
    assert "4 images, 10 crops at 10 pixels: top-1 error" in capsys.readouterr().out and out.exists()
