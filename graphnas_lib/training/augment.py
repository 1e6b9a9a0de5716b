"""Augmentation of image batches as tensor operations: crop, flip, AutoAugment, lighting, erasing.

Everything that is drawn at random is drawn on the CPU from the generator given, so that a seed means the same images
on every device; the pixels stay where they are. AutoAugment's policies are the published ones (Cubuk et al. 2019), with
the magnitudes that ZenNAS uses; each of its operations runs once on all images of the batch that drew it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# principal colours of ImageNet's pixels in 0..1 (Krizhevsky et al. 2012): deviations, and directions as columns
_COLOUR_VALUES = (0.2175, 0.0188, 0.0045)
_COLOUR_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
FILL = 128  # grey outside the image after a geometric operation, as in ZenNAS's recipe

# two (operation, probability, magnitude 0..9) a sub-policy: Cubuk et al. 2019, Tables 7 and 9, as ZenNAS has them
POLICIES = {
    "cifar": (
        (("invert", 0.1, 7), ("contrast", 0.2, 6)),
        (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
        (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
        (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
        (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
        (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
        (("color", 0.4, 3), ("brightness", 0.6, 7)),
        (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
        (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
        (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
        (("color", 0.7, 7), ("translate_x", 0.5, 8)),
        (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
        (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
        (("brightness", 0.9, 6), ("color", 0.2, 8)),
        (("solarize", 0.5, 2), ("invert", 0.0, 3)),
        (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
        (("equalize", 0.2, 8), ("equalize", 0.8, 4)),
        (("color", 0.9, 9), ("equalize", 0.6, 6)),
        (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
        (("brightness", 0.1, 3), ("color", 0.7, 0)),
        (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
        (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
        (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
        (("equalize", 0.8, 8), ("invert", 0.1, 3)),
        (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
    ),
    "imagenet": (
        (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
        (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
        (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
        (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
        (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
        (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
        (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
        (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
        (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
        (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
        (("rotate", 0.8, 8), ("color", 0.4, 0)),
        (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
        (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
        (("invert", 0.6, 4), ("equalize", 1.0, 8)),
        (("color", 0.6, 4), ("contrast", 1.0, 8)),
        (("rotate", 0.8, 8), ("color", 1.0, 2)),
        (("color", 0.8, 8), ("solarize", 0.8, 7)),
        (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
        (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
        (("color", 0.4, 0), ("equalize", 0.6, 3)),
        (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
        (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
        (("invert", 0.6, 4), ("equalize", 1.0, 8)),
        (("color", 0.6, 4), ("contrast", 1.0, 8)),
        (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    ),
}


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
    if policy not in POLICIES:
        raise ValueError(f"AutoAugment policy must be one of {tuple(POLICIES)}; got {policy!r}.")
    table, n = POLICIES[policy], len(images)
    drawn = torch.randint(len(table), (n,), generator=generator).tolist()
    chance = torch.rand(2, n, generator=generator).tolist()
    signs = (torch.randint(2, (2, n), generator=generator) * 2 - 1).tolist()
    images = images.clone()
    for turn in (0, 1):
        groups: dict[str, list[tuple[int, float]]] = {}
        for i in range(n):  # three list look-ups an image; the pixels are touched group by group
            name, probability, magnitude = table[drawn[i]][turn]
            if chance[turn][i] < probability:
                groups.setdefault(name, []).append((i, magnitude / 9 * (signs[turn][i] if name in _SIGNED else 1)))
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

_SIGNED = {"shear_x", "shear_y", "translate_x", "translate_y", "color", "contrast", "sharpness", "brightness"}


def apply(name: str, images: Tensor, level: Tensor) -> Tensor:
    """One named operation on a whole batch."""
    if name == "invert":
        return 255 - images
    if name == "solarize":
        return torch.where(images < _each(256 * (1 - level)), images, 255 - images)
    if name == "posterize":
        keep = (8 - torch.round(level * 4)).to(torch.int32)  # bits that stay
        return images & _each(256 - 2 ** (8 - keep)).to(torch.uint8)
    if name == "autocontrast":
        return _autocontrast(images)
    if name == "equalize":
        return _equalize(images)
    if name in ("brightness", "color", "contrast", "sharpness"):
        return _blend(_degenerate(name, images), images, 1 + 0.9 * level)
    return _geometric(name, images, level)


def _each(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)


def _blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """degenerate + factor (images - degenerate), clipped and truncated to uint8."""
    mixed = degenerate + _each(factor) * (images.float() - degenerate)
    return mixed.clamp_(0, 255).to(torch.uint8)


def _degenerate(name: str, images: Tensor) -> Tensor:
    if name == "brightness":
        return torch.zeros_like(images, dtype=torch.float32)
    if name == "sharpness":
        kernel = torch.ones(3, 3, device=images.device)
        kernel[1, 1] = 5
        smooth = F.conv2d(images.float(), (kernel / 13).expand(images.shape[1], 1, 3, 3), groups=images.shape[1])
        out = images.float()
        out[:, :, 1:-1, 1:-1] = torch.round(smooth)  # the border stays
        return out
    weights = torch.tensor([19595, 38470, 7471], device=images.device).view(1, 3, 1, 1)  # ITU-R 601 in 16 bits
    grey = ((images.int() * weights).sum(1, keepdim=True) + 0x8000) >> 16  # (B, 1, H, W)
    if name == "contrast":
        return torch.floor(grey.float().mean((1, 2, 3), keepdim=True) + 0.5).expand_as(images)
    return grey.float().expand_as(images)


def _autocontrast(images: Tensor) -> Tensor:
    low, high = images.float().amin((2, 3), keepdim=True), images.float().amax((2, 3), keepdim=True)
    scaled = ((images.float() - low) * 255 / (high - low).clamp_min(1)).clamp_(0, 255)
    return torch.where(high > low, scaled.to(torch.uint8), images)


def _equalize(images: Tensor) -> Tensor:
    pixels = images.flatten(2).long()  # (B, C, HW)
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    last = counts.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - last) // 255  # (B, C, 1)
    table = (counts.cumsum(2) - counts + step // 2) // step.clamp_min(1)
    mapped = table.clamp_(0, 255).gather(2, pixels).view(images.shape).to(torch.uint8)
    return torch.where((step > 0)[..., None], mapped, images)


def _geometric(name: str, images: Tensor, level: Tensor) -> Tensor:
    """Shear (bicubic), translation and rotation (nearest); output pixel p shows input pixel M p."""
    n, _, height, width = images.shape
    matrix = torch.eye(2, 3, device=images.device).repeat(n, 1, 1)  # pixel coordinates, origin at the corner
    if name in ("translate_x", "translate_y"):
        axis, side = (0, width) if name == "translate_x" else (1, height)
        matrix[:, axis, 2] = level * side * 150 / 331
    elif name in ("shear_x", "shear_y"):
        row = 0 if name == "shear_x" else 1
        matrix[:, row, 1 - row] = 0.3 * level
    else:
        angle = torch.deg2rad(-30 * level)
        cos, sin, x, y = torch.cos(angle), torch.sin(angle), width / 2, height / 2
        matrix[:, 0] = torch.stack([cos, sin, x - x * cos - y * sin], 1)
        matrix[:, 1] = torch.stack([-sin, cos, y + x * sin - y * cos], 1)
    ys, xs = torch.meshgrid(
        torch.arange(height, device=images.device) + 0.5, torch.arange(width, device=images.device) + 0.5, indexing="ij"
    )
    points = torch.stack([xs, ys, torch.ones_like(xs)], -1).view(1, -1, 3)
    source = (points @ matrix.transpose(1, 2)).view(n, height, width, 2)
    grid = source * 2 / torch.tensor([width, height], device=images.device) - 1
    mode = "bicubic" if name.startswith("shear") else "nearest"
    moved = F.grid_sample(images.float() - FILL, grid, mode=mode, padding_mode="zeros", align_corners=False)
    return (moved + FILL).round_().clamp_(0, 255).to(torch.uint8)
