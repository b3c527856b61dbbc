"""Takes the picture of the explorer: explorer.png and explorer.json.

    python gallery/scripts/explorer.py [--page report.html]

Without a page it makes the one of `deconvviz demo`. Needs selenium, chromium and chromedriver.
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

from deconvviz.cli import demo

NETWORK, LAYER, UNIT, SIZE = "squeezenet-1.1", 4, 185, (1400, 900)


def make(folder: Path) -> Path:
    """Make the demo, whose page it is."""
    demo.run(folder, network=NETWORK)
    return folder / demo.EXPLORER


def choose(driver: Any) -> dict[str, Any]:
    """Go to the unit."""
    data = json.loads(driver.execute_script("return document.getElementById('data').textContent"))
    layer = next(one for one in data["layers"] if one["number"] == LAYER)
    driver.execute_script(f"location.hash = '#layer/{layer['name']}/{UNIT}'")
    while driver.execute_script("return document.getElementById('detail').dataset.shown") != f"{LAYER - 1}/{UNIT}":
        time.sleep(0.1)
    driver.execute_script("document.getElementById('smooth').click()")
    time.sleep(1.5)  # the list's cards
    return {
        "layer": layer["name"],
        "units": [UNIT],
        "images": f"the {data['images']['count']} sample photos, each once",
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
    parser.add_argument("--page", type=Path, help="the demo's report.html, made before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        page = options.page or make(Path(scratch))
        taken, facts = photographed(page)
    conditions = {
        "figure": "explorer.png",
        "model": NETWORK,
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
