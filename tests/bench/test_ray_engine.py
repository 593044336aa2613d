"""Jobs on a Ray cluster of two workers on loopback, and the errors for unsuitable clusters."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
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

SECONDS = 120.0  # per step; far more than any step takes on an idle machine

# Ray's own processes; the test talks to them through a process too, so that one that hangs can be ended.
CLUSTER = """
import sys
import ray._private.ray_constants
# Ray would replace the loopback address by the machine's own, where this cluster does not listen.
ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
from ray.cluster_utils import Cluster

options = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **options})
cluster.add_node(num_cpus=1, **options)
print("ADDRESS", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


# Takes the place of training in the workers, which else are the real ones: nerfstudio alone takes them half a minute to
# import, and training is what other tests are for.
STUB = """
import sys, time, types

def train_and_evaluate(job, out, report):
    from eugen_nerf.bench.jobs import Progress
    for step in range(job.budget.iterations):
        report(Progress("training", step=step))
        time.sleep(0.01)
    return {"steps": job.budget.iterations}

sys.modules["eugen_nerf.bench.training"] = types.SimpleNamespace(train_and_evaluate=train_and_evaluate)
"""


def wait_for(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a cluster of two nodes with one CPU each."""
    pytest.importorskip("ray", reason="needs the extra ray")
    import ray._private.ray_constants

    monkeypatch.setattr(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "sitecustomize.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stub"), prepend=os.pathsep)
    with open(tmp_path / "cluster.txt", "w+") as out:
        command = [sys.executable, "-c", CLUSTER]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True)

    def text() -> str:
        return (tmp_path / "cluster.txt").read_text()

    try:
        wait_for(lambda: "ADDRESS" in text() or process.poll() is not None, "a Ray cluster on loopback")
        assert process.poll() is None, text()
        yield text().rpartition("ADDRESS ")[2].split()[0]
    finally:
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
def test_jobs_run_side_by_side_and_can_be_stopped(write_config: WriteConfig, cluster: str, tmp_path: Path) -> None:
    first, second = jobs.training_jobs(load_benchmark(write_config()))
    endless = dataclasses.replace(second, budget=Budget(iterations=10_000_000), curve_at=(1.0,))
    folders = []
    for job in (first, endless):
        folder = tmp_path / "jobs" / job.slug
        folder.mkdir(parents=True)
        data = {"kind": "training", "job": dataclasses.asdict(job), "command": "x", "out": str(tmp_path)}
        jobs.write_json(folder / "job.json", data)
        folders.append(folder)
    engine = RayEngine(cluster)
    try:
        assert (engine.cpus, engine.gpus) == (1.0, 0.0)
        for folder in folders:
            assert engine.has_room()
            engine.start(folder)
        wait_for(lambda: engine.poll(folders[0]) is not None, "the end of the first job")
        result = jobs.read_json(folders[0] / "result.json")
        assert (result["status"], result["message"]) == ("done", "")
        assert result["values"]["steps"] == 12
        # The other worker is busy with the endless job.
        wait_for(lambda: (jobs.read_json(folders[1] / "progress.json") or {}).get("phase") == "training", "a step")
        assert engine.poll(folders[1]) is None
        assert len(workers_of(folders[1])) == 1
    finally:
        engine.stop()
    wait_for(lambda: not workers_of(folders[1]), "the end of the stopped worker", 30)


class FakeRay(SimpleNamespace):
    """The parts of Ray that the engine uses before it submits a job."""

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
    with pytest.raises(UserError, match="A job asks for 6 CPUs, but no node of the Ray cluster has more than 4"):
        RayEngine(cpus=6)
    with pytest.raises(UserError, match="A job asks for 1 GPUs, but no node of the Ray cluster has more than 0"):
        RayEngine(gpus=1)


def test_no_ray_or_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay([], ConnectionError("Could not find any\nrunning instance")))
    with pytest.raises(UserError, match=r"No Ray cluster at 'auto': Could not find any running instance"):
        RayEngine()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs Ray: pip install '\.\[ray\]'"):
        RayEngine()


def test_an_address_where_nothing_listens_is_told_at_once() -> None:
    """Ray itself would retry for minutes."""
    pytest.importorskip("ray", reason="needs the extra ray")
    with pytest.raises(UserError, match=r"No Ray cluster at '127.0.0.1:9': Connection refused"):
        RayEngine("127.0.0.1:9")
