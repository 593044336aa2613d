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
) -> Interval:
    """Median of the ratios times / reference of measurements that were made in pairs.

    The interval is a percentile bootstrap over the pairs (Efron 1979), with a fixed seed. The median hardly
    notices single frames that something else on the machine has slowed down.

    Args:
        groups: what each pair is a measurement of. Pairs of the same count as one, their median: a view that was
            rendered five times says no more about other views than one that was rendered once.

    Raises:
        ValueError: no pairs, or lists of different length.
    """
    groups = range(len(times)) if groups is None else groups
    if not times or not len(times) == len(reference) == len(groups):
        raise ValueError("paired_ratio needs lists of one length, not empty")
    of_group: dict[Hashable, list[float]] = {}
    for time, other, group in zip(times, reference, groups, strict=True):
        of_group.setdefault(group, []).append(time / other)
    ratios = np.array([np.median(members) for members in of_group.values()])
    picks = np.random.default_rng(0).integers(0, len(ratios), size=(RESAMPLES, len(ratios)))
    medians = np.median(ratios[picks], axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return Interval(float(np.median(ratios)), float(low), float(high))


def middle(values: Sequence[float]) -> Interval:
    """Median, and the range that holds the middle 80 % of the values.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values")
    low, median, high = np.quantile(np.asarray(values, dtype=float), (0.1, 0.5, 0.9))
    return Interval(float(median), float(low), float(high))


def time_to_reach(target: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """When a curve of (time, value) first reaches a value, linear between its points; None if it never does.

    A curve that is above the target at its first point has reached it by then, and that time is returned.
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
    """Indices of the points (cost, quality) that no other beats in both, by growing cost."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front
