"""Augmentation of image batches as tensor operations: crop, flip, AutoAugment, lighting, erasing.

Everything that is drawn at random is drawn on the CPU from the generator given, so that a seed means the same images
on every device; the pixels stay where they are. AutoAugment's policies are the published ones (Cubuk et al. 2019), with
the magnitudes that ZenNAS uses; each of its operations runs once on all images of the batch that drew it.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from graphnas_lib.store import one_of

# principal colours of ImageNet's pixels in 0..1 (Krizhevsky et al. 2012): deviations, and directions as columns
_COLOUR_VALUES = (0.2175, 0.0188, 0.0045)
_COLOUR_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
FILL_GREY = 128  # outside the image after a geometric operation, as in ZenNAS's recipe

# policy -> sub-policies of two (operation, probability, magnitude 0..9)
POLICIES = tomllib.loads(Path(__file__).with_name("autoaugment.toml").read_text(encoding="utf-8"))


def crop_and_flip(images: Tensor, *, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random crop of the zero-padded image and, with `flip`, a random mirror image; (B, C, H, W) in any dtype.

    Returns a tensor whose memory is channels-last.
    """
    n, _, height, width = images.shape
    top, left = torch.randint(2 * padding + 1, (2, n, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)  # (B, H), (B, W)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (padding,) * 4)
    rows, columns = (index.to(images.device, non_blocking=True) for index in (rows, columns))
    batch = torch.arange(n, device=images.device)[:, None, None]
    return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)


def auto_augment(images: Tensor, policy: str, *, generator: torch.Generator) -> Tensor:
    """One random sub-policy of AutoAugment an image; uint8 (B, 3, H, W) in and out."""
    table, n = POLICIES[one_of("AutoAugment policy", policy, POLICIES)], len(images)
    drawn = torch.randint(len(table), (n,), generator=generator).tolist()
    chance = torch.rand(2, n, generator=generator).tolist()
    signs = (torch.randint(2, (2, n), generator=generator) * 2 - 1).tolist()
    images = images.clone()
    for turn in (0, 1):
        groups: dict[str, list[tuple[int, float]]] = {}
        for i in range(n):  # three list look-ups an image; the pixels are touched group by group
            name, probability, magnitude = table[drawn[i]][turn]
            if chance[turn][i] < probability:
                groups.setdefault(name, []).append((i, magnitude / 9 * (signs[turn][i] if name in SIGNED else 1)))
        for name, members in groups.items():
            index = torch.tensor([i for i, _ in members]).to(images.device, non_blocking=True)
            level = torch.tensor([value for _, value in members]).to(images.device, non_blocking=True)
            images[index] = apply(name, images[index], level)
    return images


def lighting(images: Tensor, strength: float, std: Sequence[float], *, generator: torch.Generator) -> Tensor:
    """Noise along the principal colours of ImageNet (Krizhevsky et al. 2012), one draw an image, `strength` 0.1.

    For images (B, 3, H, W) that were divided by `std`: the noise is of values in 0..1, and is divided likewise.
    """
    values, vectors = torch.tensor(_COLOUR_VALUES), torch.tensor(_COLOUR_VECTORS)
    amounts = strength * torch.randn(len(images), 3, generator=generator)  # along each of the three colours
    noise = (amounts * values) @ vectors.T / torch.tensor(std)  # (B, 3)
    return images + noise.to(images)[:, :, None, None]


def random_erasing(images: Tensor, probability: float, *, generator: torch.Generator) -> Tensor:
    """A rectangle of 2-33% of the area, aspect 0.3-3.3, set to 0 in a share of the images (after normalisation)."""
    n, _, height, width = images.shape
    area = height * width * (0.02 + 0.31 * torch.rand(n, 10, generator=generator))  # ten tries an image
    ratio = torch.exp(math.log(0.3) + math.log(11.0) * torch.rand(n, 10, generator=generator))
    h, w = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
    fits = (h < height) & (w < width) & (h > 0) & (w > 0)
    first = fits.int().argmax(1, keepdim=True)
    h, w = h.gather(1, first), w.gather(1, first)  # (B, 1)
    top = torch.floor(torch.rand(n, 1, generator=generator) * (height - h + 1))
    left = torch.floor(torch.rand(n, 1, generator=generator) * (width - w + 1))
    chosen = (torch.rand(n, 1, generator=generator) < probability) & fits.any(1, keepdim=True)
    y, x = torch.arange(height), torch.arange(width)
    rows, columns = (y >= top) & (y < top + h) & chosen, (x >= left) & (x < left + w)
    rows, columns = (side.to(images.device, non_blocking=True) for side in (rows, columns))
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


# ---- AutoAugment's operations: uint8 (B, 3, H, W) and a level (B,) in 0..1, negative where the sign is random

ENHANCEMENTS = ("brightness", "color", "contrast", "sharpness")
SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", *ENHANCEMENTS)


def apply(name: str, images: Tensor, level: Tensor) -> Tensor:
    """One named operation on a whole batch."""
    each = level.view(-1, 1, 1, 1)
    if name == "invert":
        return 255 - images
    if name == "solarize":
        return torch.where(images < 256 * (1 - each), images, 255 - images)
    if name == "posterize":
        dropped = torch.round(each * 4).to(torch.int32)  # bits
        return images & (256 - 2**dropped).to(torch.uint8)
    if name == "autocontrast":
        low, high = images.float().amin((2, 3), keepdim=True), images.float().amax((2, 3), keepdim=True)
        scaled = ((images.float() - low) * 255 / (high - low).clamp_min(1)).clamp_(0, 255)
        return torch.where(high > low, scaled.to(torch.uint8), images)
    if name == "equalize":
        return equalize(images)
    if name in ENHANCEMENTS:  # towards or away from an image without colour, contrast, ...
        plain = degenerate(name, images)
        return (plain + (1 + 0.9 * each) * (images.float() - plain)).clamp_(0, 255).to(torch.uint8)
    return move(name, images, level)


def equalize(images: Tensor) -> Tensor:
    """Each channel's histogram made flat, as Pillow does it."""
    pixels = images.flatten(2).long()  # (B, C, HW)
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    last = counts.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - last) // 255  # (B, C, 1)
    table = (counts.cumsum(2) - counts + step // 2) // step.clamp_min(1)
    mapped = table.clamp_(0, 255).gather(2, pixels).view(images.shape).to(torch.uint8)
    return torch.where((step > 0)[..., None], mapped, images)


def degenerate(name: str, images: Tensor) -> Tensor:
    """What an enhancement blends with: black, smoothed, grey, or uniformly grey images in float32."""
    if name == "brightness":
        return torch.zeros_like(images, dtype=torch.float32)
    if name == "sharpness":
        kernel = torch.ones(3, 3, device=images.device)
        kernel[1, 1] = 5
        out = images.float()
        smooth = F.conv2d(out, (kernel / 13).expand(images.shape[1], 1, 3, 3), groups=images.shape[1])
        out[:, :, 1:-1, 1:-1] = torch.round(smooth)  # the border stays
        return out
    weights = torch.tensor([19595, 38470, 7471], device=images.device).view(1, 3, 1, 1)  # ITU-R 601 in 16 bits
    grey = (((images.int() * weights).sum(1, keepdim=True) + 0x8000) >> 16).float()  # (B, 1, H, W)
    return torch.floor(grey.mean((1, 2, 3), keepdim=True) + 0.5) if name == "contrast" else grey


def move(name: str, images: Tensor, level: Tensor) -> Tensor:
    """Shear (bicubic), translation and rotation (nearest); output pixel p shows input pixel M p."""
    n, _, height, width = images.shape
    matrix = torch.eye(2, 3, device=images.device).repeat(n, 1, 1)  # pixel coordinates, origin at the corner
    row = 0 if name.endswith("_x") else 1
    if name.startswith("translate"):
        matrix[:, row, 2] = level * (width, height)[row] * 150 / 331
    elif name.startswith("shear"):
        matrix[:, row, 1 - row] = 0.3 * level
    else:
        angle = torch.deg2rad(-30 * level)
        cos, sin, x, y = torch.cos(angle), torch.sin(angle), width / 2, height / 2
        matrix[:, 0] = torch.stack([cos, sin, x - x * cos - y * sin], 1)
        matrix[:, 1] = torch.stack([-sin, cos, y + x * sin - y * cos], 1)
    sides = (torch.arange(side, device=images.device) + 0.5 for side in (height, width))
    ys, xs = torch.meshgrid(*sides, indexing="ij")
    points = torch.stack([xs, ys, torch.ones_like(xs)], -1).view(1, -1, 3)
    source = (points @ matrix.transpose(1, 2)).view(n, height, width, 2)
    grid = source * 2 / torch.tensor([width, height], device=images.device) - 1
    mode = "bicubic" if name.startswith("shear") else "nearest"
    moved = F.grid_sample(images.float() - FILL_GREY, grid, mode=mode, padding_mode="zeros", align_corners=False)
    return (moved + FILL_GREY).round_().clamp_(0, 255).to(torch.uint8)
