"""Transfer of trained dense layers to EUGen layers, layer by layer and without backpropagation through the network.

Follows EUGens (NeurIPS 2025, arXiv 2601.22563, section 4.5 and appendix B.2): inputs and outputs of a trained layer are
recorded, and the output matrix of the EUGen layer that replaces it is the least-squares solution for frozen features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eugen_nerf.layers.activations import resolve_activation
from eugen_nerf.layers.baselines import Dense
from eugen_nerf.layers.eugen import EUGen
from eugen_nerf.layers.feed_forward import as_layer_stack
from eugen_nerf.layers.least_squares import NormalEquations
from eugen_nerf.layers.merge import changed_method
from eugen_nerf.layers.projections import make_projection

Rows = Literal["teacher", "gaussian", "orthogonal"]
Selection = Literal["contribution", "leverage", "random"]
Solver = Literal["ridge", "layerwise"]

# The number of random candidate rows for each feature. A teacher's rows are chosen from all of its units.
CANDIDATES_PER_FEATURE = 4


@dataclass
class TransferOptions:
    """How an EUGen layer is fitted to a trained dense layer."""

    solver: Solver = "ridge"
    """ridge: the output matrix in closed form, with frozen projections. layerwise: the projections are also trained, on
    this layer alone with the Huber loss, followed by the closed form."""
    rows: Rows = "teacher"
    """Source of the projections. teacher: units of the trained layer with their biases. gaussian, orthogonal: random
    rows scaled to the layer's inputs, with offsets that place each feature's kink at a recorded input."""
    selection: Selection = "contribution"
    """Which candidates are kept. contribution: greedily those that reduce the squared error most. leverage: those with
    the largest ridge leverage scores. random: a random subset."""
    ridge: float = 1e-6
    """Penalty on the output matrix, in units of the mean variance of the features; the constant is not penalized."""
    steps: int = 1000
    """Adam steps per layer, for solver layerwise."""
    learning_rate: float = 2e-3
    """Initial learning rate of solver layerwise; it decays to zero."""
    batch: int = 4096
    """Samples per step of solver layerwise."""
    seed: int = 0
    """Random seed of the random rows, the random selection and the batches."""

    def __post_init__(self) -> None:
        for name, words in (("solver", Solver), ("rows", Rows), ("selection", Selection)):
            if getattr(self, name) not in get_args(words):
                raise ValueError(f"{name} must be one of {', '.join(get_args(words))}, not {getattr(self, name)!r}")
        if not self.ridge >= 0 or not math.isfinite(self.ridge):
            raise ValueError(f"ridge must be finite and not negative, got {self.ridge}")
        if min(self.steps, self.batch) < 1 or not 0 < self.learning_rate < math.inf:
            raise ValueError(
                "steps, batch and learning_rate must be positive and finite, got "
                f"{self.steps}, {self.batch}, {self.learning_rate}"
            )


@dataclass(frozen=True)
class LayerFit:
    """How well an EUGen layer matches the dense layer it replaces."""

    position: int
    """Position of the layer in its network."""
    explained: float
    """Fraction of the variance of the layer's outputs that is explained, summed over outputs; 1 is perfect."""
    samples: int
    """Number of samples that the layer was fitted to."""


@dataclass(frozen=True)
class Unit:
    """A layer of a network with its activation."""

    layer: nn.Module
    activation: nn.Module | None
    skip: bool
    """Whether the network's input is concatenated in front of the layer's input."""

    def received(self, inputs: Tensor, x: Tensor) -> Tensor:
        """The layer's input, given the network's input and the output of the previous unit."""
        return torch.cat([inputs, x], dim=-1) if self.skip else x

    def __call__(self, inputs: Tensor, x: Tensor) -> Tensor:
        y = self.layer(self.received(inputs, x))
        return y if self.activation is None else self.activation(y)


def units(network: nn.Module) -> list[Unit]:
    """List the layers of a `torch.nn.Sequential`, which may be nested, a `LayerStack` or nerfstudio's `MLP`.

    Raises:
        ValueError: the network is of another kind.
    """
    if isinstance(network, nn.Sequential):
        return list(_of_sequential(network))
    stack = as_layer_stack(network)
    if stack is None:
        raise ValueError(
            f"{type(network).__name__} is not supported; the network must be a torch.nn.Sequential, a "
            "LayerStack or nerfstudio's MLP"
        )
    return [
        Unit(layer, activation, i in stack.skip_connections)
        for i, (layer, activation) in enumerate(zip(stack.layers, stack.activations, strict=True))
    ]


def _flattened(network: nn.Sequential) -> Iterator[nn.Module]:
    for child in network:
        if isinstance(child, nn.Sequential) and not changed_method(child, nn.Sequential, "forward"):
            yield from _flattened(child)
        else:
            yield child


def _of_sequential(network: nn.Sequential) -> Iterator[Unit]:
    children = list(_flattened(network))
    while children:
        layer = children.pop(0)
        following = children[0] if children else None
        if isinstance(layer, nn.Linear):  # any module without parameters may be its activation
            followed = following is not None and not any(True for _ in following.parameters())
        else:  # `convert` leaves an identity behind an EUGen layer where the activation was
            followed = isinstance(layer, EUGen | Dense) and isinstance(following, nn.Identity)
        yield Unit(layer, children.pop(0) if followed else None, False)


@torch.no_grad()
def transfer_network(
    teacher: nn.Module,
    student: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    options: TransferOptions,
    report: Callable[[LayerFit], None] = lambda fit: None,
) -> list[LayerFit]:
    """Fit every EUGen layer of a network to the dense layer at the same position of the trained network, front to back.

    A layer's inputs come from the student's already fitted layers and its targets from the teacher, so each layer also
    compensates for the errors of the layers before it. Activations of all batches are kept in memory, for one layer at
    a time. Both networks are evaluated in evaluation mode, whatever mode they are in, because dropout would add noise
    to the targets.

    Args:
        teacher: the trained network; see `units`.
        student: a copy of it with EUGen layers instead of some dense ones; changed in place.
        batches: inputs of the teacher and of the student for the same samples, [N, d] each.
        options: how layers are fitted.
        report: called with each fit.

    Returns:
        One fit for each EUGen layer that replaces a dense one.

    Raises:
        ValueError: a network is of an unsupported kind, the networks do not correspond, an EUGen layer is not among the
            layers that `units` lists, there are no samples, or a layer cannot be fitted (see `fit_layer`).
    """
    originals, copies = units(teacher), units(student)
    if len(originals) != len(copies) or [u.skip for u in originals] != [u.skip for u in copies]:
        raise ValueError("teacher and student must have the same layers and skip connections")
    within = {id(unit.layer) for unit in copies}
    for path, module in student.named_modules():
        if isinstance(module, EUGen) and id(module) not in within:
            raise ValueError(f"the EUGen layer {path} is inside a module of the network and cannot be fitted")
    inputs = [(a.detach(), b.detach()) for a, b in batches if a.shape[0] > 0]
    if not inputs:
        raise ValueError("no samples were collected")
    states = list(inputs)
    generator = torch.Generator().manual_seed(options.seed)
    fits = []
    with _evaluating(teacher, student):
        for position, (original, copy) in enumerate(zip(originals, copies, strict=True)):
            received = [copy.received(b, y) for (_, b), (_, y) in zip(inputs, states, strict=True)]
            targets = [original(a, x) for (a, _), (x, _) in zip(inputs, states, strict=True)]
            if isinstance(copy.layer, EUGen) and not isinstance(original.layer, EUGen):
                pairs = list(zip(received, targets, strict=True))
                consumer = _consumer(originals, position)
                explained = fit_layer(copy.layer, original.layer, pairs, options, consumer, generator)
                fits.append(LayerFit(position, explained, sum(x.shape[0] for x in received)))
                report(fits[-1])
            states = [(target, copy(b, y)) for target, (_, b), (_, y) in zip(targets, inputs, states, strict=True)]
    return fits


@contextmanager
def _evaluating(*networks: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and restore the mode of each afterwards."""
    training = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode


def _consumer(originals: Sequence[Unit], position: int) -> Tensor | None:
    """The matrix [r, out] that the next layer applies to a layer's output; None if it is unknown."""
    layer = originals[position].layer
    following = originals[position + 1].layer if position + 1 < len(originals) else None
    if not isinstance(following, nn.Linear | Dense) or not isinstance(layer, nn.Linear | Dense):
        return None
    weight = following.weight.detach()
    return weight[:, weight.shape[1] - layer.out_features :]  # a skip connection's columns come first


@torch.no_grad()
def fit_layer(
    layer: EUGen,
    dense: nn.Module,
    pairs: Sequence[tuple[Tensor, Tensor]],
    options: TransferOptions,
    consumer: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> float:
    """Fit an EUGen layer to a trained dense layer, in place.

    Projections of order 1 are chosen by `options.selection`; those of higher orders are random choices from the same
    rows. The biases of a teacher's units are used if the layer has `offsets`.

    Args:
        layer: the layer to fit; its Psi must be None.
        dense: the trained linear layer, whose `weight` [out, in] and `bias` can serve as projections and offsets.
        pairs: batches of inputs [N, in] and target outputs [N, out], after the activation.
        options: how the layer is fitted.
        consumer: [r, out], the matrix that the next layer applies to the outputs. Errors are measured after it. It
            affects which rows are chosen and how they are trained, but not the least-squares solution.
        generator: source of random numbers, on the CPU.

    Returns:
        The explained fraction of the targets' variance, or of their second moment if the layer has no bias.

    Raises:
        ValueError: the layer is of the kernel form or of order 0, rows are to be taken from a layer that is not dense
            or has fewer than m units, or inputs or targets are not finite.
    """
    if layer.order == 0:
        raise ValueError("an EUGen layer of order 0 has no features to fit")
    if layer.psi is not None:
        raise ValueError("an EUGen layer of the kernel form has no output matrix to fit")
    generator = generator or torch.Generator().manual_seed(options.seed)
    _set_projections(layer, dense, pairs, options, consumer, generator)
    explained = _solve(layer, pairs, options.ridge)
    if options.solver == "ridge":
        return explained
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    _train(layer, pairs, options, consumer, generator)
    try:
        trained = _solve(layer, pairs, options.ridge)
    except ValueError:  # training has diverged to NaN or infinity
        trained = -math.inf
    if trained >= explained:
        return trained
    layer.load_state_dict(before)  # training did not help: keep the closed-form solution
    return explained


def _solve(layer: EUGen, pairs: Sequence[tuple[Tensor, Tensor]], ridge: float) -> float:
    """Set the output matrix, and the bias if any, in closed form; return the explained fraction of the variance."""
    equations = NormalEquations(constant=layer.bias is not None)
    for x, y in pairs:
        equations.add(layer.features(x), y)
    solution = equations.solve(ridge)
    layer.set_output(solution.weight, solution.bias)
    return solution.explained


def _set_projections(
    layer: EUGen,
    dense: nn.Module,
    pairs: Sequence[tuple[Tensor, Tensor]],
    options: TransferOptions,
    consumer: Tensor | None,
    generator: torch.Generator,
) -> None:
    matrices, m, _ = layer.projections.shape
    rows, offsets = _candidates(layer, dense, pairs, options, generator)
    if len(rows) < m:
        raise ValueError(
            f"{m} features cannot be taken from the {len(rows)} units of the trained layer; take fewer, or "
            'rows="orthogonal"'
        )
    chosen = [torch.randperm(len(rows), generator=generator)[:m].to(rows.device) for _ in range(matrices)]
    if options.selection != "random" and len(rows) > m:
        equations = NormalEquations(constant=layer.bias is not None)
        phi = resolve_activation(layer.phi)
        for x, y in pairs:
            extended = torch.cat([x, x.norm(dim=-1, keepdim=True)], dim=-1) if layer.norm else x
            equations.add(phi(F.linear(extended, rows, offsets if layer.offsets is not None else None)), y)
        chosen[0] = equations.choose(m, options.selection, options.ridge, consumer)
    layer.projections.copy_(torch.stack([rows[index] for index in chosen]))
    if layer.offsets is not None:
        layer.offsets.copy_(torch.stack([offsets[index] for index in chosen]))


def _candidates(
    layer: EUGen,
    dense: nn.Module,
    pairs: Sequence[tuple[Tensor, Tensor]],
    options: TransferOptions,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Candidate rows, [n, d] or [n, d + 1] with the norm column, and their offsets, [n]."""
    like = layer.projections
    if options.rows == "teacher":
        if not isinstance(dense, nn.Linear | Dense):
            raise ValueError(
                f'a {type(dense).__name__} layer has no units to take as projections; use rows="orthogonal"'
            )
        weight, bias = dense.weight.detach(), dense.bias
        rows = F.pad(weight, (0, 1)) if layer.norm else weight
        return rows, weight.new_zeros(len(weight)) if bias is None else bias.detach()
    count = layer.num_features * (1 if options.selection == "random" else CANDIDATES_PER_FEATURE)
    inputs = torch.cat([x for x, _ in pairs])
    if layer.norm:
        inputs = torch.cat([inputs, inputs.norm(dim=-1, keepdim=True)], dim=-1)
    # Every column has equal weight, and projections have unit variance, whatever the scale of the inputs. A column that
    # hardly varied has none: its weight would be so large that any later change of it would drown the others. For
    # example, nerfacto's appearance embeddings are constant in evaluation and vary in training.
    scale = inputs.std(dim=0, correction=0)
    varies = scale > 1e-4 * scale.max()
    drawn = make_projection(options.rows, count, inputs.shape[1], generator=generator, dtype=like.dtype)
    rows = torch.where(varies, drawn.to(like.device) / (scale * varies.sum().sqrt()), 0)
    picked = torch.randint(len(inputs), (count,), generator=generator).to(like.device)
    return rows, -(rows * inputs[picked]).sum(dim=1)


def _train(
    layer: EUGen,
    pairs: Sequence[tuple[Tensor, Tensor]],
    options: TransferOptions,
    consumer: Tensor | None,
    generator: torch.Generator,
) -> None:
    """Adam on the layer alone: projections, offsets, output matrix and bias."""
    x, y = (torch.cat(list(part)) for part in zip(*pairs, strict=True))
    view = torch.eye(y.shape[1], dtype=y.dtype, device=y.device) if consumer is None else consumer
    deviation = (y @ view.T).std().clamp_min(1e-12)
    parameters = [p for p in (layer.projections, layer.offsets, layer.weight, layer.bias) if p is not None]
    asked = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(parameters, lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    for _ in range(options.steps):
        index = torch.randint(len(x), (min(options.batch, len(x)),), generator=generator).to(x.device)
        with torch.enable_grad():
            error = (layer(x[index]) - y[index]) @ view.T / deviation
            loss = F.smooth_l1_loss(error, torch.zeros_like(error))
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()
        schedule.step()
    for parameter, before in zip(parameters, asked, strict=True):
        parameter.grad = None
        parameter.requires_grad_(before)
