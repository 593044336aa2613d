"""Ridge regression from features to targets that arrive in batches, and the selection of features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Solution:
    """y = f weight^T + bias, float64."""

    weight: Tensor  # [out, M]
    bias: Tensor  # [out]
    explained: float
    """1 minus the squared error divided by the targets' squared deviation from their mean; 1 for constant targets that
    are matched exactly."""


class NormalEquations:
    """Least squares of targets Y [N, out] on features F [N, M] and a constant, accumulated batch by batch in float64.

    Minimizes, over W and b,

        ||F W^T + b - Y||^2 / N + ridge * mean variance of the features * ||W||^2,

    so `ridge` is dimensionless and the constant b is not penalized. A constant feature (a ReLU that never fires) gets
    weight zero. With `ridge=0` and linearly dependent features the result is the solution of least norm.

    Args:
        constant: whether there is a constant b. Without it, raw second moments replace the variances.
    """

    def __init__(self, constant: bool = True) -> None:
        self.constant = constant
        self.count = 0
        self._shift: Tensor | None = None  # sums are taken about this point near the mean, to avoid cancellation
        self._sums: Tensor
        self._products: Tensor
        self._num_features = 0

    @torch.no_grad()
    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add a batch: features [N, M] and targets [N, out]."""
        if features.shape[0] == 0:
            return
        joint = torch.cat([features.double(), targets.double()], dim=1)
        if self._shift is None:
            self._num_features = features.shape[1]
            self._shift = joint.mean(dim=0) if self.constant else torch.zeros_like(joint[0])
            self._sums = torch.zeros_like(joint[0])
            self._products = joint.new_zeros(joint.shape[1], joint.shape[1])
        joint = joint - self._shift
        self.count += joint.shape[0]
        self._sums += joint.sum(dim=0)
        self._products += joint.T @ joint

    def _moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Covariance of features [M, M], of features and targets [M, out], variances of targets [out], means [M + out].

        Raises:
            ValueError: nothing was added, or a feature or target was not finite.
        """
        if self._shift is None:
            raise ValueError("least squares: no samples were added")
        if not self._products.isfinite().all():
            raise ValueError("least squares: features or targets are not finite")
        covariance = self._products / self.count
        means = self._shift
        if self.constant:
            average = self._sums / self.count
            covariance = covariance - torch.outer(average, average)
            means = means + average
        m = self._num_features
        return covariance[:m, :m], covariance[:m, m:], covariance[m:, m:].diagonal(), means

    def solve(self, ridge: float, kept: Tensor | None = None) -> Solution:
        """Solve the problem stated in the class docstring.

        Args:
            ridge: see the class.
            kept: indices of the features to use; None for all.

        Raises:
            ValueError: nothing was added, or a feature or target was not finite.
        """
        gram, cross, variances, means = self._moments()
        if kept is not None:
            means = torch.cat([means[: self._num_features][kept], means[self._num_features :]])
            gram, cross = gram[kept][:, kept], cross[kept]
        scale = gram.diagonal().mean()
        values, vectors = torch.linalg.eigh(gram)
        # Directions whose variance is zero up to round-off carry no information. Ridge gives them weight zero; so does
        # this.
        damped = values + ridge * scale
        usable = values > values[-1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
        inverse = torch.where(usable, 1 / torch.where(usable, damped, torch.ones_like(damped)), 0)
        weight = (vectors * inverse @ (vectors.T @ cross)).T
        m = len(gram)
        bias = means[m:] - weight @ means[:m] if self.constant else torch.zeros_like(means[m:])
        error = variances - 2 * (weight * cross.T).sum(dim=1) + (weight @ gram * weight).sum(dim=1)
        total = variances.sum().item()
        left = error.clamp_min(0).sum().item()
        return Solution(weight, bias, 1 - left / total if total > 0 else float(left <= 0))

    def leverage_scores(self, ridge: float) -> Tensor:
        """diag(K (K + lambda)^-1) [M] of the features' covariance K, with lambda = ridge * mean variance.

        A score measures the part of a feature that the others do not explain (Alaoui and Mahoney 2015,
        arXiv 1411.0306, definition 1).

        Raises:
            ValueError: nothing was added, or a feature or target was not finite.
        """
        gram, *_ = self._moments()
        values, vectors = torch.linalg.eigh(gram)
        values = values.clamp_min(0)
        shares = values / (values + max(ridge, 1e-12) * gram.diagonal().mean()).clamp_min(1e-300)
        return vectors.square() @ shares

    def choose(
        self, number: int, method: str, ridge: float, consumer: Tensor | None = None, columns_each: int = 1
    ) -> Tensor:
        """Choose the features to keep.

        Args:
            number: how many features to keep.
            method: "leverage" keeps the largest leverage scores. "contribution" repeatedly adds the feature that most
                reduces the squared error left by those already chosen (orthogonal least squares, Chen, Cowan and Grant
                1991).
            ridge: as in `solve`.
            consumer: [r, out], a matrix applied to the targets' errors before they are measured.
            columns_each: k, for "contribution": columns i, i + M / k, i + 2 M / k, ... form feature i, as in an EUGen
                layer of order k, and are kept together.

        Returns:
            Sorted indices, [number].

        Raises:
            ValueError: nothing was added, or a feature or target was not finite.
        """
        if method == "leverage":
            return self.leverage_scores(ridge).topk(number).indices.sort().values
        gram, cross, *_ = self._moments()
        gram, cross = gram.clone(), cross if consumer is None else cross @ consumer.double().T
        scale = gram.diagonal().mean()
        # Below this variance a feature repeats those already chosen, up to round-off. The cap on ridge keeps a large
        # ridge from raising this threshold.
        floor = ((min(ridge, 1e-6) + 1e-12) * scale).clamp_min(1e-300)
        columns = torch.arange(len(gram), device=gram.device).view(columns_each, -1).T  # [features, columns_each]
        penalty = ((ridge + 1e-12) * scale).clamp_min(1e-300)
        damping = penalty * torch.eye(columns_each, dtype=gram.dtype, device=gram.device)
        chosen: list[int] = []
        taken = torch.zeros(len(columns), dtype=torch.bool, device=gram.device)
        for _ in range(number):
            variance = gram.diagonal()[columns].amax(dim=1)
            own, with_targets = gram[columns[:, :, None], columns[:, None, :]], cross[columns]
            gain = (with_targets * torch.linalg.solve(own + damping, with_targets)).sum(dim=(1, 2))
            best = int(torch.where(taken | (variance <= floor), -1.0, gain).argmax())
            if taken[best]:  # only redundant features are left
                best = int((~taken).nonzero()[0])
            chosen.append(best)
            taken[best] = True
            # The covariances left once the chosen feature has been regressed out.
            values, vectors = torch.linalg.eigh(own[best])
            vectors = vectors[:, values > floor] / values[values > floor].sqrt()
            directions = gram[:, columns[best]] @ vectors
            cross = cross - directions @ (vectors.T @ cross[columns[best]])
            gram = gram - directions @ directions.T
        return torch.tensor(sorted(chosen), device=gram.device)
