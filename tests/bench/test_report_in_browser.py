"""report.html in a real browser, at the size of a desktop and of a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from eugen_nerf.bench.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
SECONDS = 90

# No window of this browser is as narrow as a phone, a frame in it is.
FRAME = """<!doctype html><title></title><iframe src="report.html" width="{}" height="{}" style="border: 0"></iframe>
<script>addEventListener("message", event => {{ document.title = event.data; }});</script>"""
# Stands at the end of a copy of the page and tells the frame's page what it sees.
PROBE = """<script>
addEventListener("load", () => {
  const boxes = [...document.querySelectorAll("h1, h2, p, li, .scroll, .plots, .views")];
  const labels = [...document.querySelectorAll(".plots text")];
  parent.postMessage(JSON.stringify({
    window: innerWidth,
    page: document.documentElement.scrollWidth,
    widest: Math.max(...boxes.map(box => box.getBoundingClientRect().right)),
    images: [...document.images].map(image => image.complete && image.naturalWidth > 0),
    text: Math.min(...[...document.querySelectorAll("p, li, td, th")]
      .map(element => parseFloat(getComputedStyle(element).fontSize))),
    label: Math.min(...labels.map(label => label.getBoundingClientRect().height)),
    charts: [...document.querySelectorAll(".plots svg")].map(svg => svg.getBoundingClientRect().width),
  }), "*");
});
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    return found


def look(browser: str, folder: Path, size: tuple[int, int]) -> tuple[dict[str, Any], str]:
    """The probe's result, and the messages of the browser's console."""
    page = folder / "frame.html"
    page.write_text(FRAME.format(*size), "utf8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000", "--hide-scrollbars"]
    options += ["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"]
    process = subprocess.run(
        [browser, *options, page.as_uri()], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    title = re.search(r"<title>(.*?)</title>", process.stdout, re.DOTALL)
    assert title, f"the browser shows nothing:\n{process.stderr[-2000:]}"
    console = [line for line in process.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(title[1]), "\n".join(console)


@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_and_is_readable(browser: str, finished: Any, tmp_path: Path, size: str) -> None:
    html = write_report(finished[1].folder).read_text("utf8")
    (tmp_path / "report.html").write_text(html.replace("</body>", PROBE + "</body>"), "utf8")
    seen, console = look(browser, tmp_path, SIZES[size])
    assert console == ""
    assert seen["window"] == SIZES[size][0]
    # Tables and rows of images scroll inside their boxes; the page itself does not scroll sideways.
    assert seen["page"] <= seen["window"]
    assert seen["widest"] <= seen["window"]
    assert seen["images"]
    assert all(seen["images"])
    assert seen["text"] >= 13
    assert seen["label"] >= 9
    assert len(seen["charts"]) == 3
    assert min(seen["charts"]) >= 300
