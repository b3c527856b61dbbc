"""Classifiers as convolutions: each answer is the one for its window alone; OverFeat's counts are the paper's."""

import inspect
from importlib import import_module

import pytest
import torch
from pictures import noise
from torch import nn
from torch.nn import functional as F

import deconvviz
from deconvviz import zoo
from deconvviz.cli import main as cli
from deconvviz.errors import ModelError, OptionError

CLOSE = {"rtol": 0, "atol": 1e-10}  # float64: sums of a few thousand terms of about 1


class Valid(nn.Module):
    """Without padding: convolutions, a pool, two matrices; every window is by itself."""

    def __init__(self, head="flatten"):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 2)
        self.hidden, self.out = nn.Linear(5 * 3 * 4 if head != "mean" else 5, 6), nn.Linear(6, 3)
        self.head = head

    def forward(self, x):
        x = self.conv2(F.max_pool2d(self.conv1(x).relu(), 3, 3)).relu()
        if self.head == "mean":
            x = x.mean((2, 3))
        elif self.head == "view":
            x = x.view(x.size(0), -1)
        elif self.head == "reshape":
            x = x.reshape(-1, 5 * 3 * 4)
        else:
            x = torch.flatten(x, 1)
        return self.out(F.dropout(self.hidden(x).relu(), 0.5, self.training))


WINDOW = (14, 17)  # conv: 12×15, pool: 4×5, conv: 3×4


def build(make=Valid, *args):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*args).double().eval()


def picture(height, width):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def crops(model, x, window, stride, rows, cols):
    """The plain network's answers for each window, (1, classes, rows, cols)."""
    with torch.no_grad():
        answers = [
            [model(x[:, :, r * stride[0] :, c * stride[1] :][:, :, : window[0], : window[1]]) for c in range(cols)]
            for r in range(rows)
        ]
    return torch.stack([torch.stack(row, -1) for row in answers], -2)


@pytest.mark.parametrize("head", ["flatten", "view", "reshape", "mean"])
@pytest.mark.parametrize("fine", [False, True])
def test_each_answer_is_the_one_for_its_window(head, fine):
    model, x = build(Valid, head), picture(25, 30)
    dense = deconvviz.convolutional(model, fine=fine, input_size=WINDOW)
    found = dense(x)
    step = 1 if fine else 3
    assert dense.stride == (step, step) and dense.window == WINDOW
    rows, cols = (25 - 14) // step + 1, (30 - 17) // step + 1
    if fine:  # the pool's own window ends where the image does
        assert found.shape[2:] == (rows, cols)
    assert found.shape[2] >= rows and found.shape[3] >= cols
    wanted = crops(model, x, WINDOW, (step, step), rows, cols)
    torch.testing.assert_close(found[:, :, :rows, :cols], wanted, **CLOSE)
    torch.testing.assert_close(dense(x[:, :, :14, :17])[..., 0, 0], model(x[:, :, :14, :17]), **CLOSE)


class Overlapping(nn.Module):
    """After the last pool with a stride: a convolution, a pool without one, a depthwise one, then a mean."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 6, 2)
        self.depthwise = nn.Conv2d(6, 6, 2, groups=6)
        self.norm, self.out = nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        x = F.max_pool2d(self.first(x).relu(), 2, 2)
        x = F.max_pool2d(self.norm(self.second(x)).relu(), 2, 1)
        return torch.flatten(F.adaptive_avg_pool2d(self.out(self.depthwise(x)), 1), 1)


def test_what_follows_the_last_pool_is_apart_by_its_stride():
    model, x = build(Overlapping), picture(33, 29)
    window = (23, 23)  # 11, 5, 4, 3, 2
    for fine, step in ((False, 4), (True, 2)):
        dense = deconvviz.convolutional(model, fine=fine, input_size=window)
        found = dense(x)
        rows, cols = (33 - 23) // step + 1, (29 - 23) // step + 1
        assert dense.stride == (step, step) and found.shape[2] >= rows and found.shape[3] >= cols
        wanted = crops(model, x, window, (step, step), rows, cols)
        torch.testing.assert_close(found[:, :, :rows, :cols], wanted, **CLOSE)


def test_overfeat_sees_what_its_table_5_says():
    with torch.device("meta"):
        model = zoo.create("overfeat-accurate")
    x = torch.zeros(1, 3, 281, 317, device="meta")
    seen = []
    pool = model.features[-1]
    pool.register_forward_hook(lambda _m, inputs, out: seen.append((inputs[0].shape[2:], out.shape[2:])))
    coarse, fine = deconvviz.convolutional(model), deconvviz.convolutional(model, fine=True)
    seen.clear()
    assert coarse(x).shape == (1, 1000, 2, 3)
    assert [tuple(s) for s in seen[0]] == [(20, 23), (6, 7)]
    assert fine(x).shape == (1, 1000, 6, 9) and 6 * 9 == 3 * 3 * 2 * 3 == 54
    assert coarse.stride == (36, 36) and fine.stride == (12, 12) and fine.window == (221, 221)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("alexnet64", {}, (96, 128)),
        ("vgg-a", {"size": 32, "hidden": 8}, (64, 96)),
        ("lenet-5", {}, (36, 44)),
        ("nin-cifar", {}, (32, 40)),
        ("resnet-8", {}, (32, 40)),
        ("googlenet", {}, (224, 256)),
    ],
)
def test_the_papers_networks_are_convolutions(name, options, size):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.create(name, num_classes=4, **options)
    own = options.get("size", model.card.input_size[0])
    dense = deconvviz.convolutional(model, input_size=own)
    x = torch.randn(1, len(model.card.mean), *size)
    found = dense(x)
    expected = [(s - own) // step + 1 for s, step in zip(size, dense.stride, strict=True)]
    assert found.shape[1] == 4 and all(abs(n - e) <= 1 for n, e in zip(found.shape[2:], expected, strict=True))
    assert found.requires_grad and dense.card is model.card
    rows = deconvviz.layers(dense, (len(model.card.mean), *size))
    assert any(row.kind == "convolution" for row in rows)


def test_a_mean_that_is_left_out_leaves_a_class_map_whose_mean_is_the_answer():
    def linear():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    model, x = build(linear), picture(*WINDOW)
    found = deconvviz.convolutional(model, pooled=False, input_size=WINDOW)(x)
    with torch.no_grad():
        wanted = model[4](model[:2](x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(found.mean((2, 3)), model(x), **CLOSE)
    torch.testing.assert_close(found, wanted, **CLOSE)
    with pytest.raises(ModelError, match="answers otherwise"):  # a ReLU between the mean and the classes
        deconvviz.convolutional(build(Valid, "mean"), pooled=False, input_size=WINDOW)


@pytest.mark.parametrize(
    ("make", "options", "error", "text"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), {}, ModelError, "expected \\(1, classes\\)"),
        (lambda: Valid(), {"pooled": False}, OptionError, "takes no mean"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            {"fine": True},
            OptionError,
            "has no max-pool",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(5), nn.Flatten(), nn.Linear(100, 3)),
            {},
            ModelError,
            "cannot slide",
        ),
        (
            lambda: nn.Sequential(
                *(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.Softmax(-1))
            ),
            {},
            ModelError,
            "softmax over dimension -1",
        ),
    ],
)
def test_what_cannot_slide_is_refused(make, options, error, text):
    with pytest.raises(error, match=text):
        deconvviz.convolutional(build(make), input_size=WINDOW, **options)


def test_squeeze_and_excitation_and_attention_are_refused():
    import torchvision

    with pytest.raises(ModelError, match="squeeze-and-excitation"):
        deconvviz.convolutional(torchvision.models.mobilenet_v3_small(weights=None))
    with pytest.raises(ModelError, match="cannot be made of convolutions"):
        deconvviz.convolutional(torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 32), input_size=32)


def test_an_image_that_holds_no_window_is_refused():
    dense = deconvviz.convolutional(build(), input_size=WINDOW)
    with pytest.raises(ModelError, match="holds no window of 14×17"):
        dense(picture(13, 40))


def test_the_class_map_of_a_photo_is_drawn_beside_its_occlusion(tmp_path):
    model = zoo.create("squeezenet-1.1", weights="bundled")
    photo = noise((90, 80), 60).convert("RGB")
    found = deconvviz.convolutional(model, pooled=False).look(photo, target="espresso")
    assert found.scores.shape == (1000, 14, 14) and found.target == 967 and found.stride == (16, 16)
    with torch.no_grad():
        usual = model(deconvviz.images.open_images(model, photo).take([0]))[0]
    bound = 1e4 * torch.finfo(torch.float32).eps * float(usual.abs().max())
    torch.testing.assert_close(found.scores.mean((1, 2)), usual, rtol=0, atol=bound)
    assert found.rows[0] < found.rows[-1] <= 227 and (found.rows.diff() == 16).all()
    found.save(tmp_path / "map.safetensors")
    again = type(found).load(tmp_path / "map.safetensors")
    assert again == found and "espresso" in found.table()
    scan = deconvviz.occlude(model, photo, target=967, size=113, stride=113, progress=False)
    assert len(found.plot(occlusion=scan).axes) == 5 and len(found.plot(what="probability").axes) == 3
    with pytest.raises(OptionError, match="what='chance'"):
        found.plot(what="chance")
    own, draw = (
        inspect.signature(f).parameters for f in (type(found).plot, import_module("deconvviz.plotting.dense").draw)
    )
    assert set(list(own)[1:]) == set(list(draw)[1:])


def test_a_larger_picture_is_looked_at_whole():
    model = zoo.create("alexnet64", num_classes=5)
    found = deconvviz.convolutional(model).look(noise((200, 100), 60).convert("RGB"), side=96)
    assert found.picture.shape == (3, 96, 192) and found.scores.shape == (5, 2, 5)
    with pytest.raises(OptionError, match="side= resizes pictures"):
        deconvviz.convolutional(model).look(torch.randn(3, 64, 64), side=96)


def test_the_command_draws(tmp_path, capsys):
    photo, out = tmp_path / "photo.png", tmp_path / "map.png"
    noise((120, 90), 90).convert("RGB").save(photo)
    assert cli.main(["convolutional", "alexnet64", str(photo), "--side", "96", "--out", str(out)]) == 0
    assert "2×3 places, 32 px apart" in capsys.readouterr().out and out.exists()
