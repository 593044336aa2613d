"""The description of the machine of a measurement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eugen_nerf.bench import machine
from eugen_nerf.bench.machine import cpu_model, describe_machine, git_revision, peak_memory


def test_description_is_complete_and_fits_json() -> None:
    machine = json.loads(json.dumps(describe_machine("eugen-bench run x.yaml")))
    assert machine["command"] == "eugen-bench run x.yaml"
    assert machine["torch"] == torch.__version__.split("+")[0]
    assert machine["cpu"] == cpu_model() != ""
    assert machine["cpu_cores"] == len(os.sched_getaffinity(0))
    assert machine["date"].endswith(" UTC")


def test_processor_is_named_with_its_numbers_where_the_system_tells_them(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: A Processor\n"
    monkeypatch.setattr(machine, "Path", lambda path: SimpleNamespace(read_text=lambda: told))
    vectors = torch.backends.cpu.get_cpu_capability()
    assert cpu_model() == f"A Processor (family 25, model 17, {vectors})"
    told = "processor\t: 0\nBogoMIPS\t: 50\n"
    monkeypatch.setattr(machine.platform, "processor", lambda: "aarch64")
    assert cpu_model() == f"aarch64 ({vectors})"


def test_revision_is_that_of_the_checkout() -> None:
    folder = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    revision = git_revision()
    if head.returncode == 0:
        assert revision is not None
        assert head.stdout.startswith(revision.rstrip("+"))
    else:
        assert revision is None


def test_a_changed_checkout_is_told_from_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        names = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        words = ("git", *names, *words)
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    module = tmp_path / "machine.py"
    module.write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "First")
    monkeypatch.setattr(machine, "__file__", str(module))
    revision = git("rev-parse", "--short=12", "HEAD")
    assert git_revision() == revision
    (tmp_path / "results.jsonl").write_text("")  # untracked files do not change the checkout
    assert git_revision() == revision
    module.write_text("changed")
    assert git_revision() == revision + "+"


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
