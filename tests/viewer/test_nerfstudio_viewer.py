"""nerfstudio's own viewer shows a trained run in a browser."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.viewer.chromium import Page

pytestmark = pytest.mark.slow


def middle(page: Page) -> np.ndarray:
    """The part of the window that is not covered by a panel, [H, W, 3] uint8."""
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    return picture[100:-40, 40:420]


def test_shows_the_scene(page: Page, demo_run: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--viewer.websocket-host=127.0.0.1", f"--viewer.websocket-port={port}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "nerfstudio.scripts.viewer.run_viewer", "--load-config", str(demo_run), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    try:
        deadline = time.monotonic() + 240
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        page.size(800, 500)
        page.open(f"http://127.0.0.1:{port}/")
        # Before the first rendered image arrives the window has a single color.
        deadline = time.monotonic() + 120
        while True:
            picture = middle(page)
            if picture.std() > 5 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 200:
                break
            assert time.monotonic() < deadline, f"the picture's deviation is {picture.std():.1f}"
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.5)
        assert page.evaluate("document.body.innerText.includes('Connected')")
    finally:
        page.call("Page.navigate", url="about:blank")
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
