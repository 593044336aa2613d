"""Ratios with intervals, times to reach a quality, Pareto fronts."""

from __future__ import annotations

import numpy as np
import pytest

from eugen_nerf.bench.statistics import Interval, middle, paired_ratio, pareto_front, time_to_reach


def test_constant_ratio_has_no_width() -> None:
    reference = np.random.default_rng(1).uniform(1, 5, size=30)
    ratio = paired_ratio(list(0.7 * reference), list(reference))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.7, 0.7, 0.7))
    assert str(Interval(0.7, 0.65, 0.751)) == "0.700 [0.650, 0.751]"


def test_pairing_cancels_drift() -> None:
    """Both methods slow down threefold on the way; unpaired times would overlap, the ratio hardly moves."""
    generator = np.random.default_rng(2)
    drift = np.linspace(1, 3, 40)
    first, second = (drift * generator.normal(scale, 0.01, 40) for scale in (1.0, 0.9))
    ratio = paired_ratio(list(second), list(first))
    assert ratio.low < 0.9 < ratio.high
    assert ratio.high - ratio.low < 0.03


def test_interval_covers_the_true_median() -> None:
    """Of 60 experiments the 90 % interval holds the truth in about 54; binomial, four standard errors below."""
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(60):
        ratios = np.exp(generator.normal(0, 0.3, 25))
        interval = paired_ratio(list(ratios), [1.0] * 25, confidence=0.9)
        hits += interval.low <= 1.0 <= interval.high
    assert hits >= 54 - 4 * np.sqrt(60 * 0.9 * 0.1)


@pytest.mark.parametrize(("confidence", "limits"), [(0.8, (2.0, 4.0)), (0.92, (1.0, 100.0))])
def test_interval_of_five_ratios(confidence: float, limits: tuple[float, float]) -> None:
    """The median of five draws is at most the k-th ratio with probability P(Binomial(5, k/5) >= 3): 5.8 % for the
    first, 31.7 % for the second. Half of what is left out lies on each side: tails of 10 % and of 4 %."""
    interval = paired_ratio([1.0, 2.0, 3.0, 4.0, 100.0], [1.0] * 5, confidence)
    assert interval == Interval(3.0, *limits)


def test_repeats_of_a_group_count_as_one() -> None:
    """Twenty frames of one view and one of each of four others: five ratios, not twenty-four."""
    times, views = [2.0] * 20 + [3.0, 4.0, 5.0, 6.0], [0] * 20 + [1, 2, 3, 4]
    grouped = paired_ratio(times, [1.0] * 24, groups=views)
    assert grouped == paired_ratio([2.0, 3.0, 4.0, 5.0, 6.0], [1.0] * 5)
    assert paired_ratio(times, [1.0] * 24) == Interval(2.0, 2.0, 2.0)
    assert paired_ratio([1.0, 2.0, 9.0], [1.0] * 3, groups="aaa").value == 2.0  # the median of a group


def test_paired_ratio_is_deterministic_and_refuses_unequal_lists() -> None:
    times, reference = [1.0, 2.0, 4.0], [1.0, 3.0, 3.0]
    assert paired_ratio(times, reference) == paired_ratio(times, reference)
    for bad in ([], [1.0]):
        with pytest.raises(ValueError, match="one length"):
            paired_ratio(bad, [])


def test_middle() -> None:
    assert middle([float(i) for i in range(11)]) == Interval(5.0, 1.0, 9.0)
    with pytest.raises(ValueError, match="no values"):
        middle([])


@pytest.mark.parametrize(
    ("target", "expected"), [(15.0, 1.5), (20.0, 2.0), (10.0, 1.0), (5.0, 1.0), (22.0, 4.0), (30.0, None)]
)
def test_time_to_reach(target: float, expected: float | None) -> None:
    """The dip after 2 s does not matter: 20 dB were reached before."""
    curve = [(1.0, 10.0), (2.0, 20.0), (3.0, 19.0), (5.0, 25.0)]
    assert time_to_reach(target, curve) == pytest.approx(expected) if expected else time_to_reach(target, curve) is None


def test_pareto_front() -> None:
    points = [(3.0, 30.0), (1.0, 20.0), (2.0, 19.0), (2.5, 25.0), (4.0, 30.0), (1.0, 18.0)]
    assert pareto_front(points) == [1, 3, 0]
    assert pareto_front([]) == []
