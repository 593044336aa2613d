"""Adam for hash tables: values that no sample touched are left unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from eugen_nerf.ops import masked_adam

# Decay of Adam's moments, as in Instant NGP. With PyTorch's default of 0.999, updates of rarely sampled hash table
# entries depend on gradients from long before. docs/performance.md has the measurements.
BETAS = (0.9, 0.99)


class MaskedAdam(torch.optim.Optimizer):
    """Adam that skips values whose gradient is zero.

    A training step touches only a fraction of a hash table. As in Müller et al. 2022 ("Instant NGP", section 4), the
    other entries keep their value and their moments; plain Adam would keep moving them along old gradients. Gradients
    are dense, unlike those of `torch.optim.SparseAdam`.

    Args:
        params: parameters or parameter groups.
        lr, betas, eps: as in `torch.optim.Adam`.

    Raises:
        ValueError: lr, betas or eps is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not (0 <= lr < math.inf and 0 <= eps < math.inf and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(
                f"MaskedAdam takes lr and eps from 0 on and betas from 0 to below 1, not {lr}, {eps} and {betas}"
            )
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Perform one update. Returns the result of ``closure``, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    if parameter.grad.layout != torch.strided:
                        raise ValueError("MaskedAdam takes dense gradients; torch.optim.SparseAdam is for sparse ones")
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if parameter.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "MaskedAdam cannot be captured in a CUDA graph: the host computes its bias correction in every step"
            )
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        step_size = float(group["lr"]) / (1 - beta1 ** state["step"])
        second_scale = 1 / (1 - beta2 ** state["step"])
        first, second = state["exp_avg"], state["exp_avg_sq"]
        masked_adam(parameter, grad, first, second, group["betas"], group["eps"], step_size, second_scale)
