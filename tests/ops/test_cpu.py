"""Native CPU runners: results and gradients against the float64 reference, and inputs that could crash C code."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from eugen_nerf.layers import EUGen, LowRank, build_network, merge_chain
from eugen_nerf.layers.merge import MergedChain
from eugen_nerf.occupancy import pack_bits
from eugen_nerf.ops import (
    HashGridLayout,
    PackedSamples,
    RadianceField,
    Space,
    StepRule,
    composite,
    dispatch,
    hash_encode,
    march,
    network,
    reference,
    render,
    sample_points,
    select_visible,
    spherical_harmonics,
)
from eugen_nerf.ops.build import BuildError, cpu_library
from eugen_nerf.ops.checks import why_not_grid
from eugen_nerf.ops.packing import why_not_native
from tests.ops.comparisons import VISIBLE, check_visible, random_samples

FORWARD, GRADIENT = 1e-5, 1e-4  # tolerated relative errors in single precision

BOUNDED = Space(((-1.0, -1.5, -1.0), (1.0, 1.5, 2.0)))
UNBOUNDED = Space(((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)), contracted=True)


def have_compiler() -> bool:
    try:
        cpu_library()
    except BuildError:
        return False
    return True


pytestmark = [
    pytest.mark.skipif(not have_compiler(), reason="no C++ compiler"),
    pytest.mark.usefixtures("several_threads"),
]


@pytest.fixture(autouse=True)
def native_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Force the native backend, since a silent fallback to the reference would make the tests meaningless."""
    monkeypatch.setenv("EUGEN_BACKEND", "cpu")


def relative_error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    return float((got.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-12))


def double(chain: MergedChain) -> MergedChain:
    """The chain's tensors in float64, as leaves that collect gradients."""

    def convert(value: object) -> object:
        return value.detach().double().requires_grad_() if isinstance(value, Tensor) else value

    def replace(part: object) -> object:
        values = {f.name: convert(getattr(part, f.name)) for f in dataclasses.fields(part)}  # type: ignore[arg-type]
        return dataclasses.replace(part, **values)  # type: ignore[type-var]

    stages = tuple(replace(stage) for stage in chain.stages)
    return dataclasses.replace(replace(chain), stages=stages)  # type: ignore[type-var, return-value]


def single(chain: MergedChain) -> MergedChain:
    """The same values in float32, as new leaf tensors."""

    def convert(value: object) -> object:
        return value.detach().float().requires_grad_() if isinstance(value, Tensor) else value

    def replace(part: object) -> object:
        values = {f.name: convert(getattr(part, f.name)) for f in dataclasses.fields(part)}  # type: ignore[arg-type]
        return dataclasses.replace(part, **values)  # type: ignore[type-var]

    stages = tuple(replace(stage) for stage in chain.stages)
    return dataclasses.replace(replace(chain), stages=stages)  # type: ignore[type-var, return-value]


def tensors(chain: MergedChain) -> list[Tensor]:
    parts = [chain, *chain.stages]
    values = [getattr(part, f.name) for part in parts for f in dataclasses.fields(part)]
    return [value for value in values if isinstance(value, Tensor)]


def check_network(layers: nn.Sequential, n: int, seed: int = 0, input_gradient: bool = True) -> None:
    generator = torch.Generator().manual_seed(seed)
    chain = merge_chain(layers)
    assert why_not_native(chain) is None
    ours, exact = single(chain), double(chain)
    x = torch.randn(n, chain.in_features, generator=generator)
    weight = torch.randn(n, chain.out_features, generator=generator)
    x32, x64 = x.clone().requires_grad_(input_gradient), x.double().requires_grad_(input_gradient)
    got, expected = network(x32, ours), reference.network(x64, exact)
    assert relative_error(got, expected) <= FORWARD
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    if input_gradient:
        assert relative_error(x32.grad, x64.grad) <= GRADIENT
    pairs = [(mine.grad, theirs.grad) for mine, theirs in zip(tensors(ours), tensors(exact), strict=True)]
    # A gradient of few numbers may be the small sum of large ones, so its error is compared with all gradients too.
    total = math.hypot(*(float(theirs.norm()) for _, theirs in pairs))
    for mine, theirs in pairs:
        assert float((mine.double() - theirs).norm()) <= GRADIENT * max(float(theirs.norm()), 1e-3 * total)


@pytest.mark.parametrize("n", [0, 1, 95, 96, 97, 1000])
@pytest.mark.parametrize("kind", ["eugen", "mlp", "low-rank", "snnk"])
def test_network_kinds(kind: str, n: int) -> None:
    torch.manual_seed(0)
    check_network(build_network(kind, 31, 48, 2, 5, 24), n)


@pytest.mark.parametrize("phi", ["identity", "relu", "squared_relu", "softplus", "gelu", "sin"])
@pytest.mark.parametrize(("order", "shared"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("norm", [True, False])
def test_network_eugen_variants(phi: str, order: int, shared: bool, norm: bool) -> None:
    torch.manual_seed(1)
    layers = nn.Sequential(
        EUGen(7, 20, 12, order=order, shared=shared, norm=norm, phi=phi),
        EUGen(20, 9, 16, order=order, shared=shared, norm=False, phi=phi, bias=False),
        nn.Linear(9, 3),
    )
    check_network(layers, 130)


def test_network_without_hidden_layers_and_norm_after_a_dense_layer() -> None:
    torch.manual_seed(2)
    check_network(nn.Sequential(nn.Linear(5, 33, bias=False)), 50)
    # The norm of a stage's own input, with a width that fills whole vectors and one that does not.
    for width in (16, 17):
        check_network(nn.Sequential(nn.Linear(5, width), nn.ReLU(), EUGen(width, 8, 6), nn.Linear(8, 2)), 50)
    check_network(nn.Sequential(LowRank(6, 40, 3), nn.Linear(40, 2)), 50)


@pytest.mark.parametrize("phi", ["relu", "gelu"])
@pytest.mark.parametrize(("order", "shared"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [9, 40])  # below and above the number of features
def test_network_with_norms_inside(width: int, bias: bool, order: int, shared: bool, phi: str) -> None:
    torch.manual_seed(1)
    options = {"order": order, "shared": shared, "phi": phi, "bias": bias}
    check_network(nn.Sequential(EUGen(7, width, 12, **options), EUGen(width, 9, 15, **options), nn.Linear(9, 3)), 130)


def test_network_with_a_constant_in_its_norm() -> None:
    """A norm constant as merging without gradients produces it, here large enough to matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        chain = merge_chain(nn.Sequential(EUGen(7, 40, 12), EUGen(40, 9, 15), nn.Linear(9, 3)))
        stage = dataclasses.replace(chain.stages[1], norm_constant=torch.tensor(3.0))
        chain = dataclasses.replace(chain, stages=(chain.stages[0], stage))
        assert why_not_native(chain) is None
        x = torch.randn(50, 7)
        assert relative_error(network(x, chain), reference.network(x.double(), double(chain))) <= FORWARD


@pytest.mark.parametrize("input_gradient", [True, False])  # the map before the norm needs a gradient in any case
def test_network_with_the_norm_of_an_affine_map_of_its_input(input_gradient: bool) -> None:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(5, 17), EUGen(17, 8, 16), nn.Linear(8, 2))
    check_network(layers, 130, input_gradient=input_gradient)


@given(
    widths=st.lists(st.integers(1, 256), min_size=2, max_size=5),
    n=st.integers(0, 200),
    order=st.integers(1, 2),
    seed=st.integers(0, 10**6),
    inner_norms=st.booleans(),
)
@settings(deadline=None, max_examples=25)
def test_network_any_width(widths: list[int], n: int, order: int, seed: int, inner_norms: bool) -> None:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [
        EUGen(a, b, max(1, b // 2), order=order, norm=i == 0 or inner_norms, phi="gelu")
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    ]
    check_network(nn.Sequential(*layers, nn.Linear(widths[-1], 3)), n, seed)


@pytest.mark.parametrize("phi", ["identity", "relu", "squared_relu", "softplus", "gelu", "sin"])
@pytest.mark.parametrize("order", [1, 2])
def test_a_network_that_diverged_does_not_look_healthy(phi: str, order: int) -> None:
    """NaN passes through every activation, as in PyTorch, and stays within its row."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        EUGen(5, 24, 8, order=order, phi=phi, norm=False), EUGen(24, 24, 8, order=order, phi=phi, norm=False),
        nn.Linear(24, 3),
    )  # fmt: skip
    x = torch.randn(200, 5)
    x[3, 1] = math.nan
    y = network(x, merge_chain(layers))
    assert y.isnan().any(dim=1).nonzero().flatten().tolist() == [3]
    y[3].sum().backward()
    for weight in (layers[0].projections, layers[1].projections, layers[1].weight, layers[2].weight):
        assert isinstance(weight, nn.Parameter)
        assert weight.grad is not None
        assert weight.grad.isnan().any()
    with torch.no_grad():
        layers[0].projections.fill_(math.nan)
    assert network(torch.randn(200, 5), merge_chain(layers)).isnan().all()


def test_rows_of_any_shape() -> None:
    chain = merge_chain(build_network("eugen", 5, 16, 1, 3, 8))
    x = torch.randn(2, 3, 4, 5)
    rows = network(x.view(-1, 5), chain)
    assert torch.equal(network(x, chain), rows.view(2, 3, 4, 3))
    assert torch.equal(network(x[0, 0, 0], chain), rows[0])
    assert network(x[:, :0], chain).shape == (2, 0, 4, 3)


@pytest.mark.parametrize("op", ["hash_encode", "network", "composite"])
def test_gradients_of_gradients_are_for_the_reference(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = HashGridLayout.build(2, 2, 8, 2, 4)
    x = torch.rand(6, 3, requires_grad=True)
    samples = PackedSamples(torch.tensor([0, 6]), torch.arange(6.0), torch.arange(6.0) + 1)

    def run() -> None:
        if op == "hash_encode":
            table = torch.randn(grid.num_entries, 2, generator=torch.Generator().manual_seed(0))
            y = hash_encode(x, table, grid)
        elif op == "network":
            torch.manual_seed(0)
            y = network(x, merge_chain(build_network("mlp", 3, 8, 1, 2, 8)))
        else:
            y = composite(x[:, 0], x, samples)[0]
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        gradient.square().sum().backward()

    with pytest.raises(NotImplementedError, match=r'first-order gradients only.*backend="reference"'):
        run()
    monkeypatch.setenv("EUGEN_BACKEND", "reference")
    run()


def test_network_same_threads_same_bits() -> None:
    torch.manual_seed(0)
    layers = build_network("eugen", 32, 64, 2, 16, 32)
    x, weight = torch.randn(2000, 32), torch.randn(2000, 16)

    def gradients() -> list[Tensor]:
        layers.zero_grad()
        (network(x, merge_chain(layers)) * weight).sum().backward()
        return [p.grad.clone() for p in layers.parameters() if p.grad is not None]

    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(), strict=True))


@pytest.mark.parametrize("layout", [(16, 2, 14, 16, 512), (4, 1, 8, 2, 40), (8, 4, 12, 4, 128), (3, 8, 10, 5, 20)])
@pytest.mark.parametrize("n", [0, 1, 17, 3000])
def test_hash_encode(layout: tuple[int, int, int, int, int], n: int) -> None:
    grid = HashGridLayout.build(*layout)
    generator = torch.Generator().manual_seed(n)
    x = torch.rand(n, 3, generator=generator)
    x[: n // 4] = x[: n // 4].round()  # corners and faces
    x[n // 4 : n // 3] = 3 * x[n // 4 : n // 3] - 1  # outside
    table = torch.randn(grid.num_entries, grid.features_per_level, generator=generator)
    weight = torch.randn(n, grid.out_features, generator=generator)
    x32, x64 = x.clone().requires_grad_(), x.double().requires_grad_()
    t32, t64 = table.clone().requires_grad_(), table.double().requires_grad_()
    got, expected = hash_encode(x32, t32, grid), reference.hash_encode(x64, t64, grid)
    assert relative_error(got, expected) <= FORWARD
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    assert relative_error(t32.grad, t64.grad) <= GRADIENT
    assert relative_error(x32.grad, x64.grad) <= GRADIENT


def test_hash_encode_just_below_the_vertices_of_a_fine_level() -> None:
    """In single precision, position times resolution may be rounded up to the next vertex."""
    resolution, entries = 500, 2**14
    grid = HashGridLayout((resolution,), (0, entries), 2, 14)
    below = torch.nextafter((torch.arange(1, resolution).double() / resolution).float(), torch.tensor(0.0))
    assert (below * resolution == (below * resolution).round()).any()
    x = torch.stack([below, below.flip(0), below], dim=-1)
    table = torch.randn(entries, 2, generator=torch.Generator().manual_seed(0))
    expected = reference.hash_encode(x.double(), table.double(), grid)
    assert (hash_encode(x, table, grid) - expected).abs().max() < 1e-3


def test_hash_encode_gradient_does_not_depend_on_threads() -> None:
    grid = HashGridLayout.build(4, 2, 12, 4, 64)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5000, 3, generator=generator)
    weight = torch.randn(5000, grid.out_features, generator=generator)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 7):  # fewer and more than levels
            torch.set_num_threads(count)
            table = torch.zeros(grid.num_entries, 2, requires_grad=True)
            (hash_encode(x, table, grid) * weight).sum().backward()
            results.append(table.grad)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_hash_encode_of_what_is_no_position() -> None:
    grid = HashGridLayout.build(3, 2, 8, 2, 20)
    table = torch.randn(grid.num_entries, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    bad = torch.tensor([[math.nan, 0.5, 0.5], [math.inf, -math.inf, 0.2], [1e30, -1e30, 0.5]]).requires_grad_()
    out = hash_encode(bad, table, grid)
    out.sum().backward()
    # Positions are clamped onto the cube; NaN counts as zero.
    expected = hash_encode(torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.2], [1.0, 0.0, 0.5]]), table, grid)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("n", [0, 1, 1000])
def test_spherical_harmonics(n: int) -> None:
    directions = nn.functional.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(n)), dim=-1)
    expected = reference.spherical_harmonics(directions.double())
    assert relative_error(spherical_harmonics(directions), expected) <= FORWARD


def test_spherical_harmonics_gradients_are_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUGEN_BACKEND")
    generator = torch.Generator().manual_seed(0)
    directions = nn.functional.normalize(torch.randn(9, 3, generator=generator), dim=-1).requires_grad_()
    weight = torch.randn(9, 16, generator=generator)
    (got,) = torch.autograd.grad((spherical_harmonics(directions) * weight).sum(), directions)
    exact = directions.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad((reference.spherical_harmonics(exact) * weight).sum(), exact)
    assert relative_error(got, expected) <= GRADIENT


def random_rays(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    origins = 2 * torch.randn(n, 3, generator=generator)
    directions = nn.functional.normalize(torch.randn(n, 3, generator=generator) - 0.4 * origins, dim=-1)
    directions[::7] = torch.tensor([0.0, 0.0, -1.0])  # along an axis
    near = 0.3 * torch.rand(n, generator=generator)
    return origins, directions, near, near + 15 * torch.rand(n, generator=generator), torch.rand(n, generator=generator)


def random_bits(resolution: int, share: float, seed: int = 0) -> Tensor:
    return pack_bits(torch.rand(resolution**3, generator=torch.Generator().manual_seed(seed)) < share)


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
@pytest.mark.parametrize(
    ("space", "rule"),
    [
        (BOUNDED, StepRule(0.01)),
        (BOUNDED, StepRule(0.3)),
        (BOUNDED, StepRule(0.02, 1 / 32)),
        (UNBOUNDED, StepRule(0.02, 1 / 32)),
        (UNBOUNDED, StepRule(0.05)),
    ],
    ids=["fine", "coarse", "bounded-cone", "cone", "unbounded"],
)
def test_march(space: Space, rule: StepRule, share: float) -> None:
    rays = random_rays(300)
    bits = random_bits(16, share)
    got = march(*rays[:4], bits, 16, space, rule, rays[4])
    exact = [t.double() for t in rays]
    expected = reference.march(*exact[:4], bits, 16, space, rule, exact[4])
    # A sample whose midpoint lies on a cell's face, up to round-off, may be assigned to either side.
    differing = (got.counts() - expected.counts()).abs().sum().item()
    assert differing <= 2e-3 * expected.num_samples
    same = got.counts() == expected.counts()
    assert same.float().mean() > 0.97
    mine, theirs = same[got.ray_indices()], same[expected.ray_indices()]
    assert (got.t_starts[mine] - expected.t_starts[theirs]).abs().max() < rule.step_size + 1e-4
    assert relative_error(got.t_starts[mine], expected.t_starts[theirs]) < 1e-3
    assert relative_error(got.t_mids.sum(), expected.t_mids.sum()) < 1e-3


@pytest.mark.parametrize("resolution", [6, 10, 14, 18])
def test_march_where_rows_of_cells_do_not_fill_bytes(resolution: int) -> None:
    """A block of cells may then span two bytes. Few cells are occupied, so one missed cell loses its whole block."""
    space, rule = Space(((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))), StepRule(0.01)
    origins = 1.6 * torch.rand(300, 3, generator=torch.Generator().manual_seed(resolution)) - 0.8
    origins[:, 0] = -3
    directions = torch.tensor([[1.0, 0, 0]]).repeat(300, 1)
    near, far = torch.zeros(300), torch.full((300,), 9.0)
    bits = random_bits(resolution, 0.05, seed=resolution)
    got = march(origins, directions, near, far, bits, resolution, space, rule)
    exact = [t.double() for t in (origins, directions, near, far)]
    expected = reference.march(*exact, bits, resolution, space, rule)
    assert expected.num_samples > 1000
    assert (got.counts() - expected.counts()).abs().sum() <= 2e-3 * expected.num_samples


@pytest.mark.parametrize("space", [BOUNDED, UNBOUNDED], ids=["bounded", "unbounded"])
def test_sample_points(space: Space) -> None:
    origins, directions, near, far, jitter = random_rays(200)
    samples = march(origins, directions, near, far, random_bits(16, 0.5), 16, space, StepRule(0.05), jitter)
    assert samples.num_samples > 1000
    got = sample_points(origins, directions, samples, space)
    exact = PackedSamples(samples.ray_offsets, samples.t_starts.double(), samples.t_ends.double())
    expected = reference.sample_points(origins.double(), directions.double(), exact, space)
    for mine, theirs in zip(got, expected, strict=True):
        assert relative_error(mine, theirs) <= FORWARD


def test_sample_points_gradients_are_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUGEN_BACKEND")
    origins, directions, near, far, jitter = random_rays(20)
    samples = march(origins, directions, near, far, random_bits(16, 0.5), 16, BOUNDED, StepRule(0.05), jitter)
    unit, _ = sample_points(origins.requires_grad_(), directions, samples, BOUNDED)
    assert unit.requires_grad


def test_march_edge_cases() -> None:
    bits = torch.full((1,), 255, dtype=torch.uint8)
    none = torch.empty(0, 3)
    assert march(none, none, none[:, 0], none[:, 0], bits, 2, BOUNDED, StepRule(0.1)).num_rays == 0
    bad = torch.tensor([[math.nan, 0, 0], [0, 0, math.inf], [0, 0, -5.0], [5.0, 5, 5]])
    directions = torch.tensor([[0.0, 0, 1], [0, 0, 1], [math.nan, 0, 1], [0, 0, 1]])
    samples = march(bad, directions, torch.zeros(4), torch.full((4,), 9.0), bits, 2, BOUNDED, StepRule(0.1))
    assert samples.num_samples == 0
    for space in (BOUNDED, UNBOUNDED):  # NaN limits
        for near, far in ((math.nan, 9.0), (0.0, math.nan)):
            limits = torch.tensor([near]), torch.tensor([far])
            assert march(none.new_zeros(1, 3), directions[:1], *limits, bits, 2, space, StepRule(0.1)).num_samples == 0
    infinite = march(none.new_zeros(1, 3), directions[:1], torch.zeros(1), torch.full((1,), math.inf), bits, 2,
                     BOUNDED, StepRule(0.1))  # fmt: skip
    assert infinite.num_samples == 20
    # In a contracted space, steps grow until their ends exceed single precision.
    for direction in (1.0, -1.0):
        rays = none.new_zeros(1, 3), direction * directions[:1], torch.zeros(1)
        finite, infinite = (
            march(*rays, torch.full((1,), far), bits, 2, UNBOUNDED, StepRule(0.1, 0.1)) for far in (1e37, math.inf)
        )
        assert infinite.t_ends.isfinite().all()
        assert infinite.num_samples >= finite.num_samples > 100


@given(st.lists(st.integers(0, 40), min_size=0, max_size=12), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_composite(counts: list[int], seed: int) -> None:
    check_composite(counts, seed, 3.0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e8])
def test_composite_dense_ray(scale: float) -> None:
    check_composite([0, 1024, 0, 5], 1, scale)


def check_composite(counts: list[int], seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    samples, sigma = random_samples(counts, generator)
    rgb = torch.rand(len(sigma), 3, generator=generator)
    weight = torch.randn(len(counts), 5, generator=generator)
    results = []
    for op, dtype in ((composite, torch.float32), (reference.composite, torch.float64)):
        s, c = (t.detach().clone().to(dtype).requires_grad_() for t in (scale * sigma, rgb))
        packed = PackedSamples(samples.ray_offsets, samples.t_starts.to(dtype), samples.t_ends.to(dtype))
        color, alpha, depth = op(s, c, packed)
        out = torch.cat([color, alpha[:, None], depth[:, None]], dim=1)
        (out * weight).sum().backward()
        results.append((out, s.grad, c.grad))
    for got, expected, bound in zip(*results, (FORWARD, GRADIENT, GRADIENT), strict=True):
        assert relative_error(got, expected) <= bound


@pytest.mark.parametrize(("counts", "scale"), VISIBLE)
def test_select_visible(counts: list[int], scale: float) -> None:
    check_visible(select_visible, counts, scale)


def test_select_visible_of_densities_that_are_not_finite() -> None:
    """NaN hides nothing, so that it shows; infinity hides what is behind it in its own ray."""
    samples = PackedSamples(torch.tensor([0, 3, 6, 8]), torch.arange(8.0), torch.arange(8.0) + 1)
    sigma = torch.tensor([0.0, math.nan, 1, 0, math.inf, 1, 1, 1])
    for backend in ("cpu", "reference"):
        got, (kept,) = select_visible(sigma, samples, [torch.arange(8.0)], backend=backend)  # type: ignore[arg-type]
        assert kept.tolist() == [0, 1, 2, 3, 4, 6, 7]
        assert got.ray_offsets.tolist() == [0, 3, 5, 7]


def test_select_visible_of_rows_with_a_gradient_is_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUGEN_BACKEND")
    samples = PackedSamples(torch.tensor([0, 2]), torch.arange(2.0), torch.arange(2.0) + 1)
    rows = torch.rand(2, 3, requires_grad=True)
    _, (kept,) = select_visible(torch.ones(2, requires_grad=True), samples, [rows])
    assert kept.requires_grad
    with torch.no_grad():
        _, (kept,) = select_visible(torch.ones(2, requires_grad=True), samples, [rows])
    assert torch.equal(kept, rows)


def small_field(kind: str = "eugen", dtype: torch.dtype = torch.float32) -> RadianceField:
    torch.manual_seed(3)
    grid = HashGridLayout.build(4, 2, 10, 4, 32)
    table = torch.randn(grid.num_entries, 2)
    density, color = build_network(kind, 8, 16, 1, 16, 12), build_network(kind, 31, 16, 2, 3, 12)
    with torch.no_grad():
        chains = merge_chain(density.to(dtype)), merge_chain(color.to(dtype))
    return RadianceField(table.to(dtype), grid, *chains)


@pytest.mark.parametrize(
    ("space", "rule"), [(BOUNDED, StepRule(0.05)), (UNBOUNDED, StepRule(0.05, 1 / 16))], ids=["bounded", "unbounded"]
)
@pytest.mark.parametrize("kind", ["eugen", "mlp"])
@pytest.mark.parametrize("n", [0, 1, 500, 5000])
def test_render(space: Space, rule: StepRule, kind: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rays = random_rays(n)[:4]
    bits = random_bits(16, 0.3)
    got = render(*rays, bits, 16, space, rule, small_field(kind))
    monkeypatch.setenv("EUGEN_BACKEND", "reference")
    expected = reference.render(*rays, bits, 16, space, rule, small_field(kind))
    # A ray may differ if round-off moved a sample across a cell's face. Few do, and only slightly.
    for mine, theirs in zip(got[:3], expected[:3], strict=True):
        difference = (mine - theirs).abs().flatten()
        assert mine.shape == theirs.shape
        assert (difference > 1e-3 * (1 + theirs.abs().flatten())).float().mean() <= 0.01 or n == 0
    if n:
        assert n == 1 or expected[1].max() > 0.5  # the scene is not trivial
        assert (got[3] - expected[3]).abs().sum() <= 0.01 * expected[3].sum() + 1


def test_render_stops_at_opaque_surfaces() -> None:
    field = small_field()
    assert field.density.bias is not None
    bias = field.density.bias.clone()
    bias[0] = 30.0  # every sample is opaque
    field = dataclasses.replace(field, density=dataclasses.replace(field.density, bias=bias))
    rays = random_rays(200)[:4]
    bits = torch.full((16**3 // 8,), 255, dtype=torch.uint8)
    _, alpha, _, samples = render(*rays, bits, 16, BOUNDED, StepRule(0.05), field)
    assert samples.max() == 1
    assert alpha[samples > 0].min() > 0.999


def test_a_density_that_is_not_a_number_is_no_surface() -> None:
    field = small_field()
    assert field.density.bias is not None
    field.density.bias[0] = math.nan
    origins, directions, near, far, _ = random_rays(60)
    bits = torch.full((16**3 // 8,), 255, dtype=torch.uint8)
    where = (origins, directions, near, far, bits, 16, BOUNDED, StepRule(0.1), field)
    rgb, alpha, depth, samples = render(*where)
    assert samples.any()
    for values in (rgb, alpha, depth):
        assert torch.equal(values.isnan().view(60, -1).any(dim=1), samples > 0)


def test_ops_refuse_what_would_crash() -> None:
    from eugen_nerf.ops import operators

    grid = HashGridLayout.build(2, 2, 8, 2, 4)
    table = torch.zeros(grid.num_entries, 2)
    x = torch.rand(4, 3)
    arguments = (grid.resolutions, grid.offsets, grid.log2_table_size)
    with pytest.raises(TypeError, match="float32"):
        operators.hash_encode(x.double(), table, *arguments)
    with pytest.raises(ValueError, match="shape"):
        operators.hash_encode(x[:, :2], table, *arguments)
    with pytest.raises(ValueError, match="shape"):
        operators.hash_encode(x, table[:-1], *arguments)
    with pytest.raises(ValueError, match="features per level"):
        operators.hash_encode(x, torch.zeros(grid.num_entries, 3), *arguments)
    with pytest.raises(ValueError, match="shape"):
        operators.network(x, torch.zeros(5), [0, 2, 1, 3], [])
    with pytest.raises(ValueError, match="fit together"):
        operators.network(x, torch.zeros(100), [1, 4, 2, 1, 0, 1, 0, 0, 2, 1, 3], [0.0])
    with pytest.raises(ValueError, match="ray_offsets"):
        operators.composite(x[:, 0], x, x[:, 0], x[:, 0], torch.tensor([0, 9]))
    with pytest.raises(ValueError, match="ray_offsets"):
        operators.composite(x[:, 0], x, x[:, 0], x[:, 0], torch.tensor([0, 3, 2, 4]))
    for rows, least, match in ((x[:3], 1e-4, "rows"), (x, 0.0, "min_transmittance"), (x, 1.5, "min_transmittance")):
        with pytest.raises(ValueError, match=match):
            operators.select_visible(x[:, 0], x[:, 0], x[:, 0], torch.tensor([0, 4]), [rows], least)
    with pytest.raises(ValueError, match="step size"):
        march(x, x, x[:, 0], x[:, 0], torch.zeros(1, dtype=torch.uint8), 2, BOUNDED, StepRule(0.0))
    with pytest.raises(ValueError, match="cone angle"):
        march(x, x, x[:, 0], x[:, 0], torch.zeros(1, dtype=torch.uint8), 2, BOUNDED, StepRule(0.1, -0.01))
    with pytest.raises(ValueError, match="shape"):
        march(x, x, x[:, 0], x[:, 0], torch.zeros(1, dtype=torch.uint8), 4, BOUNDED, StepRule(0.1))
    with pytest.raises(ValueError, match="must be even"):
        march(x, x, x[:, 0], x[:, 0], torch.zeros(3, dtype=torch.uint8), 3, BOUNDED, StepRule(0.1))


def test_more_levels_than_a_gpu_takes() -> None:
    grid = HashGridLayout.build(40, 2, 8, 2, 60)
    x, table = torch.rand(20, 3), torch.randn(grid.num_entries, 2)
    expected = reference.hash_encode(x.double(), table.double(), grid)
    assert relative_error(hash_encode(x, table, grid), expected) < FORWARD
    assert "at most 32 on a GPU" in (why_not_grid(grid, torch.device("cuda")) or "")


def test_strided_inputs_are_accepted() -> None:
    grid = HashGridLayout.build(2, 2, 8, 2, 4)
    table = torch.randn(2, grid.num_entries).T
    x = torch.rand(3, 10).T
    assert torch.equal(hash_encode(x, table, grid), hash_encode(x.contiguous(), table.contiguous(), grid))


@pytest.mark.parametrize("op", ["hash_encode", "network", "composite", "select_visible"])
def test_operators_pass_torchs_own_check(op: str) -> None:
    from eugen_nerf.ops import operators

    torch.manual_seed(0)
    x = torch.rand(6, 3, requires_grad=True)
    if op == "hash_encode":
        grid = HashGridLayout.build(2, 2, 8, 2, 4)
        table = torch.randn(grid.num_entries, 2, requires_grad=True)
        arguments = (x, table, list(grid.resolutions), list(grid.offsets), grid.log2_table_size)
        function = getattr(operators, op)
    elif op == "network":
        arguments = (x, torch.randn(8, requires_grad=True), [0, 2, 1, 3], [])  # type: ignore[assignment]
        function = getattr(operators, op)
    elif op == "select_visible":
        t = torch.rand(6).cumsum(0)
        rows = [x.detach(), torch.rand(6)]
        arguments = (5 * torch.rand(6), t, t + 3, torch.tensor([0, 4, 4, 6]), rows, 1e-4)  # type: ignore[assignment]
        function = operators.select_visible
    else:
        t = torch.rand(6).cumsum(0)
        arguments = (torch.rand(6, requires_grad=True), x, t, t + 0.1, torch.tensor([0, 4, 4, 6]))  # type: ignore[assignment]
        function = operators.composite
    # Gradients are compared with the float64 reference above; finite differences in float32 would be less accurate.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(function, arguments, test_utils=tests)


def test_gradients_of_strided_inputs_have_the_layout_that_the_compiler_is_promised() -> None:
    """torch.compile plans memory by the strides of the fake kernels."""
    from eugen_nerf.ops import operators

    torch.manual_seed(0)
    x = torch.randn(3, 6).T
    network_case = (x, torch.randn(8), torch.randn(6, 2), [0, 2, 1, 3], [], True)
    t = torch.rand(6).cumsum(0)
    rays = torch.tensor([0, 4, 4, 6])
    rgb = torch.rand(3, 6).T
    composite_case = (torch.rand(12)[::2], rgb, t, t + 0.1, rays, torch.randn(3, 5))
    for function, arguments in (
        (operators.network_backward, network_case),
        (operators.composite_backward, composite_case),
    ):
        torch.library.opcheck(function, arguments, test_utils=("test_schema", "test_faketensor"))
        with FakeTensorMode() as mode:
            promised = function(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments))
        for got, fake in zip(function(*arguments), promised, strict=True):
            assert (got.shape, got.stride(), got.dtype) == (fake.shape, fake.stride(), fake.dtype)


@pytest.mark.parametrize(
    ("resolutions", "offsets", "log2"),
    [
        ((16,), (0, 4096), 13),  # 17^3 vertices do not fit
        ((2, 4), (0, 26, 151), 10),
        ((2,), (1, 28), 10),
        ((0,), (0, 8), 10),
        ((2,), (0, 27), 0),
        ((2,), (0, 27), 32),
    ],
)
def test_grids_whose_levels_are_too_short_are_refused(
    resolutions: tuple[int, ...], offsets: tuple[int, ...], log2: int
) -> None:
    grid = HashGridLayout(resolutions, offsets, 2, log2)
    with pytest.raises(ValueError, match="offsets must begin at 0 and leave each level"):
        hash_encode(torch.rand(4, 3), torch.zeros(offsets[-1], 2), grid)


def test_field_under_torch_compile() -> None:
    field = small_field()
    unit = torch.rand(50, 3)
    directions = nn.functional.normalize(torch.randn(50, 3), dim=-1)
    compiled = torch.compile(field.__call__, backend="aot_eager", fullgraph=True)
    for got, expected in zip(compiled(unit, directions), field(unit, directions), strict=True):
        torch.testing.assert_close(got, expected)


def test_without_native_code_torch_compile_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_native_cpu_problem", lambda: "no C++ compiler was found")
    field, unit = small_field(), torch.rand(50, 3)
    targets: list[str] = []

    def note(module: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        targets.extend(str(node.target) for node in module.graph.nodes)
        return module

    torch.compile(field.__call__, backend=note, fullgraph=True)(unit, unit)
    assert targets
    assert not any("eugen_nerf" in target for target in targets)
