"""The CUDA kernels on a GPU, called through the public ops. Run with `pytest -m gpu`."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eugen_nerf.field import EugenField, FieldConfig
from eugen_nerf.layers import build_network, merge_chain
from eugen_nerf.occupancy import OccupancyGrid, pack_bits
from eugen_nerf.ops import (
    HashGridLayout,
    PackedSamples,
    RadianceField,
    Space,
    StepRule,
    composite,
    cuda,
    factor_products,
    hash_encode,
    march,
    operators,
    reference,
    render,
    sample_points,
    select_visible,
    spherical_harmonics,
)
from eugen_nerf.ops.cuda_driver import CudaError, Gpu, gpu
from eugen_nerf.ops.nvrtc import compile_cached, find_nvrtc
from eugen_nerf.ops.packing import pack_chain
from eugen_nerf.ops.self_check import check_ops
from eugen_nerf.ops.tiles import OLDEST_ARCHITECTURE
from eugen_nerf.optim import MaskedAdam
from eugen_nerf.renderer import Renderer
from tests.emulator.device import KERNELS
from tests.ops.comparisons import (
    BOUNDED,
    CHAINS,
    FACTORS,
    PADDED,
    TOLERANCE,
    UNBOUNDED,
    VISIBLE,
    chain_of,
    check_numbers_beyond_halves,
    check_visible,
    network_case,
    network_errors,
    products_of,
    random_factors,
    relative_error,
)
from tests.ops.random_networks import check_random_network

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no NVIDIA GPU"),
]

BATCHES = (1, 333, 100_003)
# Arguments of HashGridLayout.build; the first ones are the methods' defaults on a GPU.
GRIDS = [(16, 2, 19, 16, 2048), (16, 2, 14, 16, 512), (4, 1, 8, 2, 40), (8, 4, 12, 4, 128), (3, 8, 10, 5, 20)]
SPACES = pytest.mark.parametrize(("space", "rule"), [BOUNDED, UNBOUNDED], ids=["bounded", "unbounded"])
RESOLUTION = 16


@pytest.fixture(autouse=True)
def cuda_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Force the native backend, since a silent fallback to the reference would make the tests meaningless.

    Without the self-check, which has a test of its own: one wrong op would otherwise make all tests fail alike.
    """
    monkeypatch.setenv("EUGEN_BACKEND", "cuda")
    monkeypatch.setenv("EUGEN_CUDA_CHECK", "0")


@pytest.fixture(scope="module", autouse=True)
def compiled_side_by_side() -> None:
    device = gpu(torch.cuda.current_device())
    architecture, portable = find_nvrtc().target(device.architecture)

    def compile_chain(name: str) -> None:
        spec = pack_chain(chain_of(name)).spec
        constants = cuda.network_constants(spec, cuda.network_tiles(device, spec), half_rows=False)
        compile_cached("network.cu", architecture, constants, portable)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(compile_chain, CHAINS))


def run_network(name: str, n: int, half: torch.dtype) -> None:
    case = network_case(name, n, half)
    x = case.x.cuda().requires_grad_()
    parameters = case.parameters.cuda().requires_grad_()
    y = operators.network(x, parameters, list(case.spec), list(case.eps))
    y.backward(case.grad.cuda())
    assert x.grad is not None
    assert parameters.grad is not None
    for got, expected in ((y, case.y), (x.grad, case.grad_x), (parameters.grad, case.grad_parameters)):
        assert relative_error(got, expected) <= TOLERANCE[half]


@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("name", CHAINS)
def test_network(name: str, n: int) -> None:
    run_network(name, n, torch.float16)


@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("name", PADDED)
def test_padded_rows(name: str, n: int) -> None:
    case = network_case(name, n, torch.float16).on("cuda")
    for error in network_errors(gpu(torch.cuda.current_device()), case, padded=True):
        assert error <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("seed", range(32))
def test_random_networks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check_random_network(seed, gpu(torch.cuda.current_device()), "cuda", monkeypatch)


@pytest.mark.parametrize("name", ["density", "color"])
def test_network_where_each_block_takes_many_tiles(name: str) -> None:
    run_network(name, 1_000_003, torch.float16)


def test_numbers_beyond_halves() -> None:
    check_numbers_beyond_halves(
        lambda case, x: operators.network(x.cuda(), case.parameters.cuda(), list(case.spec), list(case.eps)).cpu()
    )


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_gradients_that_are_not_finite_stay_visible(bad: float) -> None:
    case = network_case("density", 20, torch.float16)
    x, parameters = case.x.cuda().requires_grad_(), case.parameters.cuda().requires_grad_()
    grad = case.grad.clone()
    grad[7, 2] = bad
    operators.network(x, parameters, list(case.spec), list(case.eps)).backward(grad.cuda())
    assert x.grad is not None
    assert parameters.grad is not None
    assert x.grad[7].isnan().any()
    assert parameters.grad.isnan().any()


@pytest.mark.parametrize("name", ["color", "norm", "order-2", "inner-norm"])
def test_network_in_bfloat16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("bfloat16 needs compute capability 8.0")
    monkeypatch.setenv("EUGEN_PRECISION", "bf16")
    run_network(name, 333, torch.bfloat16)


@pytest.mark.parametrize("n", BATCHES)
@pytest.mark.parametrize("layout", GRIDS)
def test_hash_encode(layout: tuple[int, int, int, int, int], n: int) -> None:
    grid = HashGridLayout.build(*layout)
    generator = torch.Generator().manual_seed(0)
    x = 1.2 * torch.rand(n, 3, generator=generator) - 0.1
    table = torch.randn(grid.num_entries, grid.features_per_level, generator=generator)
    weight = torch.randn(n, grid.out_features, generator=generator)
    ours = x.cuda().requires_grad_(), table.cuda().requires_grad_()
    exact = x.cuda().double().requires_grad_(), table.cuda().double().requires_grad_()
    got, expected = hash_encode(*ours, grid), reference.hash_encode(*exact, grid)
    (got * weight.cuda()).sum().backward()
    (expected * weight.cuda()).sum().backward()
    assert relative_error(got, expected) <= 1e-5
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert relative_error(mine.grad, theirs.grad) <= 1e-4


def test_hash_encode_with_a_table_of_halves() -> None:
    grid = HashGridLayout.build(16, 2, 14, 16, 512)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(333, 3, generator=generator).cuda()
    table = torch.randn(grid.num_entries, 2, generator=generator).cuda().half()
    got, expected = hash_encode(x, table, grid), reference.hash_encode(x.double(), table.double(), grid)
    assert relative_error(got, expected) <= 1e-5


def random_rays(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    origins = 2 * torch.randn(n, 3, generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator) - 0.4 * origins, dim=-1)
    near = 0.3 * torch.rand(n, generator=generator)
    far = near + 15 * torch.rand(n, generator=generator)
    return [t.cuda() for t in (origins, directions, near, far, torch.rand(n, generator=generator))]


def random_bits(share: float) -> Tensor:
    return pack_bits(torch.rand(RESOLUTION**3, generator=torch.Generator().manual_seed(0)) < share).cuda()


@SPACES
@pytest.mark.parametrize("n", BATCHES)
def test_march_points_and_compositing(space: object, rule: object, n: int) -> None:
    rays, bits = random_rays(n), random_bits(0.3)
    got = march(*rays[:4], bits, RESOLUTION, space, rule, rays[4])  # type: ignore[arg-type]
    exact = [t.double() for t in rays]
    expected = reference.march(*exact[:4], bits, RESOLUTION, space, rule, exact[4])  # type: ignore[arg-type]
    assert (got.counts() - expected.counts()).abs().sum() <= 2e-3 * expected.num_samples
    samples = PackedSamples(got.ray_offsets, got.t_starts.double(), got.t_ends.double())
    points = sample_points(rays[0], rays[1], got, space)  # type: ignore[arg-type]
    for mine, theirs in zip(points, reference.sample_points(exact[0], exact[1], samples, space), strict=True):  # type: ignore[arg-type]
        assert relative_error(mine, theirs) <= 1e-5
    assert relative_error(spherical_harmonics(rays[1]), reference.spherical_harmonics(exact[1])) <= 1e-5

    generator = torch.Generator().manual_seed(0)
    sigma = 3 * torch.rand(got.num_samples, generator=generator).cuda()
    rgb = torch.rand(got.num_samples, 3, generator=generator).cuda()
    results = []
    for op, dtype, packed in ((composite, torch.float32, got), (reference.composite, torch.float64, samples)):
        s, c = (t.detach().to(dtype, copy=True).requires_grad_() for t in (sigma, rgb))
        color, alpha, depth = op(s, c, packed)
        (color.sum() + (alpha * depth).sum()).backward()
        results.append((color, alpha, depth, s.grad, c.grad))
    for mine, theirs in zip(*results, strict=True):
        assert mine is not None
        assert theirs is not None
        assert relative_error(mine, theirs) <= 1e-4


@pytest.mark.parametrize(("counts", "scale"), [*VISIBLE, ([100] * 3000, 3.0)])
def test_select_visible(counts: list[int], scale: float) -> None:
    def select(sigma: Tensor, samples: PackedSamples, rows: list[Tensor]) -> tuple[PackedSamples, list[Tensor]]:
        packed = PackedSamples(*(t.cuda() for t in (samples.ray_offsets, samples.t_starts, samples.t_ends)))
        found, kept = select_visible(sigma.cuda(), packed, [each.cuda() for each in rows])
        return PackedSamples(found.ray_offsets.cpu(), found.t_starts.cpu(), found.t_ends.cpu()), [k.cpu() for k in kept]

    check_visible(select, counts, scale)


def small_field(kind: str) -> RadianceField:
    torch.manual_seed(3)
    grid = HashGridLayout.build(4, 2, 10, 4, 32)
    table = torch.randn(grid.num_entries, 2)
    density, color = build_network(kind, 8, 16, 1, 16, 12), build_network(kind, 31, 16, 2, 3, 12)
    with torch.no_grad():
        return RadianceField(table.cuda(), grid, merge_chain(density.cuda()), merge_chain(color.cuda()))


def check_pictures(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Nearly all rays agree; rays along a cell's face may have one sample more or less."""
    for mine, theirs in zip(got[:3], expected[:3], strict=True):
        difference = (mine - theirs).abs().flatten()
        assert (difference > 5e-3 * (1 + theirs.abs().flatten())).float().mean() <= 0.01
    assert (got[3] - expected[3]).abs().sum() <= 0.01 * expected[3].sum() + 1


def test_render_with_a_table_of_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    rays, bits, field = random_rays(333)[:4], random_bits(0.3), small_field("eugen")
    half = replace(field, table=field.table.half())
    got = render(*rays, bits, RESOLUTION, *BOUNDED, half)
    monkeypatch.setenv("EUGEN_BACKEND", "reference")
    expected = render(*rays, bits, RESOLUTION, *BOUNDED, replace(half, table=half.table.float()))
    check_pictures(got, expected)


@SPACES
@pytest.mark.parametrize("kind", ["eugen", "mlp"])
@pytest.mark.parametrize("n", BATCHES)
def test_render(space: object, rule: object, kind: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rays, bits = random_rays(n)[:4], random_bits(0.3)
    got = render(*rays, bits, RESOLUTION, space, rule, small_field(kind))  # type: ignore[arg-type]
    monkeypatch.setenv("EUGEN_BACKEND", "reference")
    expected = render(*rays, bits, RESOLUTION, space, rule, small_field(kind))  # type: ignore[arg-type]
    check_pictures(got, expected)


def test_the_check_before_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUGEN_BACKEND")  # it would also override the reference
    assert check_ops(torch.device("cuda", torch.cuda.current_device()), "cuda") == []


def test_weights_that_do_not_stay_in_shared_memory() -> None:
    """As on a GPU with little shared memory: the weights of wide networks are streamed in parts."""
    device = Gpu(torch.cuda.current_device())
    device.shared_memory = 1 << 16
    case = network_case("width-256", 333, torch.float16)
    tiles = cuda.network_tiles(device, case.spec)
    assert tiles.streamed
    assert tiles.back_streamed
    for error in network_errors(device, case.on("cuda")):
        assert error <= TOLERANCE[torch.float16]


def test_code_that_the_driver_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs that are newer than the compiler."""
    oldest = max(OLDEST_ARCHITECTURE, min(find_nvrtc().architectures()))
    monkeypatch.setattr(find_nvrtc(), "target", lambda architecture: (oldest, True))
    case, device = network_case("color", 333, torch.float16), Gpu(torch.cuda.current_device())
    try:
        y = cuda.network_forward(device, case.x.cuda(), case.parameters.cuda(), case.spec, case.eps)
    except CudaError as error:
        if "CUDA error 222" in str(error):
            pytest.skip("the driver is older than NVRTC and takes its cubins only")
        raise
    assert relative_error(y, case.y) <= TOLERANCE[torch.float16]


def test_strided_inputs_and_such_that_begin_anywhere() -> None:
    grid = HashGridLayout.build(4, 2, 8, 2, 40)
    x = torch.rand(334, 4, device="cuda")[1:, 1:]
    table = torch.randn(2, grid.num_entries, device="cuda").T
    unaligned = torch.rand(3 * 333 + 1, device="cuda")[1:].view(333, 3)
    for positions in (x, unaligned, x[:0]):
        got, expected = hash_encode(positions, table, grid), reference.hash_encode(positions, table, grid)
        assert relative_error(got, expected) <= 1e-5


def test_operators_pass_torchs_own_check() -> None:
    case, grid = network_case("color", 33, torch.float16), HashGridLayout.build(2, 2, 8, 2, 4)
    x, parameters = case.x.cuda().requires_grad_(), case.parameters.cuda().requires_grad_()
    positions = torch.rand(6, 3, device="cuda", requires_grad=True)
    table = torch.randn(grid.num_entries, 2, device="cuda", requires_grad=True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operators.network, (x, parameters, case.spec, case.eps), test_utils=tests)
    arguments = (positions, table, *operators.grid_arguments(grid))
    torch.library.opcheck(operators.hash_encode, arguments, test_utils=tests)


def test_field_under_torch_compile() -> None:
    field, unit = small_field("eugen"), torch.rand(50, 3, device="cuda")
    directions = torch.nn.functional.normalize(unit - 0.5, dim=-1)
    compiled = torch.compile(field.__call__, backend="aot_eager", fullgraph=True)
    for got, expected in zip(compiled(unit, directions), field(unit, directions), strict=True):
        torch.testing.assert_close(got, expected)


@SPACES
def test_a_training_step_from_rays_to_gradients(space: Space, rule: StepRule, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    field = EugenField(FieldConfig(num_levels=4, log2_hashmap_size=10, max_resolution=32)).cuda()
    with torch.no_grad():
        field.get_parameter("encoding.table").normal_()
    renderer = Renderer(field, OccupancyGrid(8).cuda(), space, rule, 0.1, 8.0)
    origins, directions, _, _, jitter = random_rays(333)
    results = []
    for backend in ("cuda", "reference"):
        monkeypatch.setenv("EUGEN_BACKEND", backend)
        field.zero_grad()
        out = renderer.render_differentiable(origins, directions, jitter)
        (out.rgb.square().sum() + out.depth.sum()).backward()
        results.append([out.rgb, out.depth, *(p.grad.clone() for p in field.parameters() if p.grad is not None)])
    assert len(results[0]) == 2 + len(list(field.parameters()))
    for mine, theirs in zip(*results, strict=True):
        assert relative_error(mine, theirs) <= 0.05  # half precision, and ReLUs that pass a unit in only one of the two


def test_mixed_precision_training_step() -> None:
    """As with ns-train --mixed-precision True."""
    torch.manual_seed(0)
    field = EugenField(FieldConfig(num_levels=4, log2_hashmap_size=10, max_resolution=64)).cuda()
    optimizer, scaler = MaskedAdam(field.parameters(), lr=1e-3), torch.amp.GradScaler("cuda")
    before = [parameter.detach().clone() for parameter in field.parameters()]
    x = torch.rand(333, 3, device="cuda")
    with torch.autocast("cuda", torch.float16):
        sigma, rgb = field(x, torch.nn.functional.normalize(x - 0.5, dim=-1))
        loss = rgb.square().mean() + sigma.square().mean()
    assert sigma.dtype == rgb.dtype == torch.float32
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    changed = [not torch.equal(old, new) for old, new in zip(before, field.parameters(), strict=True)]
    assert all(changed)
    assert all(parameter.isfinite().all() for parameter in field.parameters())


def test_occupancy_is_updated_on_the_device() -> None:
    grids = [OccupancyGrid(16, interval=1, warmup_steps=4).cuda() for _ in range(2)]
    for step in range(20):
        for grid in grids:
            grid.update(step, lambda positions: (positions - 0.5).norm(dim=-1).le(0.3).float())
    assert torch.equal(grids[0].values, grids[1].values)
    assert torch.equal(
        grids[0].bits, pack_bits(grids[0].values > min(0.01, grids[0].values.clamp_min(0).mean().item()))
    )
    assert 0.08 < grids[0].occupied_fraction < 0.2  # the ball fills 0.11 of the cube


def test_two_threads_on_streams_of_their_own() -> None:
    """nerfstudio's viewer renders during training."""
    case = network_case("color", 333, torch.float16)
    spec, eps = list(case.spec), list(case.eps)
    errors: list[float] = []

    def work() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                x, parameters = case.x.cuda().requires_grad_(), case.parameters.cuda()
                y = operators.network(x, parameters, spec, eps)
                y.backward(case.grad.cuda())
                assert x.grad is not None
                errors.extend((relative_error(y, case.y), relative_error(x.grad, case.grad_x)))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 200
    assert all(error <= TOLERANCE[torch.float16] for error in errors)


def test_factor_products() -> None:
    for shapes in FACTORS.values():
        factors = [factor.cuda().requires_grad_() for factor in random_factors(*shapes)]
        exact = [factor.detach().double().requires_grad_() for factor in factors]
        values = factor_products(products_of(factors), backend="cuda")
        expected = factor_products(products_of(exact), backend="reference")
        weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).cuda()
        mine = torch.autograd.grad((values * weight).sum(), factors)
        theirs = torch.autograd.grad((expected * weight).sum(), exact)
        for ours, other in zip((values, *mine), (expected, *theirs), strict=True):
            assert relative_error(ours, other) <= 1e-6


def test_masked_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(1000, 2, generator=generator) * (torch.rand(1000, 2, generator=generator) < 0.3)
             for _ in range(3)]  # fmt: skip
    results = []
    for backend in ("cuda", "reference"):
        monkeypatch.setenv("EUGEN_BACKEND", backend)
        parameter = torch.nn.Parameter(torch.ones(1000, 2, device="cuda"))
        optimizer = MaskedAdam([parameter], lr=0.01)
        for grad in grads:
            parameter.grad = grad.cuda()
            optimizer.step()
        results.append(parameter.detach())
    torch.testing.assert_close(*results)


def test_kernels_follow_torchs_current_stream() -> None:
    case = network_case("color", 333, torch.float16)
    x, parameters = case.x.cuda(), case.parameters.cuda()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # work on another stream would not wait for the next line
        x = 2 * x
        y = operators.network(0.5 * x, parameters, list(case.spec), list(case.eps))
    stream.synchronize()
    assert relative_error(y, case.y) <= TOLERANCE[torch.float16]


def test_training_step_in_a_cuda_graph() -> None:
    """Captured once, replayed on other values."""
    case = network_case("density", 333, torch.float16)
    layout = HashGridLayout.build(16, 2, 12, 4, 128)
    spec, eps = list(case.spec), list(case.eps)
    positions = torch.rand(333, 3, device="cuda")
    table = torch.randn(layout.num_entries, 2, device="cuda").requires_grad_()
    parameters = case.parameters.cuda().requires_grad_()

    def step() -> tuple[Tensor, Tensor, Tensor]:
        y = operators.network(hash_encode(positions, table, layout), parameters, spec, eps)
        return y, *torch.autograd.grad(y.square().sum(), (table, parameters))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiles and loads
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    positions.copy_(torch.rand(333, 3))
    graph.replay()
    for got, expected in zip(captured, step(), strict=True):
        assert relative_error(got, expected) <= 1e-5


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_every_gpu_has_its_own_module() -> None:
    case = network_case("color", 333, torch.float16)
    for index in (1, 0):
        x, parameters = case.x.to(f"cuda:{index}"), case.parameters.to(f"cuda:{index}")
        y = operators.network(x, parameters, list(case.spec), list(case.eps))
        assert y.device == x.device
        assert relative_error(y, case.y) <= TOLERANCE[torch.float16]


def sanitized(tool: str, *arguments: str) -> list[str]:
    """The command that runs Python under NVIDIA's compute-sanitizer and checks this package's kernels alone."""
    ours = [f"--kernel-name=kne={kernel}" for kernel in sum(KERNELS.values(), ())]
    checks = ["--report-api-errors", "no", *ours, "--error-exitcode", "9"]
    return ["compute-sanitizer", "--tool", tool, *checks, sys.executable, *arguments]


# With PyTorch's memory pool, an access beyond an array could hit another array and go unnoticed.
SANITIZER_SETTINGS = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "EUGEN_CUDA_CHECK": "0"}
needs_sanitizer = pytest.mark.skipif(not shutil.which("compute-sanitizer"), reason="no compute-sanitizer")

BEYOND_AN_ARRAY = """
import torch
from eugen_nerf.ops.cuda_driver import gpu
from tests.ops.comparisons import adam_beyond_its_gradient
adam_beyond_its_gradient(gpu(0), "cuda")
torch.cuda.synchronize()
"""


@needs_sanitizer
def test_compute_sanitizer_looks_at_our_kernels() -> None:
    """A planted access beyond the end is found; otherwise the test below could not fail."""
    settings = {**os.environ, **SANITIZER_SETTINGS}
    command = sanitized("memcheck", "-c", BEYOND_AN_ARRAY)
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, cwd=root, timeout=120, check=False)
    if "Device not supported" in done.stdout:
        pytest.skip("compute-sanitizer does not support this device")
    # The tool ends the context, so that Python fails too, and returns Python's exit code.
    assert done.returncode != 0, done.stdout[-6000:]
    assert re.search(r"Invalid __global__ read(.|\n)*masked_adam", done.stdout), done.stdout[-6000:]


@needs_sanitizer
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer(tool: str) -> None:
    """Repeat the tests with small batches under NVIDIA's compute-sanitizer."""
    chains = ("density", "color", "order-2-twice", "offsets-and-norm", "width-256")
    others = ("hash_encode", "march", "render")
    tests = [f"test_network and {name}-333" for name in chains] + [f"test_{name} and 333" for name in others]
    tests += ["bfloat16", "test_masked_adam"]
    command = sanitized(tool, "-m", "pytest", "-q", "-x", "-k", " or ".join(tests), str(Path(__file__)))
    settings = {**os.environ, **SANITIZER_SETTINGS}
    # In a new session, because the tool's child would keep the GPU if only the tool were stopped.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=settings, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        pytest.fail(f"{tool} takes more than five minutes:\n{said[-6000:]}")
    if "Device not supported" in said:
        pytest.skip("compute-sanitizer does not support this device")
    assert process.returncode == 0, said[-6000:]
