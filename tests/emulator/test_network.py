"""The networks' CUDA kernels on the emulator, against float64."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from eugen_nerf.ops import cuda
from eugen_nerf.ops.packing import pack_chain
from eugen_nerf.ops.tiles import choices, plan
from tests.emulator.device import ORDERS, EmulatedDevice, library
from tests.ops.comparisons import (
    CHAINS,
    PADDED,
    TOLERANCE,
    chain_of,
    check_numbers_beyond_halves,
    network_case,
    network_errors,
    relative_error,
)
from tests.ops.random_networks import check_random_network


@pytest.fixture(scope="module", autouse=True)
def compiled_two_at_a_time() -> None:
    device = EmulatedDevice(80)
    jobs = []
    for name in CHAINS:
        spec = pack_chain(chain_of(name)).spec
        jobs.append(cuda.network_constants(spec, cuda.network_tiles(device, spec), half_rows=False))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda constants: library("network.cu", constants, 80), jobs))


def check(name: str, n: int, device: EmulatedDevice, half: torch.dtype = torch.float16, grad_size: float = 1.0) -> None:
    for error in network_errors(device, network_case(name, n, half, grad_size)):
        assert error <= TOLERANCE[half]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", CHAINS)
def test_network(name: str, order: str) -> None:
    check(name, 300, EmulatedDevice(80, order))
    check(name, 1, EmulatedDevice(80, order))


@pytest.mark.parametrize("architecture", [75, 80, 86, 90])  # each with another amount of shared memory
@pytest.mark.parametrize(("seed", "order"), list(enumerate(ORDERS)))
def test_random_networks(seed: int, order: str, architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check_random_network(seed + architecture, EmulatedDevice(architecture, order), "cpu", monkeypatch)


def test_other_tiles_compute_the_same() -> None:
    """Four warps or eight, rows of 16 or 32, weights and sums here or there."""
    case, device = network_case("color", 300, torch.float16), EmulatedDevice(80)
    forward, backward = choices(case.spec, device.shared_memory)
    assert forward[0] == backward[0] == plan(case.spec, device.shared_memory)
    tried = {(t.warps, t.tiles, t.streamed): t for t in forward}
    tried |= {(t.back_warps, t.back_tiles, t.back_streamed, t.keep_sums): t for t in backward if t.back_warps > 2}
    assert {(8, 1, False), (4, 1, True), (8, 1, False, True), (4, 2, True, False)} < set(tried)
    with ThreadPoolExecutor(2) as pool:
        list(
            pool.map(
                lambda tiles: library("network.cu", cuda.network_constants(case.spec, tiles, False), 80), tried.values()
            )
        )
    for tiles in tried.values():
        for error in network_errors(device, case, tiles=tiles):
            assert error <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("name", ["color", "norm", "order-2", "inner-norm"])
def test_network_on_turing(name: str) -> None:
    check(name, 100, EmulatedDevice(75, "shuffled"))


@pytest.mark.parametrize("name", ["color", "norm", "order-2", "inner-norm"])
def test_network_in_bfloat16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUGEN_PRECISION", "bf16")
    check(name, 100, EmulatedDevice(90, "backwards"), torch.bfloat16)


def test_wide_networks_are_streamed_and_their_gradients_added_at_once() -> None:
    """With Turing's shared memory, neither weights nor weight gradients stay on the multiprocessor."""
    for name in ("width-128", "width-256"):
        tiles = plan(network_case(name, 1, torch.float16).spec, EmulatedDevice(75).shared_memory)
        assert tiles is not None
        assert not tiles.keep_sums
        check(name, 70, EmulatedDevice(75, "shuffled"))
    assert tiles.back_streamed


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1e4])
def test_gradients_neither_vanish_nor_overflow(size: float) -> None:
    check("color", 100, EmulatedDevice(80), grad_size=size)


def test_zero_gradients_and_empty_batches() -> None:
    case = network_case("color", 40, torch.float16)
    device = EmulatedDevice(80)
    for x, grad in ((case.x, 0 * case.grad), (case.x[:0], case.grad[:0])):
        assert cuda.network_forward(device, x, case.parameters, case.spec, case.eps).shape == grad.shape
        gradients = cuda.network_backward(device, x, case.parameters, grad, case.spec, case.eps, True)
        assert gradients[0].shape == x.shape
        assert not gradients[0].any()
        assert not gradients[1].any()


def test_input_gradient_only_where_it_is_needed() -> None:
    case = network_case("norm", 40, torch.float16)
    arguments = (case.x, case.parameters, case.grad, case.spec, case.eps, False)
    grad_x, grad_parameters = cuda.network_backward(EmulatedDevice(80), *arguments)
    assert grad_x.numel() == 0
    assert relative_error(grad_parameters, case.grad_parameters) <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("name", ["density", "color"])  # even and odd rows
def test_half_rows(name: str) -> None:
    case = network_case(name, 100, torch.float16)
    x, grad = case.x.half(), case.grad.half()
    device = EmulatedDevice(80)
    y = cuda.network_forward(device, x, case.parameters, case.spec, case.eps)
    grad_x, grad_parameters = cuda.network_backward(device, x, case.parameters, grad, case.spec, case.eps, True)
    assert y.dtype == grad_x.dtype == torch.float16
    assert grad_parameters.dtype == torch.float32
    for got, expected in ((y, case.y), (grad_x, case.grad_x), (grad_parameters, case.grad_parameters)):
        assert relative_error(got, expected) <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rows", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", PADDED)
def test_padded_rows(name: str, rows: torch.dtype, order: str) -> None:
    """Rows that are accessed four numbers at a time, with one, two or three numbers after the end of each."""
    for n in (1, 300):
        for error in network_errors(EmulatedDevice(80, order), network_case(name, n, torch.float16), rows, padded=True):
            assert error <= TOLERANCE[torch.float16]


@pytest.mark.parametrize(("numbers", "first"), [(32 * 20 - 1, 0), (32 * 20 + 1, 1)], ids=["too short", "unaligned"])
def test_other_views_with_such_strides_are_copied(numbers: int, first: int) -> None:
    case, device = network_case("color", 20, torch.float16), EmulatedDevice(80)
    x = torch.full((numbers,), math.nan).as_strided((20, 31), (32, 1), first)
    x.copy_(case.x)
    y = cuda.network_forward(device, x, case.parameters, case.spec, case.eps)
    assert relative_error(y, case.y) <= TOLERANCE[torch.float16]
    grad_x, _ = cuda.network_backward(device, x, case.parameters, case.grad, case.spec, case.eps, True)
    assert grad_x.is_contiguous()


def test_numbers_beyond_halves() -> None:
    device = EmulatedDevice(80)
    check_numbers_beyond_halves(lambda case, x: cuda.network_forward(device, x, case.parameters, case.spec, case.eps))


@pytest.mark.parametrize("arch", [75, 80])
def test_a_network_that_diverged_does_not_look_healthy(arch: int) -> None:
    """NaN passes through ReLU, as in PyTorch, and stays within its row."""
    device = EmulatedDevice(arch)
    case = network_case("color", 60, torch.float16)
    x = case.x.clone()
    x[7, 2] = math.nan
    y = cuda.network_forward(device, x, case.parameters, case.spec, case.eps)
    assert y.isnan().any(dim=1).nonzero().flatten().tolist() == [7]
    gradients = cuda.network_backward(device, x, case.parameters, case.grad, case.spec, case.eps, True)
    assert gradients[1].isnan().any()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_gradients_that_are_not_finite_stay_visible(bad: float) -> None:
    """If they were bounded, they would look valid and a loss scaler would take the step."""
    case = network_case("density", 20, torch.float16)
    grad = case.grad.clone()
    grad[7, 2] = bad
    arguments = (case.x, case.parameters, grad, case.spec, case.eps, True)
    grad_x, grad_parameters = cuda.network_backward(EmulatedDevice(80), *arguments)
    assert grad_x[7].isnan().any()
    assert grad_parameters.isnan().any()
