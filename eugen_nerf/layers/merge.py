"""Exact merging of a chain of layers (EUGens, NeurIPS 2025, arXiv 2601.22563, appendix B.1).

Between two EUGen layers no activation stands, so the output matrix of one and the projections of the next
multiply into one small matrix. The merged chain computes the same function at a cost that no longer contains
the layers' nominal widths. Merging is a handful of matrix products, differentiable in every parameter, so a
chain may be merged anew in every training step and trained through its merged form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eugen_nerf.layers.activations import ACTIVATIONS, Activation, describe, resolve
from eugen_nerf.layers.baselines import Dense, LowRank
from eugen_nerf.layers.eugen import EUGen, combine_orders, num_projections, smooth_norm, squared_norm
from eugen_nerf.layers.snnk import SNNK


@dataclass(frozen=True, eq=False)
class FeatureStage:
    """One stage of a merged chain: features f of the stage's input x, [N, d] -> [N, k * m].

        u = x projections^T + offsets + n norm_column                [N, P * m]
        f = phi( concat over orders i of the product over j of u_ij )

    P is k (k + 1) / 2, or k if `shared`; see `eugen_nerf.layers.eugen.combine_orders` for the order of the P
    axis. n is the norm of the input that the stage's layer had before merging:

        n = sqrt(||x||^2 + eps)                                                          without `norm_factor`
        n = sqrt(||x norm_factor^T + norm_offset||^2 + norm_constant + eps)              with it
    """

    projections: Tensor  # [P * m, d], rows ordered by projection, then feature
    offsets: Tensor | None  # [P * m]
    norm_column: Tensor | None  # [P * m]; None: no dependence on the norm
    norm_factor: Tensor | None  # [r, d]
    norm_offset: Tensor | None  # [r]
    norm_constant: Tensor | None  # [], not negative
    order: int
    shared: bool
    phi: str
    eps: float

    @property
    def in_features(self) -> int:
        """Width d of the stage's input."""
        return self.projections.shape[1]

    @property
    def out_features(self) -> int:
        """Number k * m of the stage's features."""
        return self.order * (self.projections.shape[0] // num_projections(self.order, self.shared))

    def features(self, x: Tensor) -> Tensor:
        """f, as above: [..., d] -> [..., k * m]."""
        projected = F.linear(x, self.projections, self.offsets)
        if self.norm_column is not None:
            if self.norm_factor is None:
                norm = smooth_norm(x, self.eps)
            else:
                squared = squared_norm(F.linear(x, self.norm_factor, self.norm_offset))
                if self.norm_constant is not None:
                    squared = squared + self.norm_constant
                norm = (squared + self.eps).sqrt()
            projected = projected + (norm * self.norm_column).to(projected.dtype)
        parts = projected.unflatten(-1, (num_projections(self.order, self.shared), -1))
        return resolve(self.phi)(combine_orders(parts, self.order, self.shared))

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds per input row: matrix entries, norm, and products of orders 2 and higher."""
        count = self.projections.numel()
        if self.norm_column is not None:
            squares = self.in_features if self.norm_factor is None else self.norm_factor.shape[0]
            factor = 0 if self.norm_factor is None else self.norm_factor.numel()
            count += self.norm_column.numel() + squares + factor
        if self.order > 1:
            products = self.order - 1 if self.shared else self.order * (self.order - 1) // 2
            count += products * (self.out_features // self.order)
        return count

    @property
    def num_parameters(self) -> int:
        """Numbers stored for the stage."""
        return _numel(
            self.projections,
            self.offsets,
            self.norm_column,
            self.norm_factor,
            self.norm_offset,
            self.norm_constant,
        )


@dataclass(frozen=True, eq=False)
class MergedChain:
    """Feature stages applied one after the other, and a final affine map: y = f weight^T + bias.

    `evaluate` does so by PyTorch's own operators, `eugen_nerf.ops.network` with native code.
    """

    stages: tuple[FeatureStage, ...]
    weight: Tensor  # [out, features of the last stage]
    bias: Tensor | None  # [out]
    # False: weight is the identity, which `evaluate` need not multiply by and which no count contains
    ends: bool = True

    @property
    def in_features(self) -> int:
        """Width of the chain's input."""
        return self.stages[0].in_features if self.stages else self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Width of the chain's output."""
        return self.weight.shape[0]

    @property
    def num_parameters(self) -> int:
        """Numbers stored by the merged network."""
        return sum(stage.num_parameters for stage in self.stages) + (_numel(self.weight, self.bias) if self.ends else 0)

    def evaluate(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        for stage in self.stages:
            x = stage.features(x)
        return F.linear(x, self.weight, self.bias) if self.ends else x

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the merged network per input row; offsets and biases are not counted."""
        return sum(stage.multiply_adds for stage in self.stages) + (self.weight.numel() if self.ends else 0)


Evaluate = Callable[[Tensor, MergedChain], Tensor]


def evaluate_chain(x: Tensor, chain: MergedChain) -> Tensor:
    """`MergedChain.evaluate` as a function, as `eugen_nerf.ops.network` is one."""
    return chain.evaluate(x)


def merge_chain(
    modules: nn.Module | Iterable[nn.Module], after: tuple[Tensor, Tensor | None] | None = None
) -> MergedChain:
    """Merges a chain of layers into feature stages with one matrix between two of them, exact to round-off.

    Understands `EUGen`, `torch.nn.Linear`, `Dense`, `LowRank`, `SNNK` with ReLU features,
    `torch.nn.Identity`, nested `torch.nn.Sequential`, and after a linear layer the activations ReLU, GELU and
    Softplus of `torch.nn`.

    First-order gradients of the merged chain with respect to every parameter and input of the original one
    are exact. A norm inside the chain becomes that of W f + b expressed in an orthonormal basis of the
    columns of [W b]; the basis is held fixed by differentiation, which leaves first-order gradients exact but
    not second-order ones. Without gradients (under `torch.no_grad()`) one row less is stored, and a constant
    in its place.

    With `after=(weight, bias)` the chain is one that receives x weight^T + bias: the affine map is merged into it.

    A chain that ends with an activation gets the identity as its output matrix. Parameters are multiplied in
    their own precision, also under autocast.

    Raises:
        ValueError: widths do not fit, a module is not of these kinds, or it cannot be merged: an activation
            after EUGen, an unnamed activation, Fourier features. Nor can modules that do more than their kind: with
            hooks, or with a forward of their own.
    """
    layers = list(_flatten(modules))
    if not layers:
        raise ValueError("merge_chain: the chain is empty")
    device_type = next((p.device.type for layer in layers for p in layer.parameters()), "cpu")
    with torch.autocast(device_type=device_type, enabled=False):
        return _merge(layers, _Affine(*after) if after else _Affine())


class _Affine:
    """The affine map y = f W^T + b from the last stage's features f to the next layer; y = f without W."""

    def __init__(self, weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def then(self, weight: Tensor, bias: Tensor | None) -> _Affine:
        """The map followed by y' = y weight^T + bias."""
        if self.weight is None:
            return _Affine(weight, bias)
        moved = None if self.bias is None else weight @ self.bias
        if moved is None or bias is None:
            return _Affine(weight @ self.weight, moved if bias is None else bias)
        return _Affine(weight @ self.weight, moved + bias)

    def norm_form(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """R, c, s with ||W f + b||^2 = ||R f + c||^2 + s, at most M + 1 rows for M features; None: y = f."""
        weight, bias = self.weight, self.bias
        if weight is None:
            return None, None, None
        spanning = weight if bias is None else torch.cat([weight, bias.unsqueeze(1)], dim=1)
        if weight.shape[0] <= spanning.shape[1]:
            return weight, bias, None
        # Q spans the columns of W and b, so Q Q^T (W f + b) = W f + b whatever their rank. To first order a
        # change of Q alters neither side, hence the detached factorisation, which a singular W cannot upset.
        factored = spanning.detach()
        half = factored.dtype in (torch.float16, torch.bfloat16)
        basis = torch.linalg.qr(factored.float() if half else factored).Q.to(weight.dtype)
        factor = basis.T @ weight
        if bias is None:
            return factor, None, None
        offset = basis.T @ bias
        if factor.requires_grad or offset.requires_grad:
            return factor, offset, None
        # The last basis vector is orthogonal to W: its row is zero (its gradient is not); a constant remains.
        columns = weight.shape[1]
        constant = offset[columns].float() if half else offset[columns]  # its square may be too large for a half
        return factor[:columns], offset[:columns], constant.square()


def _merge(layers: Sequence[nn.Module], affine: _Affine) -> MergedChain:
    stages: list[FeatureStage] = []
    width: int | None = None if affine.weight is None else affine.weight.shape[0]
    previous: nn.Module | None = None

    def add_stage(
        projections: Tensor,
        offsets: Tensor | None,
        phi: str,
        *,
        norm_column: Tensor | None = None,
        order: int = 1,
        shared: bool = False,
        eps: float = 0.0,
    ) -> None:
        nonlocal affine
        into = affine.then(projections, offsets)
        assert into.weight is not None
        factor, offset, constant = (None, None, None) if norm_column is None else affine.norm_form()
        stages.append(
            FeatureStage(into.weight, into.bias, norm_column, factor, offset, constant, order, shared, phi, eps)
        )
        affine = _Affine()

    for position, layer in enumerate(layers):
        where = f"layer {position} ({type(layer).__name__})"
        if isinstance(layer, EUGen | Dense | LowRank | SNNK | nn.Linear):
            if width is not None and width != layer.in_features:
                raise ValueError(f"merge_chain: {where} takes {layer.in_features} inputs but receives {width}")
            width = layer.out_features
        if isinstance(layer, EUGen):
            if layer.order == 0:
                raise ValueError(f"merge_chain: {where} has order 0, a constant with no features to merge")
            rows = layer.projections.flatten(0, 1)
            add_stage(
                rows[:, : layer.in_features].contiguous(),
                None if layer.offsets is None else layer.offsets.flatten(),
                _named(layer.phi, where),
                norm_column=rows[:, layer.in_features].contiguous() if layer.norm else None,
                order=layer.order,
                shared=layer.shared,
                eps=layer.eps,
            )
            affine = _Affine(layer.effective_weight(), layer.effective_bias())
        elif isinstance(layer, Dense):
            add_stage(layer.weight, layer.bias, _named(layer.activation, where))
        elif isinstance(layer, LowRank):
            add_stage(layer.projections, None, "identity")
            add_stage(layer.weight, layer.bias, _named(layer.activation, where))
        elif isinstance(layer, SNNK):
            if layer.activation != "relu":
                raise ValueError(
                    f"merge_chain: {where} has {layer.activation} features, which contain ||x||^2 inside a "
                    "cosine and are no feature stage; only ReLU features merge"
                )
            add_stage(layer.projections, None, "relu")
            affine = _Affine(layer.weight, layer.bias)
        elif isinstance(layer, nn.Linear):
            affine = affine.then(layer.weight, layer.bias)
        else:
            phi = activation_name(layer)
            if phi is None:
                raise ValueError(f"merge_chain: {where} cannot be merged: {layer}")
            if isinstance(previous, EUGen | SNNK):
                raise ValueError(
                    f"merge_chain: {where} follows {type(previous).__name__}: an activation between its "
                    "output matrix and the next layer forbids merging them; the layer already stands for a "
                    "dense layer with its activation"
                )
            if not isinstance(previous, nn.Linear):
                raise ValueError(f"merge_chain: {where}: an activation must follow a torch.nn.Linear")
            assert affine.weight is not None
            weight, bias = affine.weight, affine.bias
            affine = _Affine()
            add_stage(weight, bias, phi)
        previous = layer

    if affine.weight is None:
        last = stages[-1]
        weight = torch.eye(last.out_features, dtype=last.projections.dtype, device=last.projections.device)
        return MergedChain(tuple(stages), weight, None)
    return MergedChain(tuple(stages), affine.weight, affine.bias)


_MERGED_KINDS = (EUGen, Dense, LowRank, SNNK, nn.Linear, nn.ReLU, nn.GELU, nn.Softplus, nn.Sequential, nn.Identity)


def _flatten(modules: nn.Module | Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in [modules] if isinstance(modules, nn.Module) else modules:
        reason = own_behaviour(module)
        if reason is not None:
            raise ValueError(f"merge_chain: {type(module).__name__} has {reason}, which merging would ignore")
        if isinstance(module, nn.Sequential):
            yield from _flatten(list(module))
        elif not isinstance(module, nn.Identity):
            yield module


def _named(activation: str | Activation, where: str) -> str:
    if isinstance(activation, str):
        return activation
    raise ValueError(
        f"merge_chain: {where} uses the callable {describe(activation)}; only activations given by "
        f"name can be merged: {', '.join(ACTIVATIONS)}"
    )


def own_behaviour(module: nn.Module) -> str | None:
    """What a module does when it is called beside what its kind makes of its parameters, in words; None for nothing.

    A subclass may add something (LoRA, a residual connection), a hook may compute the weight anew in each call
    (spectral norm) or change the output. Neither would be asked when parameters are merged. Weights that
    `torch.nn.utils.parametrize` computes are fine.
    """
    kind = next((kind for kind in _MERGED_KINDS if isinstance(module, kind)), type(module))
    return "hooks" if has_hooks(module) else changed_method(module, kind, "forward", "__call__", "features")


def changed_method(module: nn.Module, kind: type[nn.Module], *names: str) -> str | None:
    """In words, which of these methods a module has in another form than its kind; None if it has none."""
    for name in names:
        if name in vars(module) or getattr(type(module), name, None) is not getattr(kind, name, None):
            return f"a {name} of its own"
    return None


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called before or after the module, forward or backward."""
    return any((module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks))


def activation_name(module: nn.Module) -> str | None:
    """The name under which a torch.nn activation module stands in `ACTIVATIONS`; None for one that does not merge."""
    if isinstance(module, nn.ReLU):
        return "relu"
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return "gelu"
    if isinstance(module, nn.Softplus) and module.beta == 1 and module.threshold == 20:
        return "softplus"
    return None


def _numel(*tensors: Tensor | None) -> int:
    return sum(tensor.numel() for tensor in tensors if tensor is not None)
