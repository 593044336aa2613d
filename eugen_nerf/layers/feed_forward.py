"""The feed-forward layers of a PyTorch model, a linear layer and its activation each, and how to replace them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn import functional as F

from eugen_nerf.layers.activations import describe, identity, resolve_activation, squared_relu
from eugen_nerf.layers.baselines import Dense
from eugen_nerf.layers.eugen import EUGen
from eugen_nerf.layers.merge import changed_method
from eugen_nerf.layers.stack import LayerStack

# Activations that make the linear layer before them a feed-forward layer, as modules and as functions. Activations that
# bound their output (sigmoid, tanh) are excluded: they give a last layer its range, which EUGen would not preserve.
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


@dataclass(frozen=True)
class FeedForward:
    """A layer that can be replaced; `put` puts an EUGen layer in its place."""

    path: str
    linear: nn.Linear | Dense
    activation: str
    put: Callable[[EUGen], None]
    gone: tuple[nn.Module, ...] = ()
    """Modules that are replaced together with the layer: its activation, and a network that becomes a `LayerStack`."""
    stack: LayerStack | None = None
    """The `LayerStack` that the layer's network becomes, if any. It will evaluate the network's other layers too."""


def _is_hidden(activation: object) -> bool:
    """Whether an activation (module, function or name) makes the layer before it a feed-forward layer."""
    if isinstance(activation, functools.partial):
        activation = activation.func
    function = resolve_activation(activation) if isinstance(activation, str) else activation
    return isinstance(function, HIDDEN_ACTIVATIONS) or any(function is one for one in HIDDEN_FUNCTIONS)


def feed_forward_layers(module: nn.Module, root: nn.Module) -> Iterator[FeedForward]:
    for path, child in module.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(child, nn.Sequential):
            # A subclass with its own forward may call its modules in another order, or do something in between.
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
                yield FeedForward(f"{prefix}linear1", child.linear1, name, put, gone)
        elif isinstance(child, LayerStack):
            yield from _in_stack(prefix, child, lambda stack: None)
        elif isinstance(child, Dense):
            if _is_hidden(child.activation):
                yield FeedForward(path, child, describe(child.activation), _put_for(root, child))
        elif _is_nerfstudio_mlp(child):
            yield from _in_stack(prefix, _as_stack(child), _put_for(root, child), (child,))


def named_pairs(module: nn.Module, activations: Mapping[str, str]) -> Iterator[FeedForward]:
    """Linear layers whose activation the caller has named."""
    taken: dict[tuple[nn.Module, str], str] = {}
    named: dict[str, str] = {}  # by the path of the linear layer
    for pattern, name in activations.items():
        linears = [
            (path, child)
            for path, child in module.named_modules()
            if isinstance(child, nn.Linear) and fnmatchcase(path, pattern)
        ]
        if not linears:
            raise ValueError(f"{pattern!r}, of activations, matches no torch.nn.Linear")
        for path, linear in linears:
            if path in named:
                if named[path] != name:
                    raise ValueError(f"{path} is given two activations, {named[path]!r} and {name!r}")
                continue
            named[path] = name
            above, _, own = path.rpartition(".")
            parent = module.get_submodule(above)
            activation = getattr(parent, name, None)
            reason = _why_no_activation(activation, linear)
            if reason is None and hasattr(type(parent), name):
                reason = f"belongs to the class {type(parent).__name__} and cannot be replaced"
            if reason is not None:
                raise ValueError(f"{path}: the attribute {name!r} beside it {reason}")
            other = taken.setdefault((parent, name), path)
            if other != path:
                raise ValueError(f"{other} and {path} have the activation {name!r} in common; name one of them")
            assert activation is not None
            gone = (activation,) if isinstance(activation, nn.Module) else ()
            yield FeedForward(path, linear, describe(activation), _put_in_pair(parent, own, name), gone)


def _why_no_activation(module: object, linear: nn.Linear) -> str | None:
    """Say why a module cannot be an elementwise activation; None if it can."""
    if module is None:
        return "does not exist"
    if not callable(module) or module is linear:
        return "is not an activation"
    if isinstance(module, nn.Module) and any(True for _ in module.parameters()):
        return f"has parameters ({type(module).__name__}), which would be lost"
    if isinstance(module, nn.Dropout | nn.AlphaDropout | nn.FeatureAlphaDropout):
        return "is dropout, not an activation"
    return None


def _in_sequential(prefix: str, sequential: nn.Sequential) -> Iterator[FeedForward]:
    # `named_children` lists a repeated module only once, which would make its neighbors look adjacent.
    children = list(sequential._modules.items())
    for (name, linear), (next_name, activation) in itertools.pairwise(children):
        if isinstance(linear, nn.Linear) and isinstance(activation, HIDDEN_ACTIVATIONS):
            put = _put_in_pair(sequential, name, next_name)
            yield FeedForward(f"{prefix}{name}", linear, type(activation).__name__, put, (activation,))


def _feeds_forward_itself(block: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) -> bool:
    """Whether a subclass overrides what happens between the two linear layers."""
    kind = next(k for k in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer) if isinstance(block, k))
    return changed_method(block, kind, "forward", "_ff_block") is not None


def _put_in_pair(parent: nn.Module, linear: str, activation: str) -> Callable[[EUGen], None]:
    def put(layer: EUGen) -> None:
        setattr(parent, linear, layer)
        if isinstance(parent, nn.TransformerDecoderLayer):
            # PyTorch gives copies of a decoder layer whose activation is a module a ReLU beside it.
            delattr(parent, activation)
            setattr(parent, activation, identity)
        else:
            # Not removed: that would change the indices, and so the paths, of the following modules in a Sequential.
            setattr(parent, activation, nn.Identity())
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0  # disables PyTorch's fused path, which reads a dense layer's weights

    return put


def _in_stack(
    prefix: str, stack: LayerStack, place: Callable[[LayerStack], None], gone: tuple[nn.Module, ...] = ()
) -> Iterator[FeedForward]:
    def putter(position: int) -> Callable[[EUGen], None]:
        def put(layer: EUGen) -> None:
            stack.replace(position, layer)
            place(stack)

        return put

    for i, (linear, activation) in enumerate(zip(stack.layers, stack.activations, strict=True)):
        if isinstance(linear, nn.Linear) and isinstance(activation, HIDDEN_ACTIVATIONS):
            name = type(activation).__name__
            yield FeedForward(f"{prefix}layers.{i}", linear, name, putter(i), (activation, *gone), stack)


def _put_for(root: nn.Module, old: nn.Module) -> Callable[[nn.Module], None]:
    """Return a function that puts a module in every place where `old` is used."""

    def put(new: nn.Module) -> None:
        for parent in list(root.modules()):
            for name, child in parent._modules.items():
                if child is old:
                    parent._modules[name] = new

    return put


def as_layer_stack(network: nn.Module) -> LayerStack | None:
    """Return a `LayerStack` itself, nerfstudio's `MLP` as a `LayerStack` that shares its layers, or else None."""
    if isinstance(network, LayerStack):
        return network
    return _as_stack(network) if _is_nerfstudio_mlp(network) else None


def _is_nerfstudio_mlp(module: nn.Module) -> bool:
    """Recognized by its attributes, because this package does not import nerfstudio."""
    made_of = ("layer_width", "skip_connections", "activation", "out_activation", "tcnn_encoding")
    layers = getattr(module, "layers", None)
    has_layers = isinstance(layers, nn.ModuleList) and all(isinstance(layer, nn.Linear) for layer in layers)
    return has_layers and all(hasattr(module, name) for name in made_of) and not is_opaque(module)


def is_opaque(module: nn.Module) -> bool:
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
