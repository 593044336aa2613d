"""Scalable-neural-network-kernel layers (Scalable Neural Network Kernels, ICLR 2024, arXiv 2310.13225)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eugen_nerf.layers.eugen import check_sizes
from eugen_nerf.layers.projections import make_projection

SNNK_ACTIVATIONS = ("relu", "sin", "cos", "gaussian")


class SNNK(nn.Module):
    r"""Scalable-neural-network-kernel layer, y = W F(x) + b (ICLR 2024, arXiv 2310.13225).

    An inner product with random features F of the input approximates a dense layer act(W0 x + b0). W is learned; the
    projections are frozen by default. `from_dense` sets W to the random features of a given dense layer's weights.

    - "sin", "cos", "gaussian" (exp(-z^2 / 2)): universal random features. With the Fourier representation
      act(z) = E_omega Re(c exp(i omega z)) and Gaussian g,

          exp(i omega w.x) = E_g [ A(w) A(x) ],   A(u) = exp( sqrt(i omega) g.u - i omega ||u||^2 / 2 ),

      each draw (g, omega) gives two features, Re A(x) and Im A(x), so `num_features` must be even. omega is 1 for
      sin and cos, and the absolute value of a standard normal variable for the Gaussian. `from_dense` is unbiased.
    - "relu": arc-cosine features ReLU(G x) (Kernel Methods for Deep Learning, NIPS 2009). `from_dense` is
      biased as an approximation of ReLU(w.x + b0): with t the angle between w and x, its expectation is the
      arc-cosine kernel ||w|| ||x|| (sin t + (pi - t) cos t) / (2 pi), plus b0.

    The constructor draws features of x / sqrt(in_features), which keeps them moderate for inputs of unit variance, and
    a normal `weight` of variance 2 / num_features. Features of the first kind grow like exp(|g.x|).

    Shape: [..., in_features] -> [..., out_features].

    Args:
        in_features: input width.
        out_features: output width.
        num_features: number of features m, the columns of `weight`.
        activation: "relu", "sin", "cos" or "gaussian".
        bias: adds a learned bias, [out].
        trainable_projections: makes the projections a parameter instead of a buffer.
        projection: "gaussian" or "orthogonal"; the expectations above require Gaussian rows.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: a size is below 1, the activation or projection is unknown, or `num_features` is odd for "sin",
            "cos" or "gaussian".
    """

    projections: Tensor  # [m, in] for relu, else [m / 2, in], rows sqrt(omega / 2) g
    quadratic: Tensor | None  # [m / 2], the factor omega / 2 of ||x||^2; None for relu
    weight: Tensor  # [out, m]
    bias: Tensor | None  # [out]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_features: int,
        activation: str = "relu",
        bias: bool = True,
        trainable_projections: bool = False,
        projection: str = "gaussian",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes("SNNK", in_features=in_features, out_features=out_features, num_features=num_features)
        if activation not in SNNK_ACTIVATIONS:
            raise ValueError(f"SNNK has no features for {activation!r}; known: {', '.join(SNNK_ACTIVATIONS)}")
        if projection not in ("gaussian", "orthogonal"):
            raise ValueError(f"SNNK needs Gaussian rows: projection 'gaussian' or 'orthogonal', not {projection!r}")
        if activation != "relu" and num_features % 2:
            raise ValueError(f"SNNK: features of {activation} come in pairs, num_features={num_features} is odd")
        self.in_features = in_features
        self.out_features = out_features
        self.num_features = num_features
        self.activation = activation
        self.projection = projection
        draws = num_features if activation == "relu" else num_features // 2
        rows = torch.empty(draws, in_features, device=device, dtype=dtype)
        if trainable_projections:
            self.projections = nn.Parameter(rows)
        else:
            self.register_buffer("projections", rows)
        self.register_buffer("quadratic", None if activation == "relu" else rows.new_empty(draws))
        self.weight = nn.Parameter(torch.empty(out_features, num_features, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @classmethod
    @torch.no_grad()
    def from_dense(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        num_features: int,
        activation: str = "relu",
        *,
        projection: str = "gaussian",
        generator: torch.Generator | None = None,
    ) -> SNNK:
        """Create the layer whose W holds the random features of the dense layer act(weight x + bias).

        See "Scalable Neural Network Kernels", ICLR 2024, arXiv 2310.13225.

        Args:
            weight: [out, in].
            bias: [out] or None. For "relu" it becomes the layer's own bias; otherwise W absorbs it and the layer's bias
                is zero.
            num_features: m; the error of the approximation falls as 1 / sqrt(m).
            activation: "relu" (biased, see the class), "sin", "cos" or "gaussian" (unbiased).
            projection: "gaussian" or "orthogonal".
            generator: source of the random projections.

        Returns:
            The layer, [..., in] -> [..., out], with the dtype and device of `weight`.

        Raises:
            ValueError: a size is below 1, the activation or projection is unknown, or `num_features` is odd for "sin",
                "cos" or "gaussian".
        """
        out_features, in_features = weight.shape
        layer = cls(
            in_features,
            out_features,
            num_features,
            activation,
            projection=projection,
            device="meta",
            dtype=weight.dtype,
        ).to_empty(device=weight.device)
        layer._draw_projections(1.0, generator)
        assert layer.bias is not None
        layer.bias.zero_()
        if layer.quadratic is None:
            layer.weight.copy_(layer.features(weight) / num_features)
            if bias is not None:
                layer.bias.copy_(bias)
            return layer
        # The bias shifts the phase of exp(i omega (w.x + b)); omega is twice the quadratic coefficient.
        turn = 0.0 if bias is None else bias.unsqueeze(-1) * (2 * layer.quadratic)
        real, imaginary = layer._fourier_features(weight, turn)
        # An even activation needs the real part of A(w) A(x), sin the imaginary part.
        pair = (imaginary, real) if activation == "sin" else (real, -imaginary)
        layer.weight.copy_(torch.cat(pair, dim=-1) * (2 / num_features))
        return layer

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw projections and weight anew and set the bias to zero."""
        self._draw_projections(1 / math.sqrt(self.in_features))
        nn.init.normal_(self.weight, std=math.sqrt(2 / self.num_features))
        if self.bias is not None:
            self.bias.zero_()

    def features(self, x: Tensor) -> Tensor:
        """F(x): [..., in_features] -> [..., num_features]."""
        if self.quadratic is None:
            return torch.relu(F.linear(x, self.projections))
        return torch.cat(self._fourier_features(x, 0.0), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return F.linear(self.features(x), self.weight, self.bias)

    def extra_repr(self) -> str:
        """The constructor's arguments, as printed inside `SNNK(...)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"num_features={self.num_features}, activation={self.activation}, bias={self.bias is not None}, "
            f"trainable_projections={isinstance(self.projections, nn.Parameter)}, "
            f"projection={self.projection}"
        )

    def _draw_projections(self, input_scale: float, generator: torch.Generator | None = None) -> None:
        """Draw rows for features of input_scale * x; those of the Fourier kinds are scaled by sqrt(omega / 2)."""
        rows = self.projections
        drawn = make_projection(
            self.projection,
            rows.shape[0],
            rows.shape[1],
            generator=generator,
            dtype=rows.dtype,
            device=rows.device,
        )
        if self.quadratic is None:
            rows.copy_(drawn * input_scale)
            return
        omega = torch.ones_like(self.quadratic)
        if self.activation == "gaussian":
            omega = torch.randn(
                omega.shape,
                generator=generator,
                dtype=torch.promote_types(omega.dtype, torch.float32),
                device=omega.device,
            ).abs()
        rows.copy_(drawn * (omega / 2).sqrt().unsqueeze(-1) * input_scale)
        self.quadratic.copy_(omega / 2 * input_scale**2)

    def _fourier_features(self, x: Tensor, turn: float | Tensor) -> tuple[Tensor, Tensor]:
        """Re and Im of exp(i turn) A(x), each [..., m / 2].

        Since sqrt(i) = (1 + i) / sqrt(2), A has the exponent r + i (r - q ||x||^2) with r = projections x and
        q = quadratic = omega / 2.
        """
        assert self.quadratic is not None
        r = F.linear(x, self.projections)
        phase = r - x.square().sum(dim=-1, keepdim=True) * self.quadratic + turn
        magnitude = r.exp()
        return magnitude * phase.cos(), magnitude * phase.sin()
