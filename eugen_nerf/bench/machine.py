"""Describe the machine and the software of a measurement."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import eugen_nerf

PACKAGES = ("torch", "nerfstudio", "numpy")


def describe_machine(command: str) -> dict[str, Any]:
    """Collect machine, versions, revision, time and command for the record of a measurement.

    Args:
        command: what the user typed.
    """
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "git_revision": git_revision(),
        "cpu": cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "gpu": gpu,
        "cuda": torch.version.cuda if gpu else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "eugen_nerf": eugen_nerf.__version__,
        **{package: _version(package) for package in PACKAGES},
    }


def cpu_model() -> str:
    """The processor's name with family, model and vector instructions, since virtual machines often shorten the name.

    Returns:
        For example "AMD EPYC (family 25, model 17, AVX512)".
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key.removeprefix('cpu ')} {facts[key]}" for key in ("cpu family", "model") if key in facts]
    return f"{name} ({', '.join([*numbers, torch.backends.cpu.get_cpu_capability()])})"


def git_revision() -> str | None:
    """Revision of the checkout that the package runs from, with + if it has changes; None outside of a checkout."""
    folder = Path(__file__).parent
    try:
        revision = _git(folder, "rev-parse", "--short=12", "HEAD")
        # A package that is installed inside another project's checkout does not belong to that checkout.
        tracked = _git(folder, "ls-files", Path(__file__).name)
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+" if changed else "") if tracked else None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def peak_memory() -> dict[str, int | None]:
    """Peak memory of this process in bytes: resident, and on the device as allocated by PyTorch.

    The resident peak is read from /proc, because getrusage includes the parent from which the process forked.
    """
    resident = None
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                resident = 1024 * int(line.split()[1])
    except OSError:
        pass
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {"peak_resident_bytes": resident, "peak_device_bytes": device}
