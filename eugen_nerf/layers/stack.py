"""A multilayer perceptron with skip connections in which any layer may be an EUGen layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eugen_nerf.layers.eugen import EUGen
from eugen_nerf.layers.merge import Evaluate, MergedChain, activation_name, evaluate_chain, merge_chain


@dataclass(frozen=True, eq=False)
class _Part:
    """Layers up to the next skip connection, or up to an activation that cannot be merged."""

    chain: MergedChain  # without its output matrix if the next part has absorbed it
    skip: bool  # the network's input is concatenated in front of the part's input
    activation: nn.Module


class LayerStack(nn.Module):
    """Linear layers with activations, some of them replaced by EUGen layers, evaluated in merged form.

    The output matrix of an EUGen layer is multiplied into the following layer, also through a skip connection (EUGens,
    NeurIPS 2025, arXiv 2601.22563, appendix B.1). This happens in training as well as inference: it takes a few matrix
    products per call, and gradients pass through them to every factor. The result and its first derivatives equal those
    of the separate layers up to round-off, at a cost per row that does not depend on the nominal width. Second
    derivatives with respect to parameters in front of a norm are not exact (see `merge_chain`). Layers with hooks are
    refused, since the hooks would not be called.

    The attribute `network` is the function that evaluates merged chains. Set it to `eugen_nerf.ops.network` to use
    native code where available.

    Shape: [..., in_features] -> [..., out_features].

    Args:
        layers: `torch.nn.Linear` or `EUGen`, in order.
        activations: the activation after each layer, or None. After an EUGen layer it must be None.
        skip_connections: positions of layers whose input is [input of the stack ; output of the previous layer].

    Raises:
        ValueError: there are no layers, the lengths differ, an activation follows EUGen, a skip connection leads to a
            position without a layer or to the first layer, or widths do not match. Layers that cannot be merged are
            refused in the forward pass.
    """

    def __init__(
        self,
        layers: Sequence[nn.Linear | EUGen],
        activations: Sequence[nn.Module | None],
        skip_connections: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.network: Evaluate = evaluate_chain
        if not layers or len(layers) != len(activations):
            raise ValueError(f"LayerStack: got {len(layers)} layers with {len(activations)} activations")
        self.skip_connections = frozenset(skip_connections)
        if not self.skip_connections <= set(range(1, len(layers))):
            raise ValueError(
                f"LayerStack: skip connections {sorted(skip_connections)} do not fit a stack of {len(layers)} layers"
            )
        self.layers = nn.ModuleList(layers)
        self.activations = nn.ModuleList(nn.Identity() if a is None else a for a in activations)
        self.in_features = layers[0].in_features
        self.out_features = layers[-1].out_features
        for i, layer in enumerate(layers[1:], start=1):
            received = layers[i - 1].out_features + (self.in_features if i in self.skip_connections else 0)
            if layer.in_features != received:
                raise ValueError(f"LayerStack: layer {i} takes {layer.in_features} inputs but receives {received}")
        for i, layer in enumerate(layers):
            if isinstance(layer, EUGen) and activations[i] is not None:
                raise ValueError(f"LayerStack: an activation after layer {i}, an EUGen layer, forbids merging it")

    def replace(self, position: int, layer: EUGen) -> None:
        """Replace the layer at a position, together with its activation, by an EUGen layer of the same widths."""
        self.layers[position] = layer
        self.activations[position] = nn.Identity()

    def _parts(self) -> Iterator[_Part]:
        layers = list(self.layers)
        starts = [i for i in range(len(layers)) if i in self.skip_connections or i == 0 or self._stands_alone(i - 1)]
        after: tuple[Tensor, Tensor | None] | None = None
        for start, end in zip(starts, [*starts[1:], len(layers)], strict=True):
            inner = zip(layers[start : end - 1], self.activations[start : end - 1], strict=True)
            chain = merge_chain([*(module for pair in inner for module in pair), layers[end - 1]], after)
            ends = end == len(layers) or isinstance(layers[end - 1], nn.Linear)
            after = None if ends else self._beside_input(chain)
            if not ends:
                eye = torch.eye(chain.weight.shape[1], dtype=chain.weight.dtype, device=chain.weight.device)
                chain = MergedChain(chain.stages, eye, None, ends=False)
            yield _Part(chain, start in self.skip_connections, self.activations[end - 1])

    def _stands_alone(self, position: int) -> bool:
        """Whether a dense layer ends a chain, because its activation cannot be merged or because it has none.

        Without an activation, the product of its matrix with the next one may be larger than both.
        """
        return isinstance(self.layers[position], nn.Linear) and activation_name(self.activations[position]) is None

    def _beside_input(self, chain: MergedChain) -> tuple[Tensor, Tensor | None]:
        """[input ; features] -> [input ; chain's output]."""
        eye = torch.eye(self.in_features, dtype=chain.weight.dtype, device=chain.weight.device)
        bias = None if chain.bias is None else torch.cat([chain.bias.new_zeros(self.in_features), chain.bias])
        return torch.block_diag(eye, chain.weight), bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features].

        Raises:
            ValueError: a layer cannot be merged, for example because of hooks; see `merge_chain`.
        """
        inputs = x
        for part in self._parts():
            if part.skip:
                x = torch.cat([inputs, x], dim=-1)
            rows = self.network(x.reshape(-1, x.shape[-1]), part.chain)
            x = part.activation(rows.reshape(*x.shape[:-1], part.chain.out_features))
        return x

    @torch.no_grad()
    def multiply_adds(self) -> int:
        """Multiply-adds per row of the merged network."""
        return sum(part.chain.multiply_adds for part in self._parts())

    @torch.no_grad()
    def num_parameters(self) -> int:
        """Number of values stored by the merged network."""
        return sum(part.chain.num_parameters for part in self._parts())

    def extra_repr(self) -> str:
        """The skip connections, as printed inside `LayerStack(...)`."""
        return f"skip_connections={sorted(self.skip_connections)}"
