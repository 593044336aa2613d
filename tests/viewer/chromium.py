"""A headless Chromium with software WebGL, driven through its DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root in a container has no namespaces to sandbox with
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--remote-debugging-port=0",
)


def find_chromium() -> str | None:
    """The path of the program, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._last = 0
        self.requests: list[str] = []  # addresses requested by the page
        self.console: list[str] = []  # errors and warnings
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, timeout: float = 120, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol, and record the events that arrive meanwhile."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        deadline = time.monotonic() + timeout
        while True:
            message = json.loads(self._socket.recv(timeout=max(deadline - time.monotonic(), 0.001)))
            if message.get("id") == self._last:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif message.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.console.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif message.get("method") == "Runtime.exceptionThrown":
            self.console.append(json.dumps(params["exceptionDetails"])[:500])
        elif message.get("method") == "Log.entryAdded":
            self.console.append(params["entry"]["text"])

    def evaluate(self, expression: str, timeout: float = 120) -> Any:
        """Evaluate a JavaScript expression, and await it if it is a promise."""
        answer = self.call(
            "Runtime.evaluate", timeout=timeout, expression=expression, awaitPromise=True, returnByValue=True
        )
        details = answer.get("exceptionDetails")
        if details is not None:
            raise AssertionError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait(self, expression: str, timeout: float = 120) -> Any:
        """Wait until an expression is true; return its value."""
        deadline = time.monotonic() + timeout
        while True:
            value = self.evaluate(expression)
            if value:
                return value
            assert time.monotonic() < deadline, f"never became true: {expression}; console: {self.console}"
            time.sleep(0.05)

    def event(self, method: str, timeout: float = 120) -> None:
        """Wait for the next event of a kind. During a navigation this is the only way, because expressions may fail."""
        deadline = time.monotonic() + timeout
        while True:
            message = json.loads(self._socket.recv(timeout=max(deadline - time.monotonic(), 0.001)))
            self._note(message)
            if message.get("method") == method:
                return

    def open(self, address: str) -> None:
        """Navigate to a page."""
        self.call("Page.navigate", url="about:blank")  # so that an address that differs only after the # is loaded, too
        self.call("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(address[:20])})")

    def size(self, width: int, height: int, phone: bool = False, scale: float = 1.0) -> None:
        """Set the size of the window in CSS pixels, and the device's pixels per CSS pixel along a side."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def colors(self, scheme: str) -> None:
        """Set the color scheme that the system prefers: light or dark."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def before_scripts(self, source: str) -> Callable[[], None]:
        """Run JavaScript before the scripts of each later page, until the returned function is called."""
        identifier = self.call("Page.addScriptToEvaluateOnNewDocument", source=source)["identifier"]
        return lambda: void(self.call("Page.removeScriptToEvaluateOnNewDocument", identifier=identifier))

    def screenshot(self, path: Path | None = None) -> bytes:
        """A screenshot, as PNG."""
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            path.write_bytes(data)
        return data

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Send a mouse event: mousePressed, mouseMoved, mouseReleased, mouseWheel."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(self, start: tuple[float, float], end: tuple[float, float], button: str = "left") -> None:
        """Press, move in a few steps, and release."""
        buttons = {"left": 1, "right": 2}[button]
        self.mouse("mousePressed", *start, button=button, buttons=buttons, clickCount=1)
        for step in range(1, 5):
            x, y = (a + (b - a) * step / 4 for a, b in zip(start, end, strict=True))
            self.mouse("mouseMoved", x, y, button=button, buttons=buttons)
        self.mouse("mouseReleased", *end, button=button, clickCount=1)

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        """Send a touch event: touchStart, touchMove, touchEnd."""
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in points])

    def key(self, code: str, key: str, seconds: float = 0.0) -> None:
        """Press, hold and release a key."""
        self.call("Input.dispatchKeyEvent", type="keyDown", code=code, key=key)
        time.sleep(seconds)
        self.call("Input.dispatchKeyEvent", type="keyUp", code=code, key=key)


def void(_: object) -> None:
    """Ignore a value."""


@contextmanager
def running_chromium(profile: Path) -> Iterator[Page]:
    """A browser with one tab; `profile` is a folder for its files."""
    program = find_chromium()
    assert program is not None
    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port, path = _devtools(profile, process)
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as browser:
            tabs = _call(browser, "Target.getTargets")["targetInfos"]
            tab = next(each["targetId"] for each in tabs if each["type"] == "page")
            with connect(f"ws://127.0.0.1:{port}/devtools/page/{tab}", max_size=None) as socket:
                yield Page(socket)
            _call(browser, "Browser.close")
        process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()


def _devtools(profile: Path, process: subprocess.Popen[bytes]) -> tuple[str, str]:
    file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + 60
    while True:
        lines = file.read_text().split() if file.exists() else []
        if len(lines) == 2:
            return lines[0], lines[1]
        assert process.poll() is None, f"Chromium ended with status {process.returncode}"
        assert time.monotonic() < deadline, "Chromium does not answer"
        time.sleep(0.05)


def _call(socket: ClientConnection, method: str) -> dict[str, Any]:
    socket.send(json.dumps({"id": 1, "method": method}))
    while True:
        message = json.loads(socket.recv(timeout=60))
        if message.get("id") == 1:
            result: dict[str, Any] = message["result"]
            return result
