"""A Firefox with software WebGL, driven through WebDriver BiDi.

Without a display it has no WebGL, headless or not, so one is pretended by Xvfb where there is none.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("firefox", "firefox-esr")
PREFERENCES = """\
user_pref("webgl.force-enabled", true);
user_pref("app.update.enabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
"""


def find_firefox() -> str | None:
    """The path of the program, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def has_display() -> bool:
    """Whether there is a display, or Xvfb to simulate one."""
    return "DISPLAY" in os.environ or shutil.which("Xvfb") is not None


class FirefoxPage:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._last = 0
        self.console: list[str] = []  # errors and warnings
        self.call("session.new", capabilities={})
        self.call("session.subscribe", events=["log.entryAdded"])
        self._tab: str = self.call("browsingContext.getTree")["contexts"][0]["context"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol, and record the events that arrive meanwhile."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=300))
            if message.get("id") == self._last:
                assert message["type"] == "success", f"{method}: {message}"
                result: dict[str, Any] = message["result"]
                return result
            if message.get("method") == "log.entryAdded" and message["params"]["level"] in ("error", "warn"):
                self.console.append(str(message["params"]["text"]))

    def evaluate(self, expression: str) -> Any:
        """Evaluate a JavaScript expression (awaited if a promise) to a number, a string or a boolean."""
        answer = self.call("script.evaluate", expression=expression, target={"context": self._tab}, awaitPromise=True)
        assert answer["type"] == "success", answer["exceptionDetails"]["text"]
        return answer["result"].get("value")

    def open(self, address: str) -> None:
        """Navigate to a page."""
        self.call("browsingContext.navigate", context=self._tab, url=address, wait="complete")


@contextmanager
def running_firefox(profile: Path) -> Iterator[FirefoxPage]:
    """A browser with one tab; `profile` is an empty folder for its files."""
    program = find_firefox()
    assert program is not None
    (profile / "user.js").write_text(PREFERENCES)
    with _display() as display:
        process = subprocess.Popen(
            [program, "--no-remote", "--remote-debugging-port=0", "--profile", profile],
            env={**os.environ, "DISPLAY": display, "HOME": str(profile)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            address = next((line.split()[-1] for line in lines if "WebDriver BiDi listening on" in line), None)
            assert address is not None, f"Firefox ended with status {process.wait()}"
            with connect(f"{address}/session", max_size=None) as socket:
                yield FirefoxPage(socket)
        finally:
            process.kill()
            process.communicate()


@contextmanager
def _display() -> Iterator[str]:
    """The name of the display, or of a new Xvfb display if there is none."""
    if "DISPLAY" in os.environ:
        yield os.environ["DISPLAY"]
        return
    reading, writing = os.pipe()
    process = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writing), "-screen", "0", "800x600x24", "-nolisten", "tcp"],
        pass_fds=[writing],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(writing)
    try:
        with os.fdopen(reading) as answer:
            number = answer.readline().strip()
        assert number, f"Xvfb ended with status {process.wait()}"
        yield f":{number}"
    finally:
        process.terminate()
        process.wait()
