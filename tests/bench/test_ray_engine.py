"""Jobs on a Ray cluster: two workers on this machine's loopback interface."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eugen_nerf.bench import jobs
from eugen_nerf.bench.config import Budget, load_benchmark
from eugen_nerf.bench.ray_engine import RayEngine
from eugen_nerf.errors import UserError
from tests.bench.conftest import WriteConfig
from tests.bench.test_cli import workers_of


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that runs nothing and two workers with one CPU each."""
    pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    options: dict[str, Any] = {"include_dashboard": False, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **options})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
        yield cluster
    finally:
        cluster.shutdown()


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.mark.slow
def test_jobs_run_side_by_side_and_can_be_stopped(write_config: WriteConfig, cluster: Any, tmp_path: Path) -> None:
    first, second = jobs.training_jobs(load_benchmark(write_config()))
    endless = dataclasses.replace(second, budget=Budget(iterations=10_000_000), curve_at=(1.0,))
    folders = []
    for job in (first, endless):
        folder = tmp_path / "jobs" / job.slug
        folder.mkdir(parents=True)
        data = {"kind": "training", "job": dataclasses.asdict(job), "command": "x", "out": str(tmp_path)}
        jobs.write_json(folder / "job.json", data)
        folders.append(folder)
    engine = RayEngine(cluster.address)
    try:
        assert (engine.cpus, engine.gpus) == (1.0, 0.0)
        for folder in folders:
            assert engine.has_room()
            engine.start(folder)
        wait_for(lambda: engine.poll(folders[0]) is not None)
        result = jobs.read_json(folders[0] / "result.json")
        assert (result["status"], result["message"]) == ("done", "")
        assert result["values"]["steps"] == 12
        # The other worker is at the endless job.
        wait_for(lambda: (jobs.read_json(folders[1] / "progress.json") or {}).get("phase") == "training")
        assert engine.poll(folders[1]) is None
        assert len(workers_of(folders[1])) == 1
    finally:
        engine.stop()
    wait_for(lambda: not workers_of(folders[1]))


class FakeRay(SimpleNamespace):
    """As much of Ray as the engine looks at before it hands out a job."""

    def __init__(self, nodes: list[dict[str, float]], error: Exception | None = None) -> None:
        super().__init__()
        self._nodes, self._error = nodes, error

    def is_initialized(self) -> bool:
        return False

    def init(self, **_: Any) -> None:
        if self._error:
            raise self._error

    def cluster_resources(self) -> dict[str, float]:
        names = {name for node in self._nodes for name in node}
        return {name: sum(node.get(name, 0) for node in self._nodes) for name in names}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": node} for node in self._nodes]

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        self.options = options
        return lambda function: function


def test_a_job_asks_for_a_gpu_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay([{"CPU": 8.0}, {"CPU": 8.0, "GPU": 4.0}])
    monkeypatch.setitem(sys.modules, "ray", ray)
    RayEngine()
    assert ray.options == {"num_cpus": 1.0, "num_gpus": 1.0, "max_retries": 0}
    RayEngine(gpus=0.5, cpus=4)
    assert ray.options == {"num_cpus": 4, "num_gpus": 0.5, "max_retries": 0}


def test_what_the_cluster_cannot_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay([{"CPU": 4.0}, {"CPU": 4.0}]))
    with pytest.raises(UserError, match="A job asks for 6 CPUs; no node of the Ray cluster has more than 4"):
        RayEngine(cpus=6)
    with pytest.raises(UserError, match="A job asks for 1 GPUs; no node of the Ray cluster has more than 0"):
        RayEngine(gpus=1)


def test_no_ray_or_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay([], ConnectionError("Could not find any\nrunning instance")))
    with pytest.raises(UserError, match=r"No Ray cluster at 'auto': Could not find any running instance"):
        RayEngine()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'needs Ray: pip install "eugen-nerf\[ray\]"'):
        RayEngine()
