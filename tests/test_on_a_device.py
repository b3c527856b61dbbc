"""Every public function on the simulated device: where the model is, the images are or both, the values are the CPU's."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from simulated_device import OnDevice, simulated
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import deconvviz

SIDE = 16
SPEC = {"progress": False}


class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))


class Block(nn.Module):
    def __init__(self, inputs, channels, stride):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, 1, 1), nn.GroupNorm(2, channels)
        self.gate = Gate(channels)
        self.short = nn.Conv2d(inputs, channels, 1, stride)

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.gelu(self.gate(self.norm2(self.conv2(y))) + self.short(x))


class Network(nn.Module):
    """What makes devices meet: gates, norms, pools of both kinds, a buffer that counts."""

    def __init__(self):
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 5, 2, 2), nn.MaxPool2d(3, 2, 1)
        self.block1, self.block2 = Block(8, 8, 1), Block(8, 12, 2)
        self.last, self.head = nn.AdaptiveMaxPool2d(2), nn.Linear(48, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        x = self.pool(F.relu(self.stem(x)))
        return self.head(self.last(self.block2(self.block1(x))).flatten(1))


def network():
    """In float64, where no order of a sum moves a switch."""
    torch.manual_seed(5)
    model = Network().double().eval()
    with torch.no_grad():
        model.block1.norm1.running_mean.normal_()
        model.head.weight.mul_(5)
    return model


def images(count=6):
    x = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return (x * 255).round() / 255


def prepared(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


# What is called with (model, images, a folder to write to); all give the same wherever the two are.
CALLS = {
    "layers": lambda m, x, p: str(deconvviz.layers(m, SIDE)),
    "audit": lambda m, x, p: str(deconvviz.audit(m, x)),
    "deconv": lambda m, x, p: deconvviz.deconv(m, x, layer="block2", unit=3),
    "deconv of the classifier": lambda m, x, p: deconvviz.deconv(m, x, layer="head", unit=3, rule="guided"),
    "project": lambda m, x, p: deconvviz.project(m, x, layer="block1", top=3, **SPEC),
    "project of all units": lambda m, x, p: deconvviz.project(
        m, x, layer="block2", units="all", k=3, rule="backprop", batch_size=4, **SPEC
    ),
    "project into a file": lambda m, x, p: deconvviz.project(m, x, layer="stem", top=2, out=p / "project", **SPEC),
    "top": lambda m, x, p: deconvviz.top(m, x, layers=["stem", "block2", "head"], k=3, batch_size=4, **SPEC),
    "top into a file": lambda m, x, p: deconvviz.top(m, x, layers=["block1"], out=p / "top", **SPEC),
    "occlude": lambda m, x, p: deconvviz.occlude(m, x, size=8, stride=4, layer="block2", **SPEC),
    "occlude in full": lambda m, x, p: deconvviz.occlude(m, x, size=8, stride=8, method="full", fill="blur", **SPEC),
    "occlude by masks": lambda m, x, p: deconvviz.occlude(m, x, masks=masks(), target=1, **SPEC),
    "occlude coarsely": lambda m, x, p: deconvviz.occlude(m, x, size=8, stride=4, refine=2, fill=0.25, **SPEC),
    "occlude with others": lambda m, x, p: deconvviz.occlude(m, x, size=12, layer="block1", others=x, **SPEC),
    "response_std": lambda m, x, p: deconvviz.response_std(m, x, layers=["stem", "block2"], batch_size=4, **SPEC),
    "gradient_std": lambda m, x, p: deconvviz.gradient_std(
        m, x, labels=[0, 1] * 3, layers=["stem", "block2"], iterations=2, batch_size=4, **SPEC
    ),
    "residual_share": lambda m, x, p: deconvviz.residual_share(m, x, batch_size=4, **SPEC),
    "invariance": lambda m, x, p: deconvviz.invariance(
        m, x, layers=["block1", "last"], transforms=MOVES, fill="edge", **SPEC
    ),
    "correspondence": lambda m, x, p: deconvviz.correspondence(
        m, x, parts={"eye": [(2, 2, 9, 9)] * len(images())}, layers=["block2"], draws=2, **SPEC
    ),
    "nearest": lambda m, x, p: deconvviz.nearest(m, x, query=[0, 3], layer="block2", k=3, **SPEC),
    "filters": lambda m, x, p: deconvviz.filters(m, x, **SPEC),
    "compare_filters": lambda m, x, p: deconvviz.compare_filters({"a": m, "b": m}, x, **SPEC).filters,
    "compare_methods": lambda m, x, p: deconvviz.compare_methods(
        m, x, target=2, layer="block2", size=8, stride=8, steps=2, stages=1, **SPEC
    ),
    "probe": lambda m, x, p: deconvviz.probe(m, x, labels=[0, 1] * 3, layers=["block2"], folds=2, **SPEC),
    "report": lambda m, x, p: len(
        deconvviz.report(
            m, x, layers=["block1"], units=[0], k=1, occlusion=1, out=p / "report.html", **SPEC
        ).read_text()
    ) > 10_000,
}  # fmt: skip
MOVES = {"vertical": [0, 2], "rotation": [30]}
ONE_IMAGE = ("occlude", "compare_methods")


def masks():
    return torch.rand(5, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) > 0.5


def fit(name, x):
    return x[:1] if name.startswith(ONE_IMAGE) else x


def same(found, expected, share=1e-7):
    """Compare results field by field, within a share of the largest number; nothing in them is on the device."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        if expected.is_floating_point():
            most = float(expected.nan_to_num().abs().amax()) if expected.numel() else 0.0
            torch.testing.assert_close(found, expected, rtol=0, atol=share * max(most, 1.0), equal_nan=True)
        else:
            assert torch.equal(found, expected)
    elif dataclasses.is_dataclass(expected):
        assert type(found) is type(expected)
        for field in dataclasses.fields(expected):
            if field.name not in ("scan", "preprocess"):  # a hash that says which device it was
                same(getattr(found, field.name), getattr(expected, field.name), share)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            same(found[key], expected[key], share)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            same(a, b, share)
    else:
        assert found == expected or found is expected or (found != found and expected != expected)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the CPU gives, worked out when it is asked for."""
    known = {}

    def of(name):
        if name not in known:
            torch.manual_seed(0)
            known[name] = CALLS[name](network(), fit(name, images()), tmp_path_factory.mktemp("cpu"))
        return known[name]

    return of


@pytest.mark.parametrize("places", ["both there", "the model there", "the images there"])
@pytest.mark.parametrize("name", CALLS)
def test_tensors(name, places, expected, tmp_path):
    wanted = expected(name)
    torch.manual_seed(0)
    with simulated() as device:
        model = network() if places == "the images there" else network().to("cuda")
        x = images() if places == "the model there" else images().to("cuda")
        before = {key: value.cpu() for key, value in model.state_dict().items()}
        found = CALLS[name](model, fit(name, x), tmp_path)
        if name.startswith("deconv"):  # the one result that stays where the model is
            assert type(found) is (OnDevice if places != "the images there" else torch.Tensor)
            found = found.cpu()
        assert all(torch.equal(value.cpu(), before[key]) for key, value in model.state_dict().items())
        assert device.kernels.total() or name == "layers"
        same(found, wanted)


WITHOUT_FLOAT64 = "deconv project top occlude response_std invariance correspondence nearest compare_methods".split()


@pytest.mark.parametrize("name", WITHOUT_FLOAT64)
def test_a_device_that_has_no_float64(name, tmp_path):
    torch.manual_seed(0)
    wanted = CALLS[name](network().float(), fit(name, images()), tmp_path)
    torch.manual_seed(0)
    with simulated("mps"):
        found = CALLS[name](network().float().to("mps"), fit(name, images()).to("mps"), tmp_path)
        found = found.cpu() if isinstance(found, torch.Tensor) else found
        same(found, wanted, share=1024 * torch.finfo(torch.float32).eps)  # seven layers of sums of up to 100 terms


# What makes do with smaller batches; each call is as small as it can be and still has batches to halve.
TIGHT = {
    "deconv": lambda m, x, p: deconvviz.deconv(m, x, layer="block1", unit=3, **SPEC),
    "project": lambda m, x, p: deconvviz.project(m, x, layer="block1", units=[0, 1], k=3, **SPEC),
    "project the maps' every unit": lambda m, x, p: deconvviz.project(m, x, layer="stem", units="all", k=4, **SPEC),
    "top": lambda m, x, p: deconvviz.top(m, x, layers=["stem"], k=2, **SPEC),
    "occlude": lambda m, x, p: deconvviz.occlude(m, x[:1], size=8, stride=8, layer="stem", **SPEC),
    "occlude in full": lambda m, x, p: deconvviz.occlude(m, x[:1], size=8, stride=8, method="full", **SPEC),
    "evidence": lambda m, x, p: deconvviz.evidence(m, x[:2], layer="block1", units=[1], k=1, size=9, **SPEC),
    "evidence in full": lambda m, x, p: deconvviz.evidence(
        m, x[:2], layer="block1", units=[1], k=1, size=9, method="full", **SPEC
    ),
    "response_std": lambda m, x, p: deconvviz.response_std(m, x, layers=["stem"], **SPEC),
    "invariance": lambda m, x, p: deconvviz.invariance(m, x[:1], layers=["stem"], transforms=MOVES, **SPEC),
    "correspondence": lambda m, x, p: deconvviz.correspondence(
        m, x[:4], parts={"eye": [(2, 2, 9, 9)] * 4}, layers=["stem"], draws=1, **SPEC
    ),
    "maximize": lambda m, x, p: deconvviz.maximize(
        m, layer="stem", units=[0, 1, 2], input_size=(3, SIDE, SIDE), steps=2, robust=False, **SPEC
    ),
    "invert": lambda m, x, p: deconvviz.invert(m, x[0], layer=["stem"], starts=3, steps=2, **SPEC),
    "report": lambda m, x, p: (
        deconvviz.report(m, x, layers=["stem"], units=[0], k=2, occlusion=0, out=p / "a.html", **SPEC)
        .read_text()
        .partition("data")[2]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TIGHT)
def test_where_memory_does_not_suffice_batches_are_halved(name, tmp_path):
    found = []
    for folder in ("wide", "tight"):
        (tmp_path / folder).mkdir()
        torch.manual_seed(0)
        with simulated() as device:
            model = network()
            model.stem.stride = 1, 1  # its maps are larger than the images, as they are in most networks
            model.card = deconvviz.zoo.Card("network", "", input_size=(SIDE, SIDE))
            model, x = model.to("cuda"), images(6).double().to("cuda")
            device.largest, device.limit = 0, found[0][1] - 1 if found else 0
            result = TIGHT[name](model, x, tmp_path / folder)
            result = result.cpu() if isinstance(result, torch.Tensor) else result
            found.append((result, device.largest))
    (wanted, most), (result, tight) = found
    assert tight < most
    same(result, wanted)


def folder_of(path: Path) -> Path:
    for i, x in enumerate(images()):
        (path / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray((x * 255).byte().permute(1, 2, 0).numpy()).save(path / "ab"[i % 2] / f"{i}.png")
    return path


KINDS = {
    "a folder": lambda path: folder_of(path / "photos"),
    "pictures": lambda path: [Image.open(p).convert("RGB") for p in sorted(folder_of(path / "photos").rglob("*.png"))],
    "a dataset": lambda path: TensorDataset(images()),
    "a dataset of the device": lambda path: TensorDataset(images().to("cuda")),
    "a loader": lambda path: DataLoader(TensorDataset(images(), torch.arange(6)), batch_size=4),
    "a loader of the device": lambda path: DataLoader(TensorDataset(images().to("cuda")), batch_size=4, shuffle=True),
}


# `project` opens an image twice, for the scan and for its patch; the others walk the same scan.
@pytest.mark.parametrize(
    ("name", "kind"),
    [("project", kind) for kind in KINDS]
    + [(name, kind) for name in ("top", "response_std") for kind in ("a folder", "a loader of the device")],
)
def test_other_kinds_of_images(name, kind, tmp_path):
    call = {
        "project": lambda m, x, **o: deconvviz.project(m, x, layer="block1", top=2, **o, **SPEC),
        "top": lambda m, x, **o: deconvviz.top(m, x, layers=["block2"], k=2, **o, **SPEC),
        "response_std": lambda m, x, **o: deconvviz.response_std(m, x, layers=["block2"], **o, **SPEC),
    }[name]
    options = {"preprocess": prepared} if kind in ("a folder", "pictures") else {}
    with simulated():
        given = KINDS[kind](tmp_path)
        wanted = call(network(), given, **options)
        same(call(network().to("cuda"), given, **options), wanted)


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, noise = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for label, shade in (("dark", 70), ("light", 150)):
        (folder / label).mkdir()
        for i in range(12):
            pixels = noise.normal(shade, 50, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def small():
    torch.manual_seed(2)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(8, 2))


def trained(model, data, out, **options):
    options = {"epochs": 3, "batch_size": 8, "lr": 0.05, "image_size": 14, "validation": 0.25, **SPEC, **options}
    return deconvviz.train(model, data, out=out, **options)


def losses(result):
    return [(epoch.train_loss, epoch.val_loss, epoch.train_accuracy, epoch.top1) for epoch in result.history]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_a_killed_training_goes_on_as_if_nothing_had_been(data, tmp_path, dtype):
    def kill(model, epoch):
        if epoch == 2:
            raise KeyboardInterrupt

    with simulated():
        whole = trained(small(), data, tmp_path / "whole", dtype=dtype, device="cuda")
        with pytest.raises(KeyboardInterrupt):
            trained(small(), data, tmp_path / "killed", dtype=dtype, device="cuda", on_epoch=kill)
        seen = []
        again = trained(
            small(), data, tmp_path / "killed", dtype=dtype, device="cuda", on_epoch=lambda m, e: seen.append(e)
        )
    assert seen == [2, 3] and losses(again) == losses(whole)
    assert again.weights.read_bytes() == whole.weights.read_bytes()


@pytest.mark.parametrize("recipe", ["modern", "paper", "cifar"])  # crops inside, a clamp, a border of the mean
def test_a_training_in_float32_is_the_cpu_s(data, tmp_path, recipe):
    model = small()
    model[5].p = 0.0  # a GPU's random numbers are its own
    wanted = losses(trained(copy.deepcopy(model), data, tmp_path / "cpu", recipe=recipe, epochs=2, device="cpu"))
    for free in (60 << 30, 1000):  # the images fit, or stay with the CPU
        with simulated(free=free):
            found = losses(trained(copy.deepcopy(model), data, tmp_path / f"{free}", recipe=recipe, epochs=2))
        assert np.allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("home", ["cpu", "cuda"])
def test_a_module_comes_home_with_its_parameters(data, tmp_path, home):
    with simulated():
        model = small().to(home)
        parameters = list(model.parameters())
        recorder = deconvviz.Recorder(
            tmp_path / "kept", torch.rand(4, 3, 14, 14), layers=["0"], units=[0, 1], epochs=(1, 2)
        )
        trained(model, data, tmp_path / "out", epochs=2, device="cuda", recorder=recorder)
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        assert {p.device.type for p in model.parameters()} == {home}
    assert deconvviz.Recording.load(tmp_path / "kept").epochs == (1, 2)
