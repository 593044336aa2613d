"""A small version of `make demo`: all outputs exist, also after a second run."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import pytest
from PIL import Image
from rich.console import Console

from eugen_nerf.bench import demo
from eugen_nerf.bench.config import load_benchmark
from eugen_nerf.bench.demo import DemoOptions
from eugen_nerf.bench.folder import prepare_folder
from eugen_nerf.bench.lock import alone_in
from eugen_nerf.errors import UserError
from tests.bench.conftest import InProcessEngine, WriteConfig

ROWS = [
    "PSNR (dB)",
    "SSIM",
    "FPS",
    "Stored parameters",
    "Merged network parameters",
    "Multiply-adds per sample",
    "Training",
]


@pytest.fixture
def options(write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DemoOptions:
    monkeypatch.setattr(demo, "LocalEngine", InProcessEngine)
    path = write_config(budget={"iterations": 3}, curve={"at": [1.0], "views": 1})
    return DemoOptions(output=tmp_path / "demo", config=path, frames=6, size=32)


def test_demo(options: DemoOptions, quiet: Console) -> None:
    demo.demo(options, quiet)
    demo.demo(options, quiet)  # again, into its own results
    out = options.output
    table = json.loads((out / "table.json").read_text())
    assert list(table) == ["EUGen", "MLP"]
    assert sorted(table["EUGen"]) == sorted(ROWS)
    markdown = (out / "table.md").read_text()
    assert markdown.splitlines()[0] == "|  | EUGen | MLP |"
    assert f"| FPS | {table['EUGen']['FPS']} | {table['MLP']['FPS']} |" in markdown
    with imageio.get_reader(out / "orbit.mp4") as video:  # type: ignore[attr-defined]
        frames = [frame for frame in video]
    assert len(frames) == 6
    assert frames[0].shape == (32, 32, 3)
    for still in ("still_0.png", "still_1.png", "still_2.png"):
        with Image.open(out / still) as image:
            assert image.size == (32, 32)
    with Image.open(out / "comparison.png") as image:
        assert image.width > 3 * 32  # truth and both methods, enlarged
    assert (out / "report.html").exists()
    printed = quiet.file.getvalue()  # type: ignore[attr-defined]
    assert all(row in printed for row in ROWS)
    assert "ns-viewer --load-config" in printed


def test_a_failed_training_is_no_success(write_config: WriteConfig, options: DemoOptions, quiet: Console) -> None:
    """Images and tables of an earlier demo are removed, too."""
    prepare_folder(options.output, load_benchmark(options.config))
    own = ["orbit.mp4", "still_0.png", "still_2.png", "comparison.png", "table.md", "table.json"]
    for name in [*own, "notes.txt"]:
        (options.output / name).write_text("of an earlier demo")
    write_config(overrides={"pipeline.model.near": 1e7})
    with pytest.raises(UserError, match=r"2 of the demo's jobs failed"):
        demo.demo(options, quiet)
    assert [name for name in own if (options.output / name).exists()] == []
    assert (options.output / "notes.txt").exists()


def test_somebody_elses_folder_is_left_alone(options: DemoOptions, quiet: Console) -> None:
    options.output.mkdir()
    (options.output / "precious").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        demo.demo(options, quiet)


def test_a_demo_is_not_replaced_while_it_runs(options: DemoOptions, quiet: Console) -> None:
    prepare_folder(options.output, load_benchmark(options.config))
    (options.output / "table.md").write_text("of the demo that runs")
    with alone_in(options.output), pytest.raises(UserError, match="another run is writing there"):
        demo.demo(options, quiet)
    assert (options.output / "table.md").exists()
    assert (options.output / "benchmark.json").exists()


@pytest.mark.parametrize(
    ("changes", "benchmark", "message"),
    [
        ({"frames": 2}, {}, "--frames must be at least 3, not 2"),
        ({"size": 1}, {}, "--size must be at least 2, not 1"),
        ({}, {"pictures": 0}, "pictures of at least 1"),
        ({}, {"seeds": [0, 1]}, "one seed"),
    ],
)
def test_what_would_fail_after_the_trainings_is_refused_before(
    write_config: WriteConfig,
    options: DemoOptions,
    quiet: Console,
    changes: dict[str, int],
    benchmark: dict[str, Any],
    message: str,
) -> None:
    write_config(**benchmark)
    with pytest.raises(UserError, match=message):
        demo.demo(dataclasses.replace(options, **changes), quiet)  # type: ignore[arg-type]
    assert not options.output.exists()


def test_a_full_disk_after_the_trainings(options: DemoOptions, quiet: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(demo, "compare", full)
    with pytest.raises(
        UserError, match=r"cannot be written \(No space left on device\). The training results are saved"
    ):
        demo.demo(options, quiet)
