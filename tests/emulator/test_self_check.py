"""The check before the first use of CUDA kernels, on the emulator: correct kernels pass and wrong ones do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from eugen_nerf.ops import cuda
from eugen_nerf.ops.self_check import check_ops
from tests.emulator.device import EmulatedDevice, emulated

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the emulated kernels run in place of the CPU's runners."""
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    monkeypatch.setattr("eugen_nerf.ops.dispatch._native_cpu_problem", lambda: None)
    with emulated(EmulatedDevice(80, "shuffled")):
        yield


def test_kernels_pass_their_check() -> None:
    assert check_ops(CPU, "cpu") == []


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (
            "network_backward",
            [*(f"network ({part})" for part in ("dense", "wide", "order 1", "order 2", "norm inside")), "training"],
        ),
        ("hash_encode_backward", ["hash_encode", "training"]),
        ("composite_backward", ["composite", "training"]),
        ("select_visible", ["select_visible", "training"]),
        ("color_inputs", ["training"]),
        ("render", ["render"]),
        ("march", ["march", "training"]),
    ],
)
def test_wrong_kernels_do_not(function: str, named: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., Any] = getattr(cuda, function)

    def wrong(*arguments: Any) -> Any:
        results = right(*arguments)
        last = function in ("march", "select_visible")
        changed = results[-1 if last else 0] if isinstance(results, tuple | list) else results
        changed.mul_(1.3)
        return results

    monkeypatch.setattr(cuda, function, wrong)
    assert check_ops(CPU, "cpu") == named
