"""Folders of image files: what lies in them, and their pixels.

Only formats that Pillow decodes by itself are opened (it would start Ghostscript for PostScript), and no
symbolic link leads out of the data folder.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparcl.errors import UserError, one_line

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


def entries(folder: Path, top: Path, expected: str) -> list[os.DirEntry[str]]:
    """Return the visible entries of ``folder``, sorted by name.

    Raises:
        UserError: no such folder, or it or an entry is a symbolic link that leads out of ``top``.
    """
    try:
        confine(folder, top)
        with os.scandir(folder) as found:
            visible = sorted((entry for entry in found if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: expected {expected} ({error.strerror})") from error
    for entry in visible:
        if entry.is_symlink():
            confine(Path(entry.path), top)
    return visible


def confine(path: Path, top: Path) -> None:
    """Raise UserError when ``path``, symbolic links followed, is not inside ``top``."""
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(top)):
        raise UserError(f"{path}: expected a path inside {top}, but it leads out of it")


def images_in(folder: Path, top: Path) -> list[Path]:
    """Return the image files of ``folder``, sorted by name.

    Raises:
        UserError: no such folder, no image in it, or something else in it.
    """
    found = entries(folder, top, "a folder of images")
    for entry in found:
        if not entry.name.lower().endswith(SUFFIXES) or not os.path.isfile(entry.path):
            raise UserError(f"{entry.path}: expected an image file ({', '.join(SUFFIXES)})")
    if not found:
        raise UserError(f"{folder}: expected at least one image")
    return [Path(entry.path) for entry in found]


def decode(files: Sequence[Path], images: np.ndarray, resize: bool) -> None:
    """Write the RGB pixels of ``files`` into ``images``, uint8 (N, 3, H, W).

    Args:
        resize: scale each image to (H, W), bilinear with antialiasing, upright as its EXIF data say;
            otherwise
            the image must have that size.

    Raises:
        UserError: a file is not an image, is damaged, is larger than Pillow's limit against decompression
        bombs,
            or has another size; the line names it.
    """
    from PIL import Image, ImageOps

    height, width = images.shape[-2:]
    for index, file in enumerate(files):
        try:
            with warnings.catch_warnings(), Image.open(file, formats=FORMATS) as image:
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                upright = ImageOps.exif_transpose(image) if resize else image
                pixels = upright.convert("RGB")
        except Exception as error:  # Pillow raises many types on damaged files (OSError, SyntaxError, struct.error)
            raise UserError(f"{file}: expected an image that can be decoded ({one_line(error, 120)})") from error
        if resize:
            pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
        elif pixels.size != (width, height):
            raise UserError(
                f"{file}: expected an image of {width}x{height} pixels, found {pixels.size[0]}x{pixels.size[1]}"
            )
        images[index] = np.asarray(pixels).transpose(2, 0, 1)
