"""Takes the picture of the explorer: explorer.png and explorer.json.

    python gallery/scripts/explorer.py [--page report.html]

Without a page it makes the one of zfnet64 with all units. Needs selenium, chromium and chromedriver.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import platform
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from publishing import write

import deconvviz

LAYER, SIZE = 5, (1280, 800)
PHOTO = "hopper"


def make(page: Path) -> None:
    model = deconvviz.zoo.create("zfnet64", weights="bundled")
    deconvviz.report(model, units="all", out=page)


def choose(driver: Any) -> dict[str, Any]:
    """Go to the strongest unit of the layer that answers to more than one photo, `PHOTO` among them."""
    data = json.loads(driver.execute_script("return document.getElementById('data').textContent"))
    layer = next(one for one in data["layers"] if one["number"] == LAYER)
    labels = data["images"]["labels"]
    kinds = [{labels[str(i)] for i in ids} for ids in layer["images"]]
    at = next(i for i, kind in enumerate(kinds) if PHOTO in kind and len(kind) == 2)
    unit = layer["units"][at]
    driver.execute_script(f"location.hash = '#layer/{layer['name']}/{unit}'")
    while driver.execute_script("return document.getElementById('detail').dataset.shown") != f"{LAYER - 1}/{unit}":
        time.sleep(0.1)
    time.sleep(1)  # the list's cards
    return {
        "layer": layer["name"],
        "units": [unit],
        "images": f"{data['images']['count']} windows of the sample photos",
    }


def photographed(page: Path) -> tuple[bytes, dict[str, Any]]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        metrics = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(page.resolve().as_uri())
        facts = choose(driver)
        taken = base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
        name, number = driver.capabilities["browserName"], driver.capabilities["browserVersion"]
        return taken, {**facts, "browser": f"{name} {number}"}
    finally:
        driver.quit()


def reduced(taken: bytes) -> bytes:
    """Return a PNG of 255 colours: those that are frequent, for the page, and those far apart, for the projections."""
    picture = Image.open(io.BytesIO(taken)).convert("RGB")
    colours: list[int] = []
    for count, method in ((128, Image.Quantize.MEDIANCUT), (127, Image.Quantize.MAXCOVERAGE)):
        colours += (picture.quantize(count, method).getpalette() or [])[: 3 * count]
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours)
    buffer = io.BytesIO()
    picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, help="a page of zfnet64 that was made before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        page = options.page or Path(scratch) / "report.html"
        if options.page is None:
            make(page)
        taken, facts = photographed(page)
    conditions = {
        "figure": "explorer.png",
        "model": "zfnet64",
        "weights": "bundled",
        **{key: facts[key] for key in ("layer", "units", "images")},
        "versions": {p: version(p) for p in ("deconvviz", "torch", "selenium")} | {"browser": facts["browser"]},
        "hardware": f"{platform.machine()} CPU",
        "seed": None,
        "command": "python gallery/scripts/explorer.py",
    }
    write("explorer", reduced(taken), conditions)


if __name__ == "__main__":
    main()
