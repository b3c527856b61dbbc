"""The explorer's page: how large it is, how long it takes to make and to load, for the demo and for 5 × 1,000 units.

python benchmarks/report.py [--rounds 7] [--threads 2] [--pages DIR]

Load times are measured in headless Chromium with its own performance API; chromium and chromedriver must be on the PATH.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from conditions import conditions, load, report
from torch import nn

import deconvviz
from deconvviz.images import samples
from deconvviz.images.preprocess import Preprocess

UNITS, IMAGES = 1000, 400
# Sets the address and resolves when the unit's pictures are drawn.
CHOOSE = """
const [hash, shown, done] = arguments, start = performance.now(), detail = document.getElementById("detail");
const look = () => detail.dataset.shown === shown ? done(performance.now() - start) : requestAnimationFrame(look);
location.hash = hash;
look();
"""


def wide() -> nn.Sequential:
    """Return a network of five convolutions with 1,000 units each and random weights; groups keep it fast."""
    torch.manual_seed(0)
    sizes = [(3, 5, 4, 1)] + 4 * [(UNITS, 3, 1, 100)]
    parts: list[nn.Module] = []
    for number, (channels, side, stride, groups) in enumerate(sizes):
        parts += [nn.Conv2d(channels, UNITS, side, stride, side // 2, groups=groups), nn.ReLU()]
        parts += [nn.MaxPool2d(2)] if number in (0, 1) else []
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(UNITS, 10)).eval()


def demo_page(out: Path) -> Path:
    model = deconvviz.zoo.create("zfnet64", weights="bundled")
    return deconvviz.report(model, units="all", out=out / "demo.html", progress=False)


def wide_page(out: Path) -> Path:
    known = Preprocess((64, 64), 64, (0.5,) * 3, (0.5,) * 3)
    windows = samples(64, IMAGES, preprocess=known)
    return deconvviz.report(wide(), windows, units="all", preprocess=known, out=out / "wide.html", progress=False)


def chromium() -> Any:
    """Start headless Chromium."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_window_size(1280, 800)
    driver.set_script_timeout(60)
    return driver


def loading(driver: Any, page: Path) -> tuple[float, float, float]:
    """Load the page; return milliseconds to the first unit, to the whole page, and from a choice to its pictures."""
    driver.get("about:blank")
    driver.get(page.as_uri())
    while not driver.execute_script("return performance.getEntriesByName('deconvviz-first-unit').length"):
        time.sleep(0.05)
    first = driver.execute_script("return performance.getEntriesByName('deconvviz-first-unit')[0].startTime")
    whole = driver.execute_script("return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    layer = "JSON.parse(document.getElementById('data').textContent).layers[4]"
    name, unit = driver.execute_script(f"const l = {layer}; return [l.name, l.units.at(-1)]")
    return first, whole, driver.execute_async_script(CHOOSE, f"#layer/{name}/{unit}", f"4/{unit}")


def row(name: str, make: Any, out: Path, rounds: int) -> str:
    start = time.perf_counter()
    page = make(out)
    made = time.perf_counter() - start
    driver = chromium()
    try:
        loading(driver, page)  # the first start of a browser is another thing
        times = [loading(driver, page) for _ in range(rounds)]
    finally:
        driver.quit()
    first, whole, choice = (statistics.median(t) for t in zip(*times, strict=True))
    size = page.stat().st_size / 1e6
    return f"| {name} | {size:.1f} | {made:.0f} | **{first:,.0f}** | {whole:,.0f} | {choice:,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pages", type=Path, help="keep the pages there")
    options = parser.parse_args()
    text = conditions(options.threads)
    driver = chromium()
    browser = f"{driver.capabilities['browserName']} {driver.capabilities['browserVersion']}"
    driver.quit()
    rows = ["| page | MB | made in s | first unit, ms | whole page, ms | another layer's last unit, ms |"]
    rows.append("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        out = options.pages or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        rows.append(row("demo: zfnet64, 928 units", demo_page, out, options.rounds))
        rows.append(row(f"5 layers × {UNITS:,} units", wide_page, out, options.rounds))
    details = (
        f"{text}; {browser}, headless, 1280×800, pages from local files; {load()}. Medians of {options.rounds} loads after "
        "a first one. *First unit*: from the start of the navigation until a unit's pictures are drawn. *Whole page*: "
        "until all of its pictures are read, which the first unit does not wait for. *Another layer's last unit*: from "
        "the choice of the weakest unit of layer 5 until its eighteen tiles are drawn. The second page is of a network "
        f"with random weights, 64-pixel input and five convolutions of {UNITS:,} units, over {IMAGES} windows of the "
        "sample photos; top 9 of every unit, four occlusion maps."
    )
    report("report", "The explorer's page", details, rows)


if __name__ == "__main__":
    main()
