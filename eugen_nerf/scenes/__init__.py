"""Load scenes from disk: detect the layout, check every file, return cameras and images.

>>> from eugen_nerf.scenes import load_scene, read_image
>>> scene = load_scene("data/demo", "train")
>>> pixels = read_image(scene.frames[0])
"""

from eugen_nerf.errors import SceneError
from eugen_nerf.scenes.detect import detect_layout
from eugen_nerf.scenes.pixels import read_image, read_mask
from eugen_nerf.scenes.scene import Frame, Scene, load_scene

__all__ = ["Frame", "Scene", "SceneError", "detect_layout", "load_scene", "read_image", "read_mask"]
