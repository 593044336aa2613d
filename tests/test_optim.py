"""MaskedAdam against torch's Adam and against its own definition."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eugen_nerf.optim import MaskedAdam

pytestmark = pytest.mark.usefixtures("several_threads")


@pytest.mark.parametrize(
    "options",
    [{"lr": -1.0}, {"lr": float("nan")}, {"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}, {"eps": -1e-8}],
    ids=str,
)
def test_options_that_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="MaskedAdam takes lr and eps from 0 on and betas from 0 to below 1"):
        MaskedAdam([torch.nn.Parameter(torch.ones(2, 2))], **options)


def test_sparse_gradients_are_for_the_other_one() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    parameter.grad = torch.eye(3, 2).to_sparse()
    with pytest.raises(ValueError, match=r"torch\.optim\.SparseAdam is for sparse ones"):
        MaskedAdam([parameter]).step()


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_graph_of_before_the_step_complains(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd detects the in-place change, as for PyTorch's own optimizers."""
    monkeypatch.setenv("EUGEN_BACKEND", backend)
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    y = parameter.square().sum()
    parameter.grad = torch.ones(3, 2)
    MaskedAdam([parameter]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def run(optimizer_class: type, grads: list[torch.Tensor], table: torch.Tensor, **options: object) -> torch.Tensor:
    parameter = torch.nn.Parameter(table.clone())
    optimizer = optimizer_class([parameter], lr=0.1, eps=1e-15, **options)
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_equals_adam_where_everything_is_touched(backend: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUGEN_BACKEND", backend)
    generator = torch.Generator().manual_seed(width)
    table = torch.randn(50, width, generator=generator)
    grads = [torch.randn(50, width, generator=generator) for _ in range(5)]
    torch.testing.assert_close(run(MaskedAdam, grads, table), run(torch.optim.Adam, grads, table))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_equals_adam_where_gradients_are_tiny(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like gradients of a hash table: eps must be small compared to the root of the second moment."""
    monkeypatch.setenv("EUGEN_BACKEND", backend)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 2, generator=generator)
    grads = [1e-10 * torch.randn(50, 2, generator=generator) for _ in range(5)]
    torch.testing.assert_close(run(MaskedAdam, grads, table), run(torch.optim.Adam, grads, table))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_untouched_values_keep_value_and_moments(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUGEN_BACKEND", backend)
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(4, 2, generator=generator))
    optimizer = MaskedAdam([parameter], lr=0.1)
    parameter.grad = torch.randn(4, 2, generator=generator)
    optimizer.step()
    before, moments = parameter.detach().clone(), copy.deepcopy(optimizer.state[parameter])
    parameter.grad = torch.tensor([[0.0, 0], [0, 1], [0, 0], [-1, 0]])
    optimizer.step()
    unchanged = parameter.grad == 0
    assert torch.equal(parameter[unchanged], before[unchanged])
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[parameter][name][unchanged], moments[name][unchanged])
    assert (parameter[~unchanged] != before[~unchanged]).all()


def test_native_and_eager_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(1000, 4, generator=generator)
    grads = [
        torch.randn(1000, 4, generator=generator) * (torch.rand(1000, 1, generator=generator) < 0.3) for _ in range(6)
    ]
    native = run(MaskedAdam, grads, table)
    monkeypatch.setenv("EUGEN_BACKEND", "reference")
    torch.testing.assert_close(native, run(MaskedAdam, grads, table), rtol=1e-5, atol=1e-6)


def test_state_dict_round_trip() -> None:
    generator = torch.Generator().manual_seed(2)
    table, grad = torch.randn(10, 2, generator=generator), torch.randn(10, 2, generator=generator)
    first, second = torch.nn.Parameter(table.clone()), torch.nn.Parameter(table.clone())
    one, other = MaskedAdam([first], lr=0.1), MaskedAdam([second], lr=0.1)
    first.grad, second.grad = grad, grad
    one.step()
    with torch.no_grad():
        second.copy_(first)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    one.step()
    other.step()
    assert torch.equal(first, second)


def test_a_cuda_graph_would_repeat_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    table = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = MaskedAdam([table])
    on_gpu: Any = SimpleNamespace(is_cuda=True)
    with pytest.raises(RuntimeError, match="MaskedAdam cannot be captured in a CUDA graph"):
        optimizer._update(on_gpu, on_gpu, optimizer.param_groups[0])
    table.grad = torch.ones(2, 2)
    optimizer.step()  # on a CPU nothing is captured
    assert table.any()


def test_strided_parameters() -> None:
    """PyTorch's operators do the work, with or without native code."""
    parameters = [torch.nn.Parameter(torch.arange(12.0).view(3, 4).T.contiguous()), None]
    parameters[1] = torch.nn.Parameter(torch.arange(12.0).view(3, 4).T)
    for parameter in parameters:
        assert parameter is not None
        parameter.grad = torch.ones(4, 3)
        MaskedAdam([parameter], lr=0.1).step()
    torch.testing.assert_close(parameters[0], parameters[1])
