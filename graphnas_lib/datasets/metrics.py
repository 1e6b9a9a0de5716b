"""Metrics of Table 4 (NAS-Bench-360, as Shen et al. 2022 report them): all of them lower is better.

Each takes the raw outputs of a network over a whole split, never an average over batches: macro F1 and AUROC are not
means over batches, which is where released evaluations of this benchmark go astray.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MAX_CONTACT_ANGSTROM, MIN_SEPARATION_RESIDUES = 8.0, 24  # the pairs that MAE_8 is taken over


def error_percent(outputs: Tensor, targets: Tensor) -> float:
    """0-1 error in percent; outputs (N, K) logits, targets (N,)."""
    return 100.0 * (outputs.argmax(1) != targets).double().mean().item()


def relative_l2(outputs: Tensor, targets: Tensor) -> float:
    """Mean over fields of |output - target| / |target|; both (N, H, W), de-normalised."""
    error = (outputs - targets).flatten(1).double().norm(dim=1)
    return (error / targets.flatten(1).double().norm(dim=1)).mean().item()


def contact_mae(outputs: Tensor, targets: Tensor, mask: Tensor) -> float:
    """MAE_8 in Angstrom: mean over proteins of the error on long-range contacts; ValueError where there is none.

    Distances and mask (True inside the protein) are (N, L, L); the two triangles of a prediction are averaged, its
    values clipped to 0.01 from below.
    """
    position = torch.arange(outputs.shape[-1])
    far = position[None, :] - position[:, None] >= MIN_SEPARATION_RESIDUES  # (L, L), upper triangle
    chosen = mask & far & (targets <= MAX_CONTACT_ANGSTROM)
    gaps = (((outputs + outputs.mT) / 2).clamp_min(0.01) - targets).abs()
    errors = [gap[pairs].double().mean().item() for gap, pairs in zip(gaps, chosen) if pairs.any()]
    if not errors:
        raise ValueError(
            f"MAE_8 needs pairs at {MAX_CONTACT_ANGSTROM} Angstrom or less, {MIN_SEPARATION_RESIDUES} or more residues "
            "apart; there is none."
        )
    return float(np.mean(errors))


def half_auroc_error(outputs: Tensor, targets: Tensor, mask: Tensor) -> float:
    """1 - AUROC of the mask cut at 0.5, that is (FNR + FPR) / 2: what Table 4's Cosmic column holds (inferred).

    Over the pixels in `mask`; outputs are logits.
    """
    predicted, true = (outputs > 0)[mask], (targets > 0.5)[mask]
    positives, negatives = true.sum().item(), (~true).sum().item()
    if not positives or not negatives:
        raise ValueError(
            f"The error rates need pixels of both kinds; got {positives} positive and {negatives} negative ones."
        )
    missed, wrong = (true & ~predicted).sum().item(), (~true & predicted).sum().item()
    return (missed / positives + wrong / negatives) / 2


def macro_f1_error(outputs: Tensor, targets: Tensor) -> float:
    """1 - macro F1, averaged over the classes that occur in targets or predictions; outputs (N, K), targets (N,)."""
    from sklearn.metrics import f1_score

    return 1.0 - float(f1_score(targets.numpy(), outputs.argmax(1).numpy(), average="macro"))


def auroc_error(outputs: Tensor, targets: Tensor) -> float:
    """1 - mean AUROC over the labels (N, K) that occur both as 0 and as 1 (else ValueError); ties count half."""
    from sklearn.metrics import roc_auc_score

    true = targets.numpy() > 0.5
    usable = (true.any(0) & ~true.all(0)).nonzero()[0]
    if not len(usable):
        raise ValueError("AUROC needs a label that occurs both as 0 and as 1; there is none in this split.")
    return 1.0 - float(np.mean([roc_auc_score(true[:, k], outputs[:, k].numpy()) for k in usable]))
