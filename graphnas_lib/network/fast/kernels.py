"""Loops over maps that PyTorch would make in several passes, compiled on first use and kept on disk.

Maps are (rows, channels) float32, one row a position (channels_last); sums are float64, added up from float32 sums of
`ROWS` rows; factors and offsets are (channels,) float32. One thread, like the workers that call them.
"""

import numpy as np

from graphnas_lib.space import compiled

ROWS = 64  # rows summed in float32 before they are added in float64

_compiled = compiled(fastmath=True, nogil=True)


@_compiled
def sums(z, pivot, sums, squares):
    """Sums += sum(z - pivot), squares += sum((z - pivot)^2)."""
    n, c = z.shape
    a, b = np.zeros(c, np.float32), np.zeros(c, np.float32)
    for start in range(0, n, ROWS):
        a[:] = 0
        b[:] = 0
        for i in range(start, min(n, start + ROWS)):
            for j in range(c):
                v = z[i, j] - pivot[j]
                a[j] += v
                b[j] += v * v
        for j in range(c):
            sums[j] += a[j]
            squares[j] += b[j]


@_compiled
def shift_relu(z, shift):
    """Z <- ReLU(z + shift)."""
    n, c = z.shape
    for i in range(n):
        for j in range(c):
            z[i, j] = max(z[i, j] + shift[j], np.float32(0))


@_compiled
def norm_relu(z, scale, shift, out):
    """Out <- ReLU(scale z + shift); `out` may be z."""
    n, c = z.shape
    for i in range(n):
        for j in range(c):
            out[i, j] = max(z[i, j] * scale[j] + shift[j], np.float32(0))


@_compiled
def masked_sums(d, z, inner, pivot, sums, products):
    """Of d where the ReLU let through, and of d (z - pivot)."""
    n, c = z.shape
    a, b = np.zeros(c, np.float32), np.zeros(c, np.float32)
    for start in range(0, n, ROWS):
        a[:] = 0
        b[:] = 0
        for i in range(start, min(n, start + ROWS)):
            for j in range(c):
                v = d[i, j] if inner[i, j] > 0 else np.float32(0)
                a[j] += v
                b[j] += v * (z[i, j] - pivot[j])
        for j in range(c):
            sums[j] += a[j]
            products[j] += b[j]


@_compiled
def norm_backward(d, z, scale, shift, slope, tilt, level):
    """D <- slope [relu let through] d + tilt z + level."""
    n, c = z.shape
    for i in range(n):
        for j in range(c):
            v = d[i, j] if z[i, j] * scale[j] + shift[j] > 0 else np.float32(0)
            d[i, j] = slope[j] * v + tilt[j] * z[i, j] + level[j]


@_compiled
def mask(d, inner, sums):
    """D <- d where the ReLU let through; sums += its sum."""
    n, c = d.shape
    a = np.zeros(c, np.float32)
    for start in range(0, n, ROWS):
        a[:] = 0
        for i in range(start, min(n, start + ROWS)):
            for j in range(c):
                v = d[i, j] if inner[i, j] > 0 else np.float32(0)
                d[i, j] = v
                a[j] += v
        for j in range(c):
            sums[j] += a[j]
