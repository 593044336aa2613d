"""Find image files by the names that scenes list, and check them without decoding the pixels."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image

from eugen_nerf.errors import SceneError

# In order of preference if a scene does not state the extension.
EXTENSIONS = (".png", ".jpg", ".jpeg")
# Pillow's other readers are for formats that photos do not use, or start external programs (EPS).
FORMATS = ("PNG", "JPEG")
ORIENTATION_TAG = 274

_PNG_SIGNATURE_LENGTH = 8
_JPEG_END = b"\xff\xd9"


@dataclass(frozen=True)
class ImageInfo:
    """An image's header: `size` (width, height) in pixels, Pillow's mode, transparency, rotation by EXIF."""

    size: tuple[int, int]
    mode: str
    has_alpha: bool
    rotated_by_exif: bool


class ImageFinder:
    """Finds the images that a scene lists. Caches folder listings, so that 1,000 frames cost one listing."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, list[str]]] = {}
        self._reduced: dict[Path, dict[int, Path]] = {}

    def find(self, path: Path) -> Path | None:
        """The image at `path`, or one beside it whose name differs only in the extension.

        Files from Blender and instant-ngp list images without an extension, or with that of the original video
        frames: "train/r_0" finds train/r_0.png, "images/0001.png" finds images/0001.jpg.
        """
        if path.suffix.lower() in EXTENSIONS and os.path.isfile(path):
            return path
        stems = self._stems(os.path.dirname(path))
        for stem in (path.name, path.stem):
            if stem in stems:
                return path.parent / stems[stem][0]
        return None

    def reduced_folders(self, folder: Path) -> dict[int, Path]:
        """Result of the function `reduced_folders`, cached."""
        if folder not in self._reduced:
            self._reduced[folder] = reduced_folders(folder)
        return self._reduced[folder]

    def _stems(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._folders:
            stems: dict[str, list[str]] = {}
            for name in list_images(Path(folder)):
                stems.setdefault(Path(name).stem, []).append(name)
            for names in stems.values():
                names.sort(key=lambda name: (EXTENSIONS.index(Path(name).suffix.lower()), name))
            self._folders[folder] = stems
        return self._folders[folder]


def list_images(folder: Path) -> list[str]:
    """Sorted names of the images in a folder; empty if the folder does not exist."""
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):
        return []
    return sorted(
        name for name in names if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
    )


def reduced_folders(folder: Path) -> dict[int, Path]:
    """Folders next to `folder` whose names mark downscaled copies, by factor: {4: images_4} for images."""
    pattern = re.compile(re.escape(folder.name) + r"_([1-9][0-9]{0,3})")
    try:
        names = sorted(os.listdir(folder.parent))
    except (OSError, ValueError):
        return {}
    found = {}
    for name in names:
        match = pattern.fullmatch(name)
        if match and int(match[1]) > 1 and os.path.isdir(folder.parent / name):
            found[int(match[1])] = folder.parent / name
    return found


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image in pixels, without checking that the file is complete.

    Raises:
        SceneError: it has no readable header.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except Exception:
        return inspect_image(path).size  # raises an error that says what is wrong


def inspect_image(path: Path) -> ImageInfo:
    """Header of an image, after checking that the file is complete.

    Raises:
        SceneError: the file is empty, not a PNG or JPEG, or ends before its end marker.
    """
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise SceneError(f"{path}: the image file is empty (0 bytes); copy or export it again")
            file.seek(0)
            try:
                with Image.open(file, formats=FORMATS) as image:
                    info = ImageInfo(image.size, image.mode, _has_alpha(image), _rotated_by_exif(image))
                    is_png = image.format == "PNG"
                if min(info.size) < 1:
                    raise ValueError("its size is zero")
            # Pillow's header readers may raise almost any exception for damaged bytes.
            except Exception as error:
                raise SceneError(f"{path}: not a readable PNG or JPEG image ({_reason(error)})") from None
            if not (_png_is_whole(file) if is_png else _jpeg_is_whole(file)):
                size = os.fstat(file.fileno()).st_size
                raise SceneError(
                    f"{path}: the image is truncated: the file ends at byte {size} before the image does; "
                    "copy or export it again"
                )
    except OSError as error:
        raise SceneError(f"{path}: cannot be read ({error.strerror or error})") from None
    return info


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "its first bytes are of neither format"
    return f"{type(error).__name__}: {error}"


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _rotated_by_exif(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ORIENTATION_TAG) in (5, 6, 7, 8)
    # Damaged EXIF data does not affect the pixels.
    except Exception:
        return False


def _png_is_whole(file: IO[bytes]) -> bool:
    """Walk the chunk headers to IEND. Bytes after IEND are allowed, since some cameras append metadata."""
    end = os.fstat(file.fileno()).st_size
    offset = _PNG_SIGNATURE_LENGTH
    while offset + 12 <= end:
        file.seek(offset)
        header = file.read(8)
        offset += 12 + int.from_bytes(header[:4], "big")
        if header[4:] == b"IEND":
            return True
    return False


def _jpeg_is_whole(file: IO[bytes]) -> bool:
    """Look for the end marker after the start of the scan, since an embedded thumbnail has its own end marker.

    Inside a scan every 0xFF is escaped, so the first end marker found there belongs to the image, even if a phone has
    appended data after it.
    """
    file.seek(-len(_JPEG_END), os.SEEK_END)
    if file.read() == _JPEG_END:
        return True
    file.seek(0)
    data = file.read()
    offset = 2
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        marker = data[offset + 1]
        if marker == 0xDA:
            return data.find(_JPEG_END, offset) >= 0
        # A marker may be preceded by any number of 0xFF fill bytes.
        offset += 1 if marker == 0xFF else 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    return False
