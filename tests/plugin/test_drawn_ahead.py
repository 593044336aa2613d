"""DrawnAhead: rays that were drawn for several steps at once."""

from __future__ import annotations

from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle

from eugen_nerf.plugin.drawn_ahead import DrawnAhead


class Source:
    """Draws rays that are numbered, starting where the last draw ended."""

    def __init__(self) -> None:
        self.drawn: list[int] = []

    def __call__(self, rays: int) -> tuple[RayBundle, dict[str, Any]]:
        number = torch.arange(sum(self.drawn), sum(self.drawn) + rays)
        self.drawn.append(rays)
        vectors = number[:, None].float().expand(-1, 3)
        bundle = RayBundle(vectors, vectors, pixel_area=vectors[:, :1], camera_indices=number[:, None])
        return bundle, {"image": vectors, "indices": number[:, None].expand(-1, 3), "full_image": torch.zeros(rays)}


def numbers(step: tuple[RayBundle, dict[str, Any]]) -> list[int]:
    """The numbers of a step's rays, which all of its tensors must agree about."""
    bundle, pixels = step
    found = bundle.origins[:, 0]
    for column in (bundle.directions[:, 1], bundle.pixel_area[:, 0], pixels["image"][:, 2], pixels["indices"][:, 1]):
        assert torch.equal(column.float(), found)
    return found.int().tolist()


def test_each_ray_is_handed_out_once() -> None:
    source = Source()
    ahead = DrawnAhead(source, 3)
    assert [numbers(ahead.take(4)) for _ in range(6)] == [list(range(begin, begin + 4)) for begin in range(0, 24, 4)]
    assert source.drawn == [12, 12]


def test_steps_of_other_sizes() -> None:
    source = Source()
    ahead = DrawnAhead(source, 3)
    assert numbers(ahead.take(4)) == [0, 1, 2, 3]
    assert numbers(ahead.take(7)) == [4, 5, 6, 7, 8, 9, 10]
    assert numbers(ahead.take(2)) == [12, 13]  # only one was left
    assert numbers(ahead.take(9)) == list(range(18, 27))  # more than were drawn
    assert source.drawn == [12, 6, 27]


def test_entries_that_belong_to_no_ray_stay_whole() -> None:
    _, pixels = DrawnAhead(Source(), 3).take(5)
    assert pixels["full_image"].shape == (15,)


def test_one_step_at_once() -> None:
    source = Source()
    ahead = DrawnAhead(source, 1)
    assert [numbers(ahead.take(rays)) for rays in (3, 1, 2)] == [[0, 1, 2], [3], [4, 5]]
    assert source.drawn == [3, 1, 2]
