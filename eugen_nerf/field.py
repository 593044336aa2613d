"""The radiance field: hash grid, density network and color network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from eugen_nerf import ops
from eugen_nerf.errors import UserError
from eugen_nerf.layers import ACTIVATIONS, EUGen, build_network, merge_chain
from eugen_nerf.layers.autocast import without_autocast
from eugen_nerf.layers.merge import FactoredChain, MergedChain, changed_method, factor_chain, has_hooks
from eugen_nerf.layers.selection import Kept, select_features
from eugen_nerf.ops import Backend, HashGridLayout, RadianceField
from eugen_nerf.ops.network_spec import HARMONICS
from eugen_nerf.ops.radiance_field import FactoredField, TruncatedExp

# Factor on the initial output weights of EUGen layers. The features of a hash grid start near zero; larger output
# weights pass larger gradients to them early in training. docs/performance.md has the measurements.
EUGEN_GAIN = 2.0

NetworkKind = Literal["eugen", "mlp", "low-rank", "snnk"]
Implementation = Literal["native", "torch", "tcnn"]


@dataclass
class FieldConfig:
    """Configuration of an `EugenField`. Only ``network`` differs between eugen-nerf and its baselines."""

    network: NetworkKind = "eugen"
    """Kind of hidden layers in the density and color networks."""
    hidden_features: int = 64
    """Width of the hidden layers. For EUGen this is the nominal width, which merging removes."""
    num_features: int = 32
    """Number of random features m (per order) of each EUGen or SNNK layer, or rank of each low-rank layer. MLPs ignore
    it."""
    candidate_features: int = 0
    """Number of random features with which EUGen layers start training; during training, the best num_features of them
    are selected and kept (see selection_fraction of the pipeline). 0, or any value up to num_features, disables
    selection. Other kinds of layers ignore it."""
    order: int = 1
    """Order k of the EUGen layers: the features are num_features products of i projections for each i from 1 to k."""
    shared: bool = False
    """Share the projections between the products of all orders: k matrices instead of k (k + 1) / 2."""
    norm: bool = False
    """Append the norm of the input in the first EUGen layer of each network. After a hash grid this lowers PSNR."""
    phi: str = "relu"
    """Nonlinearity of the features of EUGen layers; activation of the other kinds of layers."""
    trainable_projections: bool = True
    """Train the projections G of EUGen layers. Other kinds of layers ignore it."""
    feature_bias: bool = False
    """Add a learned bias to each projection of the EUGen layers, as in the units of an MLP."""
    density_layers: int = 1
    """Number of hidden layers in the density network."""
    color_layers: int = 2
    """Number of hidden layers in the color network."""
    geometry_features: int = 15
    """Number of values, besides the density, that the density network passes to the color network."""
    num_levels: int = 16
    """Number of levels of the hash grid."""
    features_per_level: int = 2
    """Number of features per vertex of the hash grid."""
    log2_hashmap_size: int = 19
    """Base-2 logarithm of the maximum number of entries per level of the hash grid."""
    base_resolution: int = 16
    """Number of cells along each axis of the coarsest level."""
    max_resolution: int = 2048
    """Number of cells along each axis of the finest level."""
    implementation: Implementation = "native"
    """native: compiled code where it supports the device, otherwise eager PyTorch. torch: eager PyTorch. tcnn:
    tiny-cuda-nn for the hash grid and MLP networks (must be installed; requires an NVIDIA GPU)."""

    @property
    def first_features(self) -> int:
        """Number of features of each layer at the start of training."""
        return max(self.num_features, self.candidate_features if self.network == "eugen" else 0)

    def validate(self) -> None:
        """Check all options; raise a UserError that names the first invalid one."""
        for name in (
            "hidden_features",
            "num_features",
            "order",
            "density_layers",
            "color_layers",
            "geometry_features",
            "num_levels",
            "features_per_level",
            "log2_hashmap_size",
            "base_resolution",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"Field option {name} must be at least 1, not {getattr(self, name)}.")
        for name, words in (("network", NetworkKind), ("implementation", Implementation)):
            if getattr(self, name) not in get_args(words):
                raise UserError(
                    f"Field option {name} must be one of {', '.join(get_args(words))}, not {getattr(self, name)!r}."
                )
        if self.max_resolution < self.base_resolution:
            raise UserError(
                f"Field option max_resolution ({self.max_resolution}) must not be below base_resolution "
                f"({self.base_resolution})."
            )
        if self.phi not in ACTIVATIONS:
            raise UserError(f"Field option phi must be one of {', '.join(ACTIVATIONS)}, not {self.phi!r}.")
        if self.network != "eugen" and self.phi == "identity":
            raise UserError(
                f"Network {self.network} with phi identity would be linear: phi identity requires EUGen layers of "
                f"order 2 or more. To compare kinds of networks, train the method eugen-nerf-{self.network}."
            )
        if self.phi == "identity" and self.order == 1 and not self.norm:
            raise UserError("EUGen layers of order 1 with phi identity would be linear: use order 2, or another phi.")
        if self.network == "snnk" and self.phi != "relu":
            raise UserError(f"snnk layers can be merged only with ReLU features: use phi relu, not {self.phi}.")
        if self.implementation == "tcnn" and (self.network, self.phi) != ("mlp", "relu"):
            raise UserError(
                f"tiny-cuda-nn has no {self.network} layers with {self.phi}: implementation tcnn supports only "
                "network mlp with phi relu. Use implementation native."
            )
        if self.implementation == "tcnn":
            from eugen_nerf.tcnn_modules import load_tcnn

            load_tcnn()


# The best configuration on lego at equal steps in docs/eugen-study.md: the features are projections and pairwise
# products of projections, with no other nonlinearity. Merged, these networks cost as much as the default ones.
ORDER_2_LAYERS: dict[str, Any] = {
    "order": 2,
    "shared": True,
    "phi": "identity",
    "feature_bias": True,
    "num_features": 16,
    "candidate_features": 32,
}


class HashGrid(nn.Module):
    """Trainable multiresolution hash grid: [N, 3] in the unit cube -> [N, L * F]."""

    def __init__(self, layout: HashGridLayout, backend: Backend = "auto") -> None:
        super().__init__()
        self.layout = layout
        self.backend = backend
        # Müller et al. 2022, section 3: small uniform values, so that the networks start with inputs close to zero.
        used = torch.empty(sum(layout.used_rows), layout.features_per_level).uniform_(-1e-4, 1e-4)
        self.table = nn.Parameter(layout.with_padding(used))

    def forward(self, x: Tensor) -> Tensor:
        return ops.hash_encode(x, self.table, self.layout, backend=self.backend)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        table = state_dict.get(f"{prefix}table")
        # Earlier versions had no padding between levels.
        if table is not None and len(table) == sum(self.layout.used_rows):
            state_dict[f"{prefix}table"] = self.layout.with_padding(table)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        layout = self.layout
        return f"levels={layout.num_levels}, features={layout.features_per_level}, entries={layout.num_entries}"


class ChainNetwork(nn.Module):
    """A stack of layers that is evaluated as its merged chain, during training as well.

    Merging consists of a few matrix products of the parameters, and gradients flow through them to every factor.
    A training step therefore computes the same result as the factored layers, at the per-sample cost of the merged
    network.
    """

    def __init__(self, layers: nn.Sequential, backend: Backend = "auto") -> None:
        super().__init__()
        self.layers = layers
        self.backend = backend

    def merged(self) -> MergedChain:
        """The merged chain, differentiable in the parameters, in their precision even under autocast."""
        return merge_chain(self.layers)

    def factored(self) -> FactoredChain:
        """The merged chain with products that are not multiplied yet."""
        return factor_chain(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        chain = self.merged()
        with without_autocast(x.device.type):
            return ops.network(x, chain, backend=self.backend)


def _shrink_to_checkpoint(field: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Shrink EUGen layers to the size of a checkpoint that was saved after feature selection."""
    assert isinstance(field, EugenField)
    for path, layer in field.named_modules():
        if isinstance(layer, EUGen) and layer.num_features > field.config.num_features:
            stored = state.get(f"{prefix}{path}.projections")
            if stored is not None and stored.shape[1] == field.config.num_features:
                layer.keep(field.config.num_features)


class EugenField(nn.Module):
    """Density and view-dependent color at positions in the unit cube.

    hash grid -> density network -> log density and geometry features; geometry features and spherical
    harmonics of the viewing direction -> color network -> rgb. This is the layout of Instant NGP (Müller et al. 2022),
    with hidden layers of the kind that the configuration selects.

    Raises:
        UserError: the configuration is invalid, or requests tiny-cuda-nn where it is not available.
    """

    def __init__(self, config: FieldConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.backend: Backend = "reference" if config.implementation == "torch" else "auto"
        layout = HashGridLayout.build(
            config.num_levels,
            config.features_per_level,
            config.log2_hashmap_size,
            config.base_resolution,
            config.max_resolution,
        )
        density_out = 1 + config.geometry_features
        color_in = HARMONICS + config.geometry_features
        self.encoding: nn.Module
        self.density_network: nn.Module
        self.color_network: nn.Module
        if config.implementation == "tcnn":
            from eugen_nerf import tcnn_modules

            self.encoding = tcnn_modules.hash_grid(layout)
            hidden = config.hidden_features
            self.density_network = tcnn_modules.mlp(layout.out_features, density_out, hidden, config.density_layers)
            self.color_network = tcnn_modules.mlp(color_in, 3, hidden, config.color_layers)
        else:
            self.encoding = HashGrid(layout, self.backend)
            self.density_network = self._chain(layout.out_features, density_out, config.density_layers)
            self.color_network = self._chain(color_in, 3, config.color_layers)
        self.register_load_state_dict_pre_hook(_shrink_to_checkpoint)

    def _chain(self, in_features: int, out_features: int, num_hidden_layers: int) -> ChainNetwork:
        config = self.config
        layers = build_network(
            config.network,
            in_features,
            config.hidden_features,
            num_hidden_layers,
            out_features,
            config.first_features,
            order=config.order,
            shared=config.shared,
            norm_first=config.norm,
            phi=config.phi,
            trainable_projections=config.trainable_projections,
            feature_bias=config.feature_bias,
            activation=config.phi,
        )
        with torch.no_grad():
            for layer in layers:
                if isinstance(layer, EUGen):
                    layer.weight.mul_(EUGEN_GAIN)
        return ChainNetwork(layers, self.backend)

    @torch.no_grad()
    def set_initial_density(self, density: float) -> None:
        """Set the approximate density of the untrained field, per world unit.

        If the initial fog is opaque before rays reach the scene, the field learns little: density times ray length
        should not be much above 1. The networks of tiny-cuda-nn have no bias, so their density stays at 1.
        """
        if isinstance(self.density_network, ChainNetwork):
            last = self.density_network.layers[-1]
            assert isinstance(last, nn.Linear)
            assert last.bias is not None
            last.bias[0] = math.log(density)

    def has_candidates(self) -> bool:
        """Whether EUGen layers have more features than the configuration's num_features."""
        return any(isinstance(m, EUGen) and m.num_features > self.config.num_features for m in self.modules())

    @torch.no_grad()
    def select_features(
        self, num_features: int | tuple[int, int], samples: Sequence[tuple[Tensor, Tensor]]
    ) -> list[Kept]:
        """Keep the `num_features` features of each EUGen layer that contribute most.

        See `layers.selection.select_features`.

        Args:
            num_features: m, one value for both networks or a pair for the density and the color network. A field with
                the same configuration can load the result only if m equals the configuration's num_features.
            samples: positions [N, 3] in the unit cube and unit directions [N, 3] at which the field should change as
                little as possible.

        Returns:
            The kept features. Pass them to `layers.selection.follow` to update an optimizer.

        Raises:
            ValueError: m is below 1, there are no samples, or the field is not finite at them. The field is then
                unchanged.
        """
        assert isinstance(self.density_network, ChainNetwork)
        assert isinstance(self.color_network, ChainNetwork)
        of_density, of_color = num_features if isinstance(num_features, tuple) else (num_features, num_features)
        if min(of_density, of_color) < 1:
            raise ValueError(f"select_features: m must be at least 1, got {num_features}")
        encoded = [self.encoding(x) for x, _ in samples]
        harmonics = [ops.spherical_harmonics(directions, backend=self.backend) for _, directions in samples]

        def seen() -> list[Tensor]:
            geometry = [self._split(self.density_network(x))[1] for x in encoded]
            return [torch.cat(parts, dim=-1) for parts in zip(harmonics, geometry, strict=True)]

        before = seen()
        values = [*map(self.density_network, encoded), *map(self.color_network, before)]
        if not all(bool(value.isfinite().all()) for value in values):
            raise ValueError("the field is not finite")
        kept = select_features(self.density_network.layers, of_density, [(x, x) for x in encoded])
        pairs = list(zip(before, seen(), strict=True))
        return kept + select_features(self.color_network.layers, of_color, pairs)

    def density_at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [N, 3] in the unit cube -> density [N] per world unit, geometry features [N, G]."""
        return self._split(self.density_network(self.encoding(x)))

    def forward(self, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [N, 3] in the unit cube, unit directions [N, 3] -> density [N], rgb [N, 3] in [0, 1]."""
        sigma, geometry = self.density_at(x)
        harmonics = ops.spherical_harmonics(directions, backend=self.backend)
        color = self.color_network(torch.cat([harmonics, geometry], dim=-1))
        return sigma, torch.sigmoid(color.to(sigma.dtype))

    def merged(self) -> RadianceField | EugenField:
        """The field with merged networks, differentiable in its parameters and valid until they change.

        Returns the field itself where merging would change what is evaluated: with tiny-cuda-nn, with hooks, or if a
        subclass of the field or of one of its parts overrides a method.

        Raises:
            ValueError: a layer inside a network has hooks or a `forward` of its own; see `merge_chain`.
        """
        factored = self.factored()
        return factored.merged() if isinstance(factored, FactoredField) else self

    def factored(self) -> FactoredField | EugenField:
        """`merged` with products of the networks' factors that are not multiplied yet.

        Raises:
            ValueError: see `merged`.
        """
        if not isinstance(self.encoding, HashGrid) or self._does_more():
            return self
        assert isinstance(self.density_network, ChainNetwork)
        assert isinstance(self.color_network, ChainNetwork)
        density, color = self.density_network.factored(), self.color_network.factored()
        return FactoredField(self.encoding.table, self.encoding.layout, density, color, self.backend)

    def _does_more(self) -> bool:
        parts: tuple[tuple[nn.Module, type[nn.Module]], ...] = (
            (self, EugenField),
            (self.encoding, HashGrid),
            (self.density_network, ChainNetwork),
            (self.color_network, ChainNetwork),
        )
        names = ("forward", "__call__", "density_at")
        return any(has_hooks(part) or changed_method(part, kind, *names) for part, kind in parts)

    @torch.no_grad()
    def evaluator(self) -> RadianceField | EugenField:
        """`merged` for inference: the tensors of a merged field do not require gradients.

        Raises:
            ValueError: see `merged`.
        """
        field = self.merged()
        if not isinstance(field, RadianceField):
            return field
        return replace(field, table=field.table.detach(), density=field.density.detach(), color=field.color.detach())

    @staticmethod
    def _split(raw: Tensor) -> tuple[Tensor, Tensor]:
        # tiny-cuda-nn returns half precision; densities need the range of float32.
        log_density = raw[:, 0] if raw.dtype == torch.float64 else raw[:, 0].float()
        return TruncatedExp.apply(log_density), raw[:, 1:]

    def num_parameters(self) -> int:
        """Number of trained and frozen values that a checkpoint stores for the field, without padding."""
        stored = sum(tensor.numel() for tensor in self.state_dict().values())
        if not isinstance(self.encoding, HashGrid):
            return stored
        layout = self.encoding.layout
        return stored - (layout.num_entries - sum(layout.used_rows)) * layout.features_per_level

    @torch.no_grad()
    def network_parameters(self) -> int:
        """Number of parameters of both networks after merging.

        Raises:
            UserError: the networks are tiny-cuda-nn's, whose parameters are opaque.
        """
        return sum(chain.num_parameters for chain in self._merged_chains())

    @torch.no_grad()
    def multiply_adds(self) -> int:
        """Multiply-adds per sample of both networks after merging, excluding encoding and activations.

        Raises:
            UserError: the networks are tiny-cuda-nn's, whose parameters are opaque.
        """
        return sum(chain.multiply_adds for chain in self._merged_chains())

    def _merged_chains(self) -> list[MergedChain]:
        chains = []
        for network in (self.density_network, self.color_network):
            if not isinstance(network, ChainNetwork):
                raise UserError("The networks of implementation tcnn cannot be merged or counted.")
            chains.append(network.merged())
        return chains
