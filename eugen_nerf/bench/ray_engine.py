"""Run workers on a Ray cluster (the optional extra `ray`)."""

from __future__ import annotations

import logging
import math
import socket
from pathlib import Path
from typing import Any

from eugen_nerf.bench.engines import Engine, run_worker
from eugen_nerf.errors import UserError

SECONDS_TO_KNOCK = 10.0


class RayEngine(Engine):
    """Submits every job to an existing Ray cluster, which places it where GPUs or CPUs are free.

    The package must be installed on every node, and the output folder must be on a file system shared by all nodes.

    Args:
        address: address of the cluster, as for `ray.init`; "auto" for the one on this machine or in $RAY_ADDRESS.
        gpus, cpus: resources of each job. None means one GPU if the cluster has any, and one CPU.

    Raises:
        UserError: Ray is not installed, there is no cluster at the address, or no node could run such a job.
    """

    def __init__(self, address: str = "auto", gpus: float | None = None, cpus: float | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "--engine ray needs Ray: pip install '.[ray]' where eugen-nerf was installed from."
            ) from error
        self._ray = ray
        self._owns_connection = not ray.is_initialized()
        if self._owns_connection:
            try:
                _knock(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
            except (OSError, RuntimeError, ValueError) as error:
                reason = getattr(error, "strerror", None) or " ".join(str(error).split())
                raise UserError(f"No Ray cluster at {address!r}: {reason}") from error
        total = ray.cluster_resources()
        has_gpus = total.get("GPU", 0) > 0
        self.gpus = gpus if gpus is not None else float(has_gpus)
        self.cpus = cpus if cpus is not None else 1.0
        for name, wanted in (("GPU", self.gpus), ("CPU", self.cpus)):
            if not 0 <= wanted < math.inf or 0 < wanted < 1e-4:  # Ray counts in steps of 1/10,000
                raise UserError(f"--{name.lower()}s-per-job must be 0 or a number from 0.0001 on, not {wanted:g}.")
            if name == "GPU" and wanted > 1 and wanted != int(wanted):
                raise UserError(f"--gpus-per-job must be a whole number or a fraction of 1, not {wanted:g}.")
            most = max((node["Resources"].get(name, 0) for node in ray.nodes() if node["Alive"]), default=0)
            if wanted > most:
                raise UserError(
                    f"A job asks for {wanted:g} {name}s, but no node of the Ray cluster has more than {most:g}."
                )
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": 0}
        self._task = ray.remote(**options)(_run)
        self._running: dict[Path, Any] = {}

    def has_room(self) -> bool:
        return True  # Ray keeps the queue

    def start(self, folder: Path) -> None:
        self._running[folder] = self._task.remote(str(folder))

    def poll(self, folder: Path) -> str | None:
        task = self._running[folder]
        ready, _ = self._ray.wait([task], timeout=0)
        if not ready:
            return None
        del self._running[folder]
        try:
            ended: str = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [""]
            return f"the Ray task failed: {lines[-1]}"
        return ended

    def stop(self) -> None:
        for task in self._running.values():
            self._ray.cancel(task, force=False)
        if self._running:
            self._ray.wait(list(self._running.values()), num_returns=len(self._running), timeout=15)
        self._running.clear()
        if self._owns_connection:
            self._ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT; Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_KNOCK).close()


def _run(folder: str) -> str:
    """The Ray task: a worker process as on the local machine, so that peak memory and stopping work the same."""
    if not (Path(folder) / "job.json").is_file():
        return f"{folder} does not exist on this node: --out must lie on a file system that all nodes share"
    return run_worker(Path(folder))
