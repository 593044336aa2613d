"""A merged chain as a module, to stand in a model where the layers were that it was merged from."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from eugen_nerf.layers.merge import Evaluate, FeatureStage, MergedChain, evaluate_chain


class MergedNetwork(nn.Module):
    """[..., in_features] -> [..., out_features], by copies of a chain's matrices.

    For inference, after training: moved, saved and loaded as any module. The copies are buffers: they have no
    gradients, and do not follow the layers. A state dict fits chains of the same layers that were merged alike, with or
    without gradients: without them a norm inside the chain is stored in fewer numbers.

    `network` evaluates the chain; give it `eugen_nerf.ops.network` for native code where there is some.

    Args:
        chain: of `merge_chain`.
    """

    def __init__(self, chain: MergedChain) -> None:
        super().__init__()
        self.network: Evaluate = evaluate_chain
        # What is no tensor: of each stage, and of the chain.
        self._stages = [self._take(stage, f"stage{number}_") for number, stage in enumerate(chain.stages)]
        self._ends = self._take(dataclasses.replace(chain, stages=()), "")

    def _take(self, part: FeatureStage | MergedChain, prefix: str) -> dict[str, Any]:
        rest = {}
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if isinstance(value, Tensor):
                self.register_buffer(f"{prefix}{field.name}", value.detach().clone())
            else:
                rest[field.name] = value
        return rest

    def _tensors(self, prefix: str) -> dict[str, Any]:
        named = (name for name in self._buffers if name.startswith(prefix))
        return {name.removeprefix(prefix): self.get_buffer(name) for name in named}

    @property
    def chain(self) -> MergedChain:
        """The chain, of the module's own matrices."""
        stages = [FeatureStage(**rest, **self._tensors(f"stage{number}_")) for number, rest in enumerate(self._stages)]
        ends = {name: tensor for name, tensor in self._tensors("").items() if name in ("weight", "bias")}
        return MergedChain(**{**self._ends, **ends, "stages": tuple(stages)})

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the chain."""
        return self.network(x, self.chain)

    def extra_repr(self) -> str:
        """Widths from input to output, as printed inside `MergedNetwork(...)`."""
        chain = self.chain
        widths = [chain.in_features, *(stage.out_features for stage in chain.stages), chain.out_features]
        return f"widths={widths}, multiply_adds={chain.multiply_adds}"
