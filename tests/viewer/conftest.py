"""Small runs on the demo scene, their exports, and a browser to open them."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
import tyro
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
from nerfstudio.scripts.train import main as train

from eugen_nerf.export.server import make_server, url
from eugen_nerf.export.web import Options, export_web
from tests.plugin.conftest import SMALL
from tests.viewer.chromium import Page, find_chromium, running_chromium

ROOT = Path(__file__).parents[2]

Train = Callable[..., Path]


class Tab(Protocol):
    """A tab of any browser."""

    def evaluate(self, expression: str) -> Any:
        """Evaluate a JavaScript expression, and await it if it is a promise."""


@pytest.fixture(scope="session")
def train_run(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train a small model; return the run's config.yml."""

    def run(scene: Path, steps: int, *options: str, method: str = "eugen-nerf") -> Path:
        words = [
            method, *SMALL, "--data", str(scene), "--output-dir", str(tmp_path_factory.mktemp("runs")), "--timestamp=t",
            f"--max-num-iterations={steps}", "--steps-per-eval-image=0", *options,
        ]  # fmt: skip
        config: Any = tyro.cli(AnnotatedBaseConfigUnion, args=words)  # type: ignore[call-overload]
        train(config)
        return Path(config.get_base_dir() / "config.yml")

    return run


@pytest.fixture(scope="session")
def demo_run(train_run: Train) -> Path:
    """config.yml of a run on the demo scene."""
    return train_run(ROOT / "data" / "demo", 150, "--pipeline.model.field.max-resolution=64")


@pytest.fixture(scope="session")
def page_folder(demo_run: Path, train_run: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo scene, exported with its photos and an MLP baseline."""
    twin = train_run(ROOT / "data" / "demo", 20, "--pipeline.model.field.hidden-features=32", method="eugen-nerf-mlp")
    folder = tmp_path_factory.mktemp("pages") / "demo"
    export_web([demo_run, twin], folder, Options(with_images=True))
    return folder


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[[Path], str]]:
    """Serve a folder; return its address."""
    servers = []

    def start(folder: Path) -> str:
        server = make_server(folder, "127.0.0.1", 0)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return url(server)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A tab of a headless Chromium."""
    if find_chromium() is None:
        pytest.skip("no Chromium (apt install chromium)")
    os.environ.setdefault("HOME", str(tmp_path_factory.mktemp("home")))
    with running_chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def page(browser: Page) -> Page:
    """The tab with a small window and empty records."""
    browser.size(320, 240)
    browser.colors("light")
    browser.requests.clear()
    browser.console.clear()
    return browser


def rendered(page: Tab, view: int, size: int, mode: str = "color", network: int = 0, step: float = 1) -> np.ndarray:
    """A view as rendered by the page, with steps this many times as long as in training: [size, size, 4] uint8."""
    options = json.dumps(
        {"view": view, "width": size, "height": size, "mode": mode, "network": network, "stepFactor": step}
    )
    data = page.evaluate(
        f"""eugenViewer.then(async viewer => {{
            const options = {options};
            let text = "";
            for (const byte of (await viewer.render(options)).pixels) text += String.fromCharCode(byte);
            return btoa(text);
        }})"""
    )
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(size, size, 4)


def expected(pipeline: Any, view: int, size: int) -> dict[str, np.ndarray]:
    """The same view as rendered in Python: rgb [size, size, 3] uint8, accumulation and depth [size, size, 1]."""
    camera = pipeline.datamanager.eval_dataset.cameras[view]
    width, height = int(camera.width), int(camera.height)
    factor = size / max(width, height)
    square = Cameras(
        camera.camera_to_worlds[None],
        camera.fx * factor,
        camera.fy * factor,
        0.5 * size + (camera.cx - 0.5 * width) * factor,
        0.5 * size + (camera.cy - 0.5 * height) * factor,
        size,
        size,
    )
    with torch.no_grad():
        outputs = pipeline.model.get_outputs_for_camera(square)
    rgb = (outputs["rgb"].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return {"rgb": rgb, "accumulation": outputs["accumulation"].numpy(), "depth": outputs["depth"].numpy()}


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """The PSNR of uint8 images, in dB."""
    return float(-10 * np.log10(np.mean((first.astype(float) / 255 - second.astype(float) / 255) ** 2) + 1e-12))
