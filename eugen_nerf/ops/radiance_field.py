"""A complete radiance field as a set of parameters, the form that rendering in one pass needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eugen_nerf.layers.autocast import without_autocast
from eugen_nerf.layers.merge import FactoredChain, MergedChain
from eugen_nerf.ops import dispatch
from eugen_nerf.ops.checks import why_not_grid
from eugen_nerf.ops.dispatch import Backend
from eugen_nerf.ops.layout import HashGridLayout
from eugen_nerf.ops.packing import PackedChain, PackedProducts, pack_chain, pack_products, why_not_native

# exp(89) is infinite in float32.
MAX_LOG_DENSITY = 80.0
# Above this the gradient of a density stops growing, since its product with a large incoming gradient could overflow.
MAX_LOG_SLOPE = 15.0


class TruncatedExp(torch.autograd.Function):
    """exp(x) of a log density, of any shape, with bounds that keep value and gradient from overflowing."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.exp(x.clamp(max=MAX_LOG_DENSITY))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad_outputs[0] * torch.exp(x.clamp(max=MAX_LOG_SLOPE))


@dataclass(frozen=True, eq=False)
class RadianceField:
    """A hash grid, a density network and a color network with merged parameters.

    The structure is that of Instant NGP (Müller et al. 2022). The density network maps the hash grid's features to the
    logarithm of the density, followed by G geometry features. The color network receives the spherical harmonics of the
    direction [16] followed by the geometry features. The field is differentiable in the table and in the tensors that
    the chains were merged from.

    Evaluating the field raises what `eugen_nerf.ops.hash_encode` and `eugen_nerf.ops.network` raise.
    """

    table: Tensor  # [layout.num_entries, F]; may be fp16 on a GPU
    layout: HashGridLayout
    density: MergedChain
    color: MergedChain
    backend: Backend = "auto"

    def __call__(self, unit: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in the unit cube and unit directions, each [N, 3] -> density [N] per world unit, rgb [N, 3].

        Colors are in [0, 1].
        """
        sigma, geometry = self.density_at(unit)
        harmonics = dispatch.spherical_harmonics(directions, backend=self.backend)
        return sigma, torch.sigmoid(self._network(torch.cat([harmonics, geometry], dim=-1), self.color))

    def density_at(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in the unit cube [N, 3] -> density [N] per world unit, geometry features [N, G]."""
        encoded = dispatch.hash_encode(unit, self.table, self.layout, backend=self.backend)
        raw = self._network(encoded, self.density)
        return TruncatedExp.apply(raw[:, 0]), raw[:, 1:]

    def _network(self, x: Tensor, chain: MergedChain) -> Tensor:
        # Autocast would cast to half precision; native code chooses its own precision.
        with without_autocast(x.device.type):
            return dispatch.network(x, chain, backend=self.backend)

    def native_networks(self, *rays: Tensor) -> tuple[PackedChain, PackedChain] | None:
        """Both networks packed for native code on the device of the table and rays; None if it is not available.

        Raises:
            UserError: the native runner was requested by name but cannot do the work.
        """
        if not _runs_natively(self, *rays, self.density.weight, self.color.weight):
            return None
        return pack_chain(self.density), pack_chain(self.color)

    def factored(self) -> FactoredField:
        """The field with matrices as products of one factor each."""
        return FactoredField(self.table, self.layout, self.density.factored(), self.color.factored(), self.backend)


@dataclass(frozen=True, eq=False)
class FactoredField:
    """A `RadianceField` in training: its networks' matrices are products that are not multiplied yet."""

    table: Tensor
    layout: HashGridLayout
    density: FactoredChain
    color: FactoredChain
    backend: Backend = "auto"

    def merged(self) -> RadianceField:
        """The field with its products multiplied, differentiable in their factors."""
        return RadianceField(self.table, self.layout, self.density.merged(), self.color.merged(), self.backend)

    def native_networks(self, *rays: Tensor) -> tuple[PackedProducts, PackedProducts] | None:
        """Both networks for native code on the device of the table and rays; None if it is not available.

        Raises:
            UserError: the native runner was requested by name but cannot do the work.
        """
        if not _runs_natively(self, *rays, self.density.weight.right, self.color.weight.right):
            return None
        return pack_products(self.density), pack_products(self.color)


def _runs_natively(field: RadianceField | FactoredField, *tensors: Tensor) -> bool:
    """Whether the native code for these tensors' device can evaluate the field."""
    unsupported = why_not_native(field.density) or why_not_native(field.color)
    unsupported = unsupported or why_not_grid(field.layout, field.table.device)
    return dispatch.uses_native(field.backend, *tensors, table=field.table, unsupported=unsupported)
