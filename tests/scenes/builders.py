"""Tiny scenes in every layout: cameras on an arc around a marker, which each image shows as a white square.

Whatever axes, units and file formats a layout uses, a loaded camera is right if it projects the marker onto
the white square of its image.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eugen_nerf.scenes import Frame, Scene

WIDTH, HEIGHT = 96, 72
FX, FY, CX, CY = 90.0, 84.0, 50.0, 34.0
MARKER = np.array([1.0, -2.0, 0.5])
OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])


def arc_poses(count: int = 9, radius: float = 4.0, spread: float = 2.4) -> np.ndarray:
    """[N, 3, 4] cameras on an arc of `spread` radians, at varying height, looking nearly at the marker."""
    poses = []
    for index, angle in enumerate(np.linspace(-spread / 2, spread / 2, count)):
        offset = radius * np.array([np.cos(angle), np.sin(angle), 0.3 + 0.1 * (index % 3)])
        back = offset + 0.1 * np.array([np.sin(3.0 * index), np.cos(2.0 * index), np.sin(index)])
        back /= np.linalg.norm(back)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        poses.append(np.stack([right, np.cross(back, right), back, MARKER + offset], axis=1))
    return np.array(poses)


def project(pose: np.ndarray, fx: float, fy: float, cx: float, cy: float, point: np.ndarray) -> np.ndarray:
    """[2] pixel coordinates of a point seen by a pinhole camera in OpenGL axes; pixel centers are at .5."""
    x, y, z = pose[:, :3].T @ (point - pose[:, 3])
    return np.array([cx - fx * x / z, cy + fy * y / z])


def draw(pose: np.ndarray, path: Path, camera: tuple[float, ...] = (FX, FY, CX, CY), factor: int = 1) -> None:
    """Write the image of the marker, reduced by `factor`: a white 5 x 5 square on a dark gradient."""
    width, height = WIDTH // factor, HEIGHT // factor
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 60, width)[None]
    pixels[..., 1] = np.linspace(0, 60, height)[:, None]
    fx, fy, cx, cy = camera
    u, v = np.floor(project(pose, fx, fy, cx, cy, MARKER) / factor).astype(int)
    pixels[v - 2 : v + 3, u - 2 : u + 3] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def image_name(index: int, extension: str = ".png") -> str:
    return f"{index:03d}{extension}"


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def square(pose: np.ndarray) -> list[list[float]]:
    return [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]


def make_blender(root: Path, counts: dict[str, int] | None = None, *, alpha: bool = True) -> Path:
    """transforms_{split}.json with images 64 x 64 around the origin; the marker is not used."""
    counts = {"train": 4, "val": 2, "test": 3} if counts is None else counts
    for split, count in counts.items():
        frames = []
        for index, pose in enumerate(arc_poses(count)):
            pose[:, 3] -= MARKER
            image = root / split / f"r_{index}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((64, 64, 4 if alpha else 3), 40 * index % 256, dtype=np.uint8)
            Image.fromarray(pixels).save(image)
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": square(pose)})
        write_json(root / f"transforms_{split}.json", {"camera_angle_x": 0.8, "frames": frames})
    return root


def transforms_meta(poses: np.ndarray, extension: str = ".png") -> dict:
    return {
        "fl_x": FX,
        "fl_y": FY,
        "cx": CX,
        "cy": CY,
        "w": WIDTH,
        "h": HEIGHT,
        "aabb_scale": 4,
        "frames": [
            {"file_path": f"images/{image_name(i, extension)}", "transform_matrix": square(pose)}
            for i, pose in enumerate(poses)
        ],
    }


def make_transforms(root: Path, count: int = 9, **changes: object) -> Path:
    """transforms.json with images/; `changes` are set on, or with None removed from, the top level."""
    poses = arc_poses(count)
    draw_all(root / "images", poses)
    meta = transforms_meta(poses) | changes
    write_json(root / "transforms.json", {key: value for key, value in meta.items() if value is not None})
    return root


def draw_all(folder: Path, poses: np.ndarray, **options: Any) -> None:
    for index, pose in enumerate(poses):
        draw(pose, folder / image_name(index), **options)


def edit_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON file's top level."""
    write_json(path, json.loads(path.read_text()) | changes)


def edit_frame(path: Path, index: int, **changes: object) -> None:
    """Set keys of one frame of a transforms file."""
    meta = json.loads(path.read_text())
    meta["frames"][index].update(changes)
    write_json(path, meta)


def make_llff(root: Path, count: int = 9, poses: np.ndarray | None = None) -> Path:
    """poses_bounds.npy with images/. LLFF has one focal length, and the principal point is the center."""
    poses = arc_poses(count) if poses is None else poses
    draw_all(root / "images", poses, camera=(FX, FX, WIDTH / 2, HEIGHT / 2))
    right, up, back, position = (poses[:, :, i] for i in range(4))
    hwf = np.broadcast_to([HEIGHT, WIDTH, FX], position.shape)
    matrices = np.stack([-up, right, back, position, hwf], axis=-1)
    depth = np.linalg.norm(position - MARKER, axis=-1)
    rows = np.concatenate([matrices.reshape(len(poses), 15), 0.8 * depth[:, None], 3 * depth[:, None]], axis=1)
    np.save(root / "poses_bounds.npy", rows)
    return root


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation: the eigenvector to eigenvalue 1 of a matrix derived from it."""
    r = rotation
    matrix = np.array(
        [
            [r[0, 0] + r[1, 1] + r[2, 2], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
            [r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1]],
            [r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1]],
        ]
    )
    return np.linalg.eigh(matrix)[1][:, -1]


def world_to_camera(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """COLMAP's quaternion and translation of a camera-to-world matrix in OpenGL axes."""
    rotation = OPENGL_TO_OPENCV @ pose[:, :3].T
    return quaternion(rotation), -rotation @ pose[:, 3]


CAMERAS_TXT = f"# a comment\n1 PINHOLE {WIDTH} {HEIGHT} {FX} {FY} {CX} {CY}\n"


def images_txt(poses: np.ndarray) -> str:
    lines = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME"]
    for index, pose in enumerate(poses):
        q, t = world_to_camera(pose)
        numbers = " ".join(repr(float(x)) for x in (*q, *t))
        lines += [f"{index + 1} {numbers} 1 {image_name(index)}", "10.0 20.0 1" if index % 2 else ""]
    return "\n".join(lines) + "\n"


POINTS_TXT = "# points\n1 {} {} {} 255 128 7 0.5 1 0 2 0\n2 0.0 0.0 0.0 1 2 3 0.1\n".format(*MARKER)


def make_colmap_text(root: Path, count: int = 9) -> Path:
    poses = arc_poses(count)
    draw_all(root / "images", poses)
    folder = root / "sparse" / "0"
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text(CAMERAS_TXT)
    (folder / "images.txt").write_text(images_txt(poses))
    (folder / "points3D.txt").write_text(POINTS_TXT)
    return root


def camera_record(identifier: int, model: int, params: list[float], size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    return struct.pack(f"<IiQQ{len(params)}d", identifier, model, *size, *params)


def image_record(identifier: int, pose: np.ndarray, camera: int, name: str, observations: int = 2) -> bytes:
    q, t = world_to_camera(pose)
    head = struct.pack("<I7dI", identifier, *q, *t, camera) + name.encode() + b"\0"
    return head + struct.pack("<Q", observations) + observations * struct.pack("<2dq", 1.0, 2.0, 1)


def point_record(identifier: int, position: np.ndarray, color: tuple[int, int, int], track: int = 2) -> bytes:
    return struct.pack("<Q3d3BdQ", identifier, *position, *color, 0.5, track) + track * struct.pack("<2I", 1, 0)


def counted(records: list[bytes]) -> bytes:
    return struct.pack("<Q", len(records)) + b"".join(records)


def make_colmap_binary(root: Path, count: int = 9) -> Path:
    """A model with one PINHOLE camera shared by all images, and two points."""
    poses = arc_poses(count)
    draw_all(root / "images", poses)
    folder = root / "sparse" / "0"
    folder.mkdir(parents=True)
    (folder / "cameras.bin").write_bytes(counted([camera_record(1, 1, [FX, FY, CX, CY])]))
    records = [image_record(i + 1, pose, 1, image_name(i), i % 3) for i, pose in enumerate(poses)]
    (folder / "images.bin").write_bytes(counted(records))
    points = [point_record(1, MARKER, (255, 128, 7)), point_record(2, np.zeros(3), (1, 2, 3), 0)]
    (folder / "points3D.bin").write_bytes(counted(points))
    return root


def marker_in(scene: Scene) -> np.ndarray:
    """The marker's position in the returned scene's world."""
    return scene.world_scale * (scene.world_transform[:, :3] @ MARKER + scene.world_transform[:, 3])


def marker_pixel(scene: Scene, frame: Frame) -> np.ndarray:
    """Pixel coordinates of the marker in a loaded camera."""
    return project(frame.camera_to_world, frame.fx, frame.fy, frame.cx, frame.cy, marker_in(scene))
