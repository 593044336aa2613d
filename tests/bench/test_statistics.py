"""Ratios with confidence intervals, times to reach a quality, Pareto fronts."""

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
    """Both methods become three times slower; unpaired times would overlap, but the ratio hardly changes."""
    generator = np.random.default_rng(2)
    drift = np.linspace(1, 3, 40)
    first, second = (drift * generator.normal(scale, 0.01, 40) for scale in (1.0, 0.9))
    ratio = paired_ratio(list(second), list(first))
    assert ratio.low < 0.9 < ratio.high
    assert ratio.high - ratio.low < 0.03


def test_interval_covers_the_true_median() -> None:
    """The 90 % interval contains the truth in about 54 of 60 experiments; the limit is four standard errors below."""
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(60):
        ratios = np.exp(generator.normal(0, 0.3, 25))
        interval = paired_ratio(list(ratios), [1.0] * 25, confidence=0.9)
        hits += interval.low <= 1.0 <= interval.high
    assert hits >= 54 - 4 * np.sqrt(60 * 0.9 * 0.1)


@pytest.mark.parametrize(("confidence", "limits"), [(0.8, (2.0, 4.0)), (0.92, (1.0, 100.0))])
def test_interval_of_five_ratios(confidence: float, limits: tuple[float, float]) -> None:
    """The median of five draws is at most the k-th ratio with probability P(Binomial(5, k/5) >= 3).

    This is 5.8 % for the first ratio and 31.7 % for the second. Half of the excluded probability lies on each side,
    which gives tails of 10 % and 4 %.
    """
    interval = paired_ratio([1.0, 2.0, 3.0, 4.0, 100.0], [1.0] * 5, confidence)
    assert interval == Interval(3.0, *limits)


def test_repeats_of_a_group_count_as_one() -> None:
    """Twenty frames of one view and one frame of each of four others count as five ratios, not twenty-four."""
    times, views = [2.0] * 20 + [3.0, 4.0, 5.0, 6.0], [0] * 20 + [1, 2, 3, 4]
    grouped = paired_ratio(times, [1.0] * 24, groups=views)
    assert grouped == paired_ratio([2.0, 3.0, 4.0, 5.0, 6.0], [1.0] * 5)
    assert paired_ratio(times, [1.0] * 24) == Interval(2.0, 2.0, 2.0)
    assert paired_ratio([1.0, 2.0, 9.0], [1.0] * 3, groups="aaa").value == 2.0  # the median of a group


def test_clusters_are_resampled_before_what_is_in_them() -> None:
    """For two pairs of models, each with the same ratio on 20 views, the interval spans from one pair to the other.

    40 independent views would give an interval of almost no width.
    """
    times, seeds, views = [1.0] * 20 + [2.0] * 21, [0] * 20 + [1] * 21, [*range(20), *range(21)]
    assert paired_ratio(times, [1.0] * 41, groups=views, clusters=seeds) == Interval(2.0, 1.0, 2.0)
    mixed = [*np.linspace(1, 1.1, 20), *np.linspace(2, 2.1, 21)]
    pooled = paired_ratio(mixed, [1.0] * 41, groups=list(zip(seeds, views, strict=True)))
    nested = paired_ratio(mixed, [1.0] * 41, groups=views, clusters=seeds)
    assert nested.value == pooled.value
    assert nested.low < 1.1 < 2 < nested.high
    one = paired_ratio(mixed[:20], [1.0] * 20, clusters=[7] * 20)
    assert one.low > 1.01  # a single cluster is ignored
    assert one.high < 1.09


def test_paired_ratio_is_deterministic_and_refuses_unequal_lists() -> None:
    times, reference = [1.0, 2.0, 4.0], [1.0, 3.0, 3.0]
    assert paired_ratio(times, reference) == paired_ratio(times, reference)
    for bad in ([], [1.0]):
        with pytest.raises(ValueError, match="one length"):
            paired_ratio(bad, [])
    with pytest.raises(ValueError, match="one length"):
        paired_ratio(times, reference, clusters=[0])


def test_middle() -> None:
    assert middle([float(i) for i in range(11)]) == Interval(5.0, 1.0, 9.0)
    with pytest.raises(ValueError, match="no values"):
        middle([])


@pytest.mark.parametrize(
    ("target", "expected"), [(15.0, 1.5), (20.0, 2.0), (10.0, 1.0), (5.0, 1.0), (22.0, 4.0), (30.0, None)]
)
def test_time_to_reach(target: float, expected: float | None) -> None:
    """The dip after 2 s does not matter, because 20 dB were reached before."""
    curve = [(1.0, 10.0), (2.0, 20.0), (3.0, 19.0), (5.0, 25.0)]
    assert time_to_reach(target, curve) == pytest.approx(expected) if expected else time_to_reach(target, curve) is None


def test_pareto_front() -> None:
    points = [(3.0, 30.0), (1.0, 20.0), (2.0, 19.0), (2.5, 25.0), (4.0, 30.0), (1.0, 18.0)]
    assert pareto_front(points) == [1, 3, 0]
    assert pareto_front([]) == []
