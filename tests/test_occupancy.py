"""OccupancyGrid: its bits, its running maximum, and the cells it evaluates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from eugen_nerf import occupancy
from eugen_nerf.occupancy import OccupancyGrid, pack_bits
from eugen_nerf.ops import occupied
from tests.pretended_gpu import needs_fake_gpu


def constant(value: float) -> Callable[[Tensor], Tensor]:
    return lambda positions: torch.full_like(positions[:, 0], value)


def ball(positions: Tensor) -> Tensor:
    """Dense within 0.3 of the cube's center."""
    return (positions - 0.5).norm(dim=-1).le(0.3).float()


def centers(resolution: int) -> Tensor:
    """[resolution**3, 3] in the order of the grid's cells: x fastest."""
    axis = (torch.arange(resolution) + 0.5) / resolution
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z], dim=-1).view(-1, 3)


def recorded(calls: list[Tensor], thickness: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def evaluate(positions: Tensor) -> Tensor:
        calls.append(positions)
        return thickness(positions)

    return evaluate


def test_pack_bits() -> None:
    mask = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]).bool()
    assert pack_bits(mask).tolist() == [1, 2 + 128, 255]


def test_cells_never_evaluated_count_as_occupied() -> None:
    grid = OccupancyGrid(4)
    assert grid.occupied_fraction == 1
    assert occupied(centers(4), grid.bits, 4).all()
    # After the warm-up an update evaluates a quarter of the cells, which become empty. The others stay occupied.
    grid.update(grid.warmup_steps, constant(0.0))
    assert grid.occupied_fraction == 0.75
    assert (grid.values >= 0).sum() == 16


def test_bits_are_those_of_the_values() -> None:
    grid = OccupancyGrid(4, threshold=0.5)
    grid.update(0, lambda p: (p[:, 0] < 0.5).float())
    assert torch.equal(occupied(centers(4), grid.bits, 4), centers(4)[:, 0] < 0.5)
    assert grid.occupied_fraction == 0.5


def test_values_keep_the_larger_of_the_decayed_and_the_new() -> None:
    grid = OccupancyGrid(2, decay=0.5)
    seen = []
    for step, value in enumerate((0.8, 0.1, 0.1, 0.6, 0.0)):
        grid.update(step, constant(value))
        seen.append(grid.values[0].item())
    assert seen == pytest.approx([0.8, 0.4, 0.2, 0.6, 0.3])


def test_the_limit_is_the_threshold_or_the_mean() -> None:
    """A field that is thin everywhere must not lose all of its cells."""
    grid = OccupancyGrid(2, threshold=0.01)
    grid.update(0, lambda p: 1e-4 * p[:, 0])
    assert 0 < grid.occupied_fraction < 1
    grid = OccupancyGrid(2, threshold=0.01)
    grid.update(0, lambda p: torch.where(p[:, 0] < 0.5, 0.02, 10.0))
    assert grid.occupied_fraction == 1  # above the threshold, though far below the mean


def test_every_cell_is_evaluated_inside_of_itself() -> None:
    grid = OccupancyGrid(4)
    calls: list[Tensor] = []
    grid.update(0, recorded(calls, constant(1.0)))
    grid.update(1, recorded(calls, constant(1.0)))
    expected = (centers(4) * 4).floor()
    for positions in calls:
        assert torch.equal((positions * 4).floor(), expected)
    assert not torch.equal(calls[0], calls[1])


def test_equal_fields_give_equal_grids() -> None:
    grids = [OccupancyGrid(6, warmup_steps=3), OccupancyGrid(6, warmup_steps=3)]
    for number, grid in enumerate(grids):
        torch.manual_seed(number)  # the global generator has no influence
        for step in range(8):
            grid.update(step, lambda p: torch.sin(20 * p).prod(dim=-1).abs())
            torch.rand(number)
    assert torch.equal(grids[0].values, grids[1].values)
    assert torch.equal(grids[0].bits, grids[1].bits)
    other = OccupancyGrid(6, warmup_steps=3, seed=1)
    other.update(0, lambda p: torch.sin(20 * p).prod(dim=-1).abs())
    assert not torch.equal(other.values, grids[0].values)


@needs_fake_gpu
def test_an_update_stays_on_the_grids_device() -> None:
    """With fake tensors, reading a value on the host fails; on a real GPU it would synchronize."""
    with FakeTensorMode():
        grid = OccupancyGrid(4, warmup_steps=1)
        grid.to("cuda:0")
        places = []

        def thickness(positions: Tensor) -> Tensor:
            places.append(positions.device)
            return positions[:, 0]

        with mock.patch("torch.Generator", lambda device: mock.Mock(manual_seed=lambda seed: places.append(device))):
            grid.update(0, thickness)
    assert [place.type for place in places] == ["cuda", "cuda"]


def test_after_the_warm_up_a_quarter_in_turn_and_as_many_occupied_cells() -> None:
    resolution, total = 8, 512
    grid = OccupancyGrid(resolution, interval=16, warmup_steps=32)
    for step in (0, 16):
        calls: list[Tensor] = []
        grid.update(step, recorded(calls, ball))
        assert sum(len(c) for c in calls) == total
    turns: list[set[int]] = []
    share = grid.occupied_fraction
    assert 0.05 < share < 0.25
    for step in (32, 48, 64, 80):
        before = grid.values.clone()
        calls = []
        grid.update(step, recorded(calls, ball))
        positions = torch.cat(calls)
        cell = (positions * resolution).long()
        index = (cell[:, 2] * resolution + cell[:, 1]) * resolution + cell[:, 0]
        turn = set(range(step // 16 % 4, total, 4))
        assert turn <= set(index.tolist())
        rest = torch.tensor([i for i in index.tolist() if i not in turn])
        assert (before[rest] > 0).all()  # the others were occupied
        assert len(index) <= total // 4 + round(share * total)
        turns.append(turn)
    assert set().union(*turns) == set(range(total))


def test_where_all_is_occupied_a_quarter_of_all_cells_is_drawn_beside_the_quarter_in_turn() -> None:
    grid = OccupancyGrid(8, interval=16, warmup_steps=16)
    grid.update(0, constant(1.0))
    calls: list[Tensor] = []
    grid.update(16, recorded(calls, constant(1.0)))
    # A quarter of the drawn cells would be evaluated anyway, so about 7/16 of all cells are.
    assert 0.38 * 512 < sum(len(c) for c in calls) <= 0.5 * 512


def test_the_grid_empties_the_space_around_a_ball() -> None:
    grid = OccupancyGrid(16, interval=1, warmup_steps=16)
    for step in range(40):
        grid.update(step, ball)
    radius = (centers(16) - 0.5).norm(dim=-1)
    found = occupied(centers(16), grid.bits, 16)
    half_diagonal = 0.5 * 3**0.5 / 16
    assert found[radius < 0.3 - half_diagonal].all()
    assert not found[radius > 0.3 + half_diagonal].any()
    assert grid.occupied_fraction < 0.2  # the ball fills 0.11 of the cube


def test_something_new_is_noticed_within_four_turns() -> None:
    grid = OccupancyGrid(8, interval=1, warmup_steps=4)
    for step in range(4):
        grid.update(step, constant(0.0))
    assert grid.occupied_fraction == 0
    for step in range(4, 8):
        grid.update(step, constant(1.0))
    assert grid.occupied_fraction == 1


def test_update_every_n_steps() -> None:
    grid = OccupancyGrid(2, interval=3)
    updated = [step for step in range(10) if grid.update_every_n_steps(step, constant(1.0))]
    assert updated == [0, 3, 6, 9]


def test_many_cells_are_evaluated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = OccupancyGrid(4), OccupancyGrid(4)
    whole.update(0, lambda p: p.sum(dim=-1))
    monkeypatch.setattr(occupancy, "POSITIONS_AT_ONCE", 10)
    calls: list[Tensor] = []
    parts.update(0, recorded(calls, lambda p: p.sum(dim=-1)))
    assert max(len(c) for c in calls) == 10
    assert torch.equal(parts.values, whole.values)


def test_the_state_survives_a_checkpoint() -> None:
    grid, other = OccupancyGrid(4), OccupancyGrid(4)
    grid.update(0, ball)
    other.load_state_dict(grid.state_dict())
    assert torch.equal(other.bits, grid.bits)
    assert other.occupied_fraction == grid.occupied_fraction < 1


@pytest.mark.parametrize("resolution", [0, -2, 1, 7])
def test_odd_resolutions_are_refused(resolution: int) -> None:
    with pytest.raises(ValueError, match="must be even and positive"):
        OccupancyGrid(resolution)


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": math.nan},
        {"threshold": math.inf},
        {"threshold": -0.01},
        {"decay": math.nan},
        {"decay": 1.01},
        {"interval": 0},
    ],
    ids=str,
)
def test_arguments_that_would_leave_empty_pictures_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"occupancy {name} must"):
        OccupancyGrid(4, **wrong)


def test_thickness_of_another_shape_is_refused() -> None:
    """One column would be broadcast against every cell."""
    grid = OccupancyGrid(4)
    for wrong in (lambda p: p[:, :1], lambda p: p, lambda p: p[1:, 0], lambda p: p.sum()):
        with pytest.raises(ValueError, match=r"thickness must have the shape \[64\], one value per position, not \["):
            grid.update(0, wrong)
    assert (grid.values == -1).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [0, 10_000])
def test_one_value_that_is_not_finite_neither_hides_the_scene_nor_stays(bad: float, step: int) -> None:
    grid = OccupancyGrid(8, warmup_steps=100)
    for _ in range(8):
        grid.update(0, ball)
    wanted = grid.bits.clone()

    def damaged(positions: Tensor) -> Tensor:
        values = ball(positions)
        values[7] = bad
        return values

    grid.update(step, damaged)
    assert grid.values.isfinite().all()
    assert ((grid.bits & wanted) == wanted).all()
    for _ in range(20):
        grid.update(0, ball)
    assert grid.values[7] < grid.threshold  # the cell is a corner, far from the ball
