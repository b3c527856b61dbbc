"""The explorer in a real Chromium, at the size of a desktop and of a phone. Skipped only where there is no Chromium."""

from __future__ import annotations

import base64
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pictures import noise
from PIL import Image
from report_helpers import Net

import deconvviz

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="no Chromium with chromedriver on the PATH: apt-get install chromium chromium-driver",
)
SIZES = {"desktop": (1400, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    for i, (label, shade) in enumerate((("cats", 40), ("cats", 90), ("dogs", 140), ("dogs", 200), ("owls", 240))):
        (folder / label).mkdir(exist_ok=True)
        noise((30, 40), shade, i).convert("RGB").save(folder / label / f"{label}-{i}.png")
    names = ["<b>first</b>", "second", "third", "fourth"]
    options = {"layers": [1, 2], "k": 4, "class_names": names, "maximize": 2, "progress": False}
    known = deconvviz.images.Preprocess((40, 30), 30, (0.0,) * 3, (1.0,) * 3)
    return deconvviz.report(Net(), folder, preprocess=known, **options, out=folder / "page.html")


class Reader:
    """A browser with the page open, and what a reader does with it."""

    def __init__(self, page: Path, size: str) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = str(BROWSER)
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        self.narrow = size == "phone"
        width, height = SIZES[size]
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": self.narrow}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.page = page.as_uri()
        self.open()

    def open(self, place: str = "") -> None:
        """Load the page anew, at what follows the #."""
        self.driver.get("about:blank")  # else a change of the address after the # loads nothing
        self.driver.get(self.page + place)

    def js(self, script: str) -> object:
        return self.driver.execute_script(f"return {script}")

    def until(self, script: str) -> object:
        """Wait until a JavaScript expression is true; return its value."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 20).until(lambda _: self.js(script), script)

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()

    def shown(self) -> str:
        """Return what the detail shows, as layer/unit, once it is drawn."""
        return str(self.until("(location.hash, document.getElementById('detail').dataset.shown)"))

    def picture(self, selector: str) -> str:
        """Return a canvas's pixels, once it has some."""
        self.until(f"document.querySelector('{selector}').width > 0")
        return str(self.js(f"document.querySelector('{selector}').toDataURL()"))

    def complaints(self) -> list[str]:
        """Return all that the console says, and all that was fetched but the page."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return said + [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))]


@pytest.fixture(scope="module", params=SIZES)
def browser(page: Path, request: pytest.FixtureRequest) -> Iterator[Reader]:
    one = Reader(page, request.param)
    yield one
    one.driver.quit()


@pytest.fixture
def reader(browser: Reader) -> Iterator[Reader]:
    browser.complaints()
    browser.open("#layer/features.1")
    yield browser
    assert browser.complaints() == []


@pytest.fixture
def opened(browser: Reader) -> Iterator[Reader]:
    """The page as it opens."""
    browser.complaints()
    browser.open()
    yield browser
    assert browser.complaints() == []


@pytest.fixture(scope="module")
def numbers(page: Path) -> list[dict]:
    text = page.read_text(encoding="utf-8")
    return json.loads(text.split('id="data">')[1].split("</script>")[0])["layers"]


def open_unit(reader: Reader, layer: dict, place: int) -> None:
    reader.click(f"#cards li:nth-child({place + 1}) a")
    reader.until(f"document.getElementById('unit').textContent == 'Unit {layer['units'][place]}'")


def test_it_opens_on_telling_units_of_each_layer(opened, numbers):
    cards = opened.js("[...document.querySelectorAll('.glance-card')].map(a => a.getAttribute('href'))")
    expected = [f"#layer/{layer['name']}/{unit}" for layer in reversed(numbers) for unit in layer["highlights"]]
    assert cards == expected and len(cards) == 6
    kinds = [
        opened.picture(f".glance-card canvas[data-kind={kind}]") for kind in ("patches", "evidence", "projections")
    ]
    assert len(set(kinds)) == 3
    opened.until("performance.getEntriesByName('deconvviz-first-unit').length")
    opened.click(".glance-card")
    opened.until(f"document.getElementById('unit').textContent == 'Unit {numbers[1]['highlights'][0]}'")
    assert opened.js("document.querySelector('#evidence').closest('figure').hidden") is False


def test_a_unit_without_evidence_says_whose_was_measured(reader, numbers):
    layer = numbers[0]
    place = next(at for at, unit in enumerate(layer["units"]) if str(unit) not in layer["evidence"]["units"])
    open_unit(reader, layer, place)
    reader.until("document.getElementById('no-evidence').textContent.startsWith('Evidence was measured of 3 units')")
    assert reader.js("document.querySelector('#evidence').closest('figure').hidden") is True


def test_evidence_fades_what_changes_nothing(reader, numbers):
    layer = numbers[1]
    unit = layer["highlights"][0]
    reader.driver.execute_script(f"location.hash = '#layer/{layer['name']}/{unit}'")
    reader.until(f"document.getElementById('detail').dataset.shown == '1/{unit}'")
    assert reader.picture("#evidence button canvas") != reader.picture("#patches button canvas")
    rows, cols = layer["evidence"]["places"]
    shares = base64.b64decode(layer["evidence"]["units"][str(unit)]["maps"])
    assert len(shares) == 4 * rows * cols and max(shares) == 255
    # Where a place counts for nothing the tile is light gray, where it counts for most it has the patch's colours.
    read = """(() => {
        const pixels = (group) => { const canvas = document.querySelector(`#${group} button canvas`);
          return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]; };
        const [patch, shown] = [pixels('patches'), pixels('evidence')];
        return patch.map((value, i) => [value, shown[i]]).filter((_, i) => i % 4 < 3); })()"""
    moved = [(shown - patch) / (209 - patch) for patch, shown in reader.js(read) if abs(209 - patch) > 60]
    assert -0.05 < min(moved) < 0.75 and max(moved) < 0.92


def test_optimized_images_stand_beside(reader, numbers):
    layer = numbers[1]
    unit = layer["highlights"][0]
    reader.driver.execute_script(f"location.hash = '#layer/{layer['name']}/{unit}'")
    reader.until(f"document.getElementById('detail').dataset.shown == '1/{unit}'")
    buttons = reader.js("[...document.querySelectorAll('#optimized button')].map(b => b.getAttribute('aria-label'))")
    reached = layer["optimized"]["units"][str(unit)]["activations"]
    assert len(buttons) == 4 and buttons[2].startswith(f"Optimized image 3 of 4: activation {reached[2]:.3g}"[:40])
    pictures = {reader.picture(f"#optimized button:nth-child({n}) canvas") for n in range(1, 5)}
    assert len(pictures) == 4
    reader.click("#optimized button:nth-child(3)")
    reader.until(f"document.getElementById('large').dataset.shown == '1/{unit}/2'")
    assert reader.js("document.getElementById('large-title').textContent") == f"Unit {unit}, optimized image 3 of 4"
    assert reader.js("document.querySelectorAll('#large-tiles figure').length") == 1
    reader.press("\ue00c")  # Escape
    other = next(u for u in layer["units"] if str(u) not in layer["optimized"]["units"])
    reader.driver.execute_script(f"location.hash = '#layer/{layer['name']}/{other}'")
    reader.until(
        "document.getElementById('about-optimized').textContent.startsWith('Optimized images were made for 2')"
    )
    assert reader.js("document.querySelector('#optimized').closest('figure').hidden") is True


def test_the_first_unit_is_shown_and_the_moment_is_marked(reader, numbers):
    reader.until("performance.getEntriesByName('deconvviz-first-unit').length")
    assert reader.js("document.querySelectorAll('#cards li').length") == 8
    assert reader.picture("#cards li:first-child canvas").startswith("data:image/png")
    assert reader.js("document.getElementById('count').textContent") == "8 units"
    assert reader.js("getComputedStyle(document.getElementById('detail')).display == 'none'") is reader.narrow


def test_choosing_a_layer_and_a_unit_changes_the_pictures(reader, numbers):
    open_unit(reader, numbers[0], 0)
    assert reader.shown().startswith("0/")
    tile, before = "#projections button:first-child canvas", []
    before.append(reader.picture(tile))
    reader.click("#tabs a:nth-child(3)")
    reader.until("document.querySelectorAll('#cards li').length == 12")
    open_unit(reader, numbers[1], 2)
    reader.until(f"document.getElementById('detail').dataset.shown == '1/{numbers[1]['units'][2]}'")
    before.append(reader.picture(tile))
    assert before[0] != before[1]
    assert reader.picture("#patches button:first-child canvas") not in before
    label = reader.js("document.querySelector('#projections button').getAttribute('aria-label')")
    assert label.startswith("Projection 1 of 4: ") and "activation" in label


def test_a_tile_shows_its_whole_image_with_the_box(reader, numbers):
    open_unit(reader, numbers[0], 1)
    whole = reader.picture("#image")
    for number, selector in ((2, "#patches button:nth-child(2)"), (3, "#bars button:nth-child(3)")):
        reader.click(selector)
        reader.driver.execute_script("document.getElementById('large').close()")
        assert reader.js("document.getElementById('which').textContent") == f"Image {number} of 4"
        top, left, bottom, right = numbers[0]["boxes"][1][number - 1]
        box = reader.js(
            "(({top, left, height, width}) => [top, left, height, width])(document.getElementById('box').style)"
        )
        expected = (top / 40, left / 30, (bottom - top) / 40, (right - left) / 30)
        assert [float(edge.rstrip("%")) / 100 for edge in box] == pytest.approx(expected, abs=1e-4)
        pressed = "[...document.querySelectorAll('#projections button')].map(b => b.getAttribute('aria-pressed'))"
        assert reader.js(pressed).index("true") == number - 1
    if numbers[0]["images"][1][0] != numbers[0]["images"][1][2]:
        reader.until(f"document.getElementById('image').toDataURL() != '{whole}'")


def test_stretching_shows_weak_projections_and_back(reader, numbers):
    open_unit(reader, numbers[0], 0)
    reader.shown()
    weakest = min(range(4), key=lambda i: numbers[0]["contrasts"][0][i])
    tile = f"#projections button:nth-child({weakest + 1}) canvas"
    shared = reader.picture(tile)
    reader.press("s")
    reader.until(f"document.querySelector('{tile}').toDataURL() != '{shared}'")
    reader.press("s")
    reader.until(f"document.querySelector('{tile}').toDataURL() == '{shared}'")


def test_sorting_and_the_kind_of_picture(reader, numbers):
    reader.driver.execute_script(
        "const s = document.getElementById('sort'); s.value = 'number'; s.dispatchEvent(new Event('change'))"
    )
    units = "[...document.querySelectorAll('#cards a')].map(a => Number(a.dataset.unit))"
    assert reader.js(units) == list(range(8)) != numbers[0]["units"]
    projections = reader.picture("#cards li:first-child canvas")
    reader.click("#side label:nth-child(3)")
    reader.until(f"document.querySelector('#cards li:first-child canvas').toDataURL() != '{projections}'")


def test_the_keyboard_reaches_units_layers_and_images(reader, numbers):
    from selenium.webdriver.common.keys import Keys

    first, second = numbers[0]["units"][:2]
    reader.press(Keys.ARROW_RIGHT)
    reader.until(
        f"location.hash.endsWith('/{second}') && document.getElementById('unit').textContent == 'Unit {second}'"
    )
    reader.press(Keys.ARROW_LEFT)
    reader.until(f"document.getElementById('unit').textContent == 'Unit {first}'")
    reader.press("3")
    assert reader.js("document.getElementById('which').textContent") == "Image 3 of 4"
    reader.press(Keys.ARROW_DOWN)
    reader.until("document.querySelector('#tabs [aria-current]').textContent == 'Layer 2'")
    reader.press(Keys.ARROW_UP)
    reader.until("document.querySelector('#tabs [aria-current]').textContent == 'Layer 1'")
    reader.press("?")
    assert reader.until("document.getElementById('help').open")
    reader.press(Keys.ESCAPE)
    reader.until("!document.getElementById('help').open")
    if reader.narrow:
        reader.until("document.body.classList.contains('one')")
        reader.press(Keys.ESCAPE)
        reader.until("!document.body.classList.contains('one')")


@pytest.mark.parametrize(
    ("query", "hash_ends", "text"),
    [
        ("2/5", "/5", "Unit 5"),
        ("2:5", "/5", "Unit 5"),
        ("unit 5", "/5", "Unit 5"),
        ("OWLS-4.png", "", "Unit"),
        ("layer 2", "#layer/features", "Layer 2"),
        ("occl", "#occlusion", "Occlusion"),
        ("owls", "", "Unit"),
    ],
)
def test_search(reader, query, hash_ends, text):
    from selenium.webdriver.common.keys import Keys

    reader.press("/")
    reader.press(query)
    assert reader.until("document.querySelector('#found [aria-selected=true] b').textContent").startswith(text)
    if query == "owls":
        assert "match" in reader.js("document.querySelector('#found [aria-selected=true] span').textContent")
    reader.press(Keys.ENTER)
    reader.until(f"location.hash.length > 1 && location.hash.endsWith('{hash_ends}')")
    assert reader.js("document.getElementById('found').hidden")


@pytest.fixture
def altered(reader, page, numbers) -> Reader:
    """A page with a small effective field, and an image that is called "128px"; the fixture `reader` looks at it."""
    text = page.read_text(encoding="utf-8")
    before, data, after = re.split(r'(?<=id="data">)(.*?)(?=</script>)', text, maxsplit=1, flags=re.S)
    changed = json.loads(data)
    unit = numbers[1]["highlights"][0]
    changed["layers"][1]["evidence"]["units"][str(unit)]["field"] = [1, 1, 4, 4]
    first = next(iter(changed["images"]["names"]))
    changed["images"]["names"][first] = "a piece, 128px"
    other = page.with_name("altered.html")
    other.write_text("".join([before, json.dumps(changed).replace("<", "\\u003c"), after]), encoding="utf-8")
    reader.driver.get(other.as_uri() + f"#layer/{numbers[1]['name']}/{unit}")
    reader.until(f"document.getElementById('detail').dataset.shown == '1/{unit}'")
    return reader


def test_a_number_is_no_part_of_a_longer_one(altered):
    matches = "[...document.querySelectorAll('#found span')].filter(note => note.textContent.includes('match')).length"
    altered.press("/")
    altered.press("12")
    altered.until("!document.getElementById('found').hidden")
    assert altered.js(matches) == 0
    altered.press("8")
    altered.until(matches)


def test_tiles_can_be_cropped_to_what_the_unit_responds_to(altered):
    tiles = [f"#{kind} button:first-child canvas" for kind in ("patches", "evidence", "projections")]
    usual = [altered.picture(tile) for tile in tiles]
    for expected in (False, True):
        altered.driver.execute_script("document.getElementById('crop').click()")
        for tile, before in zip(tiles, usual, strict=True):
            sign = "==" if expected else "!="
            altered.until(f"document.querySelector('{tile}').toDataURL() {sign} '{before}'")


def telling(reader: Reader, layer: dict) -> int:
    """Go to a unit of the second layer whose evidence was measured."""
    unit = layer["highlights"][0]
    reader.driver.execute_script(f"location.hash = '#layer/{layer['name']}/{unit}'")
    reader.until(f"document.getElementById('detail').dataset.shown == '1/{unit}'")
    return unit


def test_a_press_on_a_tile_shows_it_large_and_it_is_left_with_escape(reader, numbers):
    from selenium.webdriver.common.keys import Keys

    layer = numbers[1]
    unit = telling(reader, layer)
    reader.click("#evidence button:nth-child(2)")
    reader.until(f"document.getElementById('large').dataset.shown == '1/{unit}/1'")
    assert reader.js("document.getElementById('large').open")
    sizes = reader.js("[...document.querySelectorAll('#large-tiles canvas')].map(c => [c.height, c.width])")
    small = reader.js("document.querySelector('#evidence canvas').width")
    high, wide = layer["pixels"]
    assert len(sizes) == 3 and all(h % high == 0 and w % wide == 0 and w >= 4 * small for h, w in sizes)
    tiles = [reader.picture(f"#large-tiles figure:nth-child({n}) canvas") for n in (1, 2, 3)]
    assert len(set(tiles)) == 3
    reader.press(Keys.ESCAPE)
    reader.until("!document.getElementById('large').open")


def on_white(path: Path) -> Image.Image:
    """A picture with white where it is transparent: between a block's tiles."""
    with Image.open(path) as found:
        picture = found.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def test_a_tile_a_block_and_the_figure_are_saved(reader, numbers, tmp_path):
    layer = numbers[1]
    unit = telling(reader, layer)
    allowed = {"behavior": "allow", "downloadPath": str(tmp_path)}
    reader.driver.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
    press = "document.querySelector('{}').click()".format
    for button in ("[data-block=evidence]", "[data-block=all]", "#projections button:nth-child(3)"):
        reader.driver.execute_script(press(button))
    reader.until(f"document.getElementById('large').dataset.shown == '1/{unit}/2'")
    reader.driver.execute_script(press("#large-tiles [data-kind=patches]"))
    names = [f"layer-2-unit-{unit}{end}.png" for end in ("-evidence", "", "-patches-3")]
    end = time.monotonic() + 20
    while not all((tmp_path / name).exists() for name in names):
        assert time.monotonic() < end, list(tmp_path.iterdir())
        time.sleep(0.05)
    block, figure, tile = (on_white(tmp_path / name) for name in names)
    assert tile.size == tuple(reader.js("(c => [c.width, c.height])(document.querySelector('#large-tiles canvas'))"))
    assert figure.width > 3 * block.width and figure.height > block.height
    assert all(len(picture.getcolors(1 << 24)) > 20 for picture in (block, figure, tile))
    beside = 32 + block.width + 32  # evidence is the figure's second block
    first, second = (figure.crop((x, 92, x + block.width, 92 + block.height)) for x in (32, beside))
    assert second.tobytes() == block.tobytes() != first.tobytes()


def test_each_grid_is_one_stop_of_tab_with_arrows_inside(reader, numbers):
    from selenium.webdriver.common.keys import Keys

    telling(reader, numbers[1])
    stops = """[...document.querySelectorAll('#cards, .tiles, #bars, #scans, #filter-cards')].map(
        grid => [...grid.querySelectorAll('a, button')].filter(item => item.tabIndex >= 0).length)"""
    assert set(reader.until(f"({stops}).some(Boolean) && ({stops})")) <= {0, 1}
    focused = "[...document.querySelectorAll('#patches button')].indexOf(document.activeElement)"
    reader.driver.execute_script("document.querySelector('#patches button[tabindex=\"0\"]').focus()")
    assert reader.js(focused) == 0
    reader.press(Keys.ARROW_RIGHT)
    assert reader.js(focused) == 1
    reader.press(Keys.ARROW_DOWN)
    assert reader.js(focused) == 3  # two rows of two
    reader.press(Keys.HOME)
    assert reader.js(focused) == 0
    reader.press(Keys.TAB)
    assert reader.js(focused) == -1 and reader.js("!!document.activeElement.closest('#patches') ") is False


@pytest.mark.parametrize("toggle", ["gray", "smooth"])
def test_toggles_change_the_projections_and_back(reader, numbers, toggle):
    telling(reader, numbers[1])
    tile = "#projections button:first-child canvas"
    usual = reader.picture(tile)
    for sign in ("!=", "=="):
        reader.driver.execute_script(f"document.getElementById('{toggle}').click()")
        reader.until(f"document.querySelector('{tile}').toDataURL() {sign} '{usual}'")


def test_search_is_left_with_escape_and_says_when_there_is_nothing(reader):
    from selenium.webdriver.common.keys import Keys

    reader.press("/")
    reader.press("nothing of that name")
    assert "Nothing found" in reader.until("document.getElementById('found').textContent")
    reader.press(Keys.ESCAPE)
    reader.until("document.getElementById('found').hidden && document.activeElement == document.body")


def test_filters_and_occlusion_are_drawn(reader):
    reader.driver.execute_script("location.hash = '#filters'")
    assert reader.picture("#filter-cards li:first-child canvas") != reader.picture(
        "#filter-cards li:nth-child(2) canvas"
    )
    assert reader.js("document.querySelectorAll('#filter-cards li').length") == 8
    reader.driver.execute_script("location.hash = '#occlusion'")
    maps = [reader.picture(f"#maps figure:nth-child({n}) canvas") for n in (1, 2, 3)]
    assert len(set(maps)) == 3
    reading = "document.getElementById('reading').textContent"
    before = reader.js(reading)
    reader.driver.execute_script(
        "const p = document.getElementById('place'); p.value = p.value > 0 ? 0 : 1; p.dispatchEvent(new Event('input'))"
    )
    assert before.startswith("Covered from row") and reader.js(reading) != before
    reader.click("#scans button:nth-child(2)")
    reader.until(f"document.querySelector('#maps canvas').toDataURL() != '{maps[0]}'")


def test_the_probabilitys_colours_can_span_zero_to_one(reader):
    reader.driver.execute_script("location.hash = '#occlusion'")
    stretched = reader.picture("#maps figure:first-child canvas")
    reader.click("#whole-scale")
    reader.until(f"document.querySelector('#maps figure:first-child canvas').toDataURL() != '{stretched}'")
    ends = reader.js("[...document.querySelector('#maps .ends').children].map(s => s.textContent)")
    assert (ends[0], ends[2]) == ("0", "1")
    values = "data.occlusion.scans[0].maps[0]"
    scan = reader.js(f"JSON.parse(document.getElementById('data').textContent).{values.removeprefix('data.')}")
    moves = max([scan["usual"], *scan["values"]]) - min([scan["usual"], *scan["values"]])
    assert reader.js("document.querySelectorAll('#maps figure:first-child .hardly').length") == (moves < 0.1)
    place = reader.js("getComputedStyle(document.getElementById('occlusion-tools')).position")
    assert place == ("static" if reader.narrow else "sticky")


def test_names_are_text_not_markup(reader):
    reader.driver.execute_script("location.hash = '#occlusion'")
    reader.until("document.querySelectorAll('#scans button').length == 4")
    assert reader.js("document.querySelectorAll('#occlusion figcaption b, #scans span b').length") == 0


def test_the_page_states_what_it_is_of(reader):
    reader.driver.execute_script("location.hash = '#about'")
    text = reader.until("document.getElementById('about').innerText")
    assert "What a projection is not" in text and f"torch {torch.__version__.split('+')[0]}" in text
    assert reader.js("document.querySelectorAll('#table tbody tr').length") == len(deconvviz.layers(Net(), (3, 40, 30)))


def test_nothing_is_wider_than_the_screen(reader):
    for place in ("", "#filters", "#occlusion", "#about"):
        reader.driver.execute_script(f"location.hash = '{place}'")
        reader.until(f"location.hash == '{place}'")
        assert reader.js("document.documentElement.scrollWidth <= innerWidth"), place


def test_everything_to_press_has_a_name(reader, numbers):
    open_unit(reader, numbers[0], 0)
    nameless = """[...document.querySelectorAll('button, a[href], input, select, [role=img]')].filter(node =>
        !(node.textContent.trim() || node.getAttribute('aria-label') || node.labels?.length)).length"""
    assert reader.js(nameless) == 0


def test_dark_follows_the_system_and_the_button_on_every_view(reader):
    colour: Callable[[], object] = lambda: reader.js("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    light = colour()
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        shades = {colour()}
        for place in ("#overview", "#filters", "#occlusion", "#about"):
            reader.driver.execute_script(f"location.hash = '{place}'")
            reader.until(f"!document.getElementById('{place[1:]}').hidden")
            shades.add(colour())
        assert len(shades) == 1 and light not in shades
        reader.press("t")  # light, whatever the system says
        assert colour() == light
        reader.press("t")
        assert {colour()} == shades
        reader.press("t")  # as the system has it
    finally:
        reader.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert colour() == light
