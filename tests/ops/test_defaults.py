"""Native ops when PyTorch's default dtype or device differs from float32 on a CPU: results stay float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from eugen_nerf import ops
from tests.ops.comparisons import BOUNDED
from tests.ops.test_cpu import have_compiler
from tests.ops.test_differentiable import BITS, RESOLUTION, Field, rays

pytestmark = pytest.mark.skipif(not have_compiler(), reason="no C++ compiler")

DEFAULTS = ("float64", "bfloat16", "meta")


@contextlib.contextmanager
def default(name: str) -> Iterator[None]:
    if name == "meta":
        with torch.device("meta"):
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def everything(field: Field, origins: Tensor, directions: Tensor, near: Tensor, far: Tensor) -> list[Tensor]:
    """The result of each op, and the gradients of a rendered image."""
    place = (origins, directions, near, far, BITS, RESOLUTION, *BOUNDED)
    with torch.no_grad():
        merged = field.merged()
        samples = ops.march(*place, backend="cpu")
        unit, views = ops.sample_points(origins, directions, samples, BOUNDED[0], backend="cpu")
        features = ops.hash_encode(unit, merged.table, field.layout, backend="cpu")
        raw = ops.network(features, merged.density, backend="cpu")
        harmonics = ops.spherical_harmonics(views, backend="cpu")
        rgb = ops.network(torch.cat([harmonics, raw[:, 1:]], dim=1), merged.color, backend="cpu").sigmoid()
        composited = ops.composite(raw[:, 0].exp(), rgb, samples, backend="cpu")
        picture = ops.render(*place, merged)
    field.zero_grad()
    color, alpha, depth, _ = ops.differentiable_render(*place, field.merged(), None, True)
    (color.sum() + alpha.sum() + depth.sum()).backward()
    gradients = [parameter.grad.clone() for parameter in field.parameters() if parameter.grad is not None]
    packed = [samples.ray_offsets, samples.t_starts, samples.t_ends]
    values = [*packed, unit, views, features, raw, harmonics, rgb, *composited, *picture, color, alpha, depth]
    return [*values, *gradients]


@pytest.mark.parametrize("name", DEFAULTS)
def test_results_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUGEN_BACKEND", raising=False)
    field = Field()
    place = rays(40)[:4]
    expected = everything(field, *place)
    with default(name):
        got = everything(field, *place)
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours.dtype, ours.device) == (theirs.dtype, theirs.device)
        assert torch.equal(ours.detach(), theirs.detach())
