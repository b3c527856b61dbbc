"""The recorder keeps what `project` gives, survives kills, and refuses to mix recordings."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from safetensors.torch import load_file
from torch import nn

import deconvviz
from deconvviz import zoo
from deconvviz.cli import main as cli
from deconvviz.errors import DeconvvizError, LayerError, OptionError, StoreError, UnitError, UnsupportedOp
from deconvviz.images import samples
from deconvviz.plotting import recording as _recording_plot
from deconvviz.results import store as _store
from deconvviz.training import recorder
from deconvviz.training.recorder import EPOCHS, Recorder
from deconvviz.training.recording import Recording, Track, write
from deconvviz.training.train import train

IMAGES = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
FIELDS = ("activations", "image_ids", "positions", "boxes", "patches", "projections")


def tiny(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3)),
        )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "recording.safetensors"


def recorded(path, *epochs, **options):
    """A recording of one random model per epoch."""
    keep = Recorder(path, IMAGES, epochs=None, **options)
    for epoch in epochs:
        keep(tiny(epoch), epoch)
    return keep.recording


def same(a, b):
    assert (a.epochs, a.count, a.images, a.rule, a.mean, a.std) == (b.epochs, b.count, b.images, b.rule, b.mean, b.std)
    assert torch.equal(a.filters, b.filters)
    for s, t in zip(a.layers, b.layers, strict=True):
        assert (s.name, s.number, s.epochs) == (t.name, t.number, t.epochs)
        assert all(torch.equal(getattr(s, f), getattr(t, f)) for f in (*FIELDS, "units"))


def test_each_epoch_is_what_project_gives(path):
    recording = recorded(path, 1, 2, 5)
    assert recording.epochs == (1, 2, 5) and recording.count == 12
    assert [(t.name, t.number) for t in recording.layers] == [("2", 1), ("4", 2)]
    for row, epoch in enumerate(recording.epochs):
        model = tiny(epoch)
        assert torch.equal(recording.filters[row], model[0].weight.detach())
        for layer in (1, 2):
            found = deconvviz.project(model, IMAGES, layer=layer, top=1, progress=False)
            assert torch.equal(recording[layer].units, found.units)
            for field in FIELDS:
                assert torch.equal(getattr(recording[layer], field)[row], getattr(found, field)[:, 0]), field


def test_only_chosen_epochs_are_recorded_and_the_others_cost_nothing(path, monkeypatch):
    keep = Recorder(path, IMAGES)
    assert keep.epochs == EPOCHS == (1, 2, 5, 10, 20, 30, 40, 64)
    assert keep(tiny(), 1)
    monkeypatch.setattr(recorder, "top", lambda *a, **k: 1 / 0)
    monkeypatch.setattr(_store, "load", lambda *a, **k: 1 / 0)
    assert not keep("not even a model", 3)
    monkeypatch.undo()
    assert keep.recording.epochs == (1,)
    assert repr(keep).endswith("recorded epochs: 1)")


def test_another_recorder_goes_on_and_an_epoch_again_replaces_the_first(path):
    recorded(path, 1, 5)
    assert recorded(path, 2).epochs == (1, 2, 5)
    again = Recorder(path, IMAGES, epochs=[2])
    assert again(tiny(7), 2)
    recording = again.recording
    assert torch.equal(recording.filters[1], tiny(7)[0].weight.detach())
    assert torch.equal(recording.filters[2], tiny(5)[0].weight.detach())
    assert torch.equal(recording[2].projections[0], recorded(path.with_name("other"), 1)[2].projections[0])


@pytest.mark.parametrize("moment", ["create", "replace"])
def test_a_kill_while_writing_leaves_the_file_whole(path, monkeypatch, moment):
    before = recorded(path, 1, 2)

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    if moment == "create":
        monkeypatch.setattr(_store, "create", killed)
    else:
        monkeypatch.setattr(type(path), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        recorded(path, 5)
    monkeypatch.undo()
    same(Recording.load(path), before)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert recorded(path, 5).epochs == (1, 2, 5)


def test_other_settings_are_refused(path):
    before = recorded(path, 1)
    for options, text in (
        ({"layers": [1]}, r"recording with other layers and units: .*'4': .* there, .* now\. Give another path"),
        ({"units": [0, 1]}, "other layers and units: .*0, 1, 2, 3.*"),
        ({"rule": "guided"}, "other rule: deconvnet there, guided now"),
    ):
        with pytest.raises(StoreError, match=text):
            recorded(path, 2, **options)
    with pytest.raises(StoreError, match=r"other images: 12 \(\w+\) there, 11 \(\w+\) now"):
        Recorder(path, IMAGES[1:])(tiny(), 2)
    with pytest.raises(StoreError, match="other layers and units"):
        Recorder(path, IMAGES)(nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU()), 2)
    same(Recording.load(path), before)


def test_the_model_is_left_as_it_was_found(path):
    model = tiny().train()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    images, random = IMAGES.clone(), torch.get_rng_state()
    Recorder(path, images)(model, 1)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(images, IMAGES) and torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_units_by_layer(path):
    recording = recorded(path, 1, units={1: [3, 0], "4": "all"})
    assert recording[1].units.tolist() == [3, 0] and recording["4"].units.tolist() == list(range(6))
    with pytest.raises(LayerError, match="units names layer 9, but the recorded layers are 2, 4"):
        recorded(path.with_name("a"), 1, units={9: [0]})
    with pytest.raises(UnitError, match="unit 4 is out of range"):
        recorded(path.with_name("b"), 1, units=[4])


def test_wrong_arguments(path):
    for epochs, text in (([0], "epoch=0"), ([1, 2.5], "epoch=2.5")):
        with pytest.raises(OptionError, match=f"{text}: expected a whole number"):
            Recorder(path, epochs=epochs)
    with pytest.raises(OptionError, match="epoch=-1"):
        recorded(path, -1)
    with pytest.raises(DeconvvizError, match="nothing"):
        Recorder(path, rule="nothing")
    with pytest.raises(LayerError, match="no layer 7"):
        recorded(path, 1, layers=[7])
    assert not path.exists()
    with pytest.raises(StoreError, match="cannot read"):
        Recorder.load(path)
    path.parent.mkdir()
    path.write_bytes(b"something else")
    with pytest.raises(StoreError, match="not a file that deconvviz wrote"):
        Recorder(path)
    with pytest.raises(StoreError, match="cannot write"):
        recorded(path / "below", 1)


def test_an_operation_without_a_rule_is_refused_before_the_training(path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(1), nn.Conv2d(4, 4, 3), nn.ReLU())
    with pytest.raises(UnsupportedOp, match="softmax"):
        Recorder(path, IMAGES).prepare(model)
    assert Recorder(path, IMAGES, allow_gradient=True)(model, 1)


def test_a_network_without_convolutions_has_no_filters(path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 5), nn.ReLU())
    keep = Recorder(path, IMAGES, layers=["2"])
    keep(model, 1)
    assert keep.recording.filters.shape == (1, 0, 1, 1, 1)
    with pytest.raises(OptionError, match="no convolution: there are no filters"):
        keep.recording.plot_filters()


def made(projections, epochs, ids=None, activations=None, **options):
    """A recording of one layer with these projections (E, U, 3, h, w)."""
    e, u, _, h, w = projections.shape
    ids = torch.zeros(e, u, dtype=torch.long) if ids is None else ids
    boxes = torch.tensor([0, 0, h, w]).expand(e, u, 4)
    activations = torch.ones(e, u) if activations is None else activations
    place = torch.zeros(e, u, 2, dtype=torch.long)
    patches = torch.rand(projections.shape, generator=torch.Generator().manual_seed(5))
    track = Track("a", 1, epochs, torch.arange(u), activations, ids, place, boxes, patches, projections)
    return Recording(epochs, (track,), torch.randn(e, 2, 3, 3, 3), 10, mean=(0.0,) * 3, std=(1.0,) * 3, **options)


def directed(*cosines):
    """Projections (E, 3, 1, 1) that have these cosines to (1, 0, 0); None: zero."""
    rows = [(0.0, 0.0, 0.0) if c is None else (c, (1 - c * c) ** 0.5, 0.0) for c in cosines]
    return torch.tensor(rows)[:, :, None, None]


def test_similarity_and_when_units_settled():
    units = [
        directed(0.9, 0.9, 0.9, 1),  # from the start
        directed(0.9, 0.2, 0.85, 1),  # fell back
        directed(-1, None, 0.79, 1),  # never before the end; silent once
        directed(0.5, 0.5, 0.5, None),  # silent at last
    ]
    recording = made(3 * torch.stack(units, 1), (1, 2, 5, 10))
    track = recording[1]
    expected = torch.tensor([[0.9, 0.9, -1, torch.nan], [0.9, 0.2, 0, torch.nan], [0.9, 0.85, 0.79, torch.nan]])
    torch.testing.assert_close(track.similarity()[:3], expected.double(), equal_nan=True)
    assert track.similarity()[3, :3].tolist() == pytest.approx([1, 1, 1])
    assert track.settled().tolist() == [1, 5, 10, 0]
    assert track.settled(0.15).tolist() == [1, 1, 5, 0]
    assert track.settled(1.0).tolist() == [10, 10, 10, 0]
    assert recording.convergence().shape == (1, 4)
    assert recording.convergence()[0].tolist() == pytest.approx([0.8 / 3, 1.1 / 3, 2.54 / 3, 1])
    assert recording.half_settled() == {"a": 5}
    assert recording.half_settled(0.15) == {"a": 1}
    assert recording.half_settled(1.0) == {"a": None}
    with pytest.raises(OptionError, match=r"threshold=1\.5: expected a cosine above 0, at most 1"):
        recording.half_settled(1.5)


def test_all_units_silent():
    recording = made(torch.zeros(2, 3, 3, 1, 1), (1, 2))
    assert recording.half_settled() == {"a": None}
    assert recording.convergence().isnan().all()


def test_changes_of_the_strongest_image():
    ids = torch.tensor([[4, 5], [4, 6], [7, 6]])
    track = made(torch.randn(3, 2, 3, 4, 4), (1, 2, 5), ids)[1]
    assert track.changed().tolist() == [[False, False], [False, True], [True, False]]


def test_a_result_survives_its_file(tmp_path):
    recording = made(torch.randn(3, 2, 3, 4, 4), (1, 2, 5))
    recording.save(tmp_path / "a")
    same(Recording.load(tmp_path / "a"), recording)
    write(tmp_path / "b", [recording, dataclasses.replace(recording, epochs=(2, 5, 64))])
    assert Recording.load(tmp_path / "b").epochs == (1, 2, 5, 64)
    with pytest.raises(LayerError, match=r"no layer 3 in this recording, it has 'a' \(1\)"):
        recording[3]
    with pytest.raises(StoreError, match="holds 'recording', expected 'projections'"):
        deconvviz.Projections.load(tmp_path / "a")


def test_fig_4_has_each_tile_and_mark_in_its_place():
    ids = torch.tensor([[4, 5], [4, 6], [7, 6]])
    recording = made(torch.randn(3, 2, 3, 8, 8), (1, 2, 5), ids)
    figure = recording.plot(layer=1)
    left, right = (axes.images[0].get_array() for axes in figure.axes[:2])
    tile, gap = _recording_plot.TILE, _recording_plot._GAP
    assert left.shape == right.shape == (2 * (tile + gap), 3 * (tile + gap) + gap, 3)
    for epoch, unit in np.ndindex(3, 2):
        y, x = unit * (tile + gap), epoch * (tile + gap)
        projection = recording[1].projections[epoch, unit]
        shown = left[y : y + tile, x + gap : x + gap + tile][4::9, 4::9]
        most = projection.abs().flatten().sort().values[int(np.ceil(0.995 * projection.numel())) - 1]
        expected = 0.5 + 0.5 * (projection / most).clamp(-1, 1)
        np.testing.assert_allclose(shown.transpose(2, 0, 1), expected, atol=1e-6)
        patch = right[y : y + tile, x + gap : x + gap + tile][4::9, 4::9]
        np.testing.assert_allclose(patch.transpose(2, 0, 1), recording[1].patches[epoch, unit], atol=1e-6)
        marked = recording[1].changed()[epoch, unit]
        np.testing.assert_allclose(left[y + 9, x + 2], _recording_plot._MARK if marked else (1, 1, 1))
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert texts == ["1", "2", "5", "0", "1", "layer 1: projections"]
    assert "another image" in figure.axes[2].texts[0].get_text()


def test_a_silent_unit_is_gray(path):
    recording = made(torch.zeros(2, 1, 3, 8, 8), (1, 2), activations=torch.tensor([[0.0], [1.0]]))
    left, right = (axes.images[0].get_array() for axes in recording.plot(layer=1).axes[:2])
    assert (left[5:40, 10:40] == 0.5).all() and (right[5:40, 10:40] == 0.5).all()
    assert not (right[5:40, 90:130] == 0.5).any()


def test_one_scale_for_a_unit_shows_growth():
    projections = torch.stack([0.1 * torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
    recording = made(projections, (1, 2))
    grown = recording.plot(layer=1, scale="unit").axes[0].images[0].get_array()
    np.testing.assert_allclose(grown[9, [9, 90]], [[0.55] * 3, [1] * 3], rtol=1e-6)
    apart = recording.plot(layer=1).axes[0].images[0].get_array()
    np.testing.assert_allclose(apart[9, [9, 90]], 1)


def test_all_layers_are_side_by_side_and_given_figures_are_drawn_into(path):
    from matplotlib.figure import Figure

    recording = recorded(path, 1, 2, 5)
    assert len(recording.plot().axes) == 3
    whole = Figure(figsize=(9, 3))
    parts = whole.subfigures(1, 2)
    assert recording.plot(parts[0], layer=2, units=[5, 0]) is parts[0]
    assert recording.plot_convergence(parts[1]) is parts[1]
    assert recording._repr_png_().startswith(b"\x89PNG")
    sheets = recording.plot_filters()
    assert [a.texts[-1].get_text() for a in sheets.axes[:3]] == ["epoch 1", "epoch 2", "epoch 5"]
    legend = recording.plot_convergence().axes[0].get_legend()
    assert len(legend.get_texts()) == 2
    for options, error, text in (
        ({"layer": 9}, LayerError, "no layer 9"),
        (
            {"layer": 2, "units": [77]},
            UnitError,
            r"units=\[77\] cannot be drawn: layer '4' was recorded for units 0, 1",
        ),
        ({"units": [0]}, OptionError, "units are those of one layer: give layer as well"),
        ({"scale": "log"}, OptionError, "scale='log' has no meaning here"),
    ):
        with pytest.raises(error, match=text):
            recording.plot(**options)


@pytest.mark.parametrize("layer", [None, 2])
def test_the_animation_has_a_frame_per_epoch(path, tmp_path, layer):
    recording = recorded(path, 1, 2, 5)
    recording.animate(tmp_path / "a.gif", layer=layer, seconds=0.5)
    with Image.open(tmp_path / "a.gif") as picture:
        times = [frame.info["duration"] for frame in ImageSequence.Iterator(picture)]
    assert times == [500, 500, 1500]
    with pytest.raises(OptionError, match="seconds=0: expected a number above 0"):
        recording.animate(tmp_path / "b.gif", seconds=0)


def test_nothing_recorded_yet(path, tmp_path):
    Recorder(path, IMAGES).prepare(tiny())
    recording = Recorder.load(path)
    assert recording.epochs == ()
    for use in (
        recording.plot,
        recording.convergence,
        recording.half_settled,
        lambda: recording.animate(tmp_path / "a"),
    ):
        with pytest.raises(OptionError, match="nothing is recorded yet"):
            use()


# ---- with train --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, noise = tmp_path_factory.mktemp("shades"), np.random.default_rng(0)
    for i in range(24):
        name = ("dark", "light", "red")[i % 3]
        (root / name).mkdir(exist_ok=True)
        pixels = noise.normal({"dark": 40, "light": 200, "red": (200, 20, 20)}[name], 25, (16, 16, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def run(folder, out, **options):
    options = {"epochs": 3, "batch_size": 8, "image_size": 16, "device": "cpu", "progress": False, **options}
    return train(tiny(), folder, out=out, **options)


def test_training_with_a_recorder_ends_with_the_same_bits(folder, tmp_path, path):
    seen = {}
    plain = run(folder, tmp_path / "plain", on_epoch=lambda m, n: seen.update({n: m[0].weight.detach().clone()}))
    kept = run(folder, tmp_path / "kept", recorder=Recorder(path, folder, epochs=[1, 3]))
    a, b = load_file(plain.weights), load_file(kept.weights)
    assert all(torch.equal(a[k], b[k]) for k in a)
    recording = Recorder.load(path)
    assert recording.epochs == (1, 3) and recording.count == 24
    assert torch.equal(recording.filters[0], seen[1]) and torch.equal(recording.filters[1], seen[3])


def test_a_run_killed_after_recording_goes_on(folder, tmp_path, path):
    whole = path.with_name("whole")
    run(folder, tmp_path / "whole", recorder=Recorder(whole, IMAGES))

    def kill(model, epoch):
        if epoch == 2:  # recorded already, no checkpoint yet
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "killed", recorder=Recorder(path, IMAGES), on_epoch=kill)
    assert Recorder.load(path).epochs == (1, 2)
    run(folder, tmp_path / "killed", recorder=Recorder(path, IMAGES))
    same(Recorder.load(path), Recorder.load(whole))


def test_another_run_s_recording_is_refused(folder, tmp_path, path):
    run(folder, tmp_path / "a", recorder=Recorder(path, IMAGES))
    before = Recorder.load(path)
    with pytest.raises(StoreError, match="holds epoch 2, but the training goes on after epoch 0: it is another run's"):
        run(folder, tmp_path / "b", recorder=Recorder(path, IMAGES))
    same(Recorder.load(path), before)


def test_pictures_go_through_the_run_s_own_preprocessing(folder, tmp_path, path):
    run(folder, tmp_path, epochs=1, recipe="paper", recorder=Recorder(path, folder))
    recording = Recorder.load(path)
    assert recording.std == pytest.approx((1 / 255,) * 3)
    assert recording[1].patches.abs().max() > 20  # bytes less their mean


def test_a_path_alone_records_the_sample_photos(folder, tmp_path, path):
    run(folder, tmp_path, epochs=1, recorder=str(path))
    assert Recorder.load(path).count == len(samples(16))


def test_a_loop_over_kept_weights(folder, tmp_path, path):
    train("resnet-8", folder, out=tmp_path, epochs=2, keep_epochs=(1, 2), device="cpu", progress=False)
    keep = Recorder(path, torch.randn(4, 3, 32, 32), layers=[1, 2], units=[0, 1])
    for epoch in (2, 1):
        keep(zoo.create("resnet-8", weights=tmp_path / f"epoch-{epoch:03d}.safetensors"), epoch)
    assert keep.recording.epochs == (1, 2)


@pytest.mark.gpu
def test_on_cuda(path):
    model = tiny().cuda()
    keep = Recorder(path, IMAGES)
    assert keep(model, 1)
    expected = recorded(path.with_name("cpu"), 1)
    assert keep.recording.filters.device.type == "cpu"
    assert expected.epochs == keep.recording.epochs


# ---- on the command line -----------------------------------------------------------------------------------


def test_the_command_draws_a_recording(path, tmp_path, capsys):
    recorded(path, 1, 2)
    out, curve, film = (str(tmp_path / name) for name in ("a.png", "b.png", "c.gif"))
    options = ["--layer", "2", "--units", "0,3", "--out", out, "--convergence", curve, "--animation", film]
    assert cli.main(["recording", str(path), *options]) == 0
    assert capsys.readouterr().out == f"wrote {out}\nwrote {curve}\nwrote {film}\n"
    assert cli.main(["recording", str(tmp_path / "none"), "--out", out]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_the_command_train_hands_the_recorder_on(monkeypatch):
    seen = {}

    def fake(model, data, **options):
        seen.update(options)
        return type("Result", (), {"history": ["epoch 1"], "weights": "w", "card": "c", "page": None})

    monkeypatch.setattr(deconvviz, "train", fake)
    assert cli.main(["train", "resnet-20", "--data", "x", "--record", "r", "--recipe", "cifar-short"]) == 0
    assert seen["recorder"] == "r" and seen["recipe"] == "cifar-short"
