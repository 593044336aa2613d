"""The schedule of learning rates."""

from __future__ import annotations

import pytest
import torch

from eugen_nerf.plugin.schedules import LinearDecaySchedulerConfig


def test_learning_rates_go_down_in_a_straight_line_and_stay_there() -> None:
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = LinearDecaySchedulerConfig(final_fraction=0.2, max_steps=4).setup().get_scheduler(optimizer, 0.5)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1])
