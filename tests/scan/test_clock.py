"""A pass says what bounds it, and at which rates its parts could go."""

import logging
import re
import time

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import deconvviz
from deconvviz.images import Preprocess
from deconvviz.images.spent import Spent
from deconvviz.scan.clock import Clock


class Slow(Dataset):
    """Takes a while for each picture."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def __len__(self):
        return 8

    def __getitem__(self, i):
        time.sleep(self.seconds)
        return Image.new("RGB", (8, 8), (i, 0, 0))


def slowly(picture):
    time.sleep(0.02)
    return torch.full((3, 8, 8), float(picture.getpixel((0, 0))[0]))


def quickly(picture):
    return torch.full((3, 8, 8), float(picture.getpixel((0, 0))[0]))


def run(data, transform):
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()).eval()
    return deconvviz.top(model, data, layers=[1], k=1, preprocess=Preprocess(None, transform=transform), batch_size=1)


@pytest.mark.parametrize(("seconds", "transform", "named"), [(0.02, quickly, "decoding"), (0, slowly, "preprocessing")])
def test_what_bounds_a_pass_is_on_its_line_and_its_rates_on_request(seconds, transform, named, capsys, caplog):
    with caplog.at_level(logging.INFO, logger="deconvviz"):
        run(Slow(seconds), transform)
    line = capsys.readouterr().err
    assert re.search(rf"{named} bounds it: \d+% of the time waits for images; workers= may help", line)
    (record,) = [r for r in caplog.records if "images a second" in r.getMessage()]
    rates = dict(
        zip(
            ("decoding", "preprocessing"),
            re.findall(r"(?:decode|preprocess) ([\d,]+)", record.getMessage()),
            strict=True,
        )
    )
    assert int(rates[named].replace(",", "")) <= 50  # 20 ms for each
    assert "top: 8 images" in record.getMessage()


def test_a_pass_that_does_not_wait_says_nothing(capsys):
    clock = Clock()
    for _ in clock.watched(iter(range(6))):
        time.sleep(0.002)
    assert clock.share < 0.5 and clock.note(Spent(6, 1.0, 0.2), 0) == ""


def test_shares_are_of_all_batches_but_the_first():
    clock = Clock()

    def batches():
        for i in range(5):
            time.sleep(0.2 if i == 0 else 0.01)
            yield i

    start = time.perf_counter()
    assert list(clock.watched(batches())) == list(range(5))
    assert 0.04 <= clock.waiting <= time.perf_counter() - start - 0.2
    assert (
        clock.note(Spent(5, 1.0, 0.9), 2)
        == f"preprocessing bounds it: {clock.share:.0%} of the time waits for images; more workers may help"
    )
