"""Response maps: what a hook sees, in their order; what moving the image does to them, against maps moved by hand."""

import inspect
import json
from importlib import import_module

import pytest
import torch
from pictures import noise
from torch import nn

import deconvviz
from deconvviz import zoo
from deconvviz.cli import main as cli
from deconvviz.errors import ImageError, LayerError, OptionError


def net(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stages = [nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        stages += [nn.Conv2d(5, 7, 3, padding=1), nn.BatchNorm2d(7), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        model = nn.Sequential(*stages, nn.Linear(7, 4)).to(dtype)
        model.train()[4](torch.randn(4, 7, 5, 5, dtype=dtype))
        return model.eval()


def picture(side=16, dtype=torch.float32):
    return torch.randn(3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def hooked(model, x):
    """What each module returns, copied before anything works on it in place."""
    seen, handles = {}, []
    for name, module in model.named_modules():
        if name:
            keep = lambda _m, _i, out, name=name: seen.update({name: out.detach().clone()})  # noqa: E731
            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_maps_are_what_a_forward_hook_sees_bit_for_bit(dtype):
    model, x = net(dtype), picture(dtype=dtype)
    names = ["0", "1", "2", "3", "4", "5", "6", "8"]
    result, seen = deconvviz.maps(model, x, layers=names), hooked(model, x[None])
    for layer in result.layers:
        wanted = seen[layer.name][0]
        assert layer.maps.dtype == dtype and torch.equal(layer.maps, wanted.reshape(layer.maps.shape))
    assert [layer.name for layer in deconvviz.maps(model, x).layers] == ["1", "5"]
    assert deconvviz.maps(model, x[None]) == deconvviz.maps(model, x)


def test_the_strongest_come_first():
    layer = deconvviz.maps(net(), picture())[2]
    peaks = layer.strongest.amax((1, 2))
    assert (peaks.diff() <= 0).all() and peaks[0] == layer.maps.max()
    assert sorted(layer.ranking.tolist()) == list(range(7))
    assert torch.equal(layer.strength[layer.ranking], peaks)


def test_equal_peaks_are_ranked_by_their_mean_and_then_by_number():
    wanted = torch.zeros(4, 2, 2)
    wanted[:, 0, 0], wanted[2, 1, 1], wanted[3, 0, 0] = 1.0, 0.5, 2.0
    model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU())
    model[0].weight.data.copy_(torch.eye(4)[..., None, None])
    assert deconvviz.maps(model, wanted).layers[0].ranking.tolist() == [3, 2, 0, 1]


def test_a_convolution_s_maps_move_with_the_image_and_a_classifier_s_scores_do_not():
    model, x = net(torch.float64), picture(dtype=torch.float64)
    result = deconvviz.maps(model, x, layers=["0", "2", "8"], changes={"vertical": [2, 3]})
    down = torch.zeros_like(x)
    down[:, 2:] = x[:, :-2]
    seen, moved = hooked(model, x[None]), hooked(model, down[None])
    change = result.changes[0]
    assert torch.equal(change.maps[0], moved["0"][0]) and change.kind == "vertical" and change.amount == 2
    for number, name in enumerate(("0", "2", "8")):
        relative = (moved[name] - seen[name]).norm() / seen[name].norm()
        torch.testing.assert_close(change.distance[number], relative)
    # Where both are inside, but for the rows beside the border, a map of stride 1 is the other one moved by 2.
    inside, there = change.maps[0][:, 2:], seen["0"][0][:, :-2]
    torch.testing.assert_close(change.apart[0], (inside - there).norm() / there.norm())
    inside, there = change.maps[1][:, 1:], seen["2"][0][:, :-1]  # a pool of stride 2: by 1
    torch.testing.assert_close(change.apart[1], (inside - there).norm() / there.norm())
    assert (change.apart[:2] < change.distance[:2] / 2).all()
    assert result.changes[1].apart[1] > change.apart[1]  # 3 pixels are no whole step of the pool


def test_noise_is_drawn_once_and_measured_by_the_image_s_own_spread():
    model, x = net(torch.float64), picture(dtype=torch.float64)
    first, again = (deconvviz.maps(model, x, layers="0", changes={"noise": 0.5}, seed=3) for _ in range(2))
    assert first == again
    drawn = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    seen, noisy = hooked(model, x[None])["0"], hooked(model, x[None] + 0.5 * x.std() * drawn)["0"]
    torch.testing.assert_close(first.changes[0].distance[0], (noisy - seen).norm() / seen.norm())
    assert torch.equal(first.changes[0].apart, first.changes[0].distance)
    none = deconvviz.maps(model, x, layers="0", changes={"noise": 0, "rotation": 0, "scale": 1})
    assert [float(c.distance[0]) for c in none.changes] == pytest.approx([0, 0, 0], abs=1e-12)


def test_lenet_s_layers_have_the_paper_s_numbers():
    names = [layer.name for layer in deconvviz.maps(zoo.create("lenet-5"), torch.randn(1, 32, 32)).layers]
    assert names == [f"squash{n}" for n in range(1, 7)]
    shapes = [tuple(layer.maps.shape) for layer in deconvviz.maps(zoo.create("lenet-1"), torch.randn(1, 28, 28)).layers]
    assert shapes == [(4, 24, 24), (4, 12, 12), (12, 8, 8), (12, 4, 4)]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"changes": ["louder"]}, OptionError, "changes='louder': expected some of 'vertical'"),
        ({"changes": {"scale": 0}}, OptionError, "the amount of 'scale' is 0"),
        ({"changes": {"vertical": [1, float("nan")]}}, OptionError, "the amount of 'vertical' is nan"),
        ({"changes": {"noise": "much"}}, OptionError, "the amount of 'noise' is 'much'"),
        ({"layers": ["99"]}, LayerError, "there is no layer '99'"),
    ],
)
def test_what_has_no_meaning_is_refused(options, error, text):
    with pytest.raises(error, match=text):
        deconvviz.maps(net(), picture(), **options)


def test_one_image_it_is():
    with pytest.raises(ImageError, match="one image, got 2"):
        deconvviz.maps(net(), torch.randn(2, 3, 16, 16))
    with pytest.raises(ImageError, match="no image"):
        deconvviz.maps(net(), None)
    with pytest.raises(LayerError, match="it has layer 1: 1, layer 2: 5"):
        _ = deconvviz.maps(net(), picture())["0"]


def test_it_is_kept_and_drawn(tmp_path):
    result = deconvviz.maps(net(), picture(), changes=["vertical", "rotation", "noise"])
    result.save(tmp_path / "maps.safetensors")
    assert deconvviz.Maps.load(tmp_path / "maps.safetensors") == result
    figure = result.plot(shown=4)
    strips = [axis.images[0].get_array() for part in figure.subfigs[1:] for axis in part.axes]
    assert len(strips) == 2 * 4
    tile = strips[0][:, :48].filled(0)  # 16×16, enlarged 3 times
    wanted = result[1].strongest[0].repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert torch.equal(torch.tensor(tile), wanted)
    own = inspect.signature(deconvviz.Maps.plot).parameters
    draw = inspect.signature(import_module("deconvviz.plotting.maps").draw).parameters
    assert set(list(own)[1:]) == set(list(draw)[1:])
    assert "vertical 2 px" in result.table() and "layer 2: 5" in result.table()


def test_the_command_prints_and_draws(tmp_path, capsys):
    photo, out = tmp_path / "photo.png", tmp_path / "maps.png"
    noise((40, 40), 90).convert("RGB").save(photo)
    chosen = ["--layers", "1,2", "--changes", "vertical=4,noise=0.5", "--shown", "5", "--out", str(out)]
    assert cli.main(["maps", "zfnet64", str(photo), *chosen]) == 0
    assert "vertical 4 px" in capsys.readouterr().out and out.exists()
    assert cli.main(["maps", "lenet-1", str(photo), "--json", "--out", str(out)]) == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[0])["layers"]) == 4
