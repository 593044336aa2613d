"""Which runner an op takes."""

from __future__ import annotations

import pytest
import torch

from eugen_nerf.errors import UserError
from eugen_nerf.layers import EUGen, build_network, merge_chain
from eugen_nerf.ops import dispatch, network, reference
from eugen_nerf.ops.packing import pack_chain, why_not_native


def native_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretend that the native code is there, and note its calls."""
    calls: list[str] = []

    def fake(x: torch.Tensor, parameters: torch.Tensor, spec: object, eps: object) -> torch.Tensor:
        calls.append("network")
        return torch.zeros(x.shape[0], 3)

    monkeypatch.setattr(dispatch, "_native_cpu_problem", lambda: None)
    monkeypatch.setattr(dispatch.cpu, "network", fake)
    return calls


def test_native_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    calls = native_calls(monkeypatch)
    chain = merge_chain(build_network("eugen", 4, 8, 1, 3, 6))
    x = torch.randn(5, 4)
    network(x, chain)
    assert calls == ["network"]
    network(x, chain, backend="reference")
    network(x.double(), merge_chain(build_network("eugen", 4, 8, 1, 3, 6).double()))
    network(x, merge_chain([EUGen(4, 8, 6, order=3), torch.nn.Linear(8, 3)]))
    network(x, merge_chain([EUGen(4, 8, 6), EUGen(8, 8, 6, norm=True), torch.nn.Linear(8, 3)]))
    assert calls == ["network"]


def test_environment_goes_before_the_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = native_calls(monkeypatch)
    chain = merge_chain(build_network("mlp", 4, 8, 1, 3, 6))
    x = torch.randn(5, 4)
    monkeypatch.setenv("EUGEN_BACKEND", "reference")
    torch.testing.assert_close(network(x, chain, backend="cpu"), reference.network(x, chain))
    assert not calls


def test_unknown_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUGEN_BACKEND", "gpu")
    with pytest.raises(UserError, match="EUGEN_BACKEND is 'gpu', but the backends are auto, reference, cpu, cuda"):
        dispatch.requested_backend("auto")


def test_native_by_name_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    x = torch.randn(5, 4)
    with pytest.raises(UserError, match="float32"):
        dispatch.uses_native("cpu", x.double())
    monkeypatch.setattr(dispatch, "_native_cpu_problem", lambda: "no C++ compiler was found")
    with pytest.raises(UserError, match="no C"):
        dispatch.uses_native("cpu", x)
    assert not dispatch.uses_native("auto", x)


def test_packed_chain_holds_every_number_in_order() -> None:
    layers = torch.nn.Sequential(EUGen(3, 8, 5, order=2, norm=True), EUGen(8, 6, 4, norm=False), torch.nn.Linear(6, 2))
    chain = merge_chain(layers)
    packed = pack_chain(chain)
    assert packed.spec == (2, 3, 5, 2, 0, 1, 0, 1, 10, 4, 1, 0, 1, 1, 0, 2, 1, 3)
    expected = [chain.stages[0].projections, chain.stages[0].norm_column, chain.stages[1].projections]
    expected += [chain.stages[1].offsets, chain.weight, chain.bias]
    assert torch.equal(packed.parameters, torch.cat([t.reshape(-1) for t in expected if t is not None]))
    packed.parameters.sum().backward()
    assert all(p.grad is not None for p in layers.parameters())


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([EUGen(4, 8, 6, order=3)], "order 3"),
        ([EUGen(4, 8, 6), EUGen(8, 4, 3, norm=True)], "norm inside a chain"),
        ([EUGen(4, 8, 6, order=2), EUGen(8, 4, 3, norm=False)], None),
    ],
)
def test_why_not_native(layers: list[torch.nn.Module], reason: str | None) -> None:
    found = why_not_native(merge_chain(layers))
    assert (found is None) == (reason is None)
    assert reason is None or (found is not None and reason in found)
