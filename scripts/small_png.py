"""Pictures of pages as PNG files with a palette: half as large as with all colours.

Takes pixels; gives the file's bytes. The 256 most frequent colours are kept, and each other pixel
takes the nearest of them: what is lost are shades at the edges of letters.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

MOST_COLOURS = 256


def indexed_png(pixels: NDArray[np.uint8]) -> bytes:
    """A picture as a PNG file with a palette.

    Args:
        pixels: Red, green and blue, of shape (height, width, 3).
    """
    height, width, _ = pixels.shape
    colours, found, counts = np.unique(
        pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    kept = np.argsort(-counts, kind="stable")[:MOST_COLOURS]
    palette = colours[kept]
    away = colours[:, None, :].astype(np.int32) - palette[None, :, :].astype(np.int32)
    nearest = (away**2).sum(axis=2).argmin(axis=1).astype(np.uint8)
    rows = np.zeros((height, width + 1), np.uint8)  # each begins with its filter: none
    rows[:, 1:] = nearest[found.reshape(height, width)]
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", head),
        (b"PLTE", palette.astype(np.uint8).tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
