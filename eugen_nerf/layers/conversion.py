"""Replacing dense layers of any PyTorch model by EUGen layers (EUGens, NeurIPS 2025, arXiv 2601.22563)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from eugen_nerf.layers.baselines import Dense
from eugen_nerf.layers.eugen import EUGen
from eugen_nerf.layers.feed_forward import (
    HIDDEN_ACTIVATIONS,
    FeedForward,
    feed_forward_layers,
    is_opaque,
    named_pairs,
)
from eugen_nerf.layers.merge import changed_method, has_hooks, own_behavior


@dataclass
class ConversionPlan:
    """Which feed-forward layers become EUGen layers, and with which options.

    The fields after `layers` are those of `EUGen`, where the terms are defined (EUGens, arXiv 2601.22563, eq. 1-2).
    """

    num_features: int
    """m, random features per order."""
    layers: tuple[str, ...] = ("*",)
    """Module paths of the layers, or shell-style patterns, e.g. "field.*.layers.1"."""
    order: int = 1
    """k, the largest number of factors in a product."""
    norm: bool = True
    """Appends the norm of the input."""
    phi: str = "relu"
    """Phi, the activation of the features."""
    trainable_projections: bool = True
    """Trains the projections; False keeps them as drawn ("frozen G")."""
    feature_bias: bool = False
    """Adds a learned constant to every projection."""
    projection: str = "orthogonal"
    """How the projections are drawn: gaussian, orthogonal or rademacher."""

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):  # its letters would be taken for patterns
            self.layers = (self.layers,)


@dataclass(frozen=True)
class Replacement:
    """A feed-forward layer that `convert` replaced by an EUGen layer."""

    path: str
    """Module path of the former linear layer, which is now the path of the EUGen layer."""
    before: str
    """Description of the layer that was replaced."""
    layer: EUGen
    """The EUGen layer."""

    def __str__(self) -> str:
        layer = self.layer
        kind = f"order {layer.order}, {'norm' if layer.norm else 'no norm'}"
        return f"{self.path or 'the model'}: {self.before} -> EUGen m={layer.num_features}, {kind}"


@dataclass(frozen=True)
class Conversion:
    """The result of `convert`. As text it has one line per layer."""

    module: nn.Module
    """The converted model: the given one, or its replacement if the model itself was a single layer or an MLP."""
    replaced: tuple[Replacement, ...]
    """The replaced layers."""
    kept: tuple[str, ...]
    """Paths of feed-forward layers that could have been replaced but match none of the plan's patterns."""

    def __str__(self) -> str:
        lines = [str(replacement) for replacement in self.replaced]
        return "\n".join([*lines, *(f"{path}: kept" for path in self.kept)])


def convert(module: nn.Module, plan: ConversionPlan, activations: Mapping[str, str] | None = None) -> Conversion:
    """Replace feed-forward layers (a linear layer and its activation) by EUGen layers of the same shape, in place.

    The EUGen layer takes the place of both the linear layer and its activation (EUGens, NeurIPS 2025,
    arXiv 2601.22563). Supported are:

    - `torch.nn.Linear` followed by an activation in a `torch.nn.Sequential`;
    - the first linear layer of the feed-forward part of `torch.nn.TransformerEncoderLayer` and
      `TransformerDecoderLayer`;
    - nerfstudio's `MLP` with its skip connections. It becomes a `LayerStack`; the parameters of layers that are not
      replaced keep their names;
    - `Dense`.

    A layer whose activation bounds its output, such as sigmoid, does not count as a feed-forward layer.

    In other modules, and in subclasses of the above with their own `forward`, only that `forward` knows what follows a
    linear layer. Name the pairs with `activations`: {"blocks.*.mlp.fc1": "act"} says that the output of each fc1 goes
    to the attribute act of the same module, and to nothing else. Convert layers of a `TransformerEncoder` together with
    the encoder, which then stops passing them nested tensors.

    New layers start from random weights; use `eugen_nerf.layers.transfer` to fit them to the layers they replace.
    Create optimizers after the conversion. If a frozen layer is replaced, the new one is frozen too: the new bias if
    the old bias was frozen (requires_grad=False), all other parameters if the old weight was.

    Args:
        module: the model.
        plan: which layers are replaced, and the options of the EUGen layers. A layer is replaced if one of the plan's
            patterns matches the path of its linear layer.
        activations: pattern of the path of linear layers -> attribute name of the activation, as above.

    Returns:
        The converted model, the replaced layers and the paths of those that were kept.

    Raises:
        ValueError: the plan names no layers, or contains an invalid size or name; a pattern matches no feed-forward
            layer (the message lists the existing ones), or matches one whose weights are opaque (tiny-cuda-nn) or
            shared with another place; replacing the layer would lose something (hooks, its own `forward`,
            parametrizations); order 0, a layer of width 1, more features than the layer has units, or an MLP with other
            layers whose hooks or own `forward` merging would ignore; `activations` names something that does not exist
            or is not an activation. The model is left unchanged.
    """
    if not plan.layers:
        raise ValueError("the plan names no layers; the default is ('*',), which selects all")
    root = nn.Module()
    root.add_module("model", module)
    opaque = [path for path, child in module.named_modules() if is_opaque(child)]
    named = list(named_pairs(module, activations or {}))
    known_already = {candidate.path for candidate in named}
    candidates = [*named, *(c for c in feed_forward_layers(module, root) if c.path not in known_already)]
    for pattern in plan.layers:
        for path in opaque:
            if fnmatchcase(path, pattern) or pattern.startswith(f"{path}."):
                raise ValueError(
                    f"{path or 'the model'} keeps its weights in one opaque array of tiny-cuda-nn, in which "
                    'no layer can be replaced; build the model with implementation="torch"'
                )
        if not any(fnmatchcase(candidate.path, pattern) for candidate in candidates):
            known = ", ".join(candidate.path for candidate in candidates) or "none"
            raise ValueError(f"{pattern!r} matches no feed-forward layer; those of the model are: {known}")

    chosen = [c for c in candidates if any(fnmatchcase(c.path, pattern) for pattern in plan.layers)]
    layers = [_eugen(candidate, plan, module) for candidate in chosen]
    gone = [candidate.linear for candidate in chosen]
    for candidate in chosen:
        for other in () if candidate.stack is None else candidate.stack.layers:
            reason = None if other in gone else own_behavior(other)
            if reason is not None:
                raise ValueError(
                    f"{candidate.path}: in its network {type(other).__name__} has {reason}, which merging would ignore"
                )
    for candidate, layer in zip(chosen, layers, strict=True):
        candidate.put(layer)
    for child in module.modules():
        # The encoder would pass nested tensors to layers that no longer take PyTorch's fused path.
        if isinstance(child, nn.TransformerEncoder) and any(layer in child.modules() for layer in layers):
            child.enable_nested_tensor = child.use_nested_tensor = False
    replaced = tuple(
        Replacement(c.path, f"{_shape(c.linear)} + {c.activation}", layer)
        for c, layer in zip(chosen, layers, strict=True)
    )
    paths = {candidate.path for candidate in chosen}
    converted = root.get_submodule("model")
    return Conversion(converted, replaced, tuple(c.path for c in candidates if c.path not in paths))


def _shape(linear: nn.Linear | Dense) -> str:
    return f"{type(linear).__name__}({linear.in_features}, {linear.out_features})"


def _eugen(candidate: FeedForward, plan: ConversionPlan, module: nn.Module) -> EUGen:
    linear, what = candidate.linear, f"{candidate.path or 'the model'}, {_shape(candidate.linear)}"
    places = sum(child is linear for parent in module.modules() for child in parent._modules.values())
    if places > 1:
        raise ValueError(f"{what}, stands in {places} places of the model; layers with tied weights cannot be replaced")
    own, inside = {id(parameter) for parameter in linear.parameters()}, set(linear.modules())
    for path, other in module.named_modules():
        if other not in inside and any(id(parameter) in own for parameter in other._parameters.values()):
            raise ValueError(f"{what}, shares a parameter with {path}; layers with tied weights cannot be replaced")
    for gone in (linear, *candidate.gone):
        reason = _what_would_be_lost(gone)
        if reason is not None:
            raise ValueError(f"{what}, cannot be replaced: {type(gone).__name__} has {reason}, which would be lost")
    if min(linear.in_features, linear.out_features) < 2:
        raise ValueError(f"{what}, has width 1, which random features cannot replace")
    if plan.order < 1:
        raise ValueError(f"{what}: order must be at least 1, got {plan.order}: order 0 is a constant")
    if plan.num_features * plan.order > linear.out_features:
        raise ValueError(
            f"{what}: {plan.num_features} features of {plan.order} order(s) are more than its "
            f"{linear.out_features} units; the layer itself would be cheaper"
        )
    layer = EUGen(
        linear.in_features,
        linear.out_features,
        plan.num_features,
        order=plan.order,
        norm=plan.norm,
        phi=plan.phi,
        bias=linear.bias is not None,
        trainable_projections=plan.trainable_projections,
        feature_bias=plan.feature_bias,
        projection=plan.projection,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )
    for name, parameter in layer.named_parameters():
        before = linear.bias if name == "bias" else linear.weight
        assert before is not None
        parameter.requires_grad_(before.requires_grad)
    return layer.train(linear.training)


def _what_would_be_lost(module: nn.Module) -> str | None:
    """Describe what a module has that its replacement would not have; None for nothing."""
    known = (nn.Linear, Dense, *HIDDEN_ACTIVATIONS)
    kind: type = next((one for one in known if isinstance(module, one)), type(module))
    if kind is type(module):  # possibly nerfstudio's MLP, which this package does not import
        kind = next((one for one in kind.__mro__ if one.__module__.startswith("nerfstudio.")), kind)
    if changed_method(module, kind, "forward", "pytorch_fwd"):
        return "its own forward"
    if has_hooks(module):
        return "hooks"
    return "parametrizations" if is_parametrized(module) else None
