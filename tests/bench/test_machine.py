"""The record of where a measurement was made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from eugen_nerf.bench.machine import cpu_model, describe_machine, git_revision, peak_memory


def test_description_is_complete_and_fits_json() -> None:
    machine = json.loads(json.dumps(describe_machine("eugen-bench run x.yaml")))
    assert machine["command"] == "eugen-bench run x.yaml"
    assert machine["torch"] == torch.__version__.split("+")[0]
    assert machine["cpu"] == cpu_model() != ""
    assert machine["cpu_cores"] == len(os.sched_getaffinity(0))
    assert machine["date"].endswith(" UTC")


def test_revision_is_that_of_the_checkout() -> None:
    folder = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    revision = git_revision()
    if head.returncode == 0:
        assert revision is not None
        assert head.stdout.startswith(revision.rstrip("+"))
    else:
        assert revision is None


def test_peak_memory_is_of_this_process_alone() -> None:
    """A child of a process that holds 300 MB does not count them; getrusage would."""
    ballast = bytearray(os.urandom(1 << 20) * 300)
    code = (
        "from eugen_nerf.bench.machine import peak_memory; before = peak_memory()['peak_resident_bytes'];"
        "x = bytearray(b'x' * (100 << 20)); print(before, peak_memory()['peak_resident_bytes'])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = map(int, output.split())
    here = peak_memory()["peak_resident_bytes"]
    assert here is not None
    assert here > len(ballast)
    assert after - before > 90 << 20
