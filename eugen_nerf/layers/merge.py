"""Exact merging of a chain of layers (EUGens, NeurIPS 2025, arXiv 2601.22563, appendix B.1).

There is no activation between two EUGen layers, so the output matrix of one and the projections of the next can be
multiplied into one small matrix. The merged chain computes the same function at a cost that does not depend on the
layers' nominal widths. Merging takes a few matrix products and is differentiable in every parameter, so a chain can be
merged again in every training step and trained through its merged form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eugen_nerf.layers.activations import ACTIVATIONS, Activation, describe, resolve_activation
from eugen_nerf.layers.autocast import without_autocast
from eugen_nerf.layers.baselines import Dense, LowRank
from eugen_nerf.layers.eugen import EUGen, combine_orders, num_projections, smooth_norm, squared_norm
from eugen_nerf.layers.factor_products import Product
from eugen_nerf.layers.snnk import SNNK


@dataclass(frozen=True, eq=False)
class FeatureStage:
    """One stage of a merged chain: features f of the stage's input x, [N, d] -> [N, k * m].

        u = x projections^T + offsets + n norm_column                [N, P * m]
        f = phi( concat over orders i of the product over j of u_ij )

    P is k (k + 1) / 2, or k if `shared`; see `eugen_nerf.layers.eugen.combine_orders` for the order of the P axis.
    n is the norm of the input that the stage's layer received before merging:

        n = sqrt(||x||^2 + eps)                                                          without `norm_factor`
        n = sqrt(||x norm_factor^T + norm_offset||^2 + norm_constant + eps)              with it

    The features are those of EUGens (arXiv 2601.22563, eq. 1-2); the form of the norm is derived in `merge_chain`.
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
        """f, as defined above: [..., d] -> [..., k * m]."""
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
        return resolve_activation(self.phi)(combine_orders(parts, self.order, self.shared))

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
        """Number of values stored for the stage."""
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
    """Feature stages applied one after the other, then an affine map: y = f weight^T + bias.

    `merge_chain` creates it (EUGens, arXiv 2601.22563, appendix B.1). `evaluate` uses PyTorch's own operators;
    `eugen_nerf.ops.network` uses native code.
    """

    stages: tuple[FeatureStage, ...]
    weight: Tensor  # [out, features of the last stage]
    bias: Tensor | None  # [out]
    # False: weight is the identity, which `evaluate` skips and the counts leave out
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
        """Number of values stored by the merged network."""
        return sum(stage.num_parameters for stage in self.stages) + (_numel(self.weight, self.bias) if self.ends else 0)

    def evaluate(self, x: Tensor) -> Tensor:
        """Evaluate the chain, [..., in_features] -> [..., out_features]."""
        for stage in self.stages:
            x = stage.features(x)
        return F.linear(x, self.weight, self.bias) if self.ends else x

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the merged network per input row; offsets and biases are not counted."""
        return sum(stage.multiply_adds for stage in self.stages) + (self.weight.numel() if self.ends else 0)

    def factored(self) -> FactoredChain:
        """The chain with products of one factor each."""
        stages = tuple(FactoredStage.of(stage) for stage in self.stages)
        bias = None if self.bias is None else Product(self.bias)
        return FactoredChain(stages, Product(self.weight), bias, self.ends)

    def detach(self) -> MergedChain:
        """The chain with detached tensors, which share their values with this chain's."""
        return dataclasses.replace(_detached(self), stages=tuple(_detached(stage) for stage in self.stages))


Part = TypeVar("Part", FeatureStage, MergedChain)


def _detached(part: Part) -> Part:
    tensors: dict[str, Any] = {name: value for name, value in vars(part).items() if isinstance(value, Tensor)}
    return dataclasses.replace(part, **{name: value.detach() for name, value in tensors.items()})


@dataclass(frozen=True, eq=False)
class FactoredStage:
    """A `FeatureStage` whose projections and offsets are products that are not multiplied yet."""

    projections: Product
    offsets: Product | None
    norm_column: Tensor | None
    norm_factor: Tensor | None
    norm_offset: Tensor | None
    norm_constant: Tensor | None
    order: int
    shared: bool
    phi: str
    eps: float

    @classmethod
    def of(cls, stage: FeatureStage) -> FactoredStage:
        """Return a stage whose products have one factor."""
        offsets = None if stage.offsets is None else Product(stage.offsets)
        return cls(Product(stage.projections), offsets, *_beyond_products(stage))

    def merged(self) -> FeatureStage:
        """The stage with these products multiplied."""
        offsets = None if self.offsets is None else self.offsets.value()
        return FeatureStage(self.projections.value(), offsets, *_beyond_products(self))


def _beyond_products(stage: FeatureStage | FactoredStage) -> tuple[Any, ...]:
    """The fields in which `FeatureStage` and `FactoredStage` agree."""
    norm = stage.norm_column, stage.norm_factor, stage.norm_offset, stage.norm_constant
    return *norm, stage.order, stage.shared, stage.phi, stage.eps


@dataclass(frozen=True, eq=False)
class FactoredChain:
    """A merged chain whose tensors are products that are not multiplied yet; `factor_chain` creates it."""

    stages: tuple[FactoredStage, ...]
    weight: Product
    bias: Product | None
    ends: bool = True  # as in `MergedChain`

    def merged(self) -> MergedChain:
        """The chain with its products multiplied, differentiable in their factors."""
        with without_autocast(self.weight.right.device.type):
            bias = None if self.bias is None else self.bias.value()
            return MergedChain(tuple(stage.merged() for stage in self.stages), self.weight.value(), bias, self.ends)


Evaluate = Callable[[Tensor, MergedChain], Tensor]


def evaluate_chain(x: Tensor, chain: MergedChain) -> Tensor:
    """`MergedChain.evaluate` as a function with the signature of `eugen_nerf.ops.network`."""
    return chain.evaluate(x)


def merge_chain(
    modules: nn.Module | Iterable[nn.Module], after: tuple[Tensor, Tensor | None] | None = None
) -> MergedChain:
    """Merge a chain of layers into feature stages with one matrix between consecutive stages, exact up to round-off.

    Implements EUGens, NeurIPS 2025, arXiv 2601.22563, appendix B.1. Supported modules are `EUGen`, `torch.nn.Linear`,
    `Dense`, `LowRank`, `SNNK` with ReLU features, `torch.nn.Identity`, nested `torch.nn.Sequential`, and after a linear
    layer the activations ReLU, GELU and Softplus of `torch.nn`.

    First-order gradients of the merged chain with respect to every parameter and input of the original one are exact.
    A norm inside the chain becomes the norm of W f + b, expressed in an orthonormal basis of the columns of [W b].
    Differentiation treats the basis as fixed, which keeps first-order gradients exact but not second-order ones.
    Without gradients (under `torch.no_grad()`) one row of this basis is replaced by a single stored constant.

    A chain that ends with an activation gets the identity as its output matrix, which is not evaluated. Parameters are
    multiplied in their own precision, even under autocast. The merged chain is valid until a parameter changes: some of
    its tensors are the parameters themselves. `MergedNetwork` copies them.

    Args:
        modules: the layers in order.
        after: weight [in_features, n] and bias [in_features] or None of an affine map in front of the chain. The map is
            merged into the chain, whose input is then x [..., n] instead of x weight^T + bias.

    Returns:
        The merged chain, [..., in_features] -> [..., out_features] (or [..., n] -> [..., out_features] with `after`).

    Raises:
        ValueError: the chain is empty; widths do not match; a module is of another kind or cannot be merged (an
            activation after EUGen or SNNK, an activation given as a callable, order 0, Fourier features of SNNK); a
            module has hooks or overrides `forward`, which merging would ignore.
    """
    return factor_chain(modules, after).merged()


def factor_chain(
    modules: nn.Module | Iterable[nn.Module], after: tuple[Tensor, Tensor | None] | None = None
) -> FactoredChain:
    """Merge a chain as `merge_chain` does, but leave the last product of each matrix unmultiplied.

    Raises:
        ValueError: see `merge_chain`.
    """
    layers = list(_flatten(modules))
    if not layers:
        raise ValueError("merge_chain: the chain is empty")
    with without_autocast(_device_type(layers)):
        merging = _Merging(_Affine.of(*after) if after else _Affine())
        for position, layer in enumerate(layers):
            merging.add(layer, f"layer {position} ({type(layer).__name__})")
        return merging.finish()


def _device_type(layers: list[nn.Module]) -> str:
    for layer in layers:
        for parameter in layer.parameters():
            return parameter.device.type
    return "cpu"


class _Affine:
    """The affine map y = f W^T + b from the last stage's features f to the next layer; y = f without W.

    The last product in W and in b is not multiplied until it is needed.
    """

    def __init__(self, weight: Product | None = None, bias: Product | None = None) -> None:
        self.weight = weight
        self.bias = bias

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> _Affine:
        """Return the map of a weight [out, M] and a bias [out] or None."""
        return cls(Product(weight), None if bias is None else Product(bias))

    def then(self, weight: Tensor, bias: Tensor | None) -> _Affine:
        """Return this map followed by y' = y weight^T + bias."""
        if self.weight is None:
            return _Affine.of(weight, bias)
        own_weight, own_bias = self.multiplied()
        assert own_weight is not None
        if own_bias is not None:
            moved: Product | None = Product(own_bias, weight, bias)
        else:
            moved = None if bias is None else Product(bias)
        return _Affine(Product(own_weight, weight), moved)

    def multiplied(self) -> tuple[Tensor | None, Tensor | None]:
        """Return W and b. Products are multiplied once, whoever needs them."""
        for name in ("weight", "bias"):
            product = getattr(self, name)
            if product is not None and product.left is not None:
                setattr(self, name, Product(product.value()))
        return None if self.weight is None else self.weight.right, None if self.bias is None else self.bias.right

    def norm_form(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return R, c, s with ||W f + b||^2 = ||R f + c||^2 + s; R has at most M + 1 rows for M features.

        R is None if y = f.
        """
        weight, bias = self.multiplied()
        if weight is None:
            return None, None, None
        spanning = weight if bias is None else torch.cat([weight, bias.unsqueeze(1)], dim=1)
        if weight.shape[0] <= spanning.shape[1]:
            return weight, bias, None
        # Q spans the columns of W and b, so Q Q^T (W f + b) = W f + b for any rank. To first order a change of Q alters
        # neither side. Hence the factorization can be detached, which also avoids trouble with a singular W.
        factored = spanning.detach()
        half = factored.dtype in (torch.float16, torch.bfloat16)
        basis = torch.linalg.qr(factored.float() if half else factored).Q.to(weight.dtype)
        factor = basis.T @ weight
        if bias is None:
            return factor, None, None
        offset = basis.T @ bias
        if factor.requires_grad or offset.requires_grad or _has_tangent(factor) or _has_tangent(offset):
            return factor, offset, None
        # The last basis vector is orthogonal to W: its row of R is zero (its gradient is not) and a constant remains.
        columns = weight.shape[1]
        constant = offset[columns].float() if half else offset[columns]  # the square could overflow half precision
        return factor[:columns], offset[:columns], constant.square()


class _Merging:
    """A chain being merged: the stages so far, and the affine map behind them that the next layer absorbs."""

    def __init__(self, affine: _Affine) -> None:
        self.stages: list[FactoredStage] = []
        self.affine = affine
        self.width: int | None = None if affine.weight is None else affine.weight.shape[0]
        self.previous: nn.Module | None = None

    def add(self, layer: nn.Module, where: str) -> None:
        """Append a layer; `where` names it in messages."""
        # Tuples of classes, since torch.compile of PyTorch 2.6 does not trace unions.
        if isinstance(layer, (EUGen, Dense, LowRank, SNNK, nn.Linear)):
            if self.width is not None and self.width != layer.in_features:
                raise ValueError(f"merge_chain: {where} takes {layer.in_features} inputs but receives {self.width}")
            self.width = layer.out_features
        if isinstance(layer, EUGen):
            self._add_eugen(layer, where)
        elif isinstance(layer, Dense):
            self._add_stage(self.affine.then(layer.weight, layer.bias), _named(layer.activation, where))
        elif isinstance(layer, LowRank):
            self._add_stage(self.affine.then(layer.projections, None), "identity")
            self._add_stage(_Affine.of(layer.weight, layer.bias), _named(layer.activation, where))
        elif isinstance(layer, SNNK):
            self._add_snnk(layer, where)
        elif isinstance(layer, nn.Linear):
            self.affine = self.affine.then(layer.weight, layer.bias)
        else:
            self._add_activation(layer, where)
        self.previous = layer

    def finish(self) -> FactoredChain:
        stages, weight = tuple(self.stages), self.affine.weight
        if weight is not None:
            return FactoredChain(stages, weight, self.affine.bias)
        last = stages[-1]
        features = last.order * (last.projections.shape[0] // num_projections(last.order, last.shared))
        factor = last.projections.right
        identity = torch.eye(features, dtype=factor.dtype, device=factor.device)
        return FactoredChain(stages, Product(identity), None, ends=False)

    def _add_stage(
        self,
        into: _Affine,
        phi: str,
        *,
        norm_column: Tensor | None = None,
        order: int = 1,
        shared: bool = False,
        eps: float = 0.0,
    ) -> None:
        """Append a stage whose projections and offsets are `into`."""
        assert into.weight is not None
        norm = (None, None, None) if norm_column is None else self.affine.norm_form()
        self.stages.append(FactoredStage(into.weight, into.bias, norm_column, *norm, order, shared, phi, eps))
        self.affine = _Affine()

    def _add_eugen(self, layer: EUGen, where: str) -> None:
        if layer.order == 0:
            raise ValueError(f"merge_chain: {where} has order 0, a constant with no features to merge")
        rows = layer.projections.flatten(0, 1)
        matrix = rows[:, : layer.in_features].contiguous() if layer.norm else rows
        self._add_stage(
            self.affine.then(matrix, None if layer.offsets is None else layer.offsets.flatten()),
            _named(layer.phi, where),
            norm_column=rows[:, layer.in_features].contiguous() if layer.norm else None,
            order=layer.order,
            shared=layer.shared,
            eps=layer.eps,
        )
        self.affine = _Affine.of(layer.effective_weight(), layer.effective_bias())

    def _add_snnk(self, layer: SNNK, where: str) -> None:
        if layer.activation != "relu":
            raise ValueError(
                f"merge_chain: {where} has {layer.activation} features, which contain ||x||^2 inside a "
                "cosine and do not form a feature stage; only ReLU features can be merged"
            )
        self._add_stage(self.affine.then(layer.projections, None), "relu")
        self.affine = _Affine.of(layer.weight, layer.bias)

    def _add_activation(self, layer: nn.Module, where: str) -> None:
        phi = activation_name(layer)
        if phi is None:
            raise ValueError(f"merge_chain: {where} cannot be merged: {layer}")
        if isinstance(self.previous, (EUGen, SNNK)):
            raise ValueError(
                f"merge_chain: {where} follows {type(self.previous).__name__}: an activation between its "
                "output matrix and the next layer forbids merging them; the layer already replaces a "
                "dense layer together with its activation"
            )
        if not isinstance(self.previous, nn.Linear):
            raise ValueError(f"merge_chain: {where}: an activation must follow a torch.nn.Linear")
        self._add_stage(self.affine, phi)


_MERGED_KINDS = (EUGen, Dense, LowRank, SNNK, nn.Linear, nn.ReLU, nn.GELU, nn.Softplus, nn.Sequential, nn.Identity)


def _flatten(modules: nn.Module | Iterable[nn.Module]) -> Iterator[nn.Module]:
    alone = isinstance(modules, nn.Module) and not isinstance(modules, nn.ModuleList)
    listed: Iterable[Any] = [modules] if alone else modules  # type: ignore[assignment]
    for module in listed:
        reason = own_behavior(module)
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


def own_behavior(module: nn.Module) -> str | None:
    """Describe what a module computes beyond what its kind computes from its parameters; None for nothing.

    A subclass may add something (LoRA, a residual connection); a hook may recompute the weight in each call (spectral
    norm) or change the output. Merging parameters would ignore both. Weights computed by `torch.nn.utils.parametrize`
    are supported.
    """
    if has_hooks(module):
        return "hooks"
    kind = type(module)
    if kind not in _MERGED_KINDS:
        kind = next((kind for kind in _MERGED_KINDS if isinstance(module, kind)), kind)
    return changed_method(module, kind, "forward", "__call__", "features")


def changed_method(module: nn.Module, kind: type[nn.Module], *names: str) -> str | None:
    """Name the first of these methods that a module overrides relative to its kind; None if it overrides none."""
    for name in names:
        other = type(module) is not kind and getattr(type(module), name, None) is not getattr(kind, name, None)
        if other or name in module.__dict__:
            return f"its own {name}"
    return None


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has forward or backward hooks."""
    return any((module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks))


def activation_name(module: nn.Module) -> str | None:
    """Return the name in `ACTIVATIONS` of a torch.nn activation module; None if it cannot be merged."""
    if isinstance(module, nn.ReLU):
        return "relu"
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return "gelu"
    if isinstance(module, nn.Softplus) and module.beta == 1 and module.threshold == 20:
        return "softplus"
    return None


def _has_tangent(tensor: Tensor) -> bool:
    """Whether forward-mode differentiation, or another transform of torch.func that may hide it, sees this tensor."""
    if torch._C._are_functorch_transforms_active():
        return True
    return torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None


def _numel(*tensors: Tensor | None) -> int:
    return sum(tensor.numel() for tensor in tensors if tensor is not None)
