"""Geometry of the returned world, over random rigs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eugen_nerf.scenes.normalize import faces_forward, focus_point, near_depth_of_points, normalize
from tests.scenes import builders

numbers = st.floats(-1.0, 1.0)
vectors = st.tuples(numbers, numbers, numbers).map(np.array)
deterministic = settings(max_examples=50, deadline=None, derandomize=True)


def rotation_about(axis, angle):
    """Rotation [3, 3] about an axis [3] of any nonzero length."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


rotations = st.builds(rotation_about, vectors.filter(lambda v: np.linalg.norm(v) > 0.1), st.floats(0, 3.1))


def moved(poses, rotation, shift, scale):
    turned = rotation @ poses
    turned[:, :, 3] = scale * turned[:, :, 3] + shift
    return turned


def look_at(positions, target, up=(0.0, 0.0, 1.0)):
    back = positions - target
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    right = np.cross(up, back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(back, right), back, positions], axis=-1)


def ring(count=12, height=1.0, target=(0.0, 0.0, 0.0)):
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    positions = np.stack([2 * np.cos(angles), 2 * np.sin(angles), np.full(count, height)], axis=1) + target
    return look_at(positions, np.array(target))


def sideways(poses):
    """The same cameras rotated by a quarter turn, as a phone stores upright photos."""
    return np.stack([poses[:, :, 1], -poses[:, :, 0], poses[:, :, 2], poses[:, :, 3]], axis=-1)


@given(rotations, vectors, st.floats(1e-3, 1e3), st.sampled_from(["focus", "poses", "none"]))
@deterministic
def test_the_change_is_a_similarity_that_fits_the_cameras_into_the_unit_box(rotation, shift, scale, center):
    poses = moved(builders.arc_poses(7), rotation, 10 * scale * shift, scale)
    change = normalize(poses, orientation="up", center=center)
    r = change.transform[:, :3]
    np.testing.assert_allclose(r.T @ r, np.eye(3), atol=1e-9)
    assert np.linalg.det(r) == pytest.approx(1)
    result = change.poses(poses)
    assert np.abs(result[:, :, 3]).max() == pytest.approx(1)
    np.testing.assert_allclose(result[:, :, 3], change.points(poses[:, :, 3]), atol=1e-9)
    np.testing.assert_allclose(result[:, :, :3], r @ poses[:, :, :3], atol=1e-9)


@given(rotations, vectors, st.floats(1e-3, 1e3))
@deterministic
def test_the_result_does_not_depend_on_the_files_position_and_unit(rotation, shift, scale):
    poses = ring()[:7]
    expected = normalize(poses).poses(poses)
    other = moved(poses, rotation, 10 * scale * shift, scale)
    result = normalize(other).poses(other)
    # A rotation about the vertical remains free, and the cube that the cameras fill depends on it slightly.
    np.testing.assert_allclose(result[:, 2, :3], expected[:, 2, :3], atol=1e-6)
    ratios = np.linalg.norm(result[:, :, 3], axis=1) / np.linalg.norm(expected[:, :, 3], axis=1)
    np.testing.assert_allclose(ratios, ratios[0], atol=1e-6)
    assert 1 / np.sqrt(3) <= ratios[0] <= np.sqrt(3)


@given(rotations, st.floats(-1.5, 3.0))
@deterministic
def test_level_cameras_end_up_upright(rotation, height):
    # Half a ring that looks down: the photos' mean up direction is tilted, the vertical is not.
    poses = ring(height=height)[:7]
    change = normalize(moved(poses, rotation, np.zeros(3), 1.0), orientation="up")
    np.testing.assert_allclose(change.transform[:, :3] @ rotation @ [0, 0, 1], [0, 0, 1], atol=1e-6)


@given(rotations, st.floats(0.5, 2.0))
@deterministic
def test_photos_stored_on_their_side_end_up_upright(rotation, height):
    poses = sideways(ring(height=height)[:7])
    change = normalize(moved(poses, rotation, np.zeros(3), 1.0), orientation="up")
    np.testing.assert_allclose(change.transform[:, :3] @ rotation @ [0, 0, 1], [0, 0, 1], atol=1e-6)


def test_cameras_in_one_plane_keep_their_mean_up():
    # A vertical arc: image rows are parallel, so they do not determine the vertical.
    angles = np.linspace(-0.5, 0.9, 8)
    positions = np.stack([2 * np.cos(angles), np.zeros(8), 2 * np.sin(angles)], axis=1)
    poses = look_at(positions, np.zeros(3))
    up = normalize(poses, orientation="up").transform[2, :3]
    mean_up = poses[:, :, 1].mean(axis=0)
    np.testing.assert_allclose(up, mean_up / np.linalg.norm(mean_up), atol=1e-9)


def test_upside_down_cameras_are_turned_over():
    poses = ring(height=0.0)
    poses[:, :, :2] *= -1
    np.testing.assert_allclose(normalize(poses).transform[2, :3], [0, 0, -1], atol=1e-9)


def test_orientation_none_keeps_the_axes():
    change = normalize(builders.arc_poses(5), orientation="none")
    np.testing.assert_array_equal(change.transform[:, :3], np.eye(3))


@given(vectors, rotations)
@deterministic
def test_the_focus_is_where_the_cameras_look(target, rotation):
    poses = rotation @ ring(target=5 * target)
    np.testing.assert_allclose(focus_point(poses), rotation @ (5 * target), atol=1e-6)


def test_the_focus_keeps_its_digits_in_geographic_coordinates():
    target = np.array([5e6, 4e5, 300.0])
    np.testing.assert_allclose(focus_point(ring(target=target)), target, atol=1e-6)


def test_a_camera_that_looks_away_does_not_pull_at_the_focus():
    poses = ring()
    astray = look_at(np.array([[2.0, 0.0, 1.0]]), np.array([5.0, 1.0, 3.0]))
    np.testing.assert_allclose(focus_point(np.concatenate([poses, astray])), 0, atol=1e-6)


@pytest.mark.parametrize("case", ["parallel", "outward", "single"])
def test_no_common_point_falls_back_to_the_mean_camera(case):
    poses = ring()
    if case == "parallel":
        poses[:, :, :3] = poses[0, :, :3]
    elif case == "outward":
        poses[:, :, [0, 2]] *= -1
    else:
        poses = poses[:1]
    assert focus_point(poses) is None
    change = normalize(poses, center="focus")
    np.testing.assert_allclose(change.points(poses[:, :, 3].mean(axis=0)), 0, atol=1e-9)


def test_cameras_in_one_spot_keep_their_scale():
    poses = ring()
    poses[:, :, 3] = [7.0, 8.0, 9.0]
    assert normalize(poses, center="poses").scale == 1.0


def test_forward_facing():
    assert not faces_forward(ring())
    assert faces_forward(ring()[:1])
    narrow = look_at(np.stack([np.linspace(-1, 1, 5), np.full(5, -4.0), np.zeros(5)], axis=1), np.zeros(3))
    assert faces_forward(narrow)
    near = normalize(narrow, center="poses", near_depth=3.0)
    assert near.scale == pytest.approx(1 / 3)
    # The depth does not matter for cameras around an object.
    assert normalize(ring(), center="poses", near_depth=30.0).scale == normalize(ring(), center="poses").scale


def test_near_depth_is_where_the_points_begin():
    poses = look_at(np.array([[0.0, -4.0, 0.0], [0.1, -4.0, 0.0]]), np.zeros(3))
    behind = np.array([[0.0, -9.0, 0.0]])
    points = np.concatenate([np.stack([np.zeros(500), np.linspace(-2, 6, 500), np.zeros(500)], axis=1), behind])
    assert near_depth_of_points(poses, points) == pytest.approx(2.08, abs=0.05)
    assert near_depth_of_points(poses, behind) is None
