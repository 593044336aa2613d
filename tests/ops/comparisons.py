"""References in float64 and test chains for the tests of CUDA kernels, in the emulator and on a GPU."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eugen_nerf.layers import EUGen, LowRank, build_network, merge_chain
from eugen_nerf.layers.factor_products import Product
from eugen_nerf.layers.merge import FeatureStage, MergedChain
from eugen_nerf.ops import PackedSamples, Space, StepRule, cuda, reference
from eugen_nerf.ops.cuda_driver import Device
from eugen_nerf.ops.layout import ray_offsets_of
from eugen_nerf.ops.packing import pack_chain
from eugen_nerf.ops.tiles import Tiles

# Relative errors that sums of halves must keep, whatever the network.
TOLERANCE = {torch.float16: 5e-3, torch.bfloat16: 2e-2}

BOUNDED = (Space(((-1.0, -1.5, -1.0), (1.0, 1.5, 2.0))), StepRule(0.05))
UNBOUNDED = (Space(((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)), contracted=True), StepRule(0.05, 1 / 16))


def relative_error(got: Tensor, expected: Tensor) -> float:
    got, expected = got.detach().cpu().double(), expected.detach().cpu().double()
    assert got.shape == expected.shape
    return float((got - expected).norm() / expected.norm().clamp_min(1e-300)) if expected.numel() else 0.0


FACTORS = {
    "wide": ((3, 20), (20, 33), (20,), (3,), (33, 2)),
    "tall": ((40, 5), (5, 7), (5,), (40,), (7, 64)),
    "single": ((1, 1), (1, 1), (1,), (1,), (1, 1)),
}


def random_factors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def products_of(factors: list[Tensor]) -> list[Product]:
    """Every form, with factors in several roles. They occur in the order in which they are given."""
    a, b, v, w, c = factors
    return [Product(a), Product(b, a), Product(v, a, w), Product(b), Product(v, a), Product(c, b), Product(w)]


def adam_beyond_its_gradient(device: Device, place: str) -> None:
    """A launch that reads beyond an array, to show that a device, or a tool that watches it, notices."""
    parameter, *others = (torch.ones(size, device=place) for size in (1 << 14, 1024, 1024, 1024))
    cuda.masked_adam(device, parameter, *others, (0.9, 0.99), 1e-8, 0.1, 2.0)


def check_visible(select: Callable[..., tuple[PackedSamples, list[Tensor]]], counts: list[int], scale: float) -> None:
    """An op `select_visible` finds the same samples as the reference does in float64, and copies their rows.

    Args:
        select: the op, called with CPU tensors.
        counts: the number of samples of each ray.
        scale: of the densities; 3 hides samples behind some sixty others.
    """
    generator = torch.Generator().manual_seed(sum(counts))
    samples, sigma = random_samples(counts, generator)
    sigma *= scale
    sigma[5::41], sigma[40::97] = math.nan, math.inf
    rows = [torch.rand(len(sigma), *shape, generator=generator) for shape in ((), (3,), (2, 4), (5,), (0,), (33,))]
    rows += [torch.rand(4, len(sigma), generator=generator).T, sigma]  # one is strided
    exact = PackedSamples(samples.ray_offsets, samples.t_starts.double(), samples.t_ends.double())
    expected, wanted = reference.select_visible(sigma.double(), exact, rows)
    got, kept = select(sigma, samples, rows)
    assert torch.equal(got.ray_offsets, expected.ray_offsets)
    for mine, theirs in zip(
        (got.t_starts, got.t_ends, *kept), (expected.t_starts, expected.t_ends, *wanted), strict=True
    ):
        torch.testing.assert_close(mine, theirs.float(), rtol=0, atol=0, equal_nan=True)


def random_samples(counts: list[int], generator: torch.Generator) -> tuple[PackedSamples, Tensor]:
    """Samples of rays with these numbers of samples, and densities between 0 and 1."""
    n = sum(counts)
    starts = torch.rand(n, generator=generator).cumsum(0)
    ends = starts + 0.05 + 0.1 * torch.rand(n, generator=generator)
    offsets = ray_offsets_of(torch.tensor(counts, dtype=torch.int64))
    return PackedSamples(offsets, starts, ends), torch.rand(n, generator=generator)


# Numbers of samples, and the scale of their densities: none at all, none in some rays, groups of 32 that end with a
# ray or do not, all visible, few visible, one visible.
VISIBLE = [([], 3.0), ([0, 0], 3.0), ([1, 0, 31, 32, 33, 0, 64, 300, 0], 3.0), ([40, 200], 1e-4), ([70, 99], 1e8),
           ([150] * 20, 1.5)]  # fmt: skip


def kind(name: str, *widths: int, **options: Any) -> Callable[[], nn.Sequential]:
    """Networks as the methods configure them: in, hidden, hidden layers, out, features."""
    return lambda: build_network(name, *widths, **options)


def eugen_pair_of_order_2() -> nn.Sequential:
    return nn.Sequential(EUGen(7, 20, 11, order=2), EUGen(20, 9, 16, order=2, shared=True, norm=False), nn.Linear(9, 3))


def eugen_pair(**options: Any) -> Callable[[], nn.Sequential]:
    return lambda: nn.Sequential(EUGen(7, 20, 12, **options), EUGen(20, 9, 20, norm=False, bias=False), nn.Linear(9, 3))


def offsets_and_norm() -> MergedChain:
    """A stage with all optional parts; its 1132 parameters end at a 16-byte boundary."""
    chain = merge_chain(eugen_pair_of_order_2())
    first = dataclasses.replace(chain.stages[0], offsets=torch.randn(33))
    return dataclasses.replace(chain, stages=(first, *chain.stages[1:]))


def inner_norm() -> nn.Sequential:
    """A norm of 19 affine functions of the features, more than fit into a tile."""
    layers = nn.Sequential(EUGen(7, 30, 18), EUGen(30, 9, 20), nn.Linear(9, 3))
    nn.init.normal_(layers[0].bias)
    return layers


# Networks by name, as functions since their parameters are random.
CHAINS: dict[str, Callable[[], nn.Sequential | MergedChain]] = {
    "density": kind("eugen", 32, 64, 1, 16, 32, norm_first=False),
    "color": kind("eugen", 31, 64, 2, 3, 32, norm_first=False),
    "color-order-2": kind(
        "eugen", 31, 64, 2, 3, 16, norm_first=False, order=2, shared=True, phi="identity", feature_bias=True
    ),
    "mlp": kind("mlp", 31, 64, 2, 3, 32),
    "low-rank": kind("low-rank", 32, 40, 2, 5, 24),
    "snnk": kind("snnk", 16, 40, 1, 5, 24),
    "norm": eugen_pair(),
    "order-2": eugen_pair(order=2),
    "order-2-shared": eugen_pair(order=2, shared=True, norm=False),
    "identity": eugen_pair(order=2, phi="identity"),
    "order-2-twice": eugen_pair_of_order_2,
    "gelu": eugen_pair(phi="gelu"),
    "softplus": eugen_pair(phi="softplus"),
    "softplus-order-2": eugen_pair(order=2, phi="softplus"),
    "softplus-inner-norm": lambda: nn.Sequential(EUGen(7, 20, 12, phi="softplus"), EUGen(20, 9, 20), nn.Linear(9, 3)),
    "dense-softplus-norm": lambda: nn.Sequential(nn.Linear(5, 17), nn.Softplus(), EUGen(17, 8, 6), nn.Linear(8, 2)),
    "squared-relu-order-2": eugen_pair(order=2, phi="squared_relu"),
    "sin-order-2-shared": eugen_pair(order=2, shared=True, phi="sin"),
    "offsets-and-norm": offsets_and_norm,
    "order-2-even": lambda: nn.Sequential(
        EUGen(8, 20, 12, order=2), EUGen(20, 9, 20, norm=False, bias=False), nn.Linear(9, 4)
    ),
    "inner-norm": inner_norm,
    "inner-norm-order-2": lambda: nn.Sequential(
        EUGen(7, 40, 11, order=2), EUGen(40, 9, 16, order=2), EUGen(9, 8, 12, norm=False), nn.Linear(8, 3)
    ),
    "norm-of-affine": lambda: nn.Sequential(nn.Linear(5, 18), EUGen(18, 8, 6, order=2, shared=True), nn.Linear(8, 2)),
    "norm-after-dense": lambda: nn.Sequential(nn.Linear(5, 17), nn.ReLU(), EUGen(17, 8, 6), nn.Linear(8, 2)),
    "linear": lambda: nn.Sequential(nn.Linear(5, 33, bias=False)),
    "rank-3": lambda: nn.Sequential(LowRank(6, 40, 3), nn.Linear(40, 2)),
    "width-128": kind("mlp", 32, 128, 2, 16, 32),
    "width-256": kind("mlp", 32, 256, 2, 16, 32),
}
PADDED = ("color", "norm", "rank-3", "linear")  # with inputs of 31, 7, 6 and 5, to lie in padded rows


def chain_of(name: str) -> MergedChain:
    torch.manual_seed(0)
    made = CHAINS[name]()  # merged with gradients, as in training, so no norm has a constant
    return (made if isinstance(made, MergedChain) else merge_chain(made)).detach()


def convert(chain: MergedChain, change: Callable[[str, Tensor], Tensor]) -> MergedChain:
    """The chain with every tensor replaced; ``change`` also receives the tensor's name."""

    def replace(part: Any) -> Any:
        values = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        return dataclasses.replace(part, **{k: change(k, v) for k, v in values.items() if isinstance(v, Tensor)})

    return dataclasses.replace(replace(chain), stages=tuple(replace(stage) for stage in chain.stages))


def with_norm_offsets(chain: MergedChain) -> MergedChain:
    """The same function with zeros for missing offsets of norms, as in packed parameters, where they have gradients."""

    def filled(stage: FeatureStage) -> FeatureStage:
        if stage.norm_factor is None or stage.norm_offset is not None:
            return stage
        return dataclasses.replace(stage, norm_offset=stage.norm_factor.new_zeros(len(stage.norm_factor)))

    return dataclasses.replace(chain, stages=tuple(filled(stage) for stage in chain.stages))


def rounded(value: Tensor, half: torch.dtype) -> Tensor:
    """``value`` rounded to halves; gradients pass through unchanged."""
    return value + (value.to(half).to(value.dtype) - value).detach()


@dataclasses.dataclass(frozen=True)
class NetworkCase:
    """A chain, its inputs, the gradient of its outputs, and the expected results."""

    parameters: Tensor  # packed, float32
    spec: tuple[int, ...]
    eps: tuple[float, ...]
    x: Tensor
    grad: Tensor
    y: Tensor  # float64
    grad_x: Tensor
    grad_parameters: Tensor

    def on(self, device: str) -> NetworkCase:
        """The case with its inputs on a device; what is expected stays on the CPU."""
        x, parameters, grad = self.x.to(device), self.parameters.to(device), self.grad.to(device)
        return dataclasses.replace(self, x=x, parameters=parameters, grad=grad)


def network_case(network: str | MergedChain, n: int, half: torch.dtype, grad_size: float = 1.0) -> NetworkCase:
    """A chain, or one of `CHAINS` by name, with random inputs.

    Expected outputs are those of the exact chain. Expected gradients are evaluated at activations rounded to halves, so
    each ReLU passes the same units as in the kernel. Near zero, rounding decides whether a unit's gradient passes.
    """
    chain = with_norm_offsets(chain_of(network) if isinstance(network, str) else network)
    packed = pack_chain(chain)
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, chain.in_features, generator=generator)
    grad = grad_size * torch.randn(n, chain.out_features, generator=generator)
    y = reference.network(x.double(), convert(chain, lambda _, t: t.double()))

    exact = convert(chain, lambda _, t: t.double().requires_grad_())
    matrices = ("projections", "weight", "norm_factor")
    halved = convert(exact, lambda part, t: rounded(t, half) if part in matrices else t)
    x64 = x.double().requires_grad_()
    activations = rounded(x64, half)
    for stage in halved.stages:
        activations = rounded(stage.features(activations), half)
    out = torch.nn.functional.linear(activations, halved.weight, halved.bias)
    out.backward(grad.double())
    parts = [(s.projections, s.offsets, s.norm_column, s.norm_factor, s.norm_offset) for s in exact.stages]
    tensors = [*itertools.chain.from_iterable(parts), exact.weight, exact.bias]
    gradients = [t.grad for t in tensors if t is not None and t.grad is not None]
    assert x64.grad is not None
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    return NetworkCase(packed.parameters, packed.spec, packed.eps, x, grad, y, x64.grad, flat)


def in_padded_rows(x: Tensor) -> Tensor:
    """The same values in rows that are `cuda.padded_rows` long, followed by NaN."""
    n, width = x.shape
    padded = x.new_full((n, cuda.padded_rows(width)), math.nan)
    padded[:, :width] = x
    return padded[:, :width]


def network_errors(
    device: Device,
    case: NetworkCase,
    rows: torch.dtype = torch.float32,
    tiles: Tiles | None = None,
    padded: bool = False,
) -> list[float]:
    """Relative errors of a device's kernels: of the result, and of the gradients of inputs and parameters.

    Args:
        rows: dtype of inputs and outputs.
        padded: give the inputs in padded rows, with NaN as padding.
    """
    x, network = case.x.to(rows), (case.spec, case.eps)
    if padded:
        x = in_padded_rows(x)
    y = cuda.network_forward(device, x, case.parameters, *network, tiles)
    gradients = cuda.network_backward(device, x, case.parameters, case.grad.to(rows), *network, True, tiles)
    expected = case.y, case.grad_x, case.grad_parameters
    return [relative_error(mine, theirs) for mine, theirs in zip((y, *gradients), expected, strict=True)]


def check_numbers_beyond_halves(evaluate: Callable[[NetworkCase, Tensor], Tensor]) -> None:
    """Too large values are bounded, not infinite. NaN stays NaN, but only in its own row.

    Args:
        evaluate: evaluates a case's network on other inputs; returns results on the CPU.
    """
    case = network_case("density", 20, torch.float16)
    x = case.x.clone()
    x[0] = 1e30
    x[1, 3] = math.nan
    y = evaluate(case, x)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()
    assert relative_error(y[2:], case.y[2:]) <= TOLERANCE[torch.float16]
