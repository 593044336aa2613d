"""Rendering with gradients in one piece, against march, field and composite in sequence in float64."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from eugen_nerf import ops
from eugen_nerf.layers import build_network, merge_chain
from eugen_nerf.occupancy import pack_bits
from eugen_nerf.ops import HashGridLayout, PackedSamples, RadianceField, Space, StepRule, reference
from tests.ops.comparisons import BOUNDED, UNBOUNDED, relative_error
from tests.ops.test_cpu import have_compiler
from tests.test_renderer import NativeOps

pytestmark = [
    pytest.mark.skipif(not have_compiler(), reason="no C++ compiler"),
    pytest.mark.usefixtures("several_threads"),
]

differentiable = importlib.import_module("eugen_nerf.ops.differentiable")

RESOLUTION = 8
BITS = pack_bits(torch.rand(RESOLUTION**3, generator=torch.Generator().manual_seed(1)) < 0.5)
NETWORKS = {
    "eugen": ("eugen", {"norm_first": True}),
    "order-2": ("eugen", {"order": 2, "shared": True, "phi": "identity", "norm_first": False, "feature_bias": True}),
    "mlp": ("mlp", {}),
}


class Field(nn.Module):
    """A hash grid and two networks, dense enough that rays end inside."""

    def __init__(self, kind: str = "eugen") -> None:
        super().__init__()
        torch.manual_seed(0)
        name, options = NETWORKS[kind]
        self.layout = HashGridLayout.build(4, 2, 8, 4, 20)
        self.table = nn.Parameter(torch.randn(self.layout.num_entries, 2))
        self.density = build_network(name, 8, 16, 1, 6, 12, **options)  # type: ignore[arg-type]
        self.color = build_network(name, 21, 16, 2, 3, 12, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            self.density[-1].bias[0] += 2

    def merged(self) -> RadianceField:
        return RadianceField(self.table, self.layout, merge_chain(self.density), merge_chain(self.color))


def rays(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Origins, directions, near, far, jitter; some rays hit nothing."""
    generator = torch.Generator().manual_seed(n)
    origins = 3 * nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=-1)
    directions = nn.functional.normalize(0.7 * torch.randn(n, 3, generator=generator) - origins, dim=-1)
    near = 0.3 * torch.rand(n, generator=generator)
    return origins, directions, near, near + 6, torch.rand(n, generator=generator)


def render(
    field: RadianceField, n: int, skip_occluded: bool, where: tuple[Space, StepRule] = BOUNDED
) -> tuple[Tensor, Tensor, Tensor, PackedSamples]:
    *limits, jitter = rays(n)
    return ops.differentiable_render(*limits, BITS, RESOLUTION, *where, field, jitter, skip_occluded)


def loss(colors: Tensor, alphas: Tensor, depths: Tensor) -> Tensor:
    """A loss that gives each ray's outputs different weights."""
    out = torch.cat([colors, alphas[:, None], depths[:, None]], dim=1)
    return (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)).sum()


def definition(field: Field, n: int, samples: PackedSamples, space: Space) -> tuple[Tensor, Tensor, Tensor]:
    """The expected results for these samples, in eager PyTorch and float64."""
    origins, directions, *_ = (t.double() for t in rays(n))
    exact = PackedSamples(samples.ray_offsets, samples.t_starts.double(), samples.t_ends.double())
    unit, views = reference.sample_points(origins, directions, exact, space)
    return reference.composite(*field.double().merged()(unit, views), exact)


def gradients(field: Field) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in field.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("skip_occluded", [False, True], ids=["all", "visible"])
@pytest.mark.parametrize("where", [BOUNDED, UNBOUNDED], ids=["bounded", "unbounded"])
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("n", [1, 333])
def test_values_and_gradients(n: int, kind: str, where: tuple[Space, StepRule], skip_occluded: bool) -> None:
    field = Field(kind)
    *got, samples = render(field.merged(), n, skip_occluded, where)
    assert got[0].grad_fn is not None
    assert "InOnePiece" in got[0].grad_fn.name()
    loss(*got).backward()
    mine = gradients(field)
    assert len(mine) == len(list(field.parameters()))
    field.zero_grad()
    expected = definition(field, n, samples, where[0])
    loss(*expected).backward()
    assert n == 1 or expected[1].max() > 0.9
    for ours, exact in zip(got, expected, strict=True):
        assert relative_error(ours, exact) <= 1e-5
    for ours, exact in zip(mine, gradients(field), strict=True):
        assert relative_error(ours, exact) <= 1e-3


@pytest.mark.parametrize("where", [BOUNDED, UNBOUNDED], ids=["bounded", "unbounded"])
def test_the_samples_are_those_that_light_reaches(where: tuple[Space, StepRule]) -> None:
    n, (space, rule) = 200, where
    *limits, jitter = rays(n)
    everything = ops.march(*limits, BITS, RESOLUTION, space, rule, jitter)
    full, got = (render(Field().merged(), n, skip, where)[3] for skip in (False, True))
    for ours, marched in zip(vars(full).values(), vars(everything).values(), strict=True):
        assert torch.equal(ours, marched)
    unit, _ = reference.sample_points(*limits[:2], everything, space)
    sigma, _ = Field().merged().density_at(unit)
    visible = reference.transmittance(sigma.detach(), everything) >= reference.MIN_TRANSMITTANCE
    wanted = everything.select(visible.nonzero()[:, 0])
    assert 0.1 < wanted.num_samples / everything.num_samples < 0.9
    assert (got.counts() - wanted.counts()).abs().sum() <= 2  # round-off may lift one over the threshold


def unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differentiable, "_native_networks", lambda *_: None)


@pytest.mark.parametrize("skip_occluded", [False, True], ids=["all", "visible"])
def test_op_by_op_comes_to_the_same(skip_occluded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for _ in range(2):
        field = Field()
        *got, samples = render(field.merged(), 100, skip_occluded)
        loss(*got).backward()
        results.append([*got, *vars(samples).values(), *gradients(field)])
        unfused(monkeypatch)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("frozen", ["table", "density", "color"])
def test_what_is_frozen_has_no_gradient_and_changes_no_other(frozen: str) -> None:
    results = []
    for part in (None, frozen):
        field = Field()
        for name, parameter in field.named_parameters():
            parameter.requires_grad_(part is None or not name.startswith(part))
        loss(*render(field.merged(), 50, True)[:3]).backward()
        results.append({name: parameter.grad for name, parameter in field.named_parameters()})
    for name, gradient in results[1].items():
        if name.startswith(frozen):
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, results[0][name], msg=lambda m, n=name: f"{n}: {m}")


def test_rays_without_samples_and_no_rays() -> None:
    field = Field()
    origins, directions, near, far, jitter = rays(4)
    for count, bits in ((4, torch.zeros_like(BITS)), (0, BITS)):
        some = [t[:count] for t in (origins, directions, near, far)]
        colors, alphas, depths, samples = ops.differentiable_render(
            *some, bits, RESOLUTION, *BOUNDED, field.merged(), jitter[:count], True
        )
        assert (colors.shape, alphas.shape, depths.shape) == ((count, 3), (count,), (count,))
        assert samples.num_samples == 0
        assert not colors.any()
        loss(colors, alphas, depths).backward()
        assert not any(gradient.any() for gradient in gradients(field))


def test_jitter_is_in_the_middle_of_steps_by_default() -> None:
    *limits, jitter = rays(20)
    field = Field().merged()
    results = [
        ops.differentiable_render(*limits, BITS, RESOLUTION, *BOUNDED, field, shift)[3].t_starts
        for shift in (None, torch.full_like(jitter, 0.5), jitter)
    ]
    assert torch.equal(results[0], results[1])
    assert results[0].shape != results[2].shape or not torch.equal(results[0], results[2])


class Subclass(Tensor):
    """A subclass of Tensor may override operators."""


def compiling(monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, ...]:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return rays(9)[:4]


@pytest.mark.parametrize(
    "make", [compiling, lambda _: tuple(t.as_subclass(Subclass) for t in rays(9)[:4])], ids=["compiling", "subclass"]
)
def test_operators_are_there_for_those_who_watch_them(
    make: Callable[[pytest.MonkeyPatch], tuple[Tensor, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = make(monkeypatch)
    with NativeOps() as seen:
        ops.differentiable_render(*limits, BITS, RESOLUTION, *BOUNDED, Field().merged(), None, True)
    assert seen.names == {"march", "sample_points", "select_visible", "hash_encode", "network", "spherical_harmonics",
                          "composite"}  # fmt: skip


@pytest.mark.parametrize("which", [0, 1], ids=["origins", "directions"])
def test_cameras_have_gradients(which: int) -> None:
    """Native code has no gradients of rays."""
    limits = list(rays(30)[:4])
    limits[which].requires_grad_()
    field = Field()
    *got, samples = ops.differentiable_render(*limits, BITS, RESOLUTION, *BOUNDED, field.merged())
    loss(*got).backward()
    origins, directions = (t.detach().double().requires_grad_() for t in limits[:2])
    exact = PackedSamples(samples.ray_offsets, samples.t_starts.double(), samples.t_ends.double())
    unit, views = reference.sample_points(origins, directions, exact, BOUNDED[0])
    loss(*reference.composite(*field.double().merged()(unit, views), exact)).backward()
    assert limits[which].grad is not None
    wanted = (origins, directions)[which].grad
    assert wanted is not None
    assert wanted.any()
    assert relative_error(limits[which].grad, wanted) <= 1e-3


def test_hidden_samples_are_skipped_ray_by_ray_where_one_density_is_not_a_number() -> None:
    field = Field()
    healthy = render(field.merged(), 60, True)
    with torch.no_grad():
        field.table[5] = torch.nan
    colors, alphas, *_ = render(field.merged(), 60, True)
    bad = alphas.isnan() | (colors.isnan().any(dim=1))
    assert 0 < bad.sum() < 60
    torch.testing.assert_close(alphas[~bad], healthy[1][~bad])
    torch.testing.assert_close(colors[~bad], healthy[0][~bad])


def test_strided_tables_have_their_gradients() -> None:
    field = Field()
    gradients = []
    for strided in (False, True):
        leaf = field.table.detach().T.contiguous().requires_grad_()
        table = leaf.T if strided else leaf.T.contiguous()
        assert table.is_contiguous() != strided
        whole = dataclasses.replace(field.merged(), table=table)
        loss(*render(whole, 40, False)[:3]).backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    assert gradients[0].any()
    torch.testing.assert_close(gradients[1], gradients[0])


def test_what_it_cannot_do_is_said() -> None:
    field = Field()
    colors = render(field.merged(), 9, False)[0]
    (gradient,) = torch.autograd.grad(colors.square().sum(), field.table, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()
    *limits, jitter = rays(9)
    with pytest.raises(ValueError, match="jitter must have the shape"):
        ops.differentiable_render(*limits, BITS, RESOLUTION, *BOUNDED, field.merged(), jitter[:5])
    with pytest.raises(ValueError, match="step size"):
        ops.differentiable_render(*limits, BITS, RESOLUTION, BOUNDED[0], StepRule(0.0), field.merged(), jitter)
    field.color[-1] = nn.Linear(16, 4)
    with pytest.raises(ValueError, match="3 outputs, not 4"):
        render(field.merged(), 9, False)
