"""Every place where we depart from the paper, fill its silence, or settle a contradiction.

`D01` to `D28` settle what the text leaves open or contradicts, from the facts of the authors' released repository
(`visionbasicagent/HGENNAS`, MIT; read and re-counted, nothing copied) and from the paper's own numbers; `D29` onwards
are our choices. README and the notebooks print this table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Deviation:
    """One departure.

    Attributes:
        id: "D" + number + short name, stable.
        paper: what the paper says, or that it is silent.
        ours: what we do.
        why: the evidence or the reason.
        effect: measured effect; None where none has been measured.
    """

    id: str
    paper: str
    ours: str
    why: str
    effect: str | None = None


_COUNTS = "re-counting the NATS reference and the released networks this way agrees with what the authors recorded"

DEVIATIONS = (
    Deviation(
        "D01-clusters",
        "The number of clusters K is never given; it is 'decided by plateauing' BIC and AIC.",
        "K = 32, shown beside the BIC/AIC curve with its plateau marked.",
        "(K x 127 x 2)^20 = 10^78 gives K = 31.3; the released code draws clusters from 0..31.",
    ),
    Deviation(
        "D02-flops",
        "'FLOPs', without a definition.",
        "flops = 2 x MACs, batch normalisation, ReLU and pooling counted; MACs are a separate quantity.",
        "Re-counting the released networks this way is exact.",
        "30 of 30 released networks agree to the last digit",
    ),
    Deviation(
        "D03-skeleton",
        "Eq. 2 indexes c_i and s_i without saying where i starts, and names neither stem nor head.",
        "i = 1..17: 5 cells at 16 channels, 6 at 32 and 6 at 64, each of these two starting with stride 2; "
        "stem conv3x3-BN at 16; BN, ReLU, global pooling, linear.",
        "Table 1 prints 1.15M parameters and 327M FLOPs for the NATS reference.",
        "1,148,474 parameters and 326,665,492 FLOPs for that row",
    ),
    Deviation(
        "D04-projection",
        "'A relevant projection is performed automatically before executing a cell.'",
        "Where a cell changes width or stride, ReLU-conv1x1(stride)-BN feeds the nodes; a node whose only predecessor "
        "is the input reads the raw input and makes the change itself.",
        f"Released code; {_COUNTS}.",
    ),
    Deviation(
        "D05-bconv",
        "bconv is a 'bottleneck convolution' after He et al.",
        "ReLU-1x1-BN-ReLU-depthwise kxk-BN-ReLU-1x1-BN, as mbconv with ratio 0.5 or 0.25; no inner residual in either.",
        f"Released code; {_COUNTS}.",
    ),
    Deviation(
        "D06-separable",
        "sep_conv and dil_conv are described in words; their usual definitions differ in repeats.",
        "One depthwise and one pointwise convolution, ReLU first, BN last; dilation 2.",
        f"Released code; {_COUNTS}.",
    ),
    Deviation(
        "D07-pooling",
        "avg_pool without padding rule or normalisation.",
        "AvgPool that does not count padding, then BN without affine parameters.",
        f"Released code; {_COUNTS}.",
    ),
    Deviation(
        "D08-macro",
        "An architecture is a sequence of up to 20 triples; no head is described.",
        "Triples (x, c, s), where released networks repeat a cell 1 to 4 times inside the 20; head "
        "BN-ReLU-conv1x1(head)-BN; stem stride 2 at ImageNet size; the stem takes the first cell's width.",
        "The released tables of found networks: with a stem of 16 the one that starts at 32 channels is counted wrong.",
    ),
    Deviation(
        "D09-encoder-input",
        "F is 8x13 in the text, but Table 6 gives the encoder's input as [9x9, 15x9].",
        "Cell is 8x8 and 8x13; the encoder's view adds a global node (row of ones, self-loops), and has 9 operations "
        "without skip, three flags (input, output, global) and 3 kernels: 15 columns. Skip is folded into edges.",
        "Released code. A skip is folded only where the computed function stays the same.",
    ),
    Deviation(
        "D10-readout",
        "The readout from node states to the latent code is not described.",
        "Node states are flattened into mean and log-variance.",
        "Released code; a permutation-invariant readout cannot restore node order.",
        "trial on 390k cells, exact on held-out cells: flattened 90% at step 500, 97.4% at 3,000; "
        "global node alone 51% at 500, 62% at 1,500",
    ),
    Deviation(
        "D11-gvae-learning-rate",
        "G-VAE learning rate is 1e-3 in App. A and '3.5e4' in Table 6.",
        "3.5e-4 at paper scale; 1e-3 with a larger batch at the reduced scales.",
        "Equals BRP-NAS's configuration and the released default.",
    ),
    Deviation(
        "D12-kl-weight",
        "Eq. 4 gives the KL term weight 1.",
        "A weight far below the reconstruction, chosen by reconstruction and validity on held-out cells.",
        "Released code weighs KL by 0.1 and divides it by the batch; weight 1 on sums makes most dimensions collapse.",
    ),
    Deviation(
        "D13-triplet",
        "Eq. 5 puts d(., .) into the triplet term, which is constant in the weights.",
        "L1 distance of the embeddings; triples are chosen by d on z.",
        "The prose of Sec. 3.1: L1 in latent space is to approximate d.",
    ),
    Deviation(
        "D14-normalisation",
        "z is not normalised anywhere.",
        "One stored transform (log10 of parameters and FLOPs, log1p of SSNR, then standardised) for q, GMM, CCNF, "
        "triplets and plots.",
        "Raw FLOPs would decide every L1 distance.",
    ),
    Deviation(
        "D15-gmm-space",
        "Fig. 1 partitions the latent space with the GMM; Eq. 3 fits it to z.",
        "The ZC space.",
        "The cluster mean is the CCNF's 4-dimensional condition (Eq. 9).",
    ),
    Deviation(
        "D16-naswot",
        "NASWOT is cited without layer choice, mode or batch.",
        "Binary codes of convolution and linear outputs, eval mode, batch 64, log-determinant of the summed kernel.",
        "Released code.",
        "788 to 792 for the NATS reference, 783 printed",
    ),
    Deviation(
        "D17-snip-ssnr",
        "SNIP-SSNR is cited without formula or mode.",
        "Sum over convolution and linear weights of sum(|w g|) / std(|w g|), no logarithm; train mode for cells.",
        "Eq. 3-4 of the T-CET paper; released code.",
    ),
    Deviation(
        "D18-tcet",
        "T-CET is cited without variant.",
        "Sum over layers of log1p(SSNR_l) x log|K_l|, eval mode, one batch of 64 for both factors.",
        "Released code and its recorded scores.",
        "1.32M to 1.33M against 1,346,681 recorded for the first released CIFAR network",
    ),
    Deviation(
        "D19-posterior-samples",
        "The CCNF is fitted to deterministic codes f(r).",
        "It is fitted to samples of the encoder's posterior.",
        "A density on finitely many codes has an unbounded likelihood.",
    ),
    Deviation(
        "D20-temperature",
        "Eq. 9 draws noise from N.",
        "Temperature is a parameter: 1.0 as printed by default.",
        "Released code uses 0.4 while exploring and 0.2 around a reference.",
    ),
    Deviation(
        "D21-depth",
        "Algorithm 1 never changes depth, and removes the worst member; Fig. 1 says 'ageing evolution'.",
        "Algorithm 1 as printed (worst removed), with insertion and removal of cells added during exploration; "
        "depth_mutation=False gives the literal form.",
        "alpha_0 has 3 cells and the space 20; the released code varies stages and repeats.",
    ),
    Deviation(
        "D22-loss-sign",
        "Algorithm 1 removes argmax L and returns argmin L; Eq. 11 maximises T-CET.",
        "L = -T-CET; a score is always stored as a score, higher is better.",
        "Both hold only with this sign.",
    ),
    Deviation(
        "D23-channels",
        "|C| = 127.",
        "{8, 16, ..., 1024} with its 128 members.",
        "Count.",
        "none on the printed exponents (10^390, 10^78)",
    ),
    Deviation(
        "D24-superset",
        "GraphNet is 'a strict superset of ZenNet design space'.",
        "Treated as two different spaces, which notebook 08 says.",
        "ZenNet has kernel 7, expansions 1 and 4, and squeeze-excitation; GraphNet has none of them.",
    ),
    Deviation(
        "D25-budgets",
        "Tables 2 and 3 set budgets of 450M, 600M and 1000M 'FLOPs' beside ZenNAS's and ZiCo's.",
        "Ours are in the paper's FLOPs (2 x MACs); ZenNAS and ZiCo rows are in MACs: both columns are printed.",
        "Counters of the released code: networks called 450M have 401M to 446M FLOPs, so about half as many MACs.",
    ),
    Deviation(
        "D26-snip-column",
        "Table 1's SNIP column reads 80 for the reference.",
        "We report SSNR / 1e4 there and claim no match.",
        "The column's scale is unexplained; SSNR / 1e4 fits the axes of the released figures.",
    ),
    Deviation(
        "D27-cosmic-deepsea",
        "Table 4 does not define the metrics of Cosmic and DeepSEA.",
        "Cosmic: 1 - AUROC at threshold 0.5, with FNR beside it; DeepSEA: 1 - mean AUROC, with 0.50 marked as chance.",
        "Inferred from NAS-Bench-360's evaluators of that time; later releases print FNR.",
    ),
    Deviation(
        "D28-reduced-training",
        "App. E.2 names a 'standard evolutionary algorithm' with the reduced-training proxy.",
        "Plain evolution on the flat GraphNet space with 50 epochs, batch 256, CIFAR-100, sized down at the reduced "
        "scales; one more row of notebook 08 beside 90.32, 96.4 and 97.6.",
        "The text of App. E.1 and E.2.",
    ),
    Deviation(
        "D29-canonical-cells",
        "Cells are any graphs of the space; isomorphism is not treated.",
        "Cells are pruned of dead nodes, put into one canonical node order and told apart by a key of the computed "
        "function.",
        "One cell then has one encoding, and distinct, new and valid cells can be counted.",
    ),
    Deviation(
        "D30-flow-matching",
        "The CCNF minimises the negative log-likelihood with dopri5 and the adjoint.",
        "The likelihood objective as printed, and flow matching of the same field as the faster default; samples by a "
        "fixed-step Runge-Kutta solver.",
        "About two orders of magnitude cheaper a step on a CPU; a fixed step keeps samples independent of the batch.",
    ),
    Deviation(
        "D31-affine-instead-of-batchnorm",
        "Table 6 lists a moving batch normalisation around the flow.",
        "A fixed affine map of the latent codes that takes away what is linear in z and whitens the rest, fitted once; "
        "its log-determinant is added to log_prob.",
        "Same range, exact inverse, no running state; the flow starts at the linear-conditional Gaussian.",
    ),
    Deviation(
        "D32-optimisers",
        "'Weight decay 0.01, the default of Adam', and 'minimizing log-likelihood'.",
        "AdamW, whose default that is; the negative log-likelihood is minimised.",
        "Adam's default decay is 0.",
    ),
    Deviation(
        "D33-generator-from-scratch",
        "The sequence generator fine-tunes pretrained GPT-Neo-125M.",
        "The same model class from scratch over a vocabulary of families, widths, strides and condition bins; "
        "pretrained weights are taken when a path is given.",
        "The vocabulary is new in any case; no download is needed.",
    ),
    Deviation(
        "D34-exploitation",
        "App. C: exploitation mutates only channels and stride; Algorithm 1 also draws a new cell of the family.",
        "Algorithm 1.",
        "The same text relies on the CCNF to exploit.",
    ),
    Deviation(
        "D35-start-family",
        "alpha_0 uses 'the mean of the 5-th cluster'.",
        "Family of index 5 in the order of mean log-parameters (modulo K where K < 6), its cells generated.",
        "Components of a mixture have no order of their own, and a mean ZC vector is no cell.",
    ),
    Deviation(
        "D36-resolution-floor",
        "Strides are drawn freely for each of up to 20 cells.",
        "Networks that shrink a 32-pixel input below 4 pixels a side are infeasible.",
        "Later cells would work on single pixels.",
    ),
    Deviation(
        "D37-selection-split",
        "How the best of the top-N trained networks is chosen is not stated; reference code uses the test set.",
        "Chosen by T-CET or on a validation split; the test set is read once.",
        "Choosing on test data overstates the result.",
    ),
    Deviation(
        "D38-nb360-twins",
        "How 2-D cells serve 1-D and dense tasks is not stated.",
        "1-D twins of every operation; dense tasks with every stride 1 and a per-position linear layer.",
        "NAS-Bench-360 treats its Wide-ResNet the same way.",
    ),
    Deviation(
        "D39-scales",
        "Sizes of App. A on V100s.",
        "Three scales of one code path; what ships was made at 'lite', every number names its scale.",
        "Two CPU cores make lite in hours; a missing number reads 'not run (why)'.",
    ),
    Deviation(
        "D40-small-start",
        "alpha_0 has 32, 64 and 64 channels.",
        "Searches start from a quarter of these widths.",
        "A drawn cell can cost so much that alpha_0 breaks a small budget, and Algorithm 1 needs a feasible start.",
    ),
    Deviation(
        "D41-flow-details",
        "End time T, Hutchinson's noise and gradient clipping of the CCNF are not stated.",
        "T = 1, fixed; Rademacher noise, fixed inside a solve; gradients clipped at norm 10; conditions jittered by "
        "0.02 standard deviations in training; a family's centre is moved into the trained range before sampling.",
        "Fixed noise keeps the right-hand side continuous; the released code trains T and clips at 5.",
    ),
    Deviation(
        "D42-generator-conditions",
        "Condition tokens are dropped 'randomly'; their encoding is not described.",
        "128 logarithmic bins a condition, jittered by half a bin in training; 35% of the rows keep exactly the sets "
        "that are requested later (parameters, FLOPs, both, none), in the rest each is dropped with probability 0.3.",
        "A request then looks like a training row.",
    ),
    Deviation(
        "D43-exact-budgets",
        "Generated networks that break a constraint are discarded.",
        "Widths, head, strides and at last depth of a generated network are fitted until every request is met.",
        "A condition token is approximate, a budget is not.",
    ),
    Deviation(
        "D44-training-details",
        "Recipes are given by reference to NATS-Bench and ZenNAS.",
        "Crop padding scales with the resolution (4 pixels at 32); ImageNet training has its teacher where the package "
        "timm and the teacher's weights are there, else none.",
        "A fixed padding destroys 16-pixel images; the weights are not ours to ship.",
    ),
    Deviation(
        "D45-encoder-layers",
        "Four graph convolutions with LayerNorm and ReLU; input embedding, order of norm and start values not stated.",
        "A linear input embedding plus a learnt position embedding, pre-norm residual layers that read along and "
        "against the edges and have weights of their own for the node itself, and a log-variance that starts at -4.",
        "One canonical node order makes positions meaningful; in trials of 400 steps (hidden 256, one seed) 76% of "
        "held-out cells came back so, 42% with self-loops in place of the nodes' own weights.",
    ),
    Deviation(
        "D46-scales-of-eq-5",
        "Eq. 5 gives its terms weight 1 and no margin, and orders distances of the whole latent.",
        "The triplet term orders distances in the first two dimensions, which have a unit wide enough to decide the "
        "L1 distance of the whole latent; weights are chosen beside a reconstruction in nats a cell.",
        "As printed, the rank correlation of L1(f) with d(z) is 0.3. Over all dimensions it exceeds 0.9, but then z is "
        "in all of them at once and random latents decode to cells of another z than q says (ablation, notebook 03).",
    ),
    Deviation(
        "D47-latents-between-cells",
        "Eq. 4-5 say nothing of latents between the training cells.",
        "Dimensions are decorrelated, and the decoder is also trained on random latents: to leave no node with edges "
        "on one side only, and to say cells that have the q of their latent and come back to it (`losses."
        "decorrelation_loss`, `loose_ends_loss`, `cycle_loss`); with these weights at 0 the loss is the paper's.",
        "Independent random latents lie beside the latents of cells; without these terms q misses what they decode to "
        "by 0.6 to 0.8 standard deviations a component, one in twenty decodes to nothing, and many to the same cell.",
    ),
    Deviation(
        "D48-neighbourhood",
        "The noise of the neighbourhood f^-1(f(r) + eps) has no stated deviation.",
        "A share of the training latents' own deviation in each dimension, the smallest that gives as many distinct "
        "cells as the flow.",
        "Dimensions of the latent have units of their own (D46); a small neighbourhood only returns the same cell.",
    ),
    Deviation(
        "D49-checked-draws",
        "omega(x-hat) of Eq. 9 is one draw of the flow at the family's centre, a synonym one draw given z(r).",
        "A draw that is known not to be of the family, or not to have the vector within 0.2 standard deviations in "
        "every component, by its exact parameters and FLOPs and q's word for the rest, is drawn again, at most 16 "
        "times; Table 1's rows and notebook 04 show both, as drawn and checked.",
        "Families are narrow in size, so that a draw right to 10% often falls in the next one; both sizes of a cell "
        "cost nothing to count.",
    ),
    Deviation(
        "D50-kept-networks",
        "A sequence is decoded deterministically; its cells are draws of the flow at the centres of its families "
        "(Eq. 8-9, 12).",
        "Of greedy and sampled sequences those are taken that are likest to networks of the history with a high T-CET "
        "and a size near the request; for families that these have, their cells are taken (each a draw of the flow "
        "once). `fresh=True` does as printed, and notebook 07 shows both.",
        "Evolution chooses cells one by one; in the macro designs of its best networks under 1M parameters fresh ones "
        "had 61% of its T-CET (86% at most, 60 draws, lite).",
    ),
    Deviation(
        "D51-weighted-history",
        "The generator learns the history of the evolution (Eq. 10); nothing is said of weights.",
        "A network is learnt from in proportion to the fourth power of its rank by T-CET among those of its size.",
        "A history holds every network that was tried; what is asked for is the best ones of a size.",
    ),
)
