"""Which runner an op uses."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from eugen_nerf.errors import UserError
from eugen_nerf.layers import EUGen, build_network, merge_chain
from eugen_nerf.ops import (
    HashGridLayout,
    RadianceField,
    dispatch,
    hash_encode,
    network,
    reference,
    spherical_harmonics,
)
from eugen_nerf.ops.build import BuildError
from eugen_nerf.ops.packing import PackedChain, pack_chain, why_not_native
from tests.pretended_gpu import needs_fake_gpu

GRID_OF_3 = HashGridLayout.build(2, 3, 8, 4, 8)


def native_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretend that native code is available, and record its calls."""
    calls: list[str] = []

    def fake(x: torch.Tensor, parameters: torch.Tensor, spec: object, eps: object) -> torch.Tensor:
        calls.append("network")
        return torch.zeros(x.shape[0], 3)

    monkeypatch.setattr(dispatch, "_native_cpu_problem", lambda: None)
    monkeypatch.setattr(dispatch.operators, "network", fake)
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
    assert calls == ["network"]
    network(x, merge_chain([EUGen(4, 8, 6), EUGen(8, 8, 6, norm=True), torch.nn.Linear(8, 3)]))
    assert calls == ["network"] * 2


def test_layers_are_to_be_merged_first() -> None:
    with pytest.raises(TypeError, match=r"takes a MergedChain, not Sequential; layers\.merge_chain creates one"):
        network(torch.randn(5, 4), build_network("mlp", 4, 8, 1, 3, 6))  # type: ignore[arg-type]


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
    monkeypatch.delenv("EUGEN_BACKEND")
    with pytest.raises(UserError, match="The argument backend is 'gpu', but the backends are auto"):
        dispatch.requested_backend("gpu")  # type: ignore[arg-type]


def test_an_empty_variable_is_as_if_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUGEN_BACKEND", "")
    assert dispatch.requested_backend("auto") == "auto"
    assert dispatch.requested_backend("reference") == "reference"


def test_native_by_name_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    x = torch.randn(5, 4)
    with pytest.raises(UserError, match="float32"):
        dispatch.uses_native("cpu", x.double())
    monkeypatch.setattr(dispatch, "_native_cpu_problem", lambda: "no C++ compiler was found")
    with pytest.raises(UserError, match="no C"):
        dispatch.uses_native("cpu", x)
    assert not dispatch.uses_native("auto", x)


WITHOUT_NATIVE_CODE: dict[str, Callable[[dispatch.Backend], object]] = {
    "order 3": lambda b: network(torch.randn(5, 4), merge_chain([EUGen(4, 8, 6, order=3)]), backend=b),
    "features per level": lambda b: hash_encode(
        torch.rand(5, 3), torch.randn(GRID_OF_3.num_entries, 3), GRID_OF_3, backend=b
    ),
    "gradient of rays": lambda b: spherical_harmonics(torch.randn(5, 3, requires_grad=True), backend=b),
}


@pytest.mark.parametrize("reason", WITHOUT_NATIVE_CODE)
def test_what_has_no_native_code_is_told_once_or_an_error(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = WITHOUT_NATIVE_CODE[reason]
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_native_cpu_problem", lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run("reference")
        with pytest.raises(UserError, match=f"Backend cpu was asked for, but .*{reason}"):
            run("cpu")
    dispatch._warn_of_eager.cache_clear()
    with pytest.warns(RuntimeWarning, match=reason):
        run("auto")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run("auto")


def test_a_field_without_native_code_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_native_cpu_problem", lambda: None)
    layout = HashGridLayout.build(2, 2, 8, 4, 8)
    chains = (merge_chain([EUGen(n, 8, 6, order=3), torch.nn.Linear(8, out)]) for n, out in ((4, 2), (17, 3)))
    field = RadianceField(torch.randn(layout.num_entries, 2), layout, *chains)
    dispatch._warn_of_eager.cache_clear()
    with pytest.warns(RuntimeWarning, match="order 3"):
        assert field.native_networks(torch.randn(5, 3)) is None


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
        ([EUGen(4, 8, 6), EUGen(8, 4, 3)], None),
        ([EUGen(4, 8, 6, order=2), EUGen(8, 4, 3, norm=False)], None),
    ],
)
def test_why_not_native(layers: list[torch.nn.Module], reason: str | None) -> None:
    found = why_not_native(merge_chain(layers))
    assert (found is None) == (reason is None)
    assert reason is None or (found is not None and reason in found)


def test_why_not_native_with_a_constant_that_needs_a_gradient() -> None:
    with torch.no_grad():
        chain = merge_chain([EUGen(4, 8, 2), EUGen(8, 4, 3)])
    constant = chain.stages[1].norm_constant
    assert constant is not None
    assert why_not_native(chain) is None
    constant.requires_grad_()
    assert "norm's constant" in (why_not_native(chain) or "")


def cuda_tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Fake tensors that report to be on a GPU; to be used within the mode that creates them."""
    return [torch.empty(shape, device="cuda:0") for shape in shapes]


@needs_fake_gpu
def test_cuda_tensors_take_the_cuda_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_native_cuda_problem", lambda index: None)
    monkeypatch.setattr(dispatch, "_cuda_network_problem", lambda *_: None)
    calls: list[str] = []
    monkeypatch.setattr(dispatch.operators, "network", lambda x, *_: calls.append(x.device.type) or x)
    layers = build_network("eugen", 4, 8, 1, 3, 6)
    with FakeTensorMode(allow_non_fake_inputs=True):
        (x,) = cuda_tensors((5, 4))
        chain = merge_chain(layers.to("cuda:0"))
        network(x, chain)
        assert calls == ["cuda"]
        network(x, chain, backend="reference")
        with pytest.raises(UserError, match="on the CPU"):
            dispatch.uses_native("cpu", x)
        with pytest.raises(UserError, match="one NVIDIA GPU"):
            dispatch.uses_native("cuda", x, x.double())
    assert calls == ["cuda"]
    with pytest.raises(UserError, match="one NVIDIA GPU"):
        dispatch.uses_native("cuda", torch.randn(3))


def test_tables_of_halves_take_the_cuda_runner_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    monkeypatch.delenv("EUGEN_PRECISION", raising=False)
    monkeypatch.setattr(dispatch, "_native_cuda_problem", lambda index: None)
    with FakeTensorMode():
        x, table = cuda_tensors((5, 3), (8, 2))
        half, on_cpu = table.half(), torch.empty(8, 2)
        assert dispatch.uses_native("auto", x, table=table)
        assert dispatch.uses_native("auto", x, table=half)
        for other in (table.double(), table.bfloat16(), on_cpu, on_cpu.half()):
            assert not dispatch.uses_native("auto", x, table=other)
        assert not dispatch.uses_native("auto", on_cpu, table=half)
        assert not dispatch.uses_native("auto", x.requires_grad_(), table=half)
        assert dispatch.uses_native("auto", x, table=table)
        with torch.no_grad():
            assert dispatch.uses_native("auto", x, table=half)
        monkeypatch.setenv("EUGEN_PRECISION", "bf16")
        with torch.no_grad():
            assert not dispatch.uses_native("auto", x, table=half)


def test_without_cuda_kernels_the_reference_works_or_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_native_cuda_problem", lambda index: "NVRTC was found neither here nor there")
    with FakeTensorMode():
        (x,) = cuda_tensors((5, 4))
        assert not dispatch.uses_native("auto", x)
        with pytest.raises(UserError, match="Backend cuda was asked for, but NVRTC"):
            dispatch.uses_native("cuda", x)


def test_networks_without_cuda_kernels_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        shared_memory = 16_000
        architecture = 75

        def resident_blocks(self, source: str, constants: tuple[str, ...], kernel: str, *_: int) -> int:
            if "EUGEN_SPEC=0,7,2,0,7" in constants[0]:
                raise BuildError("NVRTC 13.0 failed on network.cu: error")
            loaded.append(kernel)
            return 1

    loaded: list[str] = []
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "gpu", lambda index: Small())
    dispatch._cuda_network_problem.cache_clear()
    device = torch.device("cuda", 0)
    broad = pack_chain(merge_chain(build_network("mlp", 300, 16, 1, 3, 6)))
    wide = pack_chain(merge_chain(build_network("mlp", 32, 256, 2, 3, 6)))
    small = pack_chain(merge_chain(build_network("mlp", 4, 16, 1, 3, 6)))
    odd = PackedChain(torch.zeros(0), (0, 7, 2, 0, 7), ())
    with pytest.warns(RuntimeWarning) as warned:
        assert not any(dispatch.runs_network(packed.spec, device, "auto") for packed in (broad, wide, odd) * 2)
    texts = [str(warning.message) for warning in warned]
    assert len(texts) == 3
    assert "a layer is wider than 256" in texts[0]
    assert "does not fit" in texts[1]
    assert "NVRTC 13.0 failed" in texts[2]
    assert dispatch.runs_network(small.spec, device, "auto")
    assert loaded == ["network_forward", "network_backward"]
    with pytest.raises(UserError, match="there are no kernels"):
        dispatch.runs_network(wide.spec, device, "cuda")
    assert dispatch.runs_network(wide.spec, torch.device("cpu"), "auto")
    dispatch._cuda_network_problem.cache_clear()
    monkeypatch.setenv("EUGEN_PRECISION", "bf16")
    with pytest.warns(RuntimeWarning, match=r"EUGEN_PRECISION=bf16 needs compute capability 8\.0"):
        assert not dispatch.runs_network(small.spec, device, "auto")
    monkeypatch.setattr(Small, "architecture", 80)
    dispatch._cuda_network_problem.cache_clear()
    assert dispatch.runs_network(small.spec, device, "auto")
    dispatch._cuda_network_problem.cache_clear()


def test_a_gpu_that_is_too_old_or_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        architecture = 70

    def no_driver(index: int) -> object:
        raise BuildError("the CUDA driver does not load (libcuda.so.1)")

    for fake, reason in ((lambda index: Old(), "capability 7.0 is below 7.5"), (no_driver, "driver does not load")):
        monkeypatch.setattr(dispatch, "gpu", fake)
        dispatch._native_cuda_problem.cache_clear()
        with pytest.warns(RuntimeWarning, match=reason):
            assert dispatch._native_cuda_problem(0)
        dispatch._native_cuda_problem(0)  # warns only once
    dispatch._native_cuda_problem.cache_clear()


def test_fields_that_a_gpu_does_not_render_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        shared_memory = 100_000

        def resident_blocks(self, source: str, constants: tuple[str, ...], *_: object) -> int:
            if "EUGEN_FEATURES=1" in constants:
                raise BuildError("NVRTC 13.0 failed on render.cu: error")
            return 1

    module = importlib.import_module("eugen_nerf.ops.render")
    monkeypatch.setattr(module, "gpu", lambda index: Fake())
    small, wide = (pack_chain(merge_chain(build_network("eugen", 8, 16, 2, 3, m))).spec for m in (16, 256))
    module._has_kernel.cache_clear()
    assert module._has_kernel(small, small, 2, False, 0)
    assert not module._has_kernel(small, wide, 2, False, 0)
    with pytest.warns(RuntimeWarning, match=r"op by op, not in one pass: NVRTC 13.0 failed on render.cu"):
        assert not module._has_kernel(small, small, 1, False, 0)
    module._has_kernel.cache_clear()
