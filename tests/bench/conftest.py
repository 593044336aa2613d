"""Shared fixtures of the benchmark's tests: a benchmark that takes seconds, an engine without processes, results."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from eugen_nerf.bench import jobs, worker
from eugen_nerf.bench.config import Benchmark, load_benchmark
from eugen_nerf.bench.engines import Engine
from eugen_nerf.bench.folder import prepare_folder
from eugen_nerf.bench.jobs import Result
from eugen_nerf.bench.results import ResultStore
from eugen_nerf.bench.runner import Outcome, run
from eugen_nerf.bench.values import AVERAGED

SMALL = {
    "pipeline.target_num_samples": 1024,
    "pipeline.max_num_samples_per_ray": 32,
    "pipeline.model.steps_per_diagonal": 32,
    "pipeline.model.occupancy_resolution": 16,
    "pipeline.model.field.num_levels": 2,
    "pipeline.model.field.log2_hashmap_size": 8,
    "pipeline.model.field.max_resolution": 32,
    "pipeline.model.field.num_features": 8,
}

WriteConfig = Callable[..., Path]


def done(**values: Any) -> Result:
    """The result of a successful training, with everything that a report needs."""
    some = dict.fromkeys(AVERAGED, 1.0)
    rest = {"load_config": "config.yml", "views": [], "num_test_views": 2, "curve": [], "pictures": []}
    return Result("done", values={**some, **rest, **values})


class InProcessEngine(Engine):
    """Runs each job immediately in this process, so that nerfstudio is not imported for every job."""

    def __init__(self) -> None:
        self.folders: list[str] = []

    def has_room(self) -> bool:
        return True

    def start(self, folder: Path) -> None:
        self.folders.append(folder.name)
        # nerfstudio's modules import each other in a circle; importing this package first enters it at a working point.
        importlib.import_module("eugen_nerf.bench.methods")
        writer: Any = importlib.import_module("nerfstudio.utils.writer")

        # nerfstudio keeps a process's log files open; those of an earlier job may have been deleted.
        writer.EVENT_WRITERS.clear()
        result = worker.run_job(folder)
        jobs.write_json(folder / "result.json", vars(result))

    def poll(self, folder: Path) -> str | None:
        return "ended"

    def stop(self) -> None:
        pass


@pytest.fixture
def quiet() -> Console:
    """A console whose `file` collects the printed text."""
    return Console(file=io.StringIO(), width=120)


@pytest.fixture(scope="session")
def small_data(ball_scene: Path) -> dict[str, Any]:
    """The content of a YAML file with two methods on the ball."""
    return {
        "scenes": [{"path": str(ball_scene), "name": "ball"}],
        "methods": [{"method": "eugen-nerf", "name": "EUGen"}, {"method": "eugen-nerf-mlp", "name": "MLP"}],
        "budget": {"iterations": 12},
        "overrides": SMALL,
        "curve": {"at": [0.5, 1.0], "views": 1},
        "target_psnr": [1, 90],
        "timed_frames": 4,
        "pictures": 1,
    }


@pytest.fixture
def write_config(tmp_path: Path, small_data: dict[str, Any]) -> WriteConfig:
    """Write a YAML file that is `small_data` with some keys changed; None removes a key."""

    def write(**changes: Any) -> Path:
        data = {key: value for key, value in {**small_data, **changes}.items() if value is not None}
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return path

    return write


@pytest.fixture(scope="session")
def finished(
    small_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Benchmark, ResultStore, Outcome, str]:
    """A benchmark of two working methods and one that fails during construction, with two seeds each."""
    folder = tmp_path_factory.mktemp("bench")
    broken = {"method": "eugen-nerf", "name": "Broken", "overrides": {"pipeline.model.field.num_levels": 0}}
    data = {**small_data, "methods": [*small_data["methods"], broken], "seeds": [0, 1], "title": "Small"}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    benchmark = load_benchmark(path)
    store = prepare_folder(folder / "out", benchmark)
    console = Console(file=io.StringIO(), width=120)
    outcome = run(benchmark, store, InProcessEngine(), console, "eugen-bench run small.yaml")
    return benchmark, store, outcome, console.file.getvalue()  # type: ignore[attr-defined]
