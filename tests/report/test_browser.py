"""The report in a real browser, at the width of a phone and of a desktop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reprune.core.plan import Plan
from reprune.report import write_report
from tests.report.conftest import energy_plan, stack

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
BROWSER, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FIGURES = """
return [...document.querySelectorAll('figure, svg.plot, svg.meter')].map(element => {
  const box = element.getBoundingClientRect();
  return [element.outerHTML.slice(0, 200), box.left, box.right, box.width, box.height];
})
"""
TEXTS = """
return [...document.querySelectorAll('svg text')].filter(element => {
  const box = element.getBoundingClientRect();
  return box.width && (box.left < 0 || box.right > document.documentElement.clientWidth);
}).map(element => element.textContent)
"""


def plans() -> dict[str, Plan]:
    long = {
        f"encoder.blocks.{index}.a_rather_long_name_of_a_module.rnn:l0": 1500 if index % 3 else 40
        for index in range(12)
    }
    names = list(long)
    mixed = stack(
        long,
        pinned=[names[2]],
        approximate=[names[3]],
        index_coupled=[(names[4], names[5])],
        count_coupled=[(names[6], names[9])],
    )
    decays = {name: 1.1 for name in names if name != names[2]} | {names[7]: float("inf"), names[8]: 6.0}
    tiny = stack({"<script>alert(1)</script>&\"'x": 2, "one": 1})
    two = energy_plan(stack({"lstm:l0": 24, "lstm:l1": 16}), {"lstm:l0": 2.0, "lstm:l1": 0.4}, 0.9)
    return {
        "two": two,
        "many": energy_plan(mixed, decays, 0.9),
        "tiny": energy_plan(tiny, dict.fromkeys(tiny.layers, 1.0), 0.6),
        "bare": Plan(two.structure, two.kept, "custom", 0.5),
        "nothing": Plan(two.structure, {name: list(range(n)) for name, n in two.structure.counts().items()}),
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not (BROWSER.exists() and DRIVER.exists()):
        pytest.skip("needs Debian's chromium and chromium-driver")
    profile = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", list(plans()))
def test_page(browser: Any, tmp_path: Path, summary: dict[str, Any], name: str, width: int) -> None:
    path = tmp_path / "report.html"
    write_report(path, plans()[name], summary if name in ("two", "tiny") else None)
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("performance")
    browser.get(path.as_uri())
    for details in browser.find_elements("css selector", "details"):
        browser.execute_script("arguments[0].open = true", details)

    assert browser.get_log("browser") == []
    assert requests(browser) == {path.as_uri()}
    root = "return document.documentElement"
    assert browser.execute_script(f"{root}.scrollWidth") <= width
    assert browser.execute_script(f"{root}.clientWidth") <= width
    found = browser.execute_script(FIGURES)
    assert len(found) >= 6
    for html, left, right, wide, high in found:
        assert wide > 20, html
        assert high > 5, html
        assert 0 <= left < right <= width, html
    assert browser.execute_script(TEXTS) == []


def requests(browser: Any) -> set[str]:
    """Addresses asked for since the log was last read, those inside the page itself aside."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return {url for url in sent if not url.startswith("data:")}


def test_every_figure_has_a_caption_and_a_description(browser: Any, tmp_path: Path, summary: dict[str, Any]) -> None:
    write_report(tmp_path / "report.html", plans()["two"], summary)
    browser.get((tmp_path / "report.html").as_uri())
    for figure in browser.find_elements("css selector", "figure"):
        assert figure.find_element("css selector", "figcaption").text
    for plot in browser.find_elements("css selector", "svg.plot, svg.meter"):
        assert plot.get_attribute("role") == "img"
        assert plot.get_attribute("aria-label")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes_are_readable(browser: Any, tmp_path: Path, scheme: str) -> None:
    write_report(tmp_path / "report.html", plans()["two"])
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get((tmp_path / "report.html").as_uri())
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    page, card = (browser.execute_script(style, part, "backgroundColor") for part in ("body", ".card"))
    for part, key, behind in (
        ("p", "color", page),
        ("figcaption", "color", card),
        (".stay", "fill", card),
        (".plot text", "fill", card),
    ):
        assert contrast(browser.execute_script(style, part, key), behind) >= 4.5, (part, scheme)


def contrast(first: str, second: str) -> float:
    """WCAG's contrast ratio of two `rgb(…)` colours."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted([luminance(first), luminance(second)])
    return (light + 0.05) / (dark + 0.05)
