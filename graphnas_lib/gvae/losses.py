"""The terms of the G-VAE's loss (Eq. 4-5, and three of ours), one function each, their sum, and the choice of triples.

All follow the device of their inputs. Reconstruction and KL are sums over what a cell consists of, in nats a cell;
`zc` is always standardised by `clusters.ZCTransform`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from graphnas_lib.clusters import zc_distance
from graphnas_lib.space import KERNEL_OF, TYPE_OF, CellCodes, Logits, edge_matrix


def reconstruction_loss(logits: Logits, codes: CellCodes) -> Tensor:
    """-log p(x | f) (Eq. 4), summed over bits and slots, mean over cells.

    Binary cross-entropy on 28 edges; cross-entropy (the proper likelihood of a one-hot) on the type of every slot,
    "unused" included, and on the kernel of the slots that have one.
    """
    operations = codes.operations.long()
    types, kernels = TYPE_OF.to(operations.device)[operations], KERNEL_OF.to(operations.device)[operations]
    edges = F.binary_cross_entropy_with_logits(logits.edges, codes.edges.to(logits.edges.dtype), reduction="sum")
    types = F.cross_entropy(logits.types.flatten(0, 1), types.flatten(), reduction="sum")
    kernels = F.cross_entropy(logits.kernels.flatten(0, 1), kernels.flatten(), ignore_index=-1, reduction="sum")
    return (edges + types + kernels) / len(codes)


def kl_divergence(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL[N(mu, exp(logvar)) || N(0, I)] (Eq. 4), summed over dimensions, mean over cells."""
    return 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(dim=-1).mean()


def choose_triplets(zc: Tensor, *, min_gap: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Triples (x, a, b) with d(x, a) < d(x, b), by d on standardised z (n, 4) (Sec. 3.1).

    Every cell is an anchor once, with two other random cells. Returns indices x, a, b, (n,) each, and the mask (n,) of
    those with d(x, b) - d(x, a) >= min_gap.
    """
    n = len(zc)
    anchor, most = torch.arange(n, device=zc.device), max(n, 2)
    steps = (torch.randint(1, most, (n,), generator=generator, device=zc.device) for _ in range(2))
    first, second = ((anchor + step) % n for step in steps)  # never the anchor itself
    gap = zc_distance(zc, zc[second]) - zc_distance(zc, zc[first])
    return anchor, torch.where(gap > 0, first, second), torch.where(gap > 0, second, first), gap.abs() >= min_gap


def triplet_margin_loss(
    latent: Tensor, anchor: Tensor, positive: Tensor, negative: Tensor, mask: Tensor, *, margin: float
) -> Tensor:
    """E max(D(x, a)^2 - D(x, b)^2 + m, 0) (Eq. 5), D the mean-L1 distance of embeddings (n, m).

    The paper prints d, which is constant in the weights; its prose asks for L1 in the latent space. The mean over
    dimensions in place of the sum keeps D near 1, so that the margin does not depend on m. Zero when no triple counts.
    """
    near = (latent[anchor] - latent[positive]).abs().mean(dim=-1)
    far = (latent[anchor] - latent[negative]).abs().mean(dim=-1)
    losses = F.relu(near**2 - far**2 + margin)  # Eq. 5
    return (losses * mask).sum() / mask.sum().clamp(min=1)


def predictor_loss(predicted: Tensor, zc: Tensor) -> Tensor:
    """Mean squared error of q(f(x)) against standardised z(x), (n, 4) (Eq. 5)."""
    return F.mse_loss(predicted, zc)


def decorrelation_loss(latent: Tensor) -> Tensor:
    """Squared correlations of a dimension of latents (n, k) with the others, summed; mean over dimensions.

    Not in the paper, a form of the covariance penalty of Kumar et al. (2018): latents of cells lie along few
    directions, so that independent draws of their dimensions lie beside them and decode to small, much alike cells.
    """
    centred = F.normalize(latent - latent.mean(dim=0), dim=0)  # (n, k), columns of length 1
    return ((centred.T @ centred).square().sum() - centred.square().sum(dim=0).square().sum()) / latent.shape[1]


def loose_ends_loss(logits: Logits) -> Tensor:
    """Expected number of slots with edges on one side only, mean over a batch of decoder outputs.

    Not in the paper, a constraint of Ma et al. (2018): what random latents decode to should need no pruning. Edges
    count as independent, with the probabilities that the decoder says; no gradient reaches operations.
    """
    absent = edge_matrix(-F.softplus(logits.edges))  # log-probability that an edge is absent
    nothing_in, nothing_out = absent.sum(dim=1).exp(), absent.sum(dim=2).exp()  # (B, 8)
    loose = (1 - nothing_in) * nothing_out + nothing_in * (1 - nothing_out)
    return loose[:, 1:-1].sum(dim=1).mean()


def cycle_loss(q_again: Tensor, q_asked: Tensor, again: Tensor, asked: Tensor, *, latent_weight: float) -> Tensor:
    """Do random latents `asked` (n, m) come back, as latents `again` of the cells that they decode to?

    Mean squared difference of q, (n, 4), plus `latent_weight` times that of the latents, each dimension in its unit.
    Not in the paper: independent random latents lie beside those of cells, where Eq. 4-5 leave q and the decoder free
    to disagree, and where the decoder may say one cell for many latents. What was asked is no target of the gradient.
    """
    return F.mse_loss(q_again, q_asked.detach()) + latent_weight * F.mse_loss(again, asked.detach())


def gradient_through(loss: Tensor, given: Tensor, features: Tensor) -> Tensor:
    """`loss`, which was computed from `given`; its gradient reaches `features`, equal to `given`, and nothing else."""
    (slope,) = torch.autograd.grad(loss, given)
    carried = (features * slope).sum()
    return loss.detach() + carried - carried.detach()


@dataclass(frozen=True)
class GVAELoss:
    """Terms of Eq. 4-5; reconstruction and kl in nats a cell. `total` is weighted, the parts are not."""

    total: Tensor
    reconstruction: Tensor
    kl: Tensor
    triplet: Tensor
    predictor: Tensor
    decorrelation: Tensor
    loose_ends: Tensor
    cycle: Tensor

    @classmethod
    def of(cls, parts: dict[str, Tensor], weights, *, kl_weight: float) -> GVAELoss:
        """Terms by name, those that are not there zero; `weights` holds the weight of term x as `x_weight`."""
        zero = torch.zeros_like(parts["kl"])
        terms = {field.name: parts.get(field.name, zero) for field in fields(cls)[1:]}
        weight = {"reconstruction": 1.0, "kl": kl_weight}
        total = sum(weight.get(name, getattr(weights, f"{name}_weight", 0.0)) * term for name, term in terms.items())
        return cls(total, **terms)
