"""A merged chain as a module, which can replace the layers it was merged from."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from eugen_nerf.layers.merge import Evaluate, FeatureStage, MergedChain, evaluate_chain


class MergedNetwork(nn.Module):
    """A merged chain (see `merge_chain`) as a module for inference.

    The module can be moved, saved and loaded like any other. It holds copies of the chain's matrices as buffers: they
    have no gradients and do not follow later changes of the layers. A state dict fits chains of the same layers that
    were merged in the same way, either with or without gradients, since a norm inside the chain is stored in fewer
    values if it was merged without gradients.

    The attribute `network` is the function that evaluates the chain. Set it to `eugen_nerf.ops.network` to use native
    code where available.

    Shape: [..., in_features] -> [..., out_features].

    Args:
        chain: the result of `merge_chain`.
    """

    def __init__(self, chain: MergedChain) -> None:
        super().__init__()
        self.network: Evaluate = evaluate_chain
        # The fields that are not tensors, of each stage and of the chain.
        self._stages = [self._take(stage, f"stage{number}_") for number, stage in enumerate(chain.stages)]
        self._ends = self._take(dataclasses.replace(chain, stages=()), "")

    def _take(self, part: FeatureStage | MergedChain, prefix: str) -> dict[str, Any]:
        rest = {}
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if isinstance(value, Tensor):
                value = value.detach().clone()
                # A squared length may overflow where the module is converted to half precision; the length does not.
                stored = value.sqrt() if field.name == "norm_constant" else value
                self.register_buffer(f"{prefix}{field.name}", stored)
            else:
                rest[field.name] = value
        return rest

    def _tensors(self, prefix: str) -> dict[str, Any]:
        named = (name for name in self._buffers if name.startswith(prefix))
        tensors = {name.removeprefix(prefix): self.get_buffer(name) for name in named}
        if "norm_constant" in tensors:
            length = tensors["norm_constant"]
            tensors["norm_constant"] = (length if length.dtype == torch.float64 else length.float()).square()
        return tensors

    @property
    def chain(self) -> MergedChain:
        """The chain, made of the module's own buffers."""
        stages = [FeatureStage(**rest, **self._tensors(f"stage{number}_")) for number, rest in enumerate(self._stages)]
        ends = {name: tensor for name, tensor in self._tensors("").items() if name in ("weight", "bias")}
        return MergedChain(**{**self._ends, **ends, "stages": tuple(stages)})

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the chain, [..., in_features] -> [..., out_features]."""
        return self.network(x, self.chain)

    def extra_repr(self) -> str:
        """Widths from input to output, as printed inside `MergedNetwork(...)`."""
        chain = self.chain
        widths = [chain.in_features, *(stage.out_features for stage in chain.stages), chain.out_features]
        return f"widths={widths}, multiply_adds={chain.multiply_adds}"
