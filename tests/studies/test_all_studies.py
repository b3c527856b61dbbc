"""What all studies share: the model stays as it was found, results are kept and drawn, every command runs."""

import dataclasses
import json
import struct

import pytest
import torch
from matplotlib.figure import Figure
from pictures import noise
from torch import nn

import deconvviz
from deconvviz.cli import main as cli
from deconvviz.errors import DeconvvizError, StoreError

pytest.importorskip("sklearn")

PARTS = {"a": [(0, 0, 4, 4)] * 6, "b": [(2, 2, 8, 8)] * 6}
LABELS = [0, 1, 0, 1, 0, 1]


class Net(nn.Module):
    """Keeps count in a buffer, draws random numbers, and raises when told to."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 5, stride=2), nn.BatchNorm2d(6)
        self.next, self.drop, self.head = nn.Conv2d(6, 4, 3), nn.Dropout(0.5), nn.Linear(4, 3)
        self.register_buffer("runs", torch.zeros(()))
        self.calls, self.broken_after = 0, None

    def forward(self, x):
        self.runs += 1
        self.calls += 1
        torch.rand(3)
        if self.broken_after is not None and self.calls > self.broken_after:
            raise ValueError("the module is broken")
        y = self.next(self.bn(self.conv(x)).relu()).relu_()
        return self.head(self.drop(y.mean((2, 3))))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net()
    model.eval()
    model.bn.train()  # modes differ from module to module
    model.conv.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    return model


def images():
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


QUIET = {"progress": False}
CALLS = {
    "response_std": lambda m, x, **o: deconvviz.response_std(m, x, **QUIET, **o),
    "gradient_std": lambda m, x, **o: deconvviz.gradient_std(m, x, labels=LABELS, iterations=2, **QUIET, **o),
    "filters": lambda m, x, **o: deconvviz.filters(m, x, **QUIET, **o),
    "compare_filters": lambda m, x, **o: deconvviz.compare_filters({"one": m, "two": m}, x, **QUIET, **o),
    "invariance": lambda m, x, **o: deconvviz.invariance(m, x, transforms={"scale": [1, 1.5]}, **QUIET, **o),
    "correspondence": lambda m, x, **o: deconvviz.correspondence(m, x, parts=PARTS, draws=2, **QUIET, **o),
    "nearest": lambda m, x, **o: deconvviz.nearest(m, x, query=[0, 2], k=2, **QUIET, **o),
    "probe": lambda m, x, **o: deconvviz.probe(m, x, labels=LABELS, folds=2, **QUIET, **o),
}
BAD = {
    "response_std": {"layers": ["nowhere"]},
    "gradient_std": {"layers": ["nowhere"]},
    "filters": {"band": (2, 1)},
    "compare_filters": {"units": [99]},
    "invariance": {"targets": [9] * 6},
    "correspondence": {"layers": ["nowhere"]},
    "nearest": {"layer": "nowhere"},
    "probe": {"layers": ["nowhere"]},
}


def snapshot(model, x):
    return {
        "modes": [m.training for m in model.modules()],
        "values": [t.clone() for t in (*model.parameters(), *model.buffers(), x)],
        "wants": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "random": torch.get_rng_state(),
        "grad": torch.is_grad_enabled(),
    }


def same(a, b):
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("how", ["works", "bad argument", "module raises", "module raises later"])
def test_the_model_is_left_as_it_was_found(name, how):
    model, x = network(), images()
    model.broken_after = {"module raises": 0, "module raises later": 1}.get(how)
    before = snapshot(model, x)
    if how == "works":
        CALLS[name](model, x)
    elif how == "bad argument":
        with pytest.raises(DeconvvizError):
            CALLS[name](model, x, **BAD[name])
    else:
        with pytest.raises(ValueError, match="the module is broken"):
            CALLS[name](model, x)
    after = snapshot(model, x)
    assert [key for key in before if not same(before[key], after[key])] == []


def equal(a, b):
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("name", CALLS)
def test_results_are_frozen_kept_and_drawn(name, tmp_path):
    result = CALLS[name](network(), images())
    path = tmp_path / "deep" / "result.safetensors"
    result.save(path)
    loaded = type(result).load(path)
    assert equal(result, loaded) and result.table() == loaded.table()
    assert loaded._repr_png_().startswith(b"\x89PNG")
    given = Figure(layout="constrained")
    assert result.plot(given) is given
    part = Figure(layout="constrained").subfigures(1, 2)[1]
    assert result.plot(part) is part
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.anything = 1


def test_arrays_of_a_file_start_at_multiples_of_their_numbers_size(tmp_path):
    path = tmp_path / "filters.safetensors"
    deconvviz.filters(network()).save(path)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    sizes = {"F64": 8, "I64": 8, "F32": 4, "BOOL": 1, "U8": 1}
    entries = {k: v for k, v in json.loads(data[8 : 8 + length]).items() if k != "__metadata__"}
    assert entries and all(e["data_offsets"][0] % sizes[e["dtype"]] == 0 for e in entries.values())


def test_a_file_of_another_result_is_refused(tmp_path):
    deconvviz.filters(network()).save(tmp_path / "a")
    with pytest.raises(StoreError, match="holds 'Filters', expected 'Probe'"):
        deconvviz.Probe.load(tmp_path / "a")


@pytest.mark.parametrize(
    "name", ["response_std", "gradient_std", "filters", "invariance", "correspondence", "nearest", "probe"]
)
def test_half_precision_and_double_run(name):
    for dtype in (torch.bfloat16, torch.float64):
        model = network().to(dtype)
        assert CALLS[name](model, images()) is not None


def test_several_results_share_a_picture():
    for call in ("probe", "response_std", "gradient_std"):
        first, second = (CALLS[call](network(), images()) for _ in range(2))
        figure = first.plot(name="plain", others={"residual": second})
        assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["plain", "residual"]
        assert first.plot().axes[0].get_legend() is None


# ---- the commands ----


@pytest.fixture
def photos(tmp_path):
    for number in range(6):
        folder = tmp_path / "photos" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise((70, 64), 30 * number + 20, number).convert("RGB").save(folder / f"{number}.png")
    return tmp_path / "photos"


COMMANDS = {
    "filters": ["--compare", "alexnet64", "random"],
    "responses": ["--kind", "conv", "--images", "PHOTOS"],
    "gradients": ["--iterations", "2", "--batch-size", "3", "--kind", "conv", "--images", "PHOTOS"],
    "nearest": ["--query", "0,3", "--k", "2", "--images", "PHOTOS"],
    "invariance": ["--transforms", "scale", "--fill", "edge", "--targets", "1,2,3,4,5,6", "--images", "PHOTOS"],
    "correspondence": ["--parts", "PARTS", "--draws", "2", "--layers", "1,5", "--images", "PHOTOS"],
    "probe": ["--layers", "1,classifier.4", "--folds", "2", "--most", "64", "--images", "PHOTOS"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_prints_numbers_and_writes_picture_and_file(name, photos, tmp_path, capsys):
    parts = tmp_path / "parts.json"
    parts.write_text(json.dumps(PARTS))
    out, kept = tmp_path / "out" / "a.png", tmp_path / "out" / "a.safetensors"
    given = [{"PHOTOS": str(photos), "PARTS": str(parts)}.get(x, x) for x in COMMANDS[name]]
    asked = [name, "zfnet64", "--weights", "random", *given, "--out", str(out), "--save", str(kept), "--quiet"]
    assert cli.main(asked) == 0
    printed = capsys.readouterr()
    assert f"wrote {kept}\nwrote {out}\n" in printed.out and len(printed.out.splitlines()) > 3
    assert "note: zfnet64 has random weights" in printed.err
    assert out.read_bytes().startswith(b"\x89PNG") and kept.exists()


def test_a_command_tells_mistakes_in_one_line(photos, tmp_path, capsys):
    asked = ["correspondence", "zfnet64", "--weights", "random", "--images", str(photos)]
    (tmp_path / "bad.json").write_text("{")
    for parts in ("bad.json", "none.json"):
        assert cli.main([*asked, "--parts", str(tmp_path / parts)]) == 2
        assert "cannot read the parts" in capsys.readouterr().err
    assert cli.main(["filters", "zfnet64", "--weights", "random", "--compare", "zfnet64", "a", "b"]) == 2
    assert "--compare takes MODEL and WEIGHTS" in capsys.readouterr().err


def test_a_query_may_be_a_file(photos, tmp_path, capsys):
    asked = ["nearest", "zfnet64", "--weights", "random", "--images", str(photos), "--out", str(tmp_path / "a.png")]
    assert cli.main([*asked, "--query", str(photos / "cat" / "0.png"), "--quiet"]) == 0
    assert "query 0: 0 cat (" in capsys.readouterr().out


def test_the_same_network_twice_gets_two_names(tmp_path, capsys):
    asked = ["filters", "zfnet64", "--weights", "random", "--compare", "zfnet64", "random", "--quiet"]
    assert cli.main([*asked, "--out", str(tmp_path / "a.png")]) == 0
    assert "zfnet64  zfnet64 random (2)" in capsys.readouterr().out
