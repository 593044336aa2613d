"""Render the demo scene, a tin robot that waters its garden, in the Blender (NeRF synthetic) layout.

NumPy code makes the meshes and textures; Mitsuba 3 traces the light. The scene has what a radiance field must
learn: textures, thin wires, leaves, gloss, rough metal and soft shadows. All of it lies inside [-1.2, 1.2]^3
(z up), on a transparent background.

    pip install '.[demo-scene]'
    python data/make_demo.py                                       # the whole set, 8 to 15 minutes on 2 cores
    python data/make_demo.py --views 2 --output outputs/preview    # the first two views of each split

A view depends only on its split, its number, the size and the samples. A second run with the same library versions
writes the same bytes, regardless of the number of cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

try:
    import mitsuba as mi
except ImportError:
    mi = None  # main() reports it, so that --help and the cameras work without Mitsuba

Array = np.ndarray
Bsdf = dict[str, Any]
Point = Sequence[float]

SPLITS = {"train": 100, "val": 20, "test": 20}
CAMERA_DISTANCE = 4.0
CAMERA_ANGLE_X = 0.71  # horizontal field of view in radians
GROUND = -0.66  # height of the terrace the robot stands on


# ----------------------------------------------------------------------------------------------------- meshes


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh: vertices [V, 3], faces [F, 3] counter-clockwise from outside, uv [V, 2]."""

    vertices: Array
    faces: Array
    uv: Array

    def scale(self, x: float, y: float, z: float) -> Mesh:
        """Scale along the axes by positive factors."""
        return Mesh(self.vertices * np.array([x, y, z]), self.faces, self.uv)

    def rotate(self, axis: str, degrees: float) -> Mesh:
        """Rotate counter-clockwise about the x, y or z axis through the origin."""
        return Mesh(self.vertices @ rotation(axis, degrees).T, self.faces, self.uv)

    def move(self, offset: Point) -> Mesh:
        """Shift by an offset [3]."""
        return Mesh(self.vertices + np.asarray(offset), self.faces, self.uv)

    def map(self, u: Array, v: Array) -> Mesh:
        """Replace the texture coordinates with u, v [V]."""
        return Mesh(self.vertices, self.faces, np.stack([u, v], -1))


def rotation(axis: str, degrees: float) -> Array:
    """Rotation matrix [3, 3] about a coordinate axis."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def merge(*meshes: Mesh) -> Mesh:
    """Join several meshes that share a material."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)]),
        np.concatenate([mesh.uv for mesh in meshes]),
    )


def twins(mesh: Mesh, x: float) -> Mesh:
    """Duplicate a mesh to the left and to the right."""
    return merge(mesh.move((-x, 0, 0)), mesh.move((x, 0, 0)))


def sheet(points: Array) -> Mesh:
    """A surface through a grid of points [R, C, 3]; uv runs over columns and rows.

    It faces the side from which columns run to the right and rows run up.
    """
    rows, columns = points.shape[:2]
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = (part.ravel() for part in (index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]))
    u, v = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])
    return Mesh(points.reshape(-1, 3), faces, np.stack([u, v], -1).reshape(-1, 2))


def lathe(profile: Array, segments: int = 64) -> Mesh:
    """Revolve a profile [P, 2] of (radius, height) about z. A profile listed upwards faces outwards."""
    angle = np.linspace(0, 2 * math.pi, segments + 1)
    radius, height = profile[:, :1], profile[:, 1:]
    return sheet(np.stack([radius * np.cos(angle), radius * np.sin(angle), height + 0 * angle], -1))


def rounded(corners: Sequence[Sequence[float]], radius: float, steps: int = 4) -> Array:
    """A polyline [P, 2] with beveled inner corners, so that smooth shading keeps flat sides flat."""
    path = np.asarray(corners, dtype=float)
    points = [path[:1]]
    t = np.linspace(0, 1, steps + 1)[:, None]
    for before, corner, after in zip(path, path[1:], path[2:], strict=False):
        ends = [corner + (end - corner) * min(0.45, radius / np.linalg.norm(end - corner)) for end in (before, after)]
        points.append((1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * corner + t**2 * ends[1])
    return np.concatenate([*points, path[-1:]])


def ball(radius: float = 1.0, segments: int = 48) -> Mesh:
    """A sphere about the origin; u is the longitude, v the latitude."""
    latitude = np.linspace(-math.pi / 2, math.pi / 2, segments // 2 + 1)
    return lathe(radius * np.stack([np.cos(latitude), np.sin(latitude)], -1), segments)


def drum(radius: float, height: float, bevel: float) -> Mesh:
    """A closed cylinder along z, centered at the origin."""
    h = height / 2
    return lathe(rounded([(0, -h), (radius, -h), (radius, h), (0, h)], bevel))


def ring(radius: float, thickness: float) -> Mesh:
    """A torus about z; the thickness is the radius of its tube."""
    angle = np.linspace(-math.pi, math.pi, 21)
    return lathe(np.stack([radius + thickness * np.cos(angle), thickness * np.sin(angle)], -1), 96)


def arc(radius: float, start: float, end: float) -> Array:
    """Points [49, 3] of a circular arc about z between two angles in degrees."""
    angle = np.radians(np.linspace(start, end, 49))
    return radius * np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)


def tube(path: Array, radius: float | Array, sides: int = 16) -> Mesh:
    """A round tube with closed ends along a path [P, 3]; radius is one number or one per point [P]."""
    path = np.asarray(path, dtype=float)
    radius = np.broadcast_to(np.asarray(radius, dtype=float), len(path))
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    # Carry one normal along the path: a new frame at every point would twist the tube.
    normal = np.cross(tangent[0], np.eye(3)[np.argmin(np.abs(tangent[0]))])
    normals = []
    for t in tangent:
        normal = normal - t * (normal @ t)
        normal = normal / np.linalg.norm(normal)
        normals.append(normal)
    across = np.stack(normals)
    angle = np.linspace(0, 2 * math.pi, sides + 1)[:, None]
    circle = np.cos(angle) * across[:, None] + np.sin(angle) * np.cross(tangent, across)[:, None]
    rings = path[:, None] + radius[:, None, None] * circle
    caps = [np.broadcast_to(end, (1, sides + 1, 3)) for end in (path[0], path[-1])]
    return sheet(np.concatenate([caps[0], rings, caps[1]]))


def curve(points: Sequence[Point], steps: int = 48) -> Array:
    """A smooth path [steps, 3] through the control points (Catmull-Rom)."""
    p = np.asarray(points, dtype=float)
    p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    s = np.linspace(0, len(points) - 1, steps)
    i = np.minimum(s.astype(int), len(points) - 2)
    t = (s - i)[:, None]
    a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)


def hose(points: Sequence[Point], radius: float, folds: int) -> Mesh:
    """A corrugated tube through the control points."""
    path = curve(points, 10 * folds + 1)
    return tube(path, radius * (1 + 0.13 * np.cos(np.linspace(0, 2 * math.pi * folds, len(path)))))


def rounded_box(x: float, y: float, z: float, radius: float) -> Mesh:
    """A box with half sides x, y, z and rounded edges.

    On the four sides, u runs once around in quarters and v runs up. v is 0 on the bottom and 1 on the top.
    """
    half = np.array([x, y, z])
    # Grid lines crowd near the edges, where the surface bends.
    s = np.sin(np.linspace(-math.pi / 2, math.pi / 2, 25))
    right, up = np.meshgrid(s, s)
    front = sheet(np.stack([right, -np.ones_like(right), up], -1))
    u, v = (right.ravel() + 1) / 2, (up.ravel() + 1) / 2
    sides = [front.rotate("z", 90 * k).map((k + u) / 4, v) for k in range(4)]
    bottom, top = (front.rotate("x", tilt).map(u, 0 * v + end) for tilt, end in ((90, 0), (-90, 1)))
    box = merge(*sides, bottom, top)
    surface = box.vertices * half
    core = np.clip(surface, -(half - radius), half - radius)
    away = surface - core
    return Mesh(core + radius * away / np.linalg.norm(away, axis=1, keepdims=True), box.faces, box.uv)


def leaf(length: float, width: float, droop: float, fold: float = 0.25) -> Mesh:
    """A pointed leaf that starts at the origin along +x, faces up, and bends down by `droop` radians."""
    t, side = np.meshgrid(np.linspace(0, 1, 17), np.linspace(-1, 1, 9))
    half = 0.5 * width * np.sin(math.pi * t**0.8) ** 0.9
    bend = droop * t
    # Follow an arc of constant curvature.
    x = length * (np.sin(bend) / droop)
    z = -length * ((1 - np.cos(bend)) / droop) + fold * half * np.abs(side)
    return sheet(np.stack([x, half * side, z], -1))


def vertex_normals(mesh: Mesh) -> Array:
    """Area-weighted normals [V, 3]. Vertices at the same place share a normal, so seams and poles stay smooth."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    face_normals = np.cross(b - a, c - a)
    _, place = np.unique(np.round(mesh.vertices, 6), axis=0, return_inverse=True)
    place = place.reshape(-1)
    total = np.zeros((place.max() + 1, 3))
    for k in range(3):
        np.add.at(total, place[mesh.faces[:, k]], face_normals)
    normals = total[place]
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


# --------------------------------------------------------------------------------------- colors and materials


def color(code: str) -> Array:
    """Linear RGB [3] of an sRGB code such as "#2a9d8f"."""
    srgb = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


TEAL, DEEP_TEAL = color("#1f8f94"), color("#0f5f6b")
CORAL, RED = color("#e4572e"), color("#c1272d")
MUSTARD, CREAM = color("#e9a820"), color("#f2dfb8")
LEAF_GREEN, DARK_GREEN = color("#558f3c"), color("#2b5a30")
SLATE, SAND = color("#56708c"), color("#d9bf94")
WOOD, DARK_WOOD = color("#a06a3c"), color("#74461f")
TERRACOTTA, NAVY, BLACK = color("#b9603a"), color("#24385c"), color("#16161a")


def texture(pattern: Callable[[Array, Array], Array], size: int = 256) -> Bsdf:
    """A bitmap from a pattern: u, v [H, W] in [0, 1) to linear colors [H, W, 3]."""
    center = (np.arange(size) + 0.5) / size
    u, v = np.meshgrid(center, center)
    pixels = np.broadcast_to(pattern(u, v), (size, size, 3)).astype(np.float32)
    # raw: the values are already linear reflectances.
    return {"type": "bitmap", "bitmap": mi.Bitmap(np.ascontiguousarray(pixels)), "raw": True}


def reflectance(value: Array | Bsdf) -> Bsdf:
    """A linear color [3] in Mitsuba's form; a texture is returned as it is."""
    return value if isinstance(value, dict) else {"type": "rgb", "value": value.tolist()}


def glossy(value: Array | Bsdf, roughness: float = 0.12) -> Bsdf:
    """Plastic or enamel: a colored body under a rough dielectric coat."""
    coat = {"type": "roughplastic", "distribution": "ggx", "alpha": roughness, "nonlinear": True}
    return {**coat, "diffuse_reflectance": reflectance(value)}


def matte(value: Array | Bsdf) -> Bsdf:
    """A diffuse surface, the same on both sides."""
    return {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": reflectance(value)}}


def foliage(value: Array | Bsdf) -> Bsdf:
    """A waxy sheet, the same on both sides."""
    return {"type": "twosided", "bsdf": glossy(value, 0.3)}


def metal(tint: Array, roughness: float) -> Bsdf:
    """A rough conductor that reflects in one tint."""
    tinted = {"type": "roughconductor", "distribution": "ggx", "material": "none", "alpha": roughness}
    return {**tinted, "specular_reflectance": reflectance(tint)}


def mix(a: Array, b: Array, weight: Array) -> Array:
    """Blend two colors by a weight [H, W] in [0, 1]."""
    weight = np.clip(weight, 0, 1)[..., None]
    return a * (1 - weight) + b * weight


def cells(u: Array, v: Array) -> Array:
    """A unit checkerboard: 0 or 1."""
    return (np.floor(u) + np.floor(v)) % 2


def noise(u: Array, v: Array, frequency: int, seed: int) -> Array:
    """Smooth periodic value noise in [0, 1]."""
    grid = np.random.default_rng(seed).random((frequency, frequency))
    x, y = u * frequency, v * frequency
    i, j = np.floor(x).astype(int), np.floor(y).astype(int)
    s, t = x - i, y - j
    s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)

    def at(dj: int, di: int) -> Array:
        return grid[(j + dj) % frequency, (i + di) % frequency]

    return (1 - t) * ((1 - s) * at(0, 0) + s * at(0, 1)) + t * ((1 - s) * at(1, 0) + s * at(1, 1))


# -------------------------------------------------------------------------------------------------- the scene

Part = tuple[Mesh, Bsdf]


def place(parts: list[Part], offset: Point, **turns: float) -> list[Part]:
    """Rotate parts about the named axes by degrees, in the given order, then move them."""
    for axis, degrees in turns.items():
        parts = [(mesh.rotate(axis, degrees), material) for mesh, material in parts]
    return [(mesh.move(offset), material) for mesh, material in parts]


BRASS = metal(color("#f0cf86"), 0.22)
COPPER = metal(color("#d98a62"), 0.28)
RUBBER = glossy(color("#3a3f4a"), 0.35)


def base() -> list[Part]:
    """A round wooden plinth with a checkered terrace and a rim of grass."""
    outer, inner = 1.10, 1.02

    def ground(u: Array, v: Array) -> Array:
        x, y = (2 * u - 1) * inner, (2 * v - 1) * inner
        tiles = mix(SLATE, SAND, cells(x / 0.26 + 0.5, y / 0.26 + 0.5))
        stone = tiles * (0.85 + 0.3 * noise(u, v, 9, 1))[..., None]
        grass = mix(DARK_GREEN, LEAF_GREEN, 0.15 + 0.7 * noise(u, v, 17, 2))
        edge = 0.82 + 0.035 * np.sin(9 * np.arctan2(y, x))
        return mix(stone, grass, (np.hypot(x, y) - edge) / 0.01)

    def planks(u: Array, v: Array) -> Array:
        grain = noise(u, v, 6, 3) * 0.6 + 0.4 * noise(8 * u, v, 8, 4)
        gaps = np.abs(((24 * u) % 1) - 0.5) > 0.46
        return mix(WOOD, DARK_WOOD, grain) * np.where(gaps, 0.35, 1.0)[..., None]

    low = GROUND - 0.13
    rim = GROUND + 0.02
    plinth = rounded([(0, low), (outer, low), (outer, rim), (inner, rim), (inner, GROUND - 0.02)], 0.02)
    radius = np.linspace(inner + 0.01, 0, 40)
    top = lathe(np.stack([radius, 0 * radius + GROUND], -1), 96)
    top = top.map(*(top.vertices[:, :2].T / (2 * inner) + 0.5))
    return [
        (lathe(plinth, 128), glossy(texture(planks, 512), 0.25)),
        (top, matte(texture(ground, 768))),
        (ring(outer + 0.004, 0.022).move((0, 0, low + 0.065)), BRASS),
    ]


def head() -> list[Part]:
    """The robot's head about its own center, looking along -y."""
    front = -0.29
    rim = ring(0.088, 0.02).rotate("x", 90).move((0, front, 0.045))
    eyeball = ball().scale(0.085, 0.035, 0.085).move((0, front, 0.045))
    pupil = ball().scale(0.043, 0.02, 0.048).move((0.012, front - 0.026, 0.035))
    cheek = ball().scale(0.04, 0.012, 0.03).move((0, front, -0.07))
    smile = np.linspace(-1, 1, 25)
    mouth = np.stack([0.11 * smile, 0 * smile + front - 0.005, -0.135 + 0.045 * smile**2], -1)
    slit = rounded_box(0.17, 0.012, 0.02, 0.01).move((0, 0.26, 0))
    rise = np.linspace(0, 1, 150)
    turn = 2 * math.pi * 4.5 * rise
    spring = np.stack([0.04 * np.cos(turn), 0.04 * np.sin(turn), 0.25 + 0.19 * rise], -1)
    return [
        (rounded_box(0.39, 0.26, 0.23, 0.11), glossy(TEAL)),
        (rounded_box(0.31, 0.03, 0.165, 0.03).move((0, -0.26, 0)), glossy(CREAM, 0.2)),
        (twins(rim, 0.15), BRASS),
        (twins(eyeball, 0.15), glossy(color("#fbf3e0"), 0.15)),
        (twins(pupil, 0.15), glossy(BLACK, 0.08)),
        (twins(cheek, 0.245), matte(CORAL)),
        (tube(mouth, 0.015), glossy(RED, 0.2)),
        (twins(drum(0.105, 0.07, 0.02).rotate("y", 90), 0.405), BRASS),
        (twins(ball().scale(0.035, 0.075, 0.075), 0.44), glossy(CORAL)),
        (merge(*(slit.move((0, 0, z)) for z in (-0.08, 0, 0.08))), RUBBER),
        (merge(drum(0.075, 0.05, 0.02).move((0, 0, 0.24)), tube(spring, 0.012, 10)), BRASS),
        (ball(0.068).move((0, 0, 0.49)), glossy(RED, 0.08)),
    ]


def torso() -> list[Part]:
    """Body, legs, gauge, buttons and wind-up key, about the center of the body."""

    def paint(u: Array, v: Array) -> Array:
        body = mix(TEAL, DEEP_TEAL, (0.5 - v) * 0.6)
        band = mix(NAVY, MUSTARD, cells(24 * u, (v - 0.16) / 0.09))
        painted = np.where(((v > 0.16) & (v < 0.34))[..., None], band, body)
        return np.where(((v > 0.36) & (v < 0.39))[..., None], CREAM, painted)

    def dial(u: Array, v: Array) -> Array:
        x, y = 2 * u - 1, 2 * v - 1
        angle, radius = np.degrees(np.arctan2(y, x)), np.hypot(x, y)
        zones = np.stack([RED, MUSTARD, LEAF_GREEN])[np.digitize(angle, (60, 120))]
        scale = (radius > 0.55) & (radius < 0.85) & (y > -0.1)
        face = np.where(scale[..., None], zones, CREAM)
        along, off = x * 0.5 + y * 0.87, x * 0.87 - y * 0.5
        needle = ((along > -0.15) & (along < 0.8) & (np.abs(off) < 0.07)) | (radius < 0.15)
        return np.where(needle[..., None], BLACK, face)

    half, front = 0.31, -0.255
    gauge = drum(0.115, 0.05, 0.01).rotate("x", 90)
    gauge = gauge.map(*(gauge.vertices[:, [0, 2]].T / 0.24 + 0.5))
    leg = hose([(0, 0, -0.60), (0, 0, -0.45), (0, 0, -half + 0.03)], 0.068, 5)
    shoe = rounded_box(0.125, 0.19, 0.085, 0.075).move((0, -0.05, -0.60))
    shaft = tube(np.array([(0, 0.22, 0.05), (0, 0.33, 0.05), (0, 0.44, 0.05)]), 0.028)
    wing = ring(0.085, 0.026).rotate("x", 90).move((0, 0.46, 0.05))
    button = ball().scale(0.042, 0.03, 0.042).move((0, front, 0.15))
    return [
        (rounded_box(0.34, 0.25, half, 0.10), glossy(texture(paint, 384))),
        (gauge.move((-0.13, front, 0.10)), glossy(texture(dial), 0.2)),
        (ring(0.12, 0.022).rotate("x", 90).move((-0.13, front - 0.025, 0.10)), BRASS),
        (button.move((0.06, 0, 0)), glossy(RED, 0.08)),
        (button.move((0.16, 0, 0)), glossy(MUSTARD, 0.08)),
        (button.move((0.26, 0, 0)), glossy(LEAF_GREEN, 0.08)),
        (drum(0.10, 0.16, 0.02).move((0, 0, half + 0.02)), RUBBER),
        (twins(leg, 0.17), RUBBER),
        (twins(shoe, 0.18), glossy(CORAL)),
        (merge(shaft, twins(wing, 0.1)), BRASS),
    ]


def arm(points: Sequence[Point]) -> list[Part]:
    """A hose from the shoulder to the wrist, with a brass claw that opens along the last segment."""
    path = curve(points)
    x, y, z = path[-1] - path[-2]
    claw = merge(ball(0.055), tube(arc(0.075, 35, 325), 0.024).rotate("y", -90).move((0, 0, 0.10)))
    claw = claw.rotate("y", math.degrees(math.atan2(math.hypot(x, y), z)))
    claw = claw.rotate("z", math.degrees(math.atan2(y, x))).move(path[-1])
    return [(hose(points, 0.05, 9), RUBBER), (merge(ball(0.09).move(path[0]), claw), BRASS)]


def watering_can() -> list[Part]:
    """A copper can about the center of its body, with the spout along +x."""
    wall = [(0, -0.12), (0.14, -0.12), (0.115, 0.10), (0.125, 0.115), (0.095, 0.115), (0.10, 0.06), (0, 0.06)]
    spout = curve([(0.09, 0, -0.07), (0.2, 0, -0.02), (0.27, 0, 0.09), (0.34, 0, 0.16)])
    rose = lathe(rounded([(0.02, -0.03), (0.062, 0.03), (0, 0.04)], 0.006), 32)
    rose = rose.rotate("y", 48).move((0.35, 0, 0.17))
    handle = curve([(-0.11, 0, -0.06), (-0.21, 0, 0), (-0.19, 0, 0.12), (-0.09, 0, 0.17), (0.06, 0, 0.11)])
    can = merge(lathe(rounded(wall, 0.012)), tube(spout, np.linspace(0.034, 0.024, len(spout))), rose)
    return [(can, COPPER), (tube(handle, 0.019), BRASS)]


def robot() -> list[Part]:
    """The robot in its place, with the can in its hand."""
    x, y = -0.28, 0.12
    shoulder = GROUND + 0.83
    pouring = [
        (x + 0.34, y, shoulder),
        (x + 0.47, y - 0.07, shoulder - 0.13),
        (x + 0.44, y - 0.25, shoulder - 0.03),
        (x + 0.34, y - 0.37, shoulder + 0.08),
    ]
    waving = [
        (x - 0.34, y, shoulder),
        (x - 0.51, y, shoulder - 0.10),
        (x - 0.63, y - 0.04, shoulder + 0.10),
        (x - 0.63, y - 0.08, shoulder + 0.34),
    ]
    return [
        *place(torso(), (x, y, GROUND + 0.675)),
        *place(head(), (x, y, GROUND + 1.30), y=5, z=14),
        *arm(pouring),
        *arm(waving),
        *place(watering_can(), (x + 0.51, y - 0.46, shoulder + 0.02), y=28),
    ]


def flower_pot() -> list[Part]:
    """A flower in a terracotta pot, about the foot of the pot."""

    def zigzag(u: Array, v: Array) -> Array:
        wave = np.abs(((12 * u) % 1) * 2 - 1)
        line = np.abs(v - 0.40 - 0.10 * wave) < 0.035
        dots = np.hypot(((12 * u + 0.5) % 1 - 0.5) / 1.4, (v - 0.40) / 0.14) < 0.22
        clay = TERRACOTTA * (0.85 + 0.3 * noise(u, v, 7, 5))[..., None]
        return np.where(line[..., None], CREAM, np.where(dots[..., None], NAVY, clay))

    def veins(u: Array, v: Array) -> Array:
        rib = np.exp(-(((v - 0.5) / 0.05) ** 2))
        side = 0.5 + 0.5 * np.cos(2 * math.pi * (7 * u - 3 * np.abs(v - 0.5)))
        return mix(mix(DARK_GREEN, LEAF_GREEN, 0.35 + 0.4 * side), color("#a8cf6a"), 0.8 * rib)

    def blush(u: Array, v: Array) -> Array:
        return mix(MUSTARD, CORAL, 1.1 - 1.4 * u)

    wall = [(0, 0), (0.13, 0), (0.175, 0.22), (0.20, 0.22), (0.20, 0.30), (0.165, 0.30), (0.16, 0.24)]
    pot = lathe(rounded(wall, 0.012))
    pot = pot.map(pot.uv[:, 0], pot.vertices[:, 2] / 0.30)
    stem = curve([(0, 0, 0.2), (0.03, 0.02, 0.38), (0.02, 0.03, 0.50), (0.02, -0.04, 0.61)])
    leaves = []
    growth = (
        (14, 0.30, 20),
        (15, 0.28, 160),
        (16, 0.27, 275),
        (25, 0.25, 85),
        (27, 0.24, 215),
        (30, 0.20, 330),
    )
    for k, (joint, length, turn) in enumerate(growth):
        blade = leaf(length, 0.13, 1.1 + 0.1 * (k % 3)).rotate("y", -40)
        leaves.append(blade.rotate("z", turn).move(stem[joint]))
    petal = leaf(0.17, 0.105, 0.5, fold=0.35).rotate("y", -18).move((0.03, 0, 0))
    bloom = [
        (merge(*(petal.rotate("z", 40 * k) for k in range(9))), foliage(texture(blush, 64))),
        (ball().scale(0.065, 0.065, 0.045).move((0, 0, 0.02)), glossy(color("#5b3217"), 0.4)),
    ]
    return [
        (pot, matte(texture(zigzag, 384))),
        (drum(0.165, 0.02, 0.005).move((0, 0, 0.25)), matte(color("#4a3223"))),
        (tube(stem, 0.016), glossy(DARK_GREEN, 0.3)),
        (merge(*leaves), foliage(texture(veins, 128))),
        *place(bloom, stem[-1], x=42, z=-22),
    ]


def fence() -> list[Part]:
    """A low wire fence around the back of the garden, and a bird on its top rail."""
    radius, start, end = 0.94, 12, 138
    iron = glossy(color("#274060"), 0.25)
    rail = tube(arc(radius, start, end), 0.014, 10)
    post = tube(np.array([(0, 0, 0), (0, 0, 0.18), (0, 0, 0.35)]), 0.02, 12)
    parts = [(rail.move((0, 0, GROUND + height)), iron) for height in (0.13, 0.27)]
    for degrees in np.linspace(start, end, 8):
        a = math.radians(degrees)
        foot = (radius * math.cos(a), radius * math.sin(a), GROUND - 0.02)
        parts.append((post.move(foot), iron))
        parts.append((ball(0.036, 24).move((0, 0, 0.37)).move(foot), BRASS))
    tail = leaf(0.13, 0.07, 0.3).rotate("y", -25).rotate("z", 180).move((-0.05, 0, 0.02))
    beak = tube(np.array([(0.10, 0, 0.07), (0.12, 0, 0.067), (0.145, 0, 0.06)]), np.array([0.02, 0.012, 0.002]))
    eyes = merge(*(ball(0.013, 16).move((0.085, y, 0.085)) for y in (-0.038, 0.038)))
    bird = [
        (merge(ball().scale(0.085, 0.065, 0.065), ball(0.052).move((0.06, 0, 0.07))), glossy(MUSTARD, 0.3)),
        (tail, foliage(color("#a8671d"))),
        (beak, glossy(CORAL)),
        (eyes, glossy(BLACK)),
    ]
    a = math.radians(66)
    return parts + place(bird, (radius * math.cos(a), radius * math.sin(a), GROUND + 0.345), z=215)


def toadstool(size: float) -> list[Part]:
    """A red toadstool about its foot."""

    def spots(u: Array, v: Array) -> Array:
        x, y = 2 * u - 1, 2 * v - 1
        angle, distance = np.arctan2(y, x), np.hypot(x, y)
        pattern = np.hypot(x, y) < 0.17
        for around, far, radius in ((5, 0.50, 0.15), (9, 0.84, 0.12)):
            sector = (angle * around / (2 * math.pi)) % 1 - 0.5
            pattern |= np.hypot(distance - far, sector * 2 * math.pi * far / around) < radius
        return np.where(pattern[..., None], CREAM, RED)

    cap = rounded([(0.02, 0.5), (0.30, 0.46), (0.42, 0.47), (0.36, 0.68), (0.2, 0.82), (0, 0.85)], 0.12, 6)
    stalk = rounded([(0, 0), (0.17, 0.0), (0.11, 0.25), (0.10, 0.55)], 0.08)
    hat = lathe(cap * size)
    hat = hat.map(*(hat.vertices[:, :2].T / (0.86 * size) + 0.5))
    return [
        (hat, glossy(texture(spots))),
        (lathe(stalk * size), matte(color("#e3cfa6"))),
    ]


def toys() -> list[Part]:
    """A beach ball and a ladybird."""

    def gores(u: Array, v: Array) -> Array:
        pick = np.floor(6 * u).astype(int) % 6
        stripes = np.stack([RED, CREAM, TEAL, MUSTARD, CREAM, NAVY])[pick]
        return np.where((np.abs(v - 0.5) > 0.44)[..., None], MUSTARD, stripes)

    def wing_cases(u: Array, v: Array) -> Array:
        x, y = (u * 8) % 1 - 0.5, (v * 8) % 1 - 0.5
        dots = (np.hypot(x, y) < 0.3) & (v > 0.55)
        return np.where(dots[..., None], BLACK, RED)

    size = 0.175
    beach_ball = ball(size).rotate("x", 35).rotate("z", 25)
    bug = [
        (ball().scale(0.095, 0.08, 0.07), glossy(texture(wing_cases), 0.08)),
        (ball().scale(0.04, 0.045, 0.04).move((0.085, 0, 0.0)), glossy(BLACK)),
    ]
    return [
        (beach_ball.move((-0.60, -0.50, GROUND + size)), glossy(texture(gores), 0.08)),
        *place(bug, (0.12, -0.80, GROUND + 0.03), z=130),
    ]


def water() -> list[Part]:
    """Drops on their way from the rose of the can to the flower, above the terrace."""
    points = ((0.645, -0.34, 0.80), (0.675, -0.36, 0.76), (0.655, -0.33, 0.72), (0.69, -0.35, 0.69))
    drop = ball().scale(0.018, 0.018, 0.026)
    return [(merge(*(drop.move(point) for point in points)), glossy(color("#3f8fd6"), 0.1))]


def scene_parts() -> list[Part]:
    """All visible parts."""
    return [
        *base(),
        *robot(),
        *place(flower_pot(), (0.68, -0.33, GROUND)),
        *fence(),
        *place(toadstool(0.36), (-0.57, 0.62, GROUND)),
        *place(toadstool(0.24), (-0.78, 0.36, GROUND), z=50),
        *toys(),
        *place(water(), (0, 0, GROUND)),
    ]


# -------------------------------------------------------------------------------------------------- the light


def direction(azimuth: float, elevation: float) -> Array:
    """Unit vector [3] toward an azimuth and an elevation in radians."""
    flat = math.cos(elevation)
    return np.array([flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)])


def studio() -> Bsdf:
    """Soft boxes in front of a soft sky, infinitely far away, so that no light source is visible in any image.

    Radiance over the sphere as an environment map in Mitsuba's own frame (y up).
    """
    height, width = 128, 256
    u, v = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    phi, theta = 2 * math.pi * u, math.pi * v
    local = np.stack([np.sin(phi) * np.sin(theta), np.cos(theta), -np.cos(phi) * np.sin(theta)], -1)
    to_world = rotation("x", 90)
    toward = local @ to_world.T
    up = toward[..., 2]
    radiance = mix(np.array([0.34, 0.29, 0.25]), np.array([0.42, 0.50, 0.62]), 0.5 + 0.5 * up)
    for azimuth, elevation, spread, tint in (
        (-125, 52, 19, (17.0, 15.2, 12.6)),  # key, warm, from the front left
        (-20, 35, 22, (2.6, 2.9, 3.4)),  # fill, cool, from the right
        (95, 40, 18, (4.5, 4.2, 4.0)),  # rim, from behind
    ):
        cosine = toward @ direction(math.radians(azimuth), math.radians(elevation))
        angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
        weight = np.clip((spread + 2 - angle) / 4, 0, 1)[..., None]
        radiance = radiance * (1 - weight) + np.array(tint) * weight
    matrix = np.eye(4)
    matrix[:3, :3] = to_world
    return {
        "type": "envmap",
        "bitmap": mi.Bitmap(np.ascontiguousarray(radiance, dtype=np.float32)),
        "to_world": mi.ScalarTransform4f(matrix),
    }


# ---------------------------------------------------------------------------------------------------- cameras


def look_at_origin(position: Array) -> Array:
    """Camera-to-world matrix [4, 4] with OpenGL axes (x right, y up, z back) at a position [3]."""
    back = position / np.linalg.norm(position)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(back, right), back, position], -1)
    return matrix


def cameras(split: str) -> list[Array]:
    """The camera-to-world matrices of one split.

    Train and val are spread evenly over the upper hemisphere and a little below the horizon. They follow a Kronecker
    sequence, so the first views are as well spread as all of them. Test is a smooth orbit that rises once.
    """
    poses = []
    for index in range(SPLITS[split]):
        if split == "test":
            turn = index / SPLITS[split]
            azimuth = 2 * math.pi * turn - math.pi / 2
            elevation = math.radians(24 - 14 * math.cos(2 * math.pi * turn))
        else:
            # The two-dimensional golden ratio: the real root of g^3 = g + 1.
            golden = 1.324717957244746
            start = {"train": 0.5, "val": 0.25}[split]
            azimuth = 2 * math.pi * ((start + index / golden) % 1)
            low, high = math.sin(math.radians(-6)), math.sin(math.radians(82))
            elevation = math.asin(low + (high - low) * ((start + index / golden**2) % 1))
        poses.append(look_at_origin(CAMERA_DISTANCE * direction(azimuth, elevation)))
    return poses


# -------------------------------------------------------------------------------------------------- rendering


def build_scene() -> Any:
    """The Mitsuba scene of all parts and the light."""
    # The only variant that runs on every installation and adds samples in a fixed order.
    mi.set_variant("scalar_rgb")
    scene: dict[str, Any] = {
        "type": "scene",
        # Random numbers belong to blocks. Without a fixed size, Mitsuba would adapt it to the number of cores.
        "integrator": {"type": "path", "max_depth": 7, "hide_emitters": True, "block_size": 16},
        "light": studio(),
    }
    for index, (mesh, material) in enumerate(scene_parts()):
        scene[f"part_{index}"] = upload(f"part_{index}", mesh, material)
    return mi.load_dict(scene)


def upload(name: str, mesh: Mesh, material: Bsdf) -> Any:
    """Pass a mesh and its material to Mitsuba."""
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict(material)
    shape = mi.Mesh(
        name,
        vertex_count=len(mesh.vertices),
        face_count=len(mesh.faces),
        has_vertex_normals=True,
        has_vertex_texcoords=True,
        props=properties,
    )
    buffers = mi.traverse(shape)
    buffers["faces"] = mesh.faces.astype(np.uint32).ravel()
    buffers["vertex_positions"] = mesh.vertices.astype(np.float32).ravel()
    buffers["vertex_normals"] = vertex_normals(mesh).astype(np.float32).ravel()
    buffers["vertex_texcoords"] = mesh.uv.astype(np.float32).ravel()
    buffers.update()
    return shape


def render(scene: Any, camera_to_world: Array, size: int, samples: int, seed: int) -> Array:
    """One image as straight (not premultiplied) sRGB with alpha, uint8 [size, size, 4]."""
    sensor = mi.load_dict(
        {
            "type": "perspective",
            "fov_axis": "x",
            "fov": math.degrees(CAMERA_ANGLE_X),
            # Mitsuba's cameras look along +z with x to the left: rotate ours by half a turn about y.
            "to_world": mi.ScalarTransform4f(camera_to_world @ np.diag([-1.0, 1.0, -1.0, 1.0])),
            # With a box filter no sample reaches another block, so the order in which blocks finish does not matter.
            "film": {
                "type": "hdrfilm",
                "width": size,
                "height": size,
                "pixel_format": "rgba",
                "rfilter": {"type": "box"},
            },
            "sampler": {"type": "multijitter", "sample_count": samples},
        }
    )
    premultiplied = np.array(mi.render(scene, sensor=sensor, spp=samples, seed=seed), dtype=np.float64)
    alpha = np.clip(premultiplied[..., 3:], 0, 1)
    linear = np.clip(premultiplied[..., :3] / np.maximum(alpha, 1e-6), 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    picture = np.round(255 * np.concatenate([srgb, alpha], -1)).astype(np.uint8)
    picture[picture[..., 3] == 0] = 0
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description="Render the demo scene in the Blender (NeRF synthetic) layout.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "demo", help="folder to write")
    parser.add_argument("--samples", type=int, default=256, help="rays per pixel")
    parser.add_argument("--size", type=int, default=160, help="width and height in pixels")
    parser.add_argument("--views", type=int, help="only the first views of each split")
    options = parser.parse_args()
    for name in ("samples", "size", "views"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    if mi is None:
        sys.exit("Mitsuba 3, which renders the scene, is not installed. Fix: pip install '.[demo-scene]'")

    foreign = [p for s in SPLITS for p in (options.output / s).glob("*") if not re.fullmatch(r"r_\d+\.png", p.name)]
    if foreign:
        sys.exit(f"{foreign[0]}: is not an image of this scene and would be lost. Fix: choose another --output")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        # Complete or not at all: the images of an interrupted run would not belong to the earlier cameras.
        with tempfile.TemporaryDirectory(prefix=".", dir=options.output) as folder:
            try:
                render_scene(options, Path(folder))
            except KeyboardInterrupt:
                sys.exit("\ninterrupted; nothing was written")
            for made in Path(folder).iterdir():
                if os.path.isdir(options.output / made.name):
                    shutil.rmtree(options.output / made.name)
                os.replace(made, options.output / made.name)
    except OSError as error:
        sys.exit(f"{options.output}: {error.strerror}. Fix: name a folder that can be written with --output")
    print(f"\nwrote {options.output}")


def render_scene(options: argparse.Namespace, output: Path) -> None:
    """Write images and cameras of all splits."""
    scene = build_scene()
    jobs = {split: cameras(split)[: options.views] for split in SPLITS}
    total, done, began = sum(map(len, jobs.values())), 0, time.monotonic()
    for number, (split, poses) in enumerate(jobs.items()):
        frames = []
        (output / split).mkdir()
        for index, pose in enumerate(poses):
            picture = render(scene, pose, options.size, options.samples, seed=1000 * number + index)
            Image.fromarray(picture).save(output / split / f"r_{index}.png", optimize=True)
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": pose.tolist()})
            done += 1
            print(f"\r{done}/{total} views, {time.monotonic() - began:.0f} s", end="", flush=True)
        transforms = {"camera_angle_x": CAMERA_ANGLE_X, "frames": frames}
        (output / f"transforms_{split}.json").write_text(json.dumps(transforms, indent=1) + "\n")


if __name__ == "__main__":
    main()
