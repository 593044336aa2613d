"""The check that comes before the first use of CUDA kernels: what it compares, keeps, and says. The CPU's runners
stand in for those of a GPU."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eugen_nerf.ops import cpu, dispatch, self_check
from eugen_nerf.ops.build import BuildError, cpu_library
from eugen_nerf.ops.self_check import Verdict, check_ops

CPU = torch.device("cpu")


def have_compiler() -> bool:
    try:
        cpu_library()
    except BuildError:
        return False
    return True


pytestmark = pytest.mark.skipif(not have_compiler(), reason="no C++ compiler")


@pytest.fixture(autouse=True)
def no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)


def test_runners_that_agree() -> None:
    assert check_ops(CPU, "cpu") == []


def wrong(value: Any) -> Any:
    """One number of what a runner returns, changed."""
    first = (value if isinstance(value, torch.Tensor) else value[-1]).view(-1)
    first[len(first) // 2 :] *= 1.5
    return value


@pytest.mark.parametrize("op", ["hash_encode", "spherical_harmonics", "network", "sample_points", "composite"])
def test_a_runner_that_disagrees_is_named(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., Any] = getattr(cpu, op)
    monkeypatch.setattr(dispatch.cpu, op, lambda *arguments: wrong(right(*arguments)))
    failed = check_ops(CPU, "cpu")
    assert failed
    assert all(name.split(" ")[0] == op for name in failed)


def test_what_is_not_finite_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cpu.spherical_harmonics
    monkeypatch.setattr(dispatch.cpu, "spherical_harmonics", lambda d: right(d) * float("nan"))
    assert check_ops(CPU, "cpu") == ["spherical_harmonics"]


def test_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "eugen_nerf.ops.self_check", "cpu"]
    root = Path(self_check.__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert json.loads(result.stdout) == []


def test_a_crash_is_told_by_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no such GPU: the other process fails, this one goes on."""
    crash = self_check.in_another_process(99).crash
    assert crash
    assert "\n" not in crash
    monkeypatch.setattr(self_check.sys, "executable", "/nowhere/python")
    assert "/nowhere/python" in self_check.in_another_process(0).crash


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A cache of its own, and circumstances that need no GPU."""
    monkeypatch.setenv("EUGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(self_check, "_circumstances", lambda index: f"gpu-{index}")
    return []


@pytest.mark.parametrize("found", [Verdict(), Verdict(("network", "render")), Verdict(crash="illegal access")])
def test_the_answer_is_kept(found: Verdict, answers: list[int]) -> None:
    def run(index: int) -> Verdict:
        answers.append(index)
        return found

    assert [self_check.verdict(index, run) for index in (0, 0, 1, 0)] == [found] * 4
    assert answers == [0, 1]


def test_a_cache_that_cannot_be_written_or_read_is_no_obstacle(tmp_path: Path, answers: list[int]) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cuda-check-gpu-0.json").write_text("half a fi")
    assert self_check.verdict(0, lambda index: Verdict(("march",))).failed == ("march",)
    (tmp_path / "cache" / "cuda-check-gpu-1.json").mkdir()
    assert self_check.verdict(1, lambda index: Verdict(("march",))).failed == ("march",)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Verdict(), None),
        (Verdict(("network (order 2)", "render")), r"disagree with PyTorch in network \(order 2\), render"),
        (Verdict(crash="illegal memory access"), r"ended in an error \(illegal memory access\)"),
    ],
)
def test_kernels_that_fail_are_not_used(found: Verdict, message: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeGpu:
        architecture = 90

        def resident_blocks(self, *_: object) -> int:
            return 1

    monkeypatch.setattr(dispatch, "gpu", lambda index: FakeGpu())
    monkeypatch.setattr(importlib.import_module("eugen_nerf.ops.self_check"), "verdict", lambda index: found)
    monkeypatch.delenv(self_check.SWITCH, raising=False)
    dispatch._native_cuda_problem.cache_clear()
    if message is None:
        assert dispatch._native_cuda_problem(0) is None
    else:
        with pytest.warns(RuntimeWarning, match=message + r".* Please report"):
            assert dispatch._native_cuda_problem(0) is not None
        monkeypatch.setenv(self_check.SWITCH, "0")
        dispatch._native_cuda_problem.cache_clear()
        assert dispatch._native_cuda_problem(0) is None
    dispatch._native_cuda_problem.cache_clear()
