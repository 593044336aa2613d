"""EUGen layers in the place of the dense layers of any torch model (EUGens, NeurIPS 2025, arXiv 2601.22563)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from eugen_nerf.layers.activations import describe, resolve, squared_relu
from eugen_nerf.layers.baselines import Dense
from eugen_nerf.layers.eugen import EUGen
from eugen_nerf.layers.merge import changed_method, has_hooks, own_behaviour
from eugen_nerf.layers.stack import LayerStack

# What makes a layer before it a feed-forward layer, as modules and as functions. Those that bound their output
# (sigmoid, tanh) are not here: they give a last layer its range, which EUGen would not keep.
HIDDEN_ACTIVATIONS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Hardswish,
)
HIDDEN_FUNCTIONS = (
    torch.relu,
    squared_relu,
    F.relu,
    F.leaky_relu,
    F.elu,
    F.celu,
    F.selu,
    F.gelu,
    F.silu,
    F.mish,
    F.softplus,
    F.hardswish,
)


@dataclass
class ConversionPlan:
    """Which feed-forward layers become EUGen layers, and of which kind."""

    num_features: int
    """m, random features per order."""
    layers: tuple[str, ...] = ("*",)
    """Module paths of the layers, or patterns as of a shell, e.g. "field.*.layers.1"."""
    order: int = 1
    """k, the largest number of factors in a product."""
    norm: bool = True
    """Appends the norm of the input."""
    phi: str = "relu"
    """Activation of the features."""
    trainable_projections: bool = True
    """Trains the projections; False keeps them as drawn ("frozen G")."""
    feature_bias: bool = False
    """Gives every projection a learned constant."""
    projection: str = "orthogonal"
    """How projections are drawn: gaussian, orthogonal or rademacher."""


@dataclass(frozen=True)
class Replacement:
    """A feed-forward layer that became an EUGen layer."""

    path: str
    """Module path of the linear layer before, and of the EUGen layer now."""
    before: str
    """Description of what stood there."""
    layer: EUGen

    def __str__(self) -> str:
        layer = self.layer
        kind = f"order {layer.order}, {'norm' if layer.norm else 'no norm'}"
        return f"{self.path or 'the model'}: {self.before} -> EUGen m={layer.num_features}, {kind}"


@dataclass(frozen=True)
class Conversion:
    """What `convert` did; as text, one line for each layer."""

    module: nn.Module
    """The converted model: the one given, or its replacement where the model was a single layer or perceptron."""
    replaced: tuple[Replacement, ...]
    kept: tuple[str, ...]
    """Paths of feed-forward layers that could have been replaced but were not asked for."""

    def __str__(self) -> str:
        lines = [str(replacement) for replacement in self.replaced]
        return "\n".join([*lines, *(f"{path}: kept" for path in self.kept)])


@dataclass(frozen=True)
class _FeedForward:
    path: str
    linear: nn.Linear | Dense
    activation: str
    put: Callable[[EUGen], None]
    gone: tuple[nn.Module, ...] = ()
    """What loses its place together with the layer: its activation, and a network that becomes a `LayerStack`."""
    stack: LayerStack | None = None
    """Where the layer's network becomes one: what will evaluate the network's other layers too."""


def convert(module: nn.Module, plan: ConversionPlan, activations: Mapping[str, str] | None = None) -> Conversion:
    """Replaces feed-forward layers, a linear layer and its activation, by EUGen layers of the same shape, in place.

    Understands `torch.nn.Linear` followed by an activation in a `torch.nn.Sequential`, the feed-forward part of
    `torch.nn.TransformerEncoderLayer` and `TransformerDecoderLayer` (its first linear layer), nerfstudio's `MLP`
    with its skip connections, which becomes a `LayerStack` with the parameters of layers that stay under the
    same names, and our own `Dense`. Activations that bound their output, as sigmoid does, make no feed-forward layer.
    New layers start from random weights. Optimizers must be made afterwards.

    In other modules, and in subclasses of these that have a forward of their own, only that forward knows what
    follows a linear layer. There `activations` names the pairs: {"blocks.*.mlp.fc1": "act"} says that the result of
    each fc1, and nothing else, goes to the attribute act of the same module. Layers in a `TransformerEncoder` should
    be converted together with it: it stops handing them nested tensors then.

    A layer is replaced where one of the plan's patterns matches the path of its linear layer. Nothing is changed
    unless everything can be. What replaces a frozen layer is frozen too: the bias where the bias was (requires_grad
    False), all else where the weight was.

    Raises:
        ValueError: the plan names no layers; a pattern matches no feed-forward layer (the message lists those that
            there are) or one whose weights are opaque (tiny-cuda-nn) or tied to another place; something would be lost
            with the layer (hooks, a forward of its own, parametrizations); order 0, a layer of width 1, more features
            than the layer has units, or a perceptron with layers that compute something else than `torch.nn.Linear`;
            `activations` names what is not there.
    """
    if not plan.layers:
        raise ValueError("convert: the plan names no layers, so that none would be replaced; its default is ('*',)")
    root = nn.Module()
    root.add_module("model", module)
    opaque = [path for path, child in module.named_modules() if _is_opaque(child)]
    named = list(_named_pairs(module, activations or {}))
    known_already = {candidate.path for candidate in named}
    candidates = [*named, *(c for c in _feed_forward_layers(module, root) if c.path not in known_already)]
    for pattern in plan.layers:
        for path in opaque:
            if fnmatchcase(path, pattern) or pattern.startswith(f"{path}."):
                raise ValueError(
                    f"convert: {path or 'the model'} keeps its weights in one opaque array of tiny-cuda-nn, in which "
                    'no layer can be replaced; build the model with implementation="torch"'
                )
        if not any(fnmatchcase(candidate.path, pattern) for candidate in candidates):
            known = ", ".join(candidate.path for candidate in candidates) or "none"
            raise ValueError(f"convert: {pattern!r} matches no feed-forward layer; those of the model are: {known}")

    chosen = [c for c in candidates if any(fnmatchcase(c.path, pattern) for pattern in plan.layers)]
    layers = [_eugen(candidate, plan, module) for candidate in chosen]
    gone = [candidate.linear for candidate in chosen]
    for candidate in chosen:
        for other in () if candidate.stack is None else candidate.stack.layers:
            reason = None if other in gone else own_behaviour(other)
            if reason is not None:
                raise ValueError(
                    f"convert: {candidate.path}: in its network {type(other).__name__} has {reason}, which merging "
                    "would ignore"
                )
    for candidate, layer in zip(chosen, layers, strict=True):
        candidate.put(layer)
    for child in module.modules():
        # The encoder would hand nested tensors to layers that no longer take PyTorch's fused path.
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


def _eugen(candidate: _FeedForward, plan: ConversionPlan, module: nn.Module) -> EUGen:
    linear, what = candidate.linear, f"convert: {candidate.path}, {_shape(candidate.linear)}"
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
        raise ValueError(f"{what}, has width 1, which no random features can stand for")
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
    """What a module has that its replacement would not have, in words."""
    known = (nn.Linear, Dense, *HIDDEN_ACTIVATIONS)
    kind: type = next((one for one in known if isinstance(module, one)), type(module))
    if kind is type(module):  # perhaps nerfstudio's MLP: this folder needs no nerfstudio
        kind = next((one for one in kind.__mro__ if one.__module__.startswith("nerfstudio.")), kind)
    if changed_method(module, kind, "forward", "pytorch_fwd"):
        return "a forward of its own"
    if has_hooks(module):
        return "hooks"
    return "parametrizations" if is_parametrized(module) else None


def _is_hidden(activation: object) -> bool:
    """Whether an activation (module, function or one of our names) makes the layer before it a feed-forward layer."""
    if isinstance(activation, functools.partial):
        activation = activation.func
    function = resolve(activation) if isinstance(activation, str) else activation
    return isinstance(function, HIDDEN_ACTIVATIONS) or any(function is one for one in HIDDEN_FUNCTIONS)


def _feed_forward_layers(module: nn.Module, root: nn.Module) -> Iterator[_FeedForward]:
    for path, child in module.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(child, nn.Sequential):
            # A forward of its own may call what it holds in another order, or add something between.
            if not changed_method(child, nn.Sequential, "forward"):
                yield from _in_sequential(prefix, child)
        elif isinstance(child, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            if (
                isinstance(child.linear1, nn.Linear)
                and _is_hidden(child.activation)
                and not _feeds_forward_itself(child)
            ):
                name, put = describe(child.activation), _put_in_pair(child, "linear1", "activation")
                gone = (child.activation,) if isinstance(child.activation, nn.Module) else ()
                yield _FeedForward(f"{prefix}linear1", child.linear1, name, put, gone)
        elif isinstance(child, LayerStack):
            yield from _in_stack(prefix, child, lambda stack: None)
        elif isinstance(child, Dense):
            if _is_hidden(child.activation):
                yield _FeedForward(path, child, describe(child.activation), _put_for(root, child))
        elif _is_nerfstudio_mlp(child):
            yield from _in_stack(prefix, _as_stack(child), _put_for(root, child), (child,))


def _named_pairs(module: nn.Module, activations: Mapping[str, str]) -> Iterator[_FeedForward]:
    """Linear layers whose activation somebody has named."""
    taken: dict[tuple[nn.Module, str], str] = {}
    for pattern, name in activations.items():
        linears = [
            (path, child)
            for path, child in module.named_modules()
            if isinstance(child, nn.Linear) and fnmatchcase(path, pattern)
        ]
        if not linears:
            raise ValueError(f"convert: {pattern!r}, of activations, matches no torch.nn.Linear")
        for path, linear in linears:
            above, _, own = path.rpartition(".")
            parent = module.get_submodule(above)
            activation = getattr(parent, name, None)
            reason = _why_no_activation(activation, linear)
            if reason is None and hasattr(type(parent), name):
                reason = f"belongs to the class {type(parent).__name__}, where nothing can be put in its place"
            if reason is not None:
                raise ValueError(f"convert: {path}: what is called {name!r} beside it {reason}")
            other = taken.setdefault((parent, name), path)
            if other != path:
                raise ValueError(
                    f"convert: {other} and {path} have the activation {name!r} in common; name one of them"
                )
            assert activation is not None
            gone = (activation,) if isinstance(activation, nn.Module) else ()
            yield _FeedForward(path, linear, describe(activation), _put_in_pair(parent, own, name), gone)


def _why_no_activation(module: object, linear: nn.Linear) -> str | None:
    """Why nothing that only changes values, one by one, in words; None if it may be."""
    if module is None:
        return "does not exist"
    if not callable(module) or module is linear:
        return "is no activation"
    if isinstance(module, nn.Module) and any(True for _ in module.parameters()):
        return f"has parameters ({type(module).__name__}), which would be lost"
    if isinstance(module, nn.Dropout | nn.AlphaDropout | nn.FeatureAlphaDropout):
        return "is a dropout, and no activation"
    return None


def _in_sequential(prefix: str, sequential: nn.Sequential) -> Iterator[_FeedForward]:
    # `named_children` lists a module once, and would make neighbours of others where it stands a second time.
    children = list(sequential._modules.items())
    for (name, linear), (next_name, activation) in itertools.pairwise(children):
        if isinstance(linear, nn.Linear) and isinstance(activation, HIDDEN_ACTIVATIONS):
            put = _put_in_pair(sequential, name, next_name)
            yield _FeedForward(f"{prefix}{name}", linear, type(activation).__name__, put, (activation,))


def _feeds_forward_itself(block: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) -> bool:
    """Whether a subclass has its own idea of what happens between the two linear layers."""
    kind = next(k for k in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer) if isinstance(block, k))
    return changed_method(block, kind, "forward", "_ff_block") is not None


def _put_in_pair(parent: nn.Module, linear: str, activation: str) -> Callable[[EUGen], None]:
    def put(layer: EUGen) -> None:
        setattr(parent, linear, layer)
        # Not taken out: that would change the numbers, and so the paths, of what follows in a Sequential.
        setattr(parent, activation, nn.Identity())
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0  # PyTorch's fused path would read the weights of a dense layer

    return put


def _in_stack(
    prefix: str, stack: LayerStack, place: Callable[[LayerStack], None], gone: tuple[nn.Module, ...] = ()
) -> Iterator[_FeedForward]:
    def putter(position: int) -> Callable[[EUGen], None]:
        def put(layer: EUGen) -> None:
            stack.replace(position, layer)
            place(stack)

        return put

    for i, (linear, activation) in enumerate(zip(stack.layers, stack.activations, strict=True)):
        if isinstance(linear, nn.Linear) and isinstance(activation, HIDDEN_ACTIVATIONS):
            name = type(activation).__name__
            yield _FeedForward(f"{prefix}layers.{i}", linear, name, putter(i), (activation, *gone), stack)


def _put_for(root: nn.Module, old: nn.Module) -> Callable[[nn.Module], None]:
    """Puts a module in every place where another one stands."""

    def put(new: nn.Module) -> None:
        for parent in list(root.modules()):
            for name, child in parent._modules.items():
                if child is old:
                    parent._modules[name] = new

    return put


def as_layer_stack(network: nn.Module) -> LayerStack | None:
    """A `LayerStack`, or nerfstudio's `MLP` as one that shares its layers; None for anything else."""
    if isinstance(network, LayerStack):
        return network
    return _as_stack(network) if _is_nerfstudio_mlp(network) else None


def _is_nerfstudio_mlp(module: nn.Module) -> bool:
    """Recognised by what it is made of: this folder needs no nerfstudio."""
    made_of = ("layer_width", "skip_connections", "activation", "out_activation", "tcnn_encoding")
    layers = getattr(module, "layers", None)
    has_layers = isinstance(layers, nn.ModuleList) and all(isinstance(layer, nn.Linear) for layer in layers)
    return has_layers and all(hasattr(module, name) for name in made_of) and not _is_opaque(module)


def _is_opaque(module: nn.Module) -> bool:
    """A network of tiny-cuda-nn, or nerfstudio's MLP around one."""
    if getattr(module, "tcnn_encoding", None) is not None:
        return True
    made_by = type(module).__module__.partition(".")[0]
    return made_by == "tinycudann" and hasattr(module, "n_output_dims") and type(module).__name__ != "Encoding"


def _as_stack(mlp: nn.Module) -> LayerStack:
    layers: list[nn.Linear] = list(mlp.layers)  # type: ignore[arg-type]
    hidden: list[nn.Module | None] = [mlp.activation] * (len(layers) - 1)  # type: ignore[list-item]
    # nerfstudio's NeRFField has skip connections (4,) however few layers it is given.
    skips = [position for position in mlp.skip_connections or () if position < len(layers)]  # type: ignore[union-attr]
    stack = LayerStack(layers, [*hidden, mlp.out_activation], skips)  # type: ignore[list-item]
    return stack.train(mlp.training)
