"""Proxies since the paper that read spectra: AZ-NAS's three terms and VKDNW's entropy.

Both score a network with Kaiming weights on standard normal inputs, so they need its shape alone and no data. AZ-NAS
(Lee & Ham, CVPR 2024) looks at the features f_1, f_2, ... after the stem and each cell; its fourth term,
complexity, is FLOPs. VKDNW (Tybl & Neumann, CVPR 2025) looks at the empirical Fisher information of one weight a
parameter tensor. Both were made to be added as logarithms of ranks among candidates, not as values.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphnas_lib.proxies.given import ProxyError, check_scores, failing
from graphnas_lib.proxies.probe import LAYERS, NORMS, finite, hooked, moded, redrawn

SMALLEST = 1e-8  # AZ-NAS: added inside the logarithm
SMOOTHING = 0.05  # VKDNW: weight of the uniform distribution in the predicted one
DECILES = torch.arange(1, 10) / 10


def az_terms(model: nn.Module, shape: Sequence[int], *, seed: int = 0) -> dict[str, float]:
    """AZ-NAS's expressivity, progressivity and trainability; larger is better for each.

    With H_l the entropy of the normalised eigenvalues of the covariance of f_l (positions are samples, channels are
    variables): expressivity is the sum of H_l, progressivity the least H_l - H_(l-1). With s_l the largest singular
    value of E[g_(l-1) g_l^T], where g_l is a random sign at each output of block l and g_(l-1) what reaches its input:
    trainability is the mean of 2 - s_l - 1 / s_l, at best 0 where signals keep their size.

    Args:
        model: a network with `.sequential_parts()`, whose last two parts are the head and the classifier.
        shape: of the input batch, (B, C, ...).
        seed: of weights, inputs and signs.

    Raises:
        ProxyError: the network has no parts, fewer than two blocks, or a term is not finite.
    """
    clone, generator = redrawn(model, seed, kaiming=True)
    parts = clone.sequential_parts()[:-2] if hasattr(clone, "sequential_parts") else []
    if len(parts) < 2:
        raise ProxyError("AZ-NAS needs a network with `.sequential_parts()`, two blocks or more; this one has fewer.")
    features, x = [], torch.randn(*shape, generator=generator).to(next(clone.parameters()).device)
    with moded(clone, "train"), torch.enable_grad():
        ends = []
        for part in parts:
            start = x.detach().requires_grad_()
            x = part(start)
            ends.append((start, x))
            features.append(x.detach())
        kept = [_kept_size(start, out, generator) for start, out in ends[1:]]
    entropies = torch.stack([_covariance_entropy(f) for f in features])
    return {
        "az_expressivity": finite("az_expressivity", entropies.sum()),
        "az_progressivity": finite("az_progressivity", entropies.diff().min()),
        "az_trainability": finite("az_trainability", torch.stack(kept).mean()),
    }


def _columns(maps: Tensor) -> Tensor:
    """(B, C, ...) -> (B * positions, C)."""
    return maps.movedim(1, -1).flatten(0, -2)


def _covariance_entropy(maps: Tensor) -> Tensor:
    """Entropy of the normalised eigenvalues of the channels' covariance, float64."""
    rows = _columns(maps).double()
    rows = rows - rows.mean(0)
    shares = torch.linalg.eigvalsh(rows.T @ rows)
    shares = shares / shares.sum()
    return -(shares * (shares.clamp_min(0) + SMALLEST).log()).sum()


def _kept_size(start: Tensor, out: Tensor, generator: torch.Generator) -> Tensor:
    """2 - s - 1 / s of one block, s the largest singular value of its mean Jacobian under random signs."""
    signs = (torch.randint(0, 2, out.shape, generator=generator) * 2 - 1).to(out)
    (back,) = torch.autograd.grad(out, start, signs)
    factor = start.shape[2] // out.shape[2]
    if factor > 1:
        back = _unshuffled(back, factor)
    jacobian = _columns(back).double().T @ _columns(signs).double() / (signs.numel() // signs.shape[1])
    s = torch.linalg.matrix_norm(jacobian, 2)
    return 2 - s - 1 / (s + 1e-6)


def _unshuffled(maps: Tensor, factor: int) -> Tensor:
    """Positions that one output reads become channels: (B, C, n f, ...) -> (B, C f^d, n, ...), odd ends cut."""
    for axis in range(2, maps.dim()):
        size = maps.shape[axis] // factor
        maps = maps.narrow(axis, 0, size * factor).unflatten(axis, (size, factor)).movedim(axis + 1, 2).flatten(1, 2)
    return maps


def vkdnw_entropy(model: nn.Module, shape: Sequence[int], *, seed: int = 0) -> float:
    """VKDNW: entropy of the deciles of the Fisher information's eigenvalues; larger is better.

    The information is that of the class probabilities in the first weight of each parameter tensor, a mean over the
    batch in eval mode: E[J^T (diag(p) - p p^T) J], J (classes, tensors) the derivatives of the logits of one image.

    Args:
        model: any network of convolutions, linear layers and batch norms.
        shape: of the input batch, (B, C, ...).
        seed: of weights and inputs.
    """
    clone, generator = redrawn(model, seed, kaiming=True)
    images = torch.randn(*shape, generator=generator).to(next(clone.parameters()).device)
    jacobian, logits = first_weight_jacobian(clone, images)
    p = logits.softmax(1).double() * (1 - SMOOTHING) + SMOOTHING / logits.shape[1]  # (B, classes)
    covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    information = torch.einsum("bcp,bcd,bdq->pq", jacobian, covariance, jacobian) / len(images)
    eigenvalues = torch.linalg.eigvalsh(information).clamp_min(0)
    shares = torch.quantile(eigenvalues, DECILES.to(eigenvalues))
    shares = shares / shares.sum()
    return finite("vkdnw_entropy", -torch.special.xlogy(shares, shares).sum())


def first_weight_jacobian(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of each image's logits in the first weight of each parameter tensor, in eval mode.

    One backward a class for the whole batch: what reaches a layer's output, times what that one weight multiplies.

    Args:
        images: (B, C, ...).

    Returns:
        (B, classes, tensors) float64, tensors in the order that the forward reaches their layers; logits (B, classes).
    """
    factors: list[tuple[int, Tensor | float]] = []  # (call, what the weight multiplies)
    reached: dict[int, Tensor] = {}  # call -> gradient at its output, before anything overwrites it in place
    calls = count()

    def see(_name: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
        call = next(calls)
        factors.extend((call, factor) for factor in _first_factors(module, x.detach()))
        output.register_hook(lambda gradient: reached.update({call: gradient}))

    layers = {name: module for name, module in model.named_modules() if isinstance(module, (*LAYERS, *NORMS))}
    fails = failing("The network fails in eval mode")
    with fails, moded(model, "eval"), torch.enable_grad(), hooked(layers, see):
        start = images.detach().requires_grad_()
        logits = model(start.clone())
        check_scores(logits)
    rows = []
    for column in logits.unbind(1):
        reached.clear()
        torch.autograd.grad(column.sum(), start, retain_graph=True)
        rows.append(torch.stack([_image_sums(factor, reached.get(call), images) for call, factor in factors], 1))
    return torch.stack(rows, 1), logits.detach()


def _image_sums(factor: Tensor | float, reached: Tensor | None, images: Tensor) -> Tensor:
    """Sum over positions of factor times the gradient at the first output channel, (B,) float64."""
    if reached is None:
        return images.new_zeros(len(images), dtype=torch.float64)
    return (reached[:, 0] * factor).double()[:, None].flatten(1).sum(1)


def _first_factors(module: nn.Module, x: Tensor) -> list[Tensor | float]:
    """What the first weight, and the first bias, multiply at the first output channel."""
    ones = [] if module.bias is None else [1.0]
    if isinstance(module, NORMS):
        normed = (x[:, 0] - module.running_mean[0]) * (module.running_var[0] + module.eps).rsqrt()
        return [normed, *ones] if module.affine else []
    return [x[..., 0] if isinstance(module, nn.Linear) else _first_tap(module, x[:, 0]), *ones]


def _first_tap(module: nn.Conv1d | nn.Conv2d, channel: Tensor) -> Tensor:
    """The positions of the first input channel that the kernel's first tap reads, one an output position."""
    padding = [pad for size in reversed(module.padding) for pad in (size, size)]
    padded = F.pad(channel, padding)
    for axis, (kernel, stride, dilation) in enumerate(zip(module.kernel_size, module.stride, module.dilation), start=1):
        count = (padded.shape[axis] - dilation * (kernel - 1) - 1) // stride + 1
        padded = padded.narrow(axis, 0, (count - 1) * stride + 1)
        padded = padded[(slice(None),) * axis + (slice(None, None, stride),)]
    return padded
