"""The check before the first use of CUDA kernels: its comparisons, cache and messages.

The CPU's runners are used in place of a GPU's.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eugen_nerf.ops import dispatch, operators, self_check
from eugen_nerf.ops.build import BuildError, cpu_library
from eugen_nerf.ops.packing import pack_chain
from eugen_nerf.ops.self_check import NotChecked, Verdict, check_ops

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
    before = torch.get_rng_state()
    assert check_ops(CPU, "cpu") == []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert check_ops(CPU, "cpu") == []
    assert torch.equal(torch.get_rng_state(), before)


def test_defaults_of_the_caller_do_not_reach_the_check() -> None:
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert check_ops(CPU, "cpu") == []
        assert torch.get_default_dtype() == torch.float64
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)


def test_a_network_without_kernels_is_told_and_not_held_against_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU PyTorch evaluates it; asked for by name it would be an error."""
    network = dispatch.network

    def refusing(x: torch.Tensor, chain: Any, *, backend: Any) -> torch.Tensor:
        assert backend == "reference" or pack_chain(chain).spec[0] == 1
        return network(x, chain, backend=backend)

    monkeypatch.setattr(dispatch, "runs_network", lambda spec, device, backend: spec[0] == 1)
    monkeypatch.setattr(dispatch, "network", refusing)
    told: list[str] = []
    assert check_ops(CPU, "cpu", told.append) == []
    without = [line.partition(":")[0] for line in told if "no kernels" in line]
    assert "network (dense)" in without
    assert "render" in without
    assert any(line.startswith("network (order 2)") and "tolerance" in line for line in told)


def wrong(value: Any) -> Any:
    """Change one value of a runner's result."""
    first = (value if isinstance(value, torch.Tensor) else value[-1]).view(-1)
    first[len(first) // 2 :] *= 1.5
    return value


@pytest.mark.parametrize(
    "op",
    [
        "hash_encode",
        "spherical_harmonics",
        "network",
        "sample_points",
        "select_visible",
        "composite",
        "factor_products",
    ],
)
def test_a_runner_that_disagrees_is_named(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., Any] = getattr(operators, op)
    monkeypatch.setattr(dispatch.operators, op, lambda *arguments: wrong(right(*arguments)))
    failed = check_ops(CPU, "cpu")
    assert failed
    assert all(name.split(" ")[0] == op for name in failed)


def test_an_op_that_raises_leaves_the_others_to_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(dispatch.operators, "composite", broken)
    told: list[str] = []
    assert check_ops(CPU, "cpu", told.append) == ["composite"]
    assert "composite: RuntimeError: no luck" in told
    assert any(line.startswith("masked_adam: ") for line in told)
    with pytest.raises(RuntimeError, match="no\nluck"):  # in the separate process, it is the reason of the crash
        check_ops(CPU, "cpu")


def test_another_process_checks_the_rest_if_an_op_leaves_the_device_unusable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    commands: list[list[str]] = []
    monkeypatch.setattr(dispatch.operators, "composite", broken)
    monkeypatch.setattr(self_check, "_is_usable", lambda device: False)
    monkeypatch.setattr(self_check.subprocess, "run", lambda command, **_: commands.append(command))
    with pytest.raises(SystemExit) as ended:
        self_check.main("cpu")
    assert ended.value.code == 1
    assert [command[command.index("--only") + 1 :] for command in commands] == [
        ["render", "training", "factor_products", "masked_adam"]
    ]
    assert "not checked: render, training" in capsys.readouterr().err


def test_some_ops_alone() -> None:
    told: list[str] = []
    assert check_ops(CPU, "cpu", told.append, ("masked_adam", "network (dense)")) == []
    assert [line.partition(":")[0] for line in told] == ["network (dense)", "masked_adam"]


def test_what_is_not_finite_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    right = operators.spherical_harmonics
    monkeypatch.setattr(dispatch.operators, "spherical_harmonics", lambda d: right(d) * float("nan"))
    assert check_ops(CPU, "cpu") == ["spherical_harmonics"]


def test_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "eugen_nerf.ops.self_check", "cpu"]
    root = Path(self_check.__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    arrived, failed = result.stdout.splitlines()
    assert arrived == self_check.ARRIVED
    assert json.loads(failed) == []
    assert re.search(r"^spherical_harmonics: \d\.\de-\d\d, tolerance 1e-0\d$", result.stderr, re.MULTILINE)


def test_the_process_of_the_first_use_leaves_stderr_to_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, -11, f"{self_check.ARRIVED}\n", "")

    with monkeypatch.context() as patch:
        patch.setattr(self_check.subprocess, "run", run)
        assert self_check.in_another_process(0) == Verdict(crash="exit status -11")
    on_cpu = ["cpu" if word == "cuda:0" else word for word in commands[0]]
    root = Path(self_check.__file__).parents[2]
    result = subprocess.run(on_cpu, capture_output=True, text=True, check=True, cwd=root)
    assert json.loads(result.stdout.splitlines()[-1]) == []
    assert "tolerance" not in result.stderr


def test_a_process_that_finds_something_ends_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = operators.spherical_harmonics
    monkeypatch.setattr(dispatch.operators, "spherical_harmonics", lambda d: wrong(right(d)))
    with pytest.raises(SystemExit) as ended:
        self_check.main("cpu")
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == ["spherical_harmonics"]


TORCHS_ERROR = """Traceback (most recent call last):
  File "self_check.py", line 1, in <module>
torch.AcceleratorError: CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace may be incorrect.
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.

"""
ACCESS = "torch.AcceleratorError: CUDA error: an illegal memory access was encountered"
LATER = "torch.AcceleratorError: CUDA error: out of memory"
FULL = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB."


@pytest.mark.parametrize(
    ("stdout", "stderr", "status", "expected"),
    [
        (f'{self_check.ARRIVED}\n["march"]\n', "a warning", 0, Verdict(("march",))),
        (f"{self_check.ARRIVED}\n", TORCHS_ERROR, 1, Verdict(crash=ACCESS)),
        (f"{self_check.ARRIVED}\n", "", -11, Verdict(crash="exit status -11")),
        (f"{self_check.ARRIVED}\n", FULL, 1, FULL),
        (f"{self_check.ARRIVED}\n", LATER, 1, LATER),
        (f"{self_check.ARRIVED}\n", "Killed", -9, Verdict(crash="Killed", lasts=False)),
        ("", "RuntimeError: all CUDA-capable devices are busy", 1, "RuntimeError: all CUDA-capable devices are busy"),
        ("", "", 1, "exit status 1"),
    ],
)
def test_what_the_other_process_says(
    stdout: str, stderr: str, status: int, expected: Verdict | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verdict if the process reached the kernels, otherwise the reason as text."""
    done = subprocess.CompletedProcess([], status, stdout, stderr)
    monkeypatch.setattr(self_check.subprocess, "run", lambda *_, **__: done)
    if isinstance(expected, Verdict):
        assert self_check.in_another_process(0) == expected
    else:
        with pytest.raises(NotChecked) as caught:
            self_check.in_another_process(0)
        assert str(caught.value) == expected


def test_a_process_without_a_gpu_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU does not exist."""
    with pytest.raises(NotChecked, match=r"^\w.*"):
        self_check.in_another_process(99)
    monkeypatch.setattr(self_check.sys, "executable", "/nowhere/python")
    with pytest.raises(NotChecked, match="/nowhere/python"):
        self_check.in_another_process(0)


class FakeGpu:
    architecture = 90

    def resident_blocks(self, *_: object) -> int:
        return 1


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A separate cache, and circumstances that need no GPU."""
    monkeypatch.setenv("EUGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(self_check, "_circumstances", lambda index: f"gpu-{index}")
    return []


@pytest.mark.parametrize("found", [Verdict(), Verdict(("network", "render")), Verdict(crash="illegal access")])
def test_the_answer_is_kept(found: Verdict, answers: list[int]) -> None:
    def run(index: int) -> Verdict:
        answers.append(index)
        return found

    for index in (0, 0, 1, 0):
        answer = self_check.verdict(index, run)
        assert (answer.failed, answer.crash) == (found.failed, found.crash)
        problem = answer.problem()
        assert problem is None or f"delete {answer.kept_in} to have them checked again" in problem
    assert answers == [0, 1]
    Path(answer.kept_in).unlink()  # of the last check
    self_check.verdict(0, run)
    assert answers == [0, 1, 0]


def rewrite(path: Path) -> None:
    path.write_text("other")


CHANGES: dict[str, Callable[[pytest.MonkeyPatch, Path], None]] = {
    "kernel": lambda patch, _: patch.setattr(self_check, "sources", lambda: {"march.h": b"other"}),
    "name-of-a-kernel": lambda patch, _: patch.setattr(self_check, "sources", lambda: {"other.h": b"march"}),
    "python": lambda _, folder: rewrite(folder / "dispatch.py"),
    "options": lambda patch, _: patch.setattr(self_check, "OPTIONS", ("--other",)),
    "compiler": lambda patch, _: patch.setattr(self_check, "find_nvrtc", lambda: SimpleNamespace(version=(12, 8))),
    "gpu": lambda patch, _: patch.setattr(torch.cuda, "get_device_name", lambda index: "other"),
    "capability": lambda patch, _: patch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 1)),
    "torch": lambda patch, _: patch.setattr(torch, "__version__", "other"),
    "driver": lambda patch, _: patch.setattr(self_check, "_driver_version", lambda: "other"),
    "precision": lambda patch, _: patch.setenv("EUGEN_PRECISION", "other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_answer_is_kept_for_what_it_depends_on(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dispatch.py").write_text("dispatch")
    monkeypatch.setattr(self_check, "__file__", str(tmp_path / "self_check.py"))
    monkeypatch.setattr(self_check, "sources", lambda: {"march.h": b"march"})
    monkeypatch.setattr(self_check, "find_nvrtc", lambda: SimpleNamespace(version=(12, 6)))
    monkeypatch.setattr(self_check, "_driver_version", lambda: "driver")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "gpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.delenv("EUGEN_PRECISION", raising=False)
    before = self_check._circumstances(0)
    assert self_check._circumstances(0) == before
    CHANGES[change](monkeypatch, tmp_path)
    assert self_check._circumstances(0) != before


def test_no_answer_is_no_answer_to_keep(answers: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "SECONDS", 0.01)
    assert "no answer after" in str(self_check.verdict(0).problem())
    assert not list(tmp_path.rglob("*.json"))


def test_without_another_process_this_one_asks_itself(
    answers: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU in exclusive mode or with full memory: this may change, and is no reason to avoid kernels."""

    def busy(index: int) -> Verdict:
        raise NotChecked("busy")

    def check(device: torch.device, backend: str) -> list[str]:
        assert dispatch._native_cuda_problem(1) is None  # the kernels are available for the check
        assert dispatch.requested_backend("reference") == "reference"
        return [f"march on {device}"]

    monkeypatch.setattr(dispatch, "gpu", lambda index: FakeGpu())
    monkeypatch.setattr(self_check, "in_another_process", busy)
    monkeypatch.setattr(self_check, "check_ops", check)
    monkeypatch.setenv("EUGEN_BACKEND", "cuda")
    monkeypatch.delenv(self_check.SWITCH, raising=False)
    dispatch._native_cuda_problem.cache_clear()
    with pytest.warns(RuntimeWarning, match="disagree with PyTorch in march on cuda:1"):
        assert "march" in str(dispatch._native_cuda_problem(1))
    assert "march" in str(dispatch._native_cuda_problem(1))
    dispatch._native_cuda_problem.cache_clear()
    assert not list(tmp_path.rglob("*.json"))


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
