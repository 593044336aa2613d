"""The EUGen layer (EUGens: Efficient, Unified, and General Dense Layers, NeurIPS 2025, arXiv 2601.22563)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from eugen_nerf.layers.activations import Activation, describe, resolve_activation
from eugen_nerf.layers.projections import KINDS, make_projection


def squared_norm(x: Tensor) -> Tensor:
    """||x||^2 over the last dimension, [..., d] -> [..., 1]; float32 for half-precision inputs, to avoid overflow."""
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    return x.square().sum(dim=-1, keepdim=True)


def smooth_norm(x: Tensor, eps: float) -> Tensor:
    """Euclidean norm sqrt(||x||^2 + eps) over the last dimension, [..., d] -> [..., 1].

    `eps` makes it differentiable at zero. The result is float32 for half-precision inputs.
    """
    return (squared_norm(x) + eps).sqrt()


def num_projections(order: int, shared: bool) -> int:
    """P, the number of projection matrices of a layer: one per factor of each order, or `order` if shared."""
    return order if shared else order * (order + 1) // 2


def combine_orders(projected: Tensor, order: int, shared: bool) -> Tensor:
    """Products of projections, concatenated over orders 1..k: [..., P, m] -> [..., k * m].

    Order i multiplies i projections elementwise: its own ones, entries i(i-1)/2 .. i(i+1)/2 - 1 of the P axis, or the
    first i of the k common ones if `shared` (arXiv 2601.22563, equation 1, before Phi).
    """
    if order <= 1:
        return projected.flatten(-2)
    factors = projected.unbind(dim=-2)
    blocks: list[Tensor] = []
    for i in range(1, order + 1):
        if shared:
            blocks.append(blocks[-1] * factors[i - 1] if blocks else factors[0])
            continue
        start = i * (i - 1) // 2
        product = factors[start]
        for factor in factors[start + 1 : start + i]:
            product = product * factor
        blocks.append(product)
    return torch.cat(blocks, dim=-1)


def check_sizes(layer: str, **sizes: int) -> None:
    """Raise ValueError if a size is below 1; the keyword is the size's name in the message."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{layer}: {name} must be at least 1, got {size}")


class EUGen(nn.Module):
    r"""EUGen layer of order k: y = g(W) F(x) + b, which replaces a dense layer and its activation.

    With x+ = [x ; ||x||] (or x+ = x without the norm), projections G_ij and elementwise products over j,

        F(x) = Phi( concat_{i=1..k} prod_{j=1..i} G_ij x+ )        features, [..., k * m]

    (EUGens, NeurIPS 2025, arXiv 2601.22563, eq. 1-2). Order 0 of the paper's sum is a constant feature. The layer
    represents it by the bias, so `order=0` is the constant function y = b.

    The weight side has two forms:

    - `psi=None`, the practical form: g(W) is the learned matrix `weight` itself, [out, k * m].
    - `psi` given, the kernel form: `weight` holds raw rows w, [out, d], and each forward pass computes
      g(w) = Psi( concat_i prod_j G_ij w+ ) with the same projections and w+ = [w ; 1] (w+ = w without the norm). The
      constant feature then has the fixed weight Psi(1), so order 0 adds Phi(1) Psi(1) to every output, in addition to
      the bias.

    In both forms, `effective_weight()` returns g(W), [out, k * m], and `effective_bias()` the total constant, [out].

    Initialization: named projections are drawn with unit-variance entries and divided by sqrt(d), or by sqrt(2 d) with
    the norm column. For inputs of unit variance ||x|| is about sqrt(d) and contributes as much as x itself, so every
    G_ij x+ and every product has unit variance. `weight` is normal with standard deviation sqrt(2 / (k m)), the rule of
    He et al. 2015 (arXiv 1502.01852) for ReLU features with fan-in k m. With Phi = ReLU and k = 1 the mean square of
    the output then equals that of the input. The bias starts at the value that makes the total constant zero. In the
    kernel form the raw rows have the same standard deviation; there a Psi of constant sign gives outputs whose mean
    grows as sqrt(m).

    Shape: [..., in_features] -> [..., out_features].

    Args:
        in_features: input width d.
        out_features: output width.
        num_features: m, random features per order.
        order: k, the largest number of factors in a product; 0 or more.
        norm: appends ||x|| to the input.
        phi: Phi, a name of `eugen_nerf.layers.activations.ACTIVATIONS` or an elementwise callable.
        psi: Psi, in the same way, or None for a directly learned g(W).
        bias: adds a learned bias, [out].
        shared: uses G_ij = G_j for every order i, so P = k projections instead of k (k + 1) / 2.
        trainable_projections: makes the projections a parameter; otherwise they are a buffer ("frozen G").
        feature_bias: adds a learned constant to every projection, G_ij x+ + c_ij, zero at the start. It corresponds to
            the biases of a dense layer's units, for rows taken from such a layer. A merged layer has no extra cost for
            it. The parameter `offsets` has two dimensions, [P, m]: exclude it from weight decay by name if you exclude
            biases by their number of dimensions.
        projection: "gaussian", "orthogonal", "rademacher", or the rows themselves: [m, d] or [m, d + 1], used for every
            projection, or [P, m, d] or [P, m, d + 1]. Given rows are not scaled; with `norm` and d columns the norm
            column starts at zero.
        eps: added to the squared norm; positive.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: a size is out of range, `order=0` without bias, `feature_bias` in the kernel form, an unknown name,
            or rows of the wrong shape.
        TypeError: `phi` or `psi` is neither a name nor callable.
    """

    projections: Tensor  # [P, m, d], or [P, m, d + 1] with the norm column last
    offsets: Tensor | None  # [P, m], the feature bias
    weight: Tensor  # [out, k * m]; [out, d] if psi is given
    bias: Tensor | None  # [out]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_features: int,
        order: int = 1,
        norm: bool = True,
        phi: str | Activation = "relu",
        psi: str | Activation | None = None,
        bias: bool = True,
        shared: bool = False,
        trainable_projections: bool = True,
        feature_bias: bool = False,
        projection: str | Tensor = "orthogonal",
        eps: float = 1e-12,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes("EUGen", in_features=in_features, out_features=out_features, num_features=num_features)
        if order < 0:
            raise ValueError(f"EUGen: order must not be negative, got {order}")
        if order == 0 and not bias:
            raise ValueError("EUGen: order=0 is the constant given by the bias; it needs bias=True")
        if psi is not None and feature_bias:
            raise ValueError("EUGen: feature_bias requires a learned g(W); it cannot be combined with psi")
        if eps <= 0:
            raise ValueError(f"EUGen: eps must be positive to keep the norm differentiable, got {eps}")
        if isinstance(projection, str) and projection not in KINDS:
            raise ValueError(f"EUGen: unknown projection {projection!r}; known: {', '.join(KINDS)}")
        resolve_activation(phi)
        if psi is not None:
            resolve_activation(psi)
        self.in_features = in_features
        self.out_features = out_features
        self.num_features = num_features
        self.order = order
        self.norm = norm
        self.phi = phi
        self.psi = psi
        self.shared = shared
        self.eps = eps
        self.projection = projection if isinstance(projection, str) else "given"

        columns = in_features + 1 if norm else in_features
        shape = (num_projections(order, shared), num_features, columns)
        projections = torch.empty(shape, device=device, dtype=dtype)
        if isinstance(projection, Tensor):
            projections.copy_(_expand_rows(projection, shape, in_features))
        if trainable_projections:
            self.projections = nn.Parameter(projections)
        else:
            self.register_buffer("projections", projections)
        constants = torch.zeros(shape[:2], device=device, dtype=dtype) if feature_bias else None
        self.register_parameter("offsets", None if constants is None else nn.Parameter(constants))
        weight_columns = order * num_features if psi is None else in_features
        self.weight = nn.Parameter(torch.empty(out_features, weight_columns, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw projections, weight and biases anew, as the class describes; given rows are left unchanged."""
        if self.projection != "given":
            _, m, columns = self.projections.shape
            scale = 1 / math.sqrt(2 * self.in_features if self.norm else self.in_features)
            for rows in self.projections:
                rows.copy_(make_projection(self.projection, m, columns, dtype=rows.dtype, device=rows.device) * scale)
        if self.weight.numel() > 0:
            nn.init.normal_(self.weight, std=math.sqrt(2 / max(1, self.order * self.num_features)))
        if self.offsets is not None:
            self.offsets.zero_()
        if self.bias is not None:
            self.bias.copy_(-self._kernel_constant())

    def features(self, x: Tensor) -> Tensor:
        """F(x), the random features: [..., d] -> [..., k * m].

        Raises:
            ValueError: the last dimension of the input is not d, or the input is a nested tensor.
        """
        if x.is_nested:
            raise ValueError(
                "EUGen does not support nested tensors. A TransformerEncoder creates them in evaluation mode; "
                "convert() disables that if it is given the encoder, otherwise set encoder.use_nested_tensor = False"
            )
        if x.shape[-1] != self.in_features:
            raise ValueError(f"EUGen takes [..., {self.in_features}], got {list(x.shape)}")
        rows = self.projections.flatten(0, 1)
        constants = None if self.offsets is None else self.offsets.flatten()
        projected = F.linear(x, rows[:, : self.in_features], constants)
        if self.norm:
            lengths = smooth_norm(x, self.eps) * rows[:, self.in_features]
            projected = projected + lengths.to(projected.dtype)
        return resolve_activation(self.phi)(self._combine(projected))

    def effective_weight(self) -> Tensor:
        """Return g(W), the matrix that multiplies the features: [out, k * m]."""
        if self.psi is None:
            return self.weight
        rows = self.projections.flatten(0, 1)
        projected = F.linear(self.weight, rows[:, : self.in_features])
        if self.norm:
            projected = projected + rows[:, self.in_features]
        return resolve_activation(self.psi)(self._combine(projected))

    def effective_bias(self) -> Tensor | None:
        """Return the constant of each output, [out]: the bias, plus Phi(1) Psi(1) in the kernel form; None for none."""
        if self.psi is None:
            return self.bias
        constant = self._kernel_constant()
        return constant.expand(self.out_features) if self.bias is None else self.bias + constant

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features].

        Raises:
            ValueError: see `features`.
        """
        return F.linear(self.features(x), self.effective_weight(), self.effective_bias())

    def extra_repr(self) -> str:
        """The constructor's arguments, as printed inside `EUGen(...)`."""
        psi = None if self.psi is None else describe(self.psi)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"num_features={self.num_features}, order={self.order}, norm={self.norm}, "
            f"phi={describe(self.phi)}, psi={psi}, bias={self.bias is not None}, shared={self.shared}, "
            f"trainable_projections={isinstance(self.projections, nn.Parameter)}, "
            f"feature_bias={self.offsets is not None}, projection={self.projection}"
        )

    @torch.no_grad()
    def set_output(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Copy a learned g(W), [out, k * m], and a bias, [out], into the layer. A layer without bias ignores the bias.

        Raises:
            ValueError: the layer is of the kernel form, whose g(W) is not learned directly; a shape is wrong, or the
                bias is missing; weight or bias is computed from other parameters (`torch.nn.utils.parametrize`).
        """
        if self.psi is not None:
            raise ValueError("EUGen: the output can be set only if g(W) is a learned parameter (psi=None)")
        self._check_editable("weight", "bias")
        for name, own, given in (("weight", self.weight, weight), ("bias", self.bias, bias)):
            if own is not None and (given is None or given.shape != own.shape):
                shape = None if given is None else list(given.shape)
                raise ValueError(f"EUGen: the {name} must be {list(own.shape)}, got {shape}")
        self.weight.copy_(weight)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)

    def columns(self, features: Tensor) -> Tensor:
        """Columns of g(W) and F(x) that belong to the given features, for all orders: indices [m'] -> [k * m']."""
        return torch.cat([features + order * self.num_features for order in range(self.order)])

    @torch.no_grad()
    def keep(self, features: Tensor | int) -> None:
        """Reduce the layer to some of its features, in place. The parameters remain the same objects.

        Args:
            features: positions of the features to keep within each order, [m'], or their number m' to keep the first.

        Raises:
            ValueError: the layer is of the kernel form, whose output weights do not belong to single features; its
                parameters are computed by `torch.nn.utils.parametrize`; a position is out of range or repeated.
        """
        if self.psi is not None:
            raise ValueError("EUGen: features can be removed only if g(W) is a learned parameter (psi=None)")
        self._check_editable("projections", "offsets", "weight")
        index = torch.arange(max(features, 0)) if isinstance(features, int) else torch.as_tensor(features)
        kinds = (torch.int64, torch.int32, torch.int16, torch.int8)  # uint8 may be meant as a mask
        positions = index.tolist() if index.dtype in kinds and index.dim() == 1 else []
        if not positions or len(set(positions)) < len(positions) or not set(positions) <= set(range(self.num_features)):
            raise ValueError(
                f"EUGen: keep() takes one or more distinct positions from 0 to {self.num_features - 1}, got {features}"
            )
        index = index.to(self.weight.device, torch.int64)
        for tensor, where in ((self.projections, index), (self.offsets, index), (self.weight, self.columns(index))):
            if tensor is not None:
                _resize(tensor, tensor.detach().index_select(1, where))
        self.num_features = len(index)

    def _check_editable(self, *names: str) -> None:
        if any(is_parametrized(self, name) for name in names):
            raise ValueError("EUGen: parameters computed by torch.nn.utils.parametrize cannot be set or cut")

    def _combine(self, projected: Tensor) -> Tensor:
        by_matrix = projected.unflatten(-1, (self.projections.shape[0], self.num_features))
        return combine_orders(by_matrix, self.order, self.shared)

    def _kernel_constant(self) -> Tensor:
        """Phi(1) Psi(1) in the kernel form, otherwise zero, since there the bias is the constant. Shape []."""
        if self.psi is None:
            return self.weight.new_zeros(())
        one = self.weight.new_ones(())
        return resolve_activation(self.phi)(one) * resolve_activation(self.psi)(one)


def _resize(tensor: Tensor, values: Tensor) -> None:
    """Give a parameter or buffer values of another shape, in place."""
    tensor.grad = None
    # A graph of the previous step may still hold the node that accumulates the parameter's gradient and expects the old
    # shape. PyTorch creates a new node when the dtype changes.
    other = torch.float32 if values.dtype == torch.float64 else torch.float64
    tensor.data = values.to(other)
    tensor.data = values


def _expand_rows(rows: Tensor, shape: tuple[int, int, int], in_features: int) -> Tensor:
    """Bring given rows to [P, m, columns]: a single matrix is repeated, a missing norm column is filled with zeros."""
    matrices, num_features, columns = shape
    fits = rows.ndim in (2, 3) and rows.shape[-2] == num_features and rows.shape[-1] in (in_features, columns)
    if not fits or (rows.ndim == 3 and rows.shape[0] != matrices):
        widths = f"{in_features}" if columns == in_features else f"{in_features} or {columns}"
        raise ValueError(
            f"EUGen: projection rows must be [{num_features}, d] or [{matrices}, {num_features}, d] "
            f"with d = {widths}, got {list(rows.shape)}"
        )
    rows = rows.detach()
    if rows.shape[-1] < columns:
        rows = F.pad(rows, (0, 1))
    return rows.expand(shape)
