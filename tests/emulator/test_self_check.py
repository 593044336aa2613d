"""The check before the first use of CUDA kernels, on the emulator: right kernels must pass, wrong ones must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from eugen_nerf.ops import cpu, cuda_ops
from eugen_nerf.ops.self_check import check_ops
from tests.emulator.device import EmulatedDevice

CPU = torch.device("cpu")


class Network(torch.autograd.Function):
    """The operator eugen_nerf::network as CUDA tensors have it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameters: Tensor, spec: Any, eps: Any) -> Tensor:
        ctx.save_for_backward(x, parameters)
        ctx.rest = spec, eps
        return cuda_ops.network(x, parameters, spec, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return *cuda_ops.network_backward(*ctx.saved_tensors, grads[0], *ctx.rest, True), None, None


class HashEncode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, *grid: Any) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.grid = grid
        return cuda_ops.hash_encode(x, table, *grid)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad_table, grad_x = cuda_ops.hash_encode_backward(*ctx.saved_tensors, grads[0], *ctx.grid, True, True)
        return grad_x, grad_table, None, None, None


class Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *samples: Tensor) -> Tensor:
        ctx.save_for_backward(*samples)
        return cuda_ops.composite(*samples)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return *cuda_ops.composite_backward(*ctx.saved_tensors, grads[0]), None, None, None


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the CPU's runners are asked for, the emulated kernels answer."""
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    monkeypatch.setattr("eugen_nerf.ops.dispatch._native_cpu_problem", lambda: None)
    monkeypatch.setattr(cuda_ops, "_gpu", lambda device: EmulatedDevice(80, "shuffled"))
    for name in ("spherical_harmonics", "march", "sample_points", "render", "sparse_adam"):
        monkeypatch.setattr(cpu, name, getattr(cuda_ops, name))
    for name, function in (("network", Network), ("hash_encode", HashEncode), ("composite", Composite)):
        monkeypatch.setattr(cpu, name, function.apply)


def test_kernels_pass_their_check() -> None:
    assert check_ops(CPU, "cpu") == []


@pytest.mark.parametrize(
    ("function", "named"),
    [
        ("network_backward", [f"network ({part})" for part in ("dense", "order 1", "order 2", "norm inside")]),
        ("hash_encode_backward", ["hash_encode"]),
        ("composite_backward", ["composite"]),
        ("render", ["render"]),
        ("march", ["march"]),
    ],
)
def test_wrong_kernels_do_not(function: str, named: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., Any] = getattr(cuda_ops, function)

    def wrong(*arguments: Any) -> Any:
        results = right(*arguments)
        results[-1 if function == "march" else 0].mul_(1.3)
        return results

    monkeypatch.setattr(cuda_ops, function, wrong)
    if function in ("render", "march"):
        monkeypatch.setattr(cpu, function, wrong)
    assert check_ops(CPU, "cpu") == named
