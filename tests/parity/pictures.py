"""The pixels of PNG files, and whether they show what the SVG beside them says."""

import struct
import zlib

import numpy as np


def png_pixels(path):
    """[height, width, 3] of an RGB file without interlace: every chunk with its checksum, every row unfiltered."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, packed, size = 8, b"", None
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        body = data[position + 8 : position + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[position + 8 + length : position + 12 + length])[0]
        if kind == b"IHDR":
            size = struct.unpack(">II", body[:8])
            assert body[8:] == bytes([8, 2, 0, 0, 0])
        if kind == b"IDAT":
            packed += body
        position += 12 + length
    width, height = size
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + 3 * width)
    pixels = np.zeros((height + 1, width, 3), np.uint8)  # above the first row: zeros
    for y, row in enumerate(rows, 1):
        line, above = row[1:].reshape(width, 3), pixels[y - 1]
        if row[0] in (0, 2):
            pixels[y] = line + (above if row[0] == 2 else 0)
        elif row[0] == 1:
            pixels[y] = np.cumsum(line, axis=0, dtype=np.uint8)
        else:  # average and Paeth: by the pixel before
            left, corner, out = [0, 0, 0], [0, 0, 0], []
            for new, up in zip(line.tolist(), above.tolist()):
                if row[0] == 3:
                    left = [(n + (l + u) // 2) % 256 for n, l, u in zip(new, left, up)]
                else:
                    left = [(n + min((l, u, c), key=lambda v: abs(l + u - c - v))) % 256
                            for n, l, u, c in zip(new, left, up, corner)]
                corner = up
                out.append(left)
            pixels[y] = out
    return pixels[1:]


def colour(element, attribute):
    return np.array(list(bytes.fromhex(element.get(attribute)[1:])))


def check_pixels(pixels, root):
    """The picture shows what the SVG says: cells in their colours, points of curves in theirs. Returns how many."""
    seen = 0
    for cell in root.iter("{http://www.w3.org/2000/svg}rect"):
        if len(cell) == 0:  # without a value to point at
            continue
        x, y = (float(cell.get(key)) + 1.5 for key in ("x", "y"))
        assert (pixels[round(2 * y), round(2 * x)] == colour(cell, "fill")).all(), cell[0].text
        seen += 1
    discs = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    for disc in discs:
        x, y = round(2 * float(disc.get("cx"))), round(2 * float(disc.get("cy")))
        wanted = [colour(other, "fill") for other in discs  # one may lie on another
                  if abs(2 * float(other.get("cx")) - x) < 10 and abs(2 * float(other.get("cy")) - y) < 10]
        assert any((pixels[y, x] == each).all() for each in wanted)
        seen += 1
    return seen
