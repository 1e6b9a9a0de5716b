"""Metrics of Table 4 (NAS-Bench-360, as Shen et al. 2022 report them): all of them lower is better.

Each takes the raw outputs of a network over a whole split, never an average over batches: macro F1 and AUROC are not
means over batches, which is where released evaluations of this benchmark go astray.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CONTACT, SEPARATION = 8.0, 24  # MAE_8: pairs at 8 Angstrom or less, at least 24 residues apart


def error_percent(outputs: Tensor, targets: Tensor) -> float:
    """0-1 error in percent; outputs (N, K) logits, targets (N,)."""
    return 100.0 * (outputs.argmax(1) != targets).double().mean().item()


def relative_l2(outputs: Tensor, targets: Tensor) -> float:
    """Mean over fields of |output - target| / |target|; both (N, H, W), de-normalised."""
    error = (outputs - targets).flatten(1).double().norm(dim=1)
    return (error / targets.flatten(1).double().norm(dim=1)).mean().item()


def contact_mae(outputs: Tensor, targets: Tensor, mask: Tensor) -> float:
    """MAE_8 in Angstrom: mean over proteins of the error on long-range contacts.

    Args:
        outputs: predicted distances, (N, L, L); the two triangles are averaged, values clipped to 0.01 from below.
        targets: true distances, (N, L, L).
        mask: True inside the protein, (N, L, L).

    Raises:
        ValueError: no protein has such a contact.
    """
    position = torch.arange(outputs.shape[-1])
    far = position[None, :] - position[:, None] >= SEPARATION  # (L, L), upper triangle
    errors = []
    for output, target, inside in zip(outputs, targets, mask):
        chosen = inside & far & (target <= CONTACT)
        if chosen.any():
            symmetric = ((output + output.T) / 2).clamp_min(0.01)
            errors.append((symmetric - target)[chosen].abs().double().mean().item())
    if not errors:
        raise ValueError(
            f"MAE_8 needs pairs at {CONTACT} Angstrom or less, {SEPARATION} or more residues apart; there is none."
        )
    return float(np.mean(errors))


def _rates(outputs: Tensor, targets: Tensor, mask: Tensor) -> tuple[float, float]:
    """False negative and false positive rate at probability 0.5 over the pixels in `mask`; outputs are logits."""
    predicted, true = (outputs > 0)[mask], (targets > 0.5)[mask]
    positives, negatives = true.sum().item(), (~true).sum().item()
    if not positives or not negatives:
        raise ValueError(
            f"The error rates need pixels of both kinds; got {positives} positive and {negatives} negative ones."
        )
    return (true & ~predicted).sum().item() / positives, (~true & predicted).sum().item() / negatives


def half_auroc_error(outputs: Tensor, targets: Tensor, mask: Tensor) -> float:
    """1 - AUROC of the mask cut at 0.5, that is (FNR + FPR) / 2: what Table 4's Cosmic column holds (inferred)."""
    return sum(_rates(outputs, targets, mask)) / 2


def false_negative_rate(outputs: Tensor, targets: Tensor, mask: Tensor) -> float:
    """Share of true pixels that are missed at 0.5, 0..1: the benchmark's later definition of the Cosmic column."""
    return _rates(outputs, targets, mask)[0]


def macro_f1_error(outputs: Tensor, targets: Tensor) -> float:
    """1 - macro F1, averaged over the classes that occur in targets or predictions; outputs (N, K), targets (N,)."""
    n = outputs.shape[1]
    confusion = torch.bincount(targets * n + outputs.argmax(1), minlength=n * n).view(n, n).double()
    hits, support = confusion.diag(), confusion.sum(0) + confusion.sum(1)
    return 1.0 - (2 * hits / support)[support > 0].mean().item()


def auroc_error(outputs: Tensor, targets: Tensor) -> float:
    """1 - mean AUROC over the labels (N, K) that occur both as 0 and as 1; ties count half.

    Raises:
        ValueError: no label has both values.
    """
    from scipy.stats import rankdata

    true = targets.numpy() > 0.5
    ranks = rankdata(outputs.double().numpy(), axis=0)  # (N, K), ties share their mean rank
    positives, negatives = true.sum(0).astype(float), (~true).sum(0).astype(float)
    usable = (positives > 0) & (negatives > 0)
    if not usable.any():
        raise ValueError("AUROC needs a label that occurs both as 0 and as 1; there is none in this split.")
    wins = (ranks * true).sum(0) - positives * (positives + 1) / 2
    return 1.0 - float((wins[usable] / (positives * negatives)[usable]).mean())
