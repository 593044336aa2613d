"""Summaries of repeated measurements, with their uncertainty."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate and the limits of its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        digits = 3 if self.value < 10 else 1
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def paired_ratio(
    times: Sequence[float],
    reference: Sequence[float],
    confidence: float = 0.95,
    groups: Sequence[Hashable] | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """Median of the ratios times / reference of paired measurements.

    The interval is a percentile bootstrap over the pairs (Efron 1979), with a fixed seed. The median is robust against
    single frames that something else on the machine has slowed down.

    Args:
        groups: the group of each pair, such as its view. Each group counts once, with its median ratio, because a view
            that was rendered five times says no more about other views than one that was rendered once.
        clusters: what each pair was measured with, a pair of trained models for example. They are resampled first,
            then the groups within each (Davison and Hinkley 1997, section 3.8): the same views rendered with another
            pair of models are not as many new views.

    Raises:
        ValueError: there are no pairs, or the lists differ in length.
    """
    groups = range(len(times)) if groups is None else groups
    clusters = [0] * len(times) if clusters is None else clusters
    if not times or not len(times) == len(reference) == len(groups) == len(clusters):
        raise ValueError("paired_ratio needs lists of one length, not empty")
    members: dict[Hashable, dict[Hashable, list[float]]] = {}
    for time, other, group, cluster in zip(times, reference, groups, clusters, strict=True):
        members.setdefault(cluster, {}).setdefault(group, []).append(time / other)
    ratios = [np.array([np.median(pairs) for pairs in of_group.values()]) for of_group in members.values()]
    low, high = np.quantile(_resampled_medians(ratios), ((1 - confidence) / 2, (1 + confidence) / 2))
    return Interval(float(np.median(np.concatenate(ratios))), float(low), float(high))


def _resampled_medians(clusters: Sequence[np.ndarray]) -> np.ndarray:
    """Medians of bootstrap samples: as many clusters as there are, drawn with replacement, and values of each."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, len(clusters), size=(RESAMPLES, len(clusters)))
    # Clusters may differ in length; what is missing stays NaN and does not count.
    samples = np.full((RESAMPLES, len(clusters), max(map(len, clusters))), np.nan)
    for place in range(len(clusters)):
        for number, values in enumerate(clusters):
            rows = np.flatnonzero(drawn[:, place] == number)
            samples[rows, place, : len(values)] = values[generator.integers(0, len(values), (len(rows), len(values)))]
    medians: np.ndarray = np.nanmedian(samples.reshape(RESAMPLES, -1), axis=1)
    return medians


def middle(values: Sequence[float]) -> Interval:
    """Median, and the range of the middle 80 % of the values.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values")
    low, median, high = np.quantile(np.asarray(values, dtype=float), (0.1, 0.5, 0.9))
    return Interval(float(median), float(low), float(high))


def time_to_reach(target: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """The time at which a curve of (time, value) first reaches a value, interpolated linearly; None if it never does.

    If the curve is above the target at its first point, the time of that point is returned.
    """
    before: tuple[float, float] | None = None
    for time, value in curve:
        if value >= target:
            if before is None:
                return time
            share = (target - before[1]) / (value - before[1])
            return before[0] + share * (time - before[0])
        before = (time, value)
    return None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, quality) that no other point beats in both, by increasing cost."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front
