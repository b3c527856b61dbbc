"""The GPU table's script runs, at toy size on the CPU: every row has numbers, and shares of the device's own limit."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    pytest.importorskip("captum")  # its version is among the conditions
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("gpu_benchmark", BENCHMARKS / "gpu.py")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))
        del sys.modules["gpu_benchmark"]


def test_the_table_has_a_row_for_each_work(gpu, tmp_path, monkeypatch, capsys):
    out = tmp_path / "gpu.md"
    gpu.main(["--toy", "--device", "cpu", "--rounds", "1", "--out", str(out)])
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    kinds = ["scan", "projection", "projection", "occlusion", "occlusion", "training"]
    assert [row[0].split(",")[0] for row in rows[2:]] == kinds
    for row in rows[2:]:
        assert float(row[2]) > 0 and float(row[3].replace(",", "")) > 0
        assert re.fullmatch(r"\*\*\d+\.\d%\*\*", row[5])
    speeds = {row[0]: float(row[4]) for row in rows[2:]}
    assert all(speed >= 0 for speed in speeds.values())
    assert out.read_text() in capsys.readouterr().out


def test_bytes_on_the_device_are_what_the_network_gets(gpu):
    pixels = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    source = gpu.Bytes(pixels)
    for ids in ([1, 2, 3], [4, 0]):
        assert torch.equal(source[ids], (pixels[ids].float() - 127.5) / 58)


def test_the_arithmetic_that_is_counted_is_that_of_the_layers(gpu):
    model, batch = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 10, 10)
    cells = gpu.row("one", 2, "images", lambda: model(batch), 1.0, "cpu", 1)
    with FlopCounterMode(display=False) as counter:
        model(batch)
    assert counter.get_total_flops() == 2 * 2 * 4 * 8 * 8 * 27
    assert cells[1] == "2 images" and float(cells[3].replace(",", "")) == pytest.approx(2 / float(cells[2]), rel=0.1)
