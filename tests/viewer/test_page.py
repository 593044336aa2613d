"""The page: navigation, selection, comparison and links, on a desktop and on a phone."""

from __future__ import annotations

import functools
import http.server
import io
import math
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.viewer.chromium import Page

pytestmark = pytest.mark.slow

COARSE = 0.5
FINISHED = "document.getElementById('status').textContent.includes('per image at')"


@pytest.fixture(scope="module")
def address(page_folder: Path, serve: Callable[[Path], str]) -> str:
    return serve(page_folder)


@pytest.fixture
def opened(page: Page, address: str) -> Page:
    """The page with its first image complete, on a screen with few pixels, which a CPU renders faster."""
    return with_first_picture(page, address, COARSE)


@pytest.fixture
def sharp(page: Page, address: str) -> Page:
    """The same with one screen pixel per CSS pixel."""
    return with_first_picture(page, address, 1.0)


def with_first_picture(page: Page, address: str, scale: float) -> Page:
    page.size(200, 150, scale=scale)
    page.open(address)
    page.wait(FINISHED)
    return page


def seen(page: Page) -> np.ndarray:
    """[H, W, 3] uint8."""
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))


def link(page: Page) -> str:
    return str(page.evaluate("location.hash"))


def finished(page: Page, action: Callable[[], object]) -> None:
    """Do something that changes the image, and wait for the new one."""
    page.evaluate("document.getElementById('status').textContent = ''")
    action()
    page.wait(FINISHED)


def test_asks_no_other_host_and_keeps_the_policy(opened: Page, address: str) -> None:
    paths = set()
    for request in opened.requests:
        if request.startswith(("about:", "data:", "blob:")):
            continue
        assert request.startswith(address)
        paths.add(urlsplit(request).path)
    assert paths - {"/icon.svg"} == {
        "/", "/viewer.js", "/viewer.css", "/scene/scene.json", "/scene/scene.safetensors",
    }  # fmt: skip
    assert opened.console == []
    assert opened.evaluate("getComputedStyle(document.getElementById('panel')).position") == "fixed"


def test_dragging_turns_the_scene_and_the_link_brings_it_back(opened: Page, address: str) -> None:
    assert link(opened) == "#view=0"
    before = seen(opened)
    finished(opened, lambda: opened.drag((60, 80), (130, 70)))
    turned = link(opened)
    assert turned.startswith("#view=0&at=")
    after = seen(opened)
    assert np.abs(before.astype(int) - after).mean() > 2
    position = [float(x) for x in turned.split("at=")[1].split("&")[0].split(",")]
    scene = opened.evaluate("eugenViewer.then(viewer => viewer.scene)")
    start = [row[3] for row in scene["views"][0]["camera_to_world"]]
    assert math.dist(position, scene["focus"]) == pytest.approx(math.dist(start, scene["focus"]), rel=1e-3)
    opened.open(address + turned)
    opened.wait(FINISHED)
    assert np.abs(seen(opened).astype(int) - after).mean() < 0.5


def test_wheel_keys_and_panning_move_the_camera(opened: Page) -> None:
    links = [link(opened)]
    actions: list[Callable[[], object]] = [
        lambda: opened.mouse("mouseWheel", 60, 80, deltaX=0, deltaY=-300),
        lambda: opened.key("KeyD", "d", 0.15),
        lambda: opened.key("ArrowUp", "ArrowUp", 0.15),
        lambda: opened.drag((60, 80), (90, 90), button="right"),
    ]
    for action in actions:
        finished(opened, action)
        links.append(link(opened))
    assert len(set(links)) == len(links)
    finished(opened, lambda: opened.key("KeyR", "r"))
    assert link(opened) == links[0]


def test_touch_turns_and_pinches(opened: Page) -> None:
    opened.size(200, 300, phone=True, scale=COARSE)
    opened.touch("touchStart", (60, 80))
    opened.touch("touchMove", (90, 80))
    finished(opened, lambda: opened.touch("touchEnd"))
    turned = link(opened)
    assert "at=" in turned
    opened.touch("touchStart", (60, 80), (100, 80))
    opened.touch("touchMove", (40, 80), (120, 80))
    finished(opened, lambda: opened.touch("touchEnd"))
    assert link(opened) != turned


def double_click(x: int, y: int) -> str:
    """JavaScript that selects the center at a point of the canvas, which has to be drawn first."""
    return (
        "document.getElementById('canvas').dispatchEvent("
        f"new MouseEvent('dblclick', {{clientX: {x}, clientY: {y}, bubbles: true}})), 0"
    )


def numbers(text: str) -> list[float]:
    """The values of a link's pose."""
    return [float(x) for part in text.split("&")[1:4] for x in part.split("=")[1].split(",")]


def hold(page: Page) -> None:
    """Delay images beside the canvas, as on a slow device, until `release()` is called in the page."""
    page.evaluate(
        "window.waiting = []; window.later = setTimeout;"
        "window.setTimeout = (then, ms) => ms === undefined ? waiting.push(then) : later(then, ms);"
        "window.release = () => { window.setTimeout = later; for (const then of waiting) then(); }, 0"
    )


def assert_release_changes_nothing(page: Page) -> None:
    before = link(page)
    page.evaluate("release(), 0")
    # The effects of the delayed image are complete before an image that is requested later arrives.
    page.evaluate("eugenViewer.then(v => v.render({view: 0, width: 8, height: 8})).then(() => 0)")
    assert link(page) == before


def centered_at(page: Page, x: int, y: int) -> list[float]:
    """The pose after selecting the center from the first view. The page is then back at that view."""
    finished(page, lambda: page.evaluate(double_click(x, y)))
    pose = numbers(link(page))
    finished(page, lambda: page.key("KeyR", "r"))
    return pose


def test_the_center_is_where_it_was_seen_though_the_camera_has_moved_since(opened: Page) -> None:
    wanted = centered_at(opened, 85, 70)
    hold(opened)
    opened.evaluate(double_click(85, 70))
    opened.wait("waiting.length > 0")
    finished(opened, lambda: opened.drag((60, 80), (90, 95), button="right"))  # sideways only
    assert math.dist(numbers(link(opened)), wanted) > 0.1
    finished(opened, lambda: opened.evaluate("release(), 0"))
    assert numbers(link(opened)) == pytest.approx(wanted, abs=1e-4)


def test_the_center_chosen_last_counts(opened: Page) -> None:
    first, second = centered_at(opened, 110, 60), centered_at(opened, 85, 70)
    assert math.dist(first, second) > 0.1
    finished(opened, lambda: opened.evaluate(f"{double_click(110, 60)}; {double_click(85, 70)}"))
    assert numbers(link(opened)) == pytest.approx(second, abs=1e-4)


def test_a_center_that_has_gone_out_of_sight_is_none(opened: Page) -> None:
    opened.evaluate("document.querySelector('input[name=drag][value=look]').click()")
    hold(opened)
    opened.evaluate(double_click(85, 70))
    opened.wait("waiting.length > 0")
    for _ in range(4):  # until the camera looks back
        finished(opened, lambda: opened.drag((10, 80), (190, 80)))
    assert_release_changes_nothing(opened)


def test_a_view_chosen_after_a_center_is_shown_as_it_is(opened: Page) -> None:
    hold(opened)
    opened.evaluate(double_click(85, 70))
    opened.wait("waiting.length > 0")
    finished(opened, lambda: opened.key("BracketRight", "]"))
    assert link(opened) == "#view=1"
    assert_release_changes_nothing(opened)


def test_views_and_modes_by_keyboard(opened: Page) -> None:
    finished(opened, lambda: opened.key("BracketRight", "]"))
    assert link(opened) == "#view=1"
    assert opened.evaluate("document.getElementById('views').value") == "1"
    pictures = [seen(opened)]
    for digit, mode in ((2, "depth"), (3, "opacity"), (4, "normals")):
        finished(opened, lambda digit=digit: opened.key(f"Digit{digit}", str(digit)))  # type: ignore[misc]
        assert link(opened) == f"#view=1&show={mode}"
        pictures.append(seen(opened))
    for first in range(4):
        for second in range(first):
            assert np.abs(pictures[first].astype(int) - pictures[second]).mean() > 3
    # The tab key reaches every control.
    opened.size(900, 700, scale=COARSE)
    opened.key("KeyH", "h")
    reached = opened.evaluate(
        "[...document.querySelectorAll('#panel button, #panel select, #panel input, #panel summary')]"
        ".filter(e => e.checkVisibility()).every(e => e.tabIndex === 0)"
    )
    assert reached
    gap = opened.evaluate(
        "document.getElementById('save').getBoundingClientRect().top"
        " - document.getElementById('quality').parentElement.getBoundingClientRect().bottom"
    )
    assert gap >= 6


def test_photo_beside_the_picture(sharp: Page) -> None:
    sharp.key("KeyP", "p")
    sharp.wait("!document.getElementById('truth').hidden && !document.getElementById('photo').hidden")
    assert sharp.evaluate("document.getElementById('photo-label').textContent") == "Photo"
    box = sharp.evaluate(
        "(r => [r.x, r.y, r.width, r.height])(document.getElementById('truth').getBoundingClientRect())"
    )
    assert box == [25, 0, 150, 150]  # the square photo in the center of the window
    set_wipe = "(w => { w.value = %d; w.dispatchEvent(new Event('input')); })(document.getElementById('wipe'))"
    sharp.evaluate(set_wipe % 100)
    photo = seen(sharp)[5:120, 30:170].astype(int)
    sharp.evaluate(set_wipe % 0)
    picture = seen(sharp)[5:120, 30:170].astype(int)
    difference = np.abs(photo - picture).mean()
    assert difference > 0.5  # two images of the same scene, at the same position
    for axis in (0, 1):
        for shift in (-15, 15):
            assert difference < 0.9 * np.abs(np.roll(photo, shift, axis=axis) - picture).mean()
    sharp.drag((60, 30), (70, 30))
    sharp.wait("document.getElementById('truth').hidden")  # there is no photo from other poses
    finished(sharp, lambda: sharp.key("KeyP", "p"))  # requested again, the photo moves the camera to its pose
    assert link(sharp) == "#view=0"
    assert not sharp.evaluate("document.getElementById('truth').hidden")


def test_without_photos_there_is_nothing_to_compare_with(opened: Page) -> None:
    opened.evaluate("eugenViewer.then(v => { for (const view of v.scene.views) delete view.photo; return 0 })")
    finished(opened, lambda: opened.drag((60, 80), (90, 80)))
    elsewhere = link(opened)
    opened.key("KeyP", "p")
    assert link(opened) == elsewhere
    assert "at=" in elsewhere
    assert not opened.evaluate("document.getElementById('compare').checked")


def test_keys_are_those_with_the_sign_on_them(opened: Page) -> None:
    """A German keyboard has + and - on other keys than a US one, and brackets on AltGr; a Russian one has no N."""

    def distance() -> float:
        scene = opened.evaluate("eugenViewer.then(viewer => viewer.scene)")
        position = [float(x) for x in link(opened).split("at=")[1].split("&")[0].split(",")]
        return math.dist(position, scene["focus"])

    finished(opened, lambda: opened.key("BracketRight", "+", 0.15))
    near = distance()
    finished(opened, lambda: opened.key("Slash", "-", 0.3))
    assert distance() > near
    finished(opened, lambda: opened.key("Digit9", "]"))
    assert link(opened) == "#view=1"
    finished(opened, lambda: opened.key("Digit8", "["))
    assert link(opened) == "#view=0"
    finished(opened, lambda: opened.key("KeyN", "т"))
    assert link(opened) == "#view=0&network=1"


def test_keys_that_move_are_those_in_the_same_places(opened: Page) -> None:
    """On a Colemak keyboard the key below W is R, which resets the view in other layouts."""
    finished(opened, lambda: opened.key("KeyS", "r", 0.15))
    assert "at=" in link(opened)
    finished(opened, lambda: opened.key("KeyR", "r"))
    assert link(opened) == "#view=0"


def test_times_of_coarse_pictures_do_not_stand_beside_exact_ones(opened: Page) -> None:
    time = "document.getElementById('time-0').textContent"
    before = opened.evaluate(time)
    assert before.endswith("at 100 × 75")
    slide = "const s = document.getElementById('%s'); s.value = %d; s.dispatchEvent(new Event('input')), 0"

    def set_slider(name: str, value: int) -> None:
        finished(opened, lambda: opened.evaluate("{" + slide % (name, value) + "}"))

    set_slider("quality", 0)
    set_slider("resolution", 50)
    assert opened.evaluate("document.getElementById('status').textContent").endswith("at 50 × 38")
    assert opened.evaluate(time) == before
    set_slider("quality", 2)
    assert opened.evaluate(time).endswith("at 50 × 38")
    set_slider("resolution", 100)  # which the browser keeps for other pages of this address


@pytest.mark.parametrize("control", ["input[name=mode]", "#quality"])
def test_keys_work_after_a_click_on_an_option(opened: Page, control: str) -> None:
    opened.size(700, 150, scale=COARSE)  # with the options visible
    opened.key("KeyH", "h")
    opened.evaluate(f"document.querySelector('{control}').focus()")
    assert opened.evaluate(f"document.activeElement === document.querySelector('{control}')")
    finished(opened, lambda: opened.key("BracketRight", "]"))
    assert link(opened) == "#view=1"
    opened.key("ArrowRight", "ArrowRight", 0.15)  # this key belongs to the control itself
    assert "at=" not in link(opened)


def test_a_slider_that_is_let_go_where_it_began(opened: Page) -> None:
    """Firefox does not report a change in this case."""
    finished(opened, lambda: opened.evaluate("document.getElementById('zoom').dispatchEvent(new Event('input')), 0"))


def test_a_window_of_another_size_is_never_black(opened: Page) -> None:
    opened.evaluate(
        "window.brightest = new Promise(done => new ResizeObserver(() => {"
        "const canvas = document.getElementById('canvas');"
        "if (canvas.clientWidth !== 230) return;"  # called at once, with the current size
        "const copy = Object.assign(document.createElement('canvas'), {width: 32, height: 32}).getContext('2d');"
        "copy.drawImage(canvas, 0, 0, 32, 32);"
        "done(Math.max(...copy.getImageData(0, 0, 32, 32).data.filter((_, i) => i % 4 < 3)));"
        "}).observe(document.getElementById('canvas'))), 0"
    )
    opened.size(230, 150, scale=COARSE)
    assert opened.evaluate("brightest") > 50


def test_a_screen_of_other_density(opened: Page) -> None:
    """When a window moves to another screen without a change of its size in CSS pixels."""
    size = "(canvas => [canvas.width, canvas.height])(document.getElementById('canvas'))"
    assert opened.evaluate(size) == [100, 75]

    def move(scale: float) -> None:
        opened.size(200, 150, scale=scale)
        for scheme in ("dark", "light"):  # the density of an emulated screen is only noticed with another change
            opened.colors(scheme)

    for scale in (1.0, COARSE):  # and back
        finished(opened, lambda scale=scale: move(scale))  # type: ignore[misc]
        assert opened.evaluate(size) == [200 * scale, 150 * scale]


def test_the_address_is_written_when_it_changes_and_if_it_may_be(opened: Page) -> None:
    """Safari throws an error after 100 calls in half a minute."""
    opened.evaluate(
        "window.write = history.replaceState.bind(history); window.writes = 0;"
        "history.replaceState = (...given) => { writes++; write(...given) }, 0"
    )
    for width in (210, 200):
        finished(opened, lambda width=width: opened.size(width, 150, scale=COARSE))  # type: ignore[misc]
    assert opened.evaluate("writes") == 0
    opened.evaluate("history.replaceState = () => { throw new DOMException('too often', 'SecurityError') }, 0")
    finished(opened, lambda: opened.drag((60, 80), (90, 80)))
    assert link(opened) == "#view=0"
    assert opened.evaluate("document.getElementById('message').hidden")
    assert opened.console == []
    opened.evaluate("navigator.clipboard.writeText = async text => { window.copied = text }, 0")
    opened.evaluate("document.getElementById('link').click()")
    assert "#view=0&at=" in opened.wait("window.copied")
    opened.evaluate("history.replaceState = write, 0")
    finished(opened, lambda: opened.key("BracketRight", "]"))
    assert link(opened) == "#view=1"


# What the controls of picture and dragging show, and the picture's width.
SETTINGS = (
    "[resolution.value, quality.value, ...['resolution', 'quality'].map(name =>"
    " document.getElementById(`${name}-value`).textContent),"
    " document.querySelector('input[name=drag]:checked').value, canvas.width]"
)


def test_controls_show_what_is_though_the_browser_fills_them_in(page: Page, address: str) -> None:
    """Firefox does this after a reload."""
    undo = page.before_scripts(
        "document.addEventListener('DOMContentLoaded', () => { resolution.value = 25; quality.value = 0;"
        "document.querySelector('input[name=drag][value=look]').checked = true })"
    )
    try:
        with_first_picture(page, address, COARSE)
    finally:
        undo()
    assert page.evaluate(SETTINGS) == ["100", "2", "100 %", "exact", "orbit", 100]


def test_a_message_that_nothing_can_be_drawn_goes_when_it_can(opened: Page) -> None:
    """As advised, the window is made smaller."""
    method = "WebGL2RenderingContext.prototype.checkFramebufferStatus"
    opened.evaluate(f"window.right = {method}; {method} = () => 0, 0")
    opened.size(230, 150, scale=COARSE)
    opened.wait("!document.getElementById('message').hidden")
    assert opened.evaluate("document.getElementById('dismiss').hidden")
    opened.evaluate(f"{method} = right, 0")
    finished(opened, lambda: opened.size(200, 150, scale=COARSE))
    assert opened.evaluate("document.getElementById('message').hidden")


def test_a_device_that_comes_back(opened: Page) -> None:
    """The page keeps the resolution and quality chosen before, because the device may not manage more."""
    slide = "(input => { input.value = %d; input.dispatchEvent(new Event('input')) })(document.getElementById('%s'))"
    finished(opened, lambda: opened.evaluate(f"{slide % (60, 'resolution')}; {slide % (1, 'quality')}"))
    finished(opened, lambda: opened.drag((60, 80), (130, 70)))
    before, turned = seen(opened), link(opened)
    opened.evaluate(
        "window.device = document.getElementById('canvas').getContext('webgl2').getExtension('WEBGL_lose_context');"
        "device.loseContext()"
    )
    opened.wait("!document.getElementById('message').hidden")
    opened.evaluate("device.restoreContext()")
    opened.event("Page.loadEventFired")
    opened.wait(FINISHED)
    assert link(opened) == turned
    assert opened.evaluate(SETTINGS) == ["60", "1", "60 %", "medium", "orbit", 60]
    assert np.abs(seen(opened).astype(int) - before).mean() < 0.5
    opened.evaluate("sessionStorage.clear()")


# Records, for each compiled program, the text on the screen and the position of the bar (-1 without a number).
NOTE_WAITING = """
window.compiled = [];
const look = () => {
    const shown = document.getElementById('loading')?.checkVisibility();
    window.words = shown ? [document.getElementById('loading-text').textContent, progress.position] : [];
    requestAnimationFrame(look);
};
look();
const {prototype} = WebGL2RenderingContext;
prototype.linkProgram = new Proxy(prototype.linkProgram, {
    apply: (link, gl, given) => { compiled.push(words); link.apply(gl, given) }
});
"""


def test_says_what_is_waited_for(page: Page, address: str) -> None:
    prepared = [["Preparing the graphics device", -1]] * 2  # for the check and for pictures
    undo = page.before_scripts(NOTE_WAITING)
    try:
        with_first_picture(page, f"{address}#show=normals", COARSE)
    finally:
        undo()
    assert page.evaluate("compiled.slice(1)") == prepared  # after the program that copies images to the canvas
    hidden = "document.getElementById('loading').hidden"
    assert page.evaluate(hidden)
    page.evaluate("compiled = []; window.put = prototype.texSubImage2D; prototype.texSubImage2D = () => undefined, 0")
    finished(page, lambda: page.key("KeyN", "n"))  # the network of before is drawn again
    page.wait("!document.getElementById('message').hidden")
    assert page.evaluate(f"compiled.length === 1 && {hidden}")
    page.evaluate("compiled = []; prototype.texSubImage2D = put; document.getElementById('dismiss').click()")
    finished(page, lambda: page.key("KeyN", "n"))
    assert page.evaluate("compiled") == prepared
    assert page.evaluate(hidden)


def test_the_other_network(sharp: Page) -> None:
    before = seen(sharp)
    finished(sharp, lambda: sharp.key("KeyN", "n"))
    assert link(sharp) == "#view=0&network=1"
    # The query contains the version, so that a cache cannot return the file of an earlier export.
    versions = [field["crc32"] for field in sharp.evaluate("eugenViewer.then(viewer => viewer.scene)")["fields"]]
    for name, version in zip(("scene", "compare"), versions, strict=True):
        assert any(request.endswith(f"/scene/{name}.safetensors?{version}") for request in sharp.requests)
    assert np.abs(seen(sharp).astype(int) - before).mean() > 1
    assert sharp.evaluate("document.getElementById('time-0').textContent").endswith("at 200 × 150")
    assert sharp.evaluate("document.getElementById('time-1').textContent").endswith("at 200 × 150")
    # A time is compared with one of the same view alone.
    finished(sharp, lambda: sharp.key("BracketRight", "]"))
    assert sharp.evaluate("document.getElementById('time-1').textContent").endswith("at 200 × 150")
    assert sharp.evaluate("document.getElementById('time-0').textContent") == ""


def test_the_network_chosen_last_is_shown(page: Page, page_folder: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()

    class Slow(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if "compare.safetensors" in self.path:
                asked.set()
                go_on.wait(60)
            super().do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Slow, directory=str(page_folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.size(200, 150, scale=COARSE)
        page.open(f"http://127.0.0.1:{server.server_address[1]}/")
        page.wait(FINISHED)
        choose = "document.querySelector('#network-list input[value=\"%d\"]').click()"
        page.evaluate(choose % 1)
        assert asked.wait(60)
        finished(page, lambda: page.evaluate(choose % 0))
        go_on.set()
        page.evaluate("eugenViewer.then(viewer => viewer.work(1))")  # it has been loaded
        assert page.evaluate("new Promise(done => setTimeout(() => done(location.hash), 300))") == "#view=0"
        assert page.evaluate("document.querySelector('#network-list input:checked').value") == "0"
        server.shutdown()


def test_counts_its_work(opened: Page) -> None:
    eugen, mlp = (opened.evaluate(f"eugenViewer.then(v => v.work({network}))") for network in (0, 1))
    # 4 levels x 8 corners; 16 encoded values, m = 16, in blocks of 4 x 4: density, then color without the share of
    # the direction, which is computed once a ray.
    assert eugen == {"multiplyAdds": (16 * 16 + 16 * 16) + (16 * 16 + 16 * 16 + 16 * 4), "tableFetches": 32}
    assert mlp["tableFetches"] == 32
    assert mlp["multiplyAdds"] == (16 * 32 + 32 * 16) + (16 * 32 + 32 * 32 + 32 * 4)


def test_light_dark_and_phone(page: Page, address: str) -> None:
    colors = {}
    for scheme in ("light", "dark"):
        page.size(360, 200, phone=True, scale=COARSE)  # small, for a fast first image
        page.colors(scheme)
        page.open(address)
        page.wait(FINISHED)
        assert page.evaluate("document.getElementById('panel').hidden")  # the image comes first
        page.size(360, 500, phone=True, scale=COARSE)
        page.evaluate("document.getElementById('toggle').click()")
        colors[scheme] = page.evaluate("getComputedStyle(document.getElementById('title')).color")
        panel = "document.getElementById('panel')"
        assert page.evaluate(
            f"{panel}.scrollWidth <= {panel}.clientWidth && {panel}.getBoundingClientRect().right <= 360"
        )
        box = page.evaluate("document.getElementById('panel').getBoundingClientRect().top")
        assert box > 200  # and stays visible
    assert colors["light"] != colors["dark"]
    page.evaluate("document.getElementById('theme').click()")  # auto to light, on a dark system
    assert page.evaluate("getComputedStyle(document.getElementById('title')).color") == colors["light"]
    page.evaluate("localStorage.clear()")


def test_saved_picture(sharp: Page) -> None:
    # Caught before it reaches the disk; the policy allows images to be read from blobs, not files.
    sharp.evaluate(
        "window.saved = new Promise(done => { HTMLAnchorElement.prototype.click = function () {"
        "const image = new Image();"
        "image.onload = () => done([this.download, image.naturalWidth, image.naturalHeight]);"
        "image.src = this.href; }; }), 0"
    )
    sharp.evaluate("document.getElementById('save').click()")
    assert sharp.evaluate("saved") == ["demo.png", 200, 150]
