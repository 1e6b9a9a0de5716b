"""Zero-cost proxies of any `nn.Module` at initialisation, and the ZC vector of a cell (Eq. 1, Eq. 11).

Every function scores the network it is given and leaves it untouched, bit for bit: parameters, buffers, modes,
`requires_grad`, `.grad` and hooks, and no global random state moves. Values are keyed by module name, so forward order
and registration order need not agree, and a layer that the forward never reaches counts as zero. A scored layer is a
Conv1d, Conv2d or Linear; only its `weight` is scored. Larger is meant to be better for every proxy. None may be
compared across batch sizes. A network that cannot be scored raises `ProxyError`; it never gets a number.
Formulas: Mellor et al. 2021 (NASWOT), Xiang et al. 2023 (SSNR, T-CET), Lee et al. 2019 (SNIP), Tanaka et al. 2020
(SynFlow), Lin et al. 2021 (Zen-score), Li et al. 2023 (ZiCo). Which variant the paper ran: deviations D16-D18.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphnas_lib.macro import stack_cell
from graphnas_lib.network import accelerated, build, count, moved
from graphnas_lib.proxies.costs import costs_of, left_out
from graphnas_lib.proxies.given import Chosen, ProxyError, as_batch, check_scores, failing, readable
from graphnas_lib.proxies.probe import (
    NORMS,
    Loss,
    Pass,
    finite,
    layers_of,
    moded,
    owners,
    redrawn,
    run,
    safe_logdet,
    saliencies,
    stand_ins,
    substituted,
    weight_of,
)
from graphnas_lib.space import Cell

ROUNDING = 1e-12  # a deviation below this share of the mean is rounding: the saliency is constant
ZEN_GAMMA = 1e-2  # Zen-score: size of the perturbation


# ---- expressivity: binary codes (NASWOT)


def naswot(model: nn.Module, images: Tensor, *, variant: str = "conv", mode: str = "eval") -> float:
    """NASWOT: log|sum_l K_l| over the code kernels of all layers (deviation D16).

    Higher means that the batch's images fall into more distinct linear regions. A singular kernel scores 0.

    Args:
        model: any network.
        images: (B, ...); the paper's batch is 64.
        variant: "conv" reads outputs of convolutions and linear layers (the paper's code); "relu" reads the
            modules whose class name contains ReLU (Mellor et al.: mode="train", B = 128); an input is positive where
            the output is.
        mode: batch-norm mode while scoring.
    """
    if variant not in ("conv", "relu"):
        raise ValueError(f"variant must be 'conv' or 'relu'; got {variant!r}.")
    watch = {name: module for name, module in model.named_modules() if "ReLU" in type(module).__name__}
    if variant == "relu" and not watch:
        raise ProxyError("NASWOT variant 'relu' needs ReLU modules; this network has none. Use variant='conv'.")
    watch = layers_of(model) if variant == "conv" else watch
    return _naswot(run(model, images, mode=mode, watch=watch).kernels)


def _naswot(kernels: dict[str, Tensor]) -> float:
    return finite("naswot", safe_logdet(torch.stack(list(kernels.values())).sum(0)))


def layer_logdets(kernels: dict[str, Tensor]) -> dict[str, float]:
    """log|K_l| of each layer that the forward reached ("Lnwot"); 0 where singular, as a 10-class classifier is."""
    return dict(zip(kernels, safe_logdet(torch.stack(list(kernels.values()))).tolist(), strict=True))


# ---- trainability: SNIP saliency


def layer_ratios(saliency: dict[str, Tensor]) -> dict[str, float]:
    """r_l = S_l / sigma_l: sum of a layer's SNIP saliency over its standard deviation (T-CET, Eq. 3-4).

    The standard deviation is unbiased (n - 1), as in the released code. Where it is zero (constant saliency, a single
    weight) the term is S_l itself; a layer without gradient gives 0. Unchanged when the loss is scaled by c > 0.
    """
    each = list(saliency.values())
    sizes = torch.tensor([s.numel() for s in each], dtype=torch.float64)
    if each[0].is_cuda:  # a call a layer would take longer than the sums; a saliency is its own modulus
        totals = torch.stack(torch._foreach_norm(each, 1))
        off = torch._foreach_sub(each, (totals.cpu() / sizes).tolist())
        sizes = sizes.to(totals.device)
        spreads = torch.stack(torch._foreach_norm(off, 2)) / (sizes - 1).clamp_min(1).sqrt()
    else:
        totals = torch.stack([s.sum() for s in each])
        spreads = torch.stack([s.std(correction=min(1, s.numel() - 1)) for s in each])
    constant = spreads <= ROUNDING * totals / sizes
    ratios = torch.where(constant, totals, totals / spreads)
    return dict(zip(saliency, ratios.tolist(), strict=True))


def snip_ssnr(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """SNIP-SSNR: sum_l S_l / sigma_l, no logarithm (deviation D17). Higher: even, strong weight sensitivity."""
    return _ssnr(run(model, images, labels, mode="train"))


def _ssnr(seen: Pass) -> float:
    return finite("snip_ssnr", sum(layer_ratios(seen.saliency).values()))


# ---- both, layer by layer: T-CET

_TCET = {"log1p": math.log1p, "none": float, "log": lambda r: math.log(r) if r else 0.0}


def tcet(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """T-CET (Eq. 11): sum over layers of log1p(r_l) log|K_l|, trainability times expressivity (deviation D18).

    Both factors are taken on the same batch, the paper's is 64 images, and in eval mode, which matches the scores that
    the authors recorded; `score` has the variants that others printed.
    """
    seen = run(model, images, labels, mode="eval", watch=layers_of(model))
    return _tcet(seen.kernels, seen, "log1p")


def _tcet(kernels: dict[str, Tensor], seen: Pass, variant: str) -> float:
    logdets, transform = layer_logdets(kernels), _TCET[variant]
    ratios = layer_ratios(seen.saliency)
    return finite("tcet", sum(transform(r) * logdets.get(name, 0.0) for name, r in ratios.items()))


# ---- baselines


def zico(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], *, loss: Loss = F.cross_entropy) -> float:
    """ZiCo: sum_l log sum_w E_i|g_i(w)| / std_i(g_i(w)) over i = 1..N batches (Li et al., Eq. 15, as released).

    The standard deviation is of the signed gradient and divides by N. Weights with zero deviation are left out; a
    layer without any other gives 0.

    Args:
        batches: N >= 2 (images, labels); the released search has two of 128.
    """
    if len(batches) < 2:
        raise ValueError(f"ZiCo needs at least two batches, to take a deviation over; got {len(batches)}.")
    return _zico([run(model, x, y, mode="train", loss=loss) for x, y in batches])


def _zico(seen: Sequence[Pass]) -> float:
    passes, total = [one.gradients for one in seen], 0.0
    for name in passes[0]:
        if passes[0][name] is None:
            continue
        g = torch.stack([gradients[name].flatten().double() for gradients in passes])  # (N, weights)
        spread = g.std(0, correction=0)
        terms = g.abs().mean(0)[spread > 0] / spread[spread > 0]
        total += float(terms.sum().log()) if len(terms) else 0.0
    return finite("zico", total)


def synflow(model: nn.Module, shape: Sequence[int]) -> float:
    """SynFlow: sum of |w dR/dw| with all tensors replaced by moduli, batch norm by identity; R = sum of outputs.

    Data-free, in double precision, on a copy of the network and an input of ones.

    Args:
        shape: of one input without the batch, (C, ...).
    """
    layers = layers_of(model)
    owner = owners(layers)
    for name, layer in layers.items():
        weight_of(name, layer)
    with failing("The network fails in SynFlow, on a copy in double precision"):
        clone = copy.deepcopy(model).double().eval()
        for module in clone.modules():
            if isinstance(module, NORMS):
                module.forward = lambda input: input.clone()  # a later layer may write into it
        state = {t: s.abs() if s.is_floating_point() else s for t, s in stand_ins(clone).items()}
        scored = [weight_of(name, layer) for name, layer in layers_of(clone).items() if owner[name] == name]
        weights = [state[weight].requires_grad_() for weight in scored]
        with torch.enable_grad(), moded(clone, "eval"), substituted(clone, state):
            outputs = clone(torch.ones(1, *shape, dtype=torch.float64, device=weights[0].device))
            check_scores(outputs)
            gradients = torch.autograd.grad(outputs.sum(), weights, allow_unused=True)
    seen = saliencies(dict(enumerate(weights)), dict(enumerate(gradients)))
    return finite("synflow", sum(s.sum() for s in seen.values()))


def zen(model: nn.Module, shape: Sequence[int], *, seed: int = 0) -> float:
    """Zen-score: log E||f(x) - f(x + gamma e)||_1 + sum over batch norms of log sqrt(mean running variance).

    f is the network before global pooling. Weights are redrawn from N(0, 1) on a copy, norms reset; x, e ~ N(0, I);
    running variances are the momentum estimates after the two train-mode forwards, as released. ZenNAS scores its
    networks without residual links (`zennet.build(..., residual=False)`); other networks are scored as they are.

    Args:
        shape: of the input batch, (B, C, H, W).
        seed: of weights and inputs.
    """
    if not callable(getattr(model, "features", None)):
        raise ProxyError("Zen-score needs `.features(x)`, the maps before global pooling; this network has none.")
    clone, generator = redrawn(model, seed, kaiming=False)
    norms = [module for module in clone.modules() if isinstance(module, NORMS)]
    fails = failing("The network's `features` fail in train mode")
    with fails, moded(clone, "train"), torch.no_grad(), accelerated(clone):
        device = next(clone.parameters()).device
        x, e = (torch.randn(*shape, generator=generator).to(device) for _ in range(2))
        change = (clone.features(x.clone()) - clone.features(x + ZEN_GAMMA * e)).double().abs()
        spread = sum(float(m.running_var.double().mean().sqrt().log()) for m in norms if m.running_var is not None)
    return finite("zen", float(change.flatten(1).sum(1).mean().log()) + spread)


# ---- many at once

MEANINGS = {  # of each proxy, in one line; `score` has the formulas
    "naswot": "expressivity: how differently the layers code the images, log|K|; 0 when two codes agree",
    "lnwot": "NASWOT layer by layer, summed",
    "naswot_relu": "NASWOT over the ReLU units alone",
    "snip": "sum of |weight x gradient|",
    "snip_ssnr": "trainability: weight sensitivity, its sum over its spread, summed over layers",
    "tcet": "trainability times expressivity, summed over layers (Eq. 11)",
    "tcet_none": "T-CET without the logarithm of its trainability",
    "tcet_train": "tcet_none with its trainability in train mode",
    "tcet_log": "T-CET with log in place of log1p",
    "grad_norm": "gradient norms of the layers, summed",
    "synflow": "sum of |weight x gradient| with moduli for weights and ones for images",
    "zico": "size and steadiness of gradients between two halves of the batch",
    "zen": "expressivity: how the maps answer a small change of a random input",
    "params": "parameters",
    "macs": "multiply-adds of convolutions and matrix products, one input",
    "flops": "2 x all multiply-adds, norms, ReLU and pooling too, one input",
}
NAMES = tuple(MEANINGS)
COSTS = frozenset({"params", "macs", "flops"})


def score(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    names: Sequence[str],
    *,
    loss: Loss = F.cross_entropy,
    seed: int = 0,
    second: tuple[Tensor, Tensor] | None = None,
    output: int | str | None = None,
) -> dict[str, float]:
    """Named proxies of one network in as few passes as they need; each in the mode its function has.

    "tcet_none" (T-CET paper, Eq. 7) and "tcet_log" (its released search) have r and log r in place of log1p(r);
    "tcet_train" is "tcet_none" with the saliency in train mode, 11-13% higher. Kernels are always of eval mode.

    Args:
        model: any network that takes one batch of images.
        images: (B, ...), normalised, a tensor or an array; the paper's batch is 64. "zen" and "synflow" take its shape
            alone.
        labels: targets of `loss`.
        names: of `NAMES`; "lnwot" is the sum of `layer_logdets`.
        seed: of Zen-score's draws.
        second: another (images, labels), for "zico" beside the first; without it, the halves of the first are its two.
        output: index, key or attribute of the scores, where the network returns several things.

    Raises:
        ValueError: a name is not in `NAMES`, or the batch is empty.
        ProxyError: the network fails, a proxy is not finite or has nothing to score.

    Warns:
        UserWarning: a proxy does not look at many of the parameters.
    """
    names = [names] if isinstance(names, str) else list(names)
    if unknown := sorted({name for name in names if name not in NAMES}, key=str):
        raise ValueError(f"names must be of {NAMES}; got {unknown}.")
    readable(model)
    images, labels = as_batch(model, images, labels)
    if set(names) - COSTS and (missed := left_out(model)):
        warnings.warn(missed, stacklevel=2)
    given, model = model, model if output is None else Chosen(model, output)
    needed = labels if {"tcet", "tcet_none", "tcet_log"} & set(names) else None
    codes = cache(lambda: run(model, images, needed, mode="eval", loss=loss, watch=layers_of(model)))
    trained = cache(lambda: run(model, images, labels, mode="train", loss=loss))
    costs = cache(lambda: costs_of(given, torch.zeros_like(images[:1])))

    def of_batches() -> float:
        if second is None:
            return zico(model, list(zip(images.chunk(2), labels.chunk(2))), loss=loss)
        return _zico([trained(), run(model, *second, mode="train", loss=loss)])

    formulas = {
        "naswot": lambda: _naswot(codes().kernels),
        "lnwot": lambda: finite("lnwot", sum(layer_logdets(codes().kernels).values())),
        "naswot_relu": lambda: naswot(model, images, variant="relu"),
        "snip": lambda: finite("snip", sum(s.sum() for s in trained().saliency.values())),
        "snip_ssnr": lambda: _ssnr(trained()),
        "tcet": lambda: _tcet(codes().kernels, codes(), "log1p"),
        "tcet_none": lambda: _tcet(codes().kernels, codes(), "none"),
        "tcet_train": lambda: _tcet(codes().kernels, trained(), "none"),
        "tcet_log": lambda: _tcet(codes().kernels, codes(), "log"),
        "grad_norm": lambda: finite("grad_norm", trained().gradient_norm),
        "synflow": lambda: synflow(model, images.shape[1:]),
        "zico": of_batches,
        "zen": lambda: zen(given, images.shape, seed=seed),
        "params": lambda: float(costs().params),
        "macs": lambda: float(costs().macs),
        "flops": lambda: float(costs().flops),
    }
    return {name: formulas[name]() for name in names}


def zc_vector(
    cell: Cell, images: Tensor, labels: Tensor, *, seed: int, width: int = 16, repeats: int = 5, classes: int = 10
) -> Tensor:
    """z(x) = [NASWOT, SNIP-SSNR, parameters, FLOPs] of the cell's stacked network alpha_x (Eq. 1-2), raw.

    One network is built, with PyTorch's default initialisation under `seed`; NASWOT is read in eval mode, SSNR in
    train mode, parameters and FLOPs (2 x MACs, at the images' size) are analytic.

    Args:
        cell: a cell with a path from input to output.
        images: (B, C, H, W), normalised; the paper's batch is 64 images of 32x32.
        labels: (B,) class indices below `classes`.
        seed: of the initial weights; equal seeds give equal vectors.
        width: channels of the first stage.
        repeats: cells a stage.
        classes: outputs of the classifier.

    Returns:
        float64 (4,), on the CPU.

    Raises:
        InvalidCellError: the cell has no path from input to output.
        ProxyError: a proxy is not finite.
    """
    images, labels = as_batch(None, images, labels)
    architecture, shape = stack_cell(cell, width=width, repeats=repeats), tuple(images.shape[1:])
    costs = count(architecture, input_shape=shape, classes=classes)
    model = moved(build(architecture, input_shape=shape, classes=classes, seed=seed), images.device)
    values = [naswot(model, images), snip_ssnr(model, images, labels), costs.params, costs.flops]
    return torch.tensor(values, dtype=torch.float64)
