"""The page's messages if it cannot show the scene."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.viewer.chromium import Page

pytestmark = pytest.mark.slow

Serve = Callable[[Path], str]


@pytest.fixture
def copy(page_folder: Path, tmp_path: Path) -> Path:
    """An exported folder, for the tests to damage."""
    folder = tmp_path / "page"
    shutil.copytree(page_folder, folder)
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def answered_by(handler: type[Quiet], folder: Path) -> Iterator[str]:
    """The address of a server for a folder."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def message(page: Page, address: str) -> str:
    """Open a page that cannot work; return its message."""
    page.open(address)
    page.wait("!document.getElementById('message').hidden")
    assert page.evaluate("document.getElementById('message').getAttribute('role')") == "alert"
    assert page.evaluate("document.getElementById('loading').hidden")
    return str(page.evaluate("document.getElementById('message').innerText")).replace("\n", " ")


def cut(path: Path, part: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(bytes(content))


def change(path: Path, key: str, value: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


AGAIN = "Copy the whole exported folder again, or export the scene again with eugen-export."


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda scene: (scene / "scene.json").unlink(),
            ["scene/scene.json was not found (404)", "with its subfolders"],
        ),
        (lambda scene: (scene / "scene.safetensors").unlink(), ["scene/scene.safetensors was not found (404)"]),
        (lambda scene: cut(scene / "scene.json", 0.5), ["scene/scene.json is damaged: it is not valid JSON", AGAIN]),
        (lambda scene: cut(scene / "scene.safetensors", 0.7), ["scene.safetensors is damaged: it has", AGAIN]),
        (
            lambda scene: flip(scene / "scene.safetensors"),
            ["scene.safetensors is damaged: its checksum is wrong", AGAIN],
        ),
        (lambda scene: change(scene / "scene.json", "version", 99), ["version 99", "Export the scene again"]),
        (lambda scene: change(scene / "scene.json", "format", "gltf"), ["does not describe a scene"]),
        (lambda scene: change(scene / "scene.json", "fields", [{}]), ["fields[0].name is missing"]),
    ],
    ids=["no json", "no tensors", "json cut off", "tensors cut off", "a bit flipped", "newer", "foreign", "incomplete"],
)
def test_damaged_files(page: Page, copy: Path, serve: Serve, damage: Callable[[Path], None], says: list[str]) -> None:
    damage(copy / "scene")
    text = message(page, serve(copy))
    for part in says:
        assert part in text


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (
            "HTMLCanvasElement.prototype.getContext = () => null",
            ["cannot draw with WebGL 2", "enable hardware acceleration"],
        ),
        (
            "WebGL2RenderingContext.prototype.texStorage2D = new Proxy(WebGL2RenderingContext.prototype.texStorage2D, {"
            "apply: (f, gl, [t, l, kind, w, h]) => f.call(gl, t, l, kind === gl.RGBA16F ? 0 : kind, w, h)})",
            ["do not support the scene's number formats (half floats", "another device"],
        ),
        (
            "WebGL2RenderingContext.prototype.texSubImage2D = () => undefined",
            ["compute the scene incorrectly", "another device"],
        ),
        (
            "const get = WebGL2RenderingContext.prototype.getParameter;"
            "WebGL2RenderingContext.prototype.getParameter = function (p) {"
            "return p === this.MAX_TEXTURE_SIZE ? 64 : get.call(this, p) }",
            ["at most 64", "--size-budget"],
        ),
        (
            "WebGL2RenderingContext.prototype.shaderSource = new Proxy(WebGL2RenderingContext.prototype.shaderSource, {"
            "apply: (f, gl, [shader, source]) => f.call(gl, shader, source + 'nonsense')})",
            ["driver refuses the shader", "Update the browser"],
        ),
    ],
    ids=["no WebGL 2", "no half floats", "wrong textures", "small textures", "refused shader"],
)
def test_devices_that_cannot(page: Page, page_folder: Path, serve: Serve, script: str, says: list[str]) -> None:
    undo = page.before_scripts(script)
    try:
        text = message(page, serve(page_folder))
    finally:
        undo()
    for part in says:
        assert part in text


def test_a_connection_that_breaks(page: Page, page_folder: Path) -> None:
    class Breaking(Quiet):
        def do_GET(self) -> None:
            if ".safetensors" in self.path:
                self.send_response(200)
                self.send_header("Content-Length", "1000000")
                self.end_headers()
                self.wfile.write(b"x" * 1000)
                self.connection.close()
            else:
                super().do_GET()

    with answered_by(Breaking, page_folder) as address:
        text = message(page, address)
    assert "scene/scene.safetensors cannot be loaded: the connection failed" in text
    assert "reload the page" in text


def test_an_old_file_in_the_cache(page: Page, page_folder: Path) -> None:
    """A visitor who came while the page was replaced keeps the file of before under the new address."""
    asked: list[str] = []

    class Replaced(Quiet):
        def do_GET(self) -> None:
            if ".safetensors" not in self.path:
                super().do_GET()
                return
            asked.append(self.headers.get("Cache-Control", ""))
            content = bytearray((page_folder / "scene" / "scene.safetensors").read_bytes())
            if len(asked) == 1:
                content[len(content) // 2] ^= 16
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "max-age=3600")
            self.end_headers()
            self.wfile.write(content)

    with answered_by(Replaced, page_folder) as address:
        page.size(200, 150, scale=0.5)
        page.open(address)
        page.wait("document.getElementById('status').textContent.includes('per image at')")
    assert len(asked) == 2
    assert asked[1] == "no-cache"


def test_a_link_to_a_network_that_is_missing(page: Page, copy: Path, serve: Serve) -> None:
    (copy / "scene" / "compare.safetensors").unlink()
    page.size(200, 150, scale=0.5)
    page.open(f"{serve(copy)}#view=1&network=1")
    page.wait("document.getElementById('status').textContent.includes('per image at')")
    assert "compare.safetensors was not found" in page.evaluate("document.getElementById('message').innerText")
    assert page.evaluate("location.hash") == "#view=1"
    page.evaluate("document.getElementById('dismiss').click()")
    assert page.evaluate("document.getElementById('message').hidden")


def test_a_device_that_stops_during_the_download(page: Page, page_folder: Path, serve: Serve) -> None:
    undo = page.before_scripts(
        "window.fetch = new Proxy(window.fetch, {apply: async (f, self, given) => {"
        "if (String(given[0]).includes('.safetensors'))"
        " document.getElementById('canvas').getContext('webgl2').getExtension('WEBGL_lose_context').loseContext();"
        "return f.apply(self, given)}})"
    )
    try:
        page.open(serve(page_folder))
        # The message of the event comes first; what the rest of the loading meets must not replace it.
        page.wait("!document.getElementById('message').hidden && document.getElementById('loading').hidden")
        assert "graphics device stopped answering" in page.evaluate("document.getElementById('message').innerText")
    finally:
        undo()


def test_a_photo_that_is_missing(page: Page, copy: Path, serve: Serve) -> None:
    photos = copy / "scene" / "photos"
    photos.rename(copy / "elsewhere")
    page.open(serve(copy))
    page.wait("document.getElementById('status').textContent.includes('per image at')")
    page.key("KeyP", "p")
    page.wait("document.getElementById('photo-label').textContent === 'The photo cannot be loaded'")
    assert page.evaluate("document.getElementById('photo').hidden")
    asked = [request for request in page.requests if "/photos/" in request]
    for _ in range(2):  # images in between do not request it again
        page.evaluate("document.getElementById('status').textContent = ''")
        page.evaluate("document.getElementById('quality').dispatchEvent(new Event('input')), 0")
        page.wait("document.getElementById('status').textContent.includes('per image at')")
    assert [request for request in page.requests if "/photos/" in request] == asked
    (copy / "elsewhere").rename(photos)
    for _ in range(2):  # away, and requested again
        page.key("KeyP", "p")
    page.wait("!document.getElementById('photo').hidden")
    assert page.evaluate("document.getElementById('photo-label').textContent") == "Photo"


def test_a_mode_that_the_device_refuses_leaves_the_others(page: Page, page_folder: Path, serve: Serve) -> None:
    """Surface normals have their own shader."""
    undo = page.before_scripts(
        "WebGL2RenderingContext.prototype.shaderSource = new Proxy(WebGL2RenderingContext.prototype.shaderSource, {"
        "apply: (f, gl, [shader, source]) => f.call(gl, shader, source + (/normalAt/.test(source) ? 'nonsense' : ''))})"
    )
    try:
        page.size(200, 150, scale=0.5)
        page.open(serve(page_folder))
        finished = "document.getElementById('status').textContent.includes('per image at')"
        page.wait(finished)
        page.evaluate("document.getElementById('status').textContent = ''")
        page.key("Digit4", "4")
        page.wait("!document.getElementById('message').hidden")
        assert "driver refuses the shader" in page.evaluate("document.getElementById('message').innerText")
        page.wait(finished)
        assert page.evaluate("location.hash") == "#view=0"
        page.evaluate("document.getElementById('dismiss').click()")
        assert page.evaluate("document.getElementById('message').hidden")
    finally:
        undo()


def test_a_page_on_disk(page: Page, page_folder: Path) -> None:
    text = message(page, (page_folder / "index.html").as_uri())
    assert "do not let a page on disk read the files next to it" in text
    assert "eugen-view" in text


def test_a_device_that_stops(page: Page, page_folder: Path, serve: Serve) -> None:
    page.open(serve(page_folder))
    page.evaluate(
        "eugenViewer.then(() => {"
        "window.gl = document.getElementById('canvas').getContext('webgl2');"
        "window.device = gl.getExtension('WEBGL_lose_context');"
        "device.loseContext() })"
    )
    page.wait("!document.getElementById('message').hidden")
    assert "The graphics device stopped answering" in page.evaluate("document.getElementById('message').innerText")
    # It gave up at the first image and does not try again.
    page.evaluate("device.restoreContext()")
    assert page.evaluate("new Promise(done => setTimeout(() => done(gl.isContextLost()), 300))")
