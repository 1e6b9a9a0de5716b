"""The graph variational auto-encoder: encoder f, decoder f^-1, ZC predictor q and their loss (Eq. 4-5, Tab. 6).

The encoder sees a canonical cell as a graph of 9 nodes (a global node reads all, then input, six operations, output)
and runs graph convolutions along and against the edges. The decoder says 28 edge bits and then, given these, for each
of six operation slots one of ten types or "unused", and a kernel. One canonical order a cell makes exact recovery
possible; the "unused" class makes the description total, so that every slot and every bit has a target and a decode
never has to guess how many nodes were meant. `latent` is the paper's f, `zc` its z (standardised by
`clusters.ZCTransform`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import trange

from graphnas_lib import store
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.gvae.losses import GVAELoss, gvae_loss
from graphnas_lib.space import (
    EDGES,
    KERNELS,
    OP_NODES,
    OP_TYPES,
    VIEW_FEATURES,
    VIEW_NODES,
    Cell,
    CellCodes,
    Decoded,
    Logits,
    MixedBatches,
    as_codes,
    connect_loose_ends,
    decoded,
    featurise,
    graph_view,
    hard_decode,
)
from graphnas_lib.store import Checkpoint, TrainLog

__all__ = ["GVAE", "CellCodes", "Decoded", "GVAEConfig", "GVAELoss", "Logits", "featurise", "train"]

VARIANTS = {"regularised": "gvae", "naive": "gvae_naive"}
READOUTS = ("both", "global")
START_LOGVAR = -4.0  # not in the paper; a unit variance at the start slowed the first steps in short trials
_BATCH = 1024  # cells an encoder or decoder pass takes: their states stay in the cache


@dataclass(frozen=True, kw_only=True)
class GVAEConfig:
    """Sizes and weights; defaults are the paper's where it states them."""

    hidden: int = 512  # paper: Tab. 6
    latent_dim: int = 256  # paper: Tab. 6
    layers: int = 4  # paper: Tab. 6
    readout: str = "both"  # flattened node states, the global node's among them; "global": that node's alone
    decoder_hidden: int = 512
    learning_rate: float = 3.5e-4  # paper: Tab. 6 ("3.5e4"); the text of App. A has 1e-3
    weight_decay: float = 5e-4  # paper: App. A
    kl_weight: float = 0.005  # Eq. 4 prints 1, at which most units collapse
    kl_warmup: float = 0.1  # share of the steps over which the KL weight rises from 0
    triplet_weight: float = 1.0  # paper: Eq. 5
    predictor_weight: float = 1.0  # paper: Eq. 5
    decorrelation_weight: float = 0.0  # not in the paper, see `losses.decorrelation_loss`
    loose_ends_weight: float = 0.0  # not in the paper, see `losses.loose_ends_loss`
    cycle_weight: float = 0.0  # not in the paper, see `losses.cycle_loss`
    cycle_latent: float = 0.0  # weight in it of the latent itself beside q
    margin: float = 0.1  # m of Eq. 5, in mean-L1 units of a latent of unit scale
    triplet_dims: int = 0  # leading dimensions whose distances the triplet term orders; 0 is all, as printed
    width: float = 1.0  # unit of these dimensions: 1 in their loss terms, in decoder and predictor, is `width` in f
    min_gap: float = 0.25  # triples whose two d differ by less say nothing
    labelled_fraction: float = 0.25  # of a batch
    patience: int = 10  # paper: App. A, epochs without a fall of the loss


class GraphEncoder(nn.Module):
    """Graph convolutions along and against the edges, LayerNorm, ReLU; then (mu, logvar).

    A layer is x + A h W_1 + A' h W_2 + h W_3 with h = ReLU(LayerNorm(x)): the convolution of Kipf & Welling (2017) in
    both directions of a directed graph, and the node itself with weights of its own in place of a self-loop
    (Schlichtkrull et al., 2018). Cells come in canonical order, so nodes carry a learned embedding of their position.
    The posterior starts narrow (deviation D45).
    """

    def __init__(self, config: GVAEConfig):
        super().__init__()
        if config.readout not in READOUTS:
            raise ValueError(f"readout must be one of {READOUTS}; got {config.readout!r}.")
        width = config.hidden
        self.nodes = VIEW_NODES if config.readout == "both" else 1
        self.embed = nn.Linear(VIEW_FEATURES, width)
        self.position = nn.Parameter(0.3 * torch.randn(VIEW_NODES, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.layers))
        self.mix = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(config.layers))
        for mix in self.mix:  # as if one layer read all three
            nn.init.uniform_(mix.weight, -((3 * width) ** -0.5), (3 * width) ** -0.5)
        self.readout = nn.Linear(self.nodes * width, 2 * config.latent_dim)
        self.register_buffer("unit", units(config), persistent=False)
        nn.init.constant_(self.readout.bias[config.latent_dim :], START_LOGVAR)

    def forward(self, codes: CellCodes) -> tuple[Tensor, Tensor]:
        """mu and logvar of p(f | x), (B, m) each."""
        return self.of_view(*graph_view(codes))

    def of_view(self, adjacency: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """The same of `graph_view`'s tensors, (B, 9, 9) and (B, 9, 15)."""
        spread = propagation(adjacency)
        x = self.embed(features) + self.position  # (B, 9, hidden)
        for norm, mix in zip(self.norms, self.mix, strict=True):
            x = torch.baddbmm(x, spread, mix(F.relu(norm(x))).view(len(x), 3 * VIEW_NODES, -1))
        mu, logvar = self.readout(x[:, : self.nodes].flatten(1)).chunk(2, dim=-1)
        return mu * self.unit, logvar + 2 * self.unit.log()


class Rescaled(nn.Module):
    """Latents in the units of `units`, (B, m) -> (B, m)."""

    def __init__(self, config: GVAEConfig):
        super().__init__()
        self.register_buffer("unit", units(config), persistent=False)

    def forward(self, latent: Tensor) -> Tensor:
        return latent / self.unit


def units(config: GVAEConfig) -> Tensor:
    """What 1 is in f, (m,): `width` in the dimensions that the triplet term orders, so that L1(f) follows them."""
    unit = torch.ones(config.latent_dim)
    unit[: config.triplet_dims] = config.width
    return unit


def propagation(adjacency: Tensor) -> Tensor:
    """What a node sums: (B, 9, 27) of `graph_view`'s adjacency, [n, a, 3 b + r] the weight of node b under W_(r + 1).

    r is 0 along an edge a -> b, 1 against an edge b -> a, 2 for the node itself; self-loops are left out. An edge
    counts 1 / sqrt(out-degree of its source * in-degree of its target) (Kipf & Welling, 2017, for a directed graph).
    """
    itself = torch.eye(VIEW_NODES, device=adjacency.device).expand_as(adjacency)
    edges = adjacency * (1 - itself)
    outward, inward = edges.sum(dim=2, keepdim=True), edges.sum(dim=1, keepdim=True)
    weighted = edges * (outward * inward).clamp(min=1).rsqrt()
    return torch.stack([weighted, weighted.transpose(1, 2), itself], dim=-1).flatten(2)


class CellDecoder(nn.Module):
    """Latents to edges, then to operations given these: what a cell computes hangs on both together."""

    def __init__(self, config: GVAEConfig):
        super().__init__()
        m, width = config.latent_dim, config.decoder_hidden
        outputs = OP_NODES * (len(OP_TYPES) + 1 + len(KERNELS))
        self.rescaled = Rescaled(config)
        self.edges = nn.Sequential(*_block(m, width), *_block(width, width), nn.Linear(width, len(EDGES)))
        self.operations = nn.Sequential(
            *_block(m + len(EDGES), width), *_block(width, width), nn.Linear(width, outputs)
        )

    def forward(self, latent: Tensor, edges: Tensor | None = None) -> Logits:
        """Logits of latents (B, m); operations for `edges` (B, 28) of 0 and 1, by default the most likely ones."""
        latent = self.rescaled(latent)
        said = self.edges(latent)
        given = (said.detach() > 0 if edges is None else edges).to(latent.dtype)
        out = self.operations(torch.cat([latent, 2 * given - 1], dim=1))
        types, kernels = out.split([OP_NODES * (len(OP_TYPES) + 1), OP_NODES * len(KERNELS)], dim=-1)
        return Logits(said, types.unflatten(-1, (OP_NODES, -1)), kernels.unflatten(-1, (OP_NODES, -1)))


class GVAE(nn.Module):
    """Encoder f, decoder f^-1 and predictor q (Sec. 3.1).

    Attributes:
        config: sizes.
        regularised: trained with the triplet and predictor terms (Eq. 5); a naive one has no trained q.
        zc_hash: `ZCTransform.hash` of the labels' transform, "" when not given.
        latent_mean, latent_std: aggregate over the training cells' mu, (m,); zeros and ones before training.
    """

    def __init__(self, config: GVAEConfig | None = None, *, regularised: bool = True, zc_hash: str = ""):
        super().__init__()
        self.config = config = config or GVAEConfig()
        self.regularised, self.zc_hash = regularised, zc_hash
        self.encoder = GraphEncoder(config)
        self.decoder = CellDecoder(config)
        self.predictor = nn.Sequential(  # paper: App. A, the hidden state mirrors the latent size
            Rescaled(config),
            nn.Linear(config.latent_dim, config.latent_dim),
            nn.ReLU(),
            nn.Linear(config.latent_dim, len(ZC_NAMES)),
        )
        self.register_buffer("latent_mean", torch.zeros(config.latent_dim))
        self.register_buffer("latent_std", torch.ones(config.latent_dim))

    @property
    def device(self) -> torch.device:
        """Where the weights are; inputs are moved there."""
        return self.latent_mean.device

    @torch.no_grad()
    def encode_distribution(self, cells: Sequence[Cell] | CellCodes) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of p(f | x), (n, m) each; cells are made canonical first."""
        codes = as_codes(cells)
        parts = [self.encoder(codes[i : i + _BATCH].to(self.device)) for i in range(0, max(len(codes), 1), _BATCH)]
        return torch.cat([mu for mu, _ in parts]), torch.cat([logvar for _, logvar in parts])

    def encode(self, cells: Sequence[Cell] | CellCodes) -> Tensor:
        """Mean latents f(x), (n, m)."""
        return self.encode_distribution(cells)[0]

    def logits(self, latent: Tensor, edges: Tensor | None = None) -> Logits:
        """Decoder outputs of latents (B, m); operations for `edges` (B, 28), by default the decoder's own."""
        return self.decoder(latent, edges)

    @torch.no_grad()
    def decode_raw(self, latent: Tensor, *, repair: str | None = None) -> list[Decoded]:
        """f^-1 with its outcome, one `Decoded` a row of `latent` (n, m); equal graphs are made canonical once.

        Args:
            latent: (n, m).
            repair: None decodes what the decoder says; "loose_ends" first joins nodes that nothing leaves to the output
                and nodes that nothing enters to the input (`codes.connect_loose_ends`).
        """
        if repair not in (None, "loose_ends"):
            raise ValueError(f"repair must be None or 'loose_ends'; got {repair!r}.")
        codes = self.decode_codes(latent)
        return decoded(connect_loose_ends(codes) if repair else codes)

    def decode(self, latent: Tensor, *, repair: str | None = None) -> list[Cell | None]:
        """f^-1: canonical cells of latents (n, m), None where no valid cell came out."""
        return [outcome.cell for outcome in self.decode_raw(latent, repair=repair)]

    @torch.no_grad()
    def predict_zc(self, latent: Tensor) -> Tensor:
        """q(f): standardised ZC vectors (n, 4); use `.predictor` where gradients are wanted.

        Raises:
            ValueError: the model is naive, its q was never trained.
        """
        if not self.regularised:
            raise ValueError("predict_zc needs a G-VAE trained with the predictor term (Eq. 5); this one is naive.")
        return self.predictor(latent.to(self.device))

    @torch.no_grad()
    def decode_codes(self, latent: Tensor) -> CellCodes:
        """Raw decode of latents (n, m), neither checked nor pruned; ValueError when m differs."""
        latent = torch.as_tensor(latent, dtype=torch.float32, device=self.device)
        if latent.dim() != 2 or latent.shape[1] != self.config.latent_dim:
            raise ValueError(f"latent must be (n, {self.config.latent_dim}); got {tuple(latent.shape)}.")
        parts = [hard_decode(self.logits(latent[i : i + _BATCH])) for i in range(0, max(len(latent), 1), _BATCH)]
        return CellCodes(torch.cat([p.edges for p in parts]), torch.cat([p.operations for p in parts]))

    def to_files(self, prefix: str = "gvae") -> dict:
        """Files for `artifacts.save("gvae", ...)`: the weights, and the configuration, under `prefix`."""
        config = {"config": asdict(self.config), "zc_hash": self.zc_hash}
        return {f"{prefix}.safetensors": dict(self.state_dict()), f"{prefix}.json": config}

    @classmethod
    def load(cls, scale: str | None = None, variant: str = "regularised") -> GVAE:
        """A trained G-VAE of a scale's artifacts; MissingArtifactError says how to make it."""
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {tuple(VARIANTS)}; got {variant!r}.")
        scale = scale or store.default_scale("gvae")
        fields = store.load("gvae", f"{VARIANTS[variant]}.json", scale)
        model = cls(GVAEConfig(**fields["config"]), regularised=variant == "regularised", zc_hash=fields["zc_hash"])
        model.load_state_dict(store.load("gvae", f"{VARIANTS[variant]}.safetensors", scale))
        return model.eval()


def _block(width: int, out: int) -> list[nn.Module]:
    return [nn.Linear(width, out), nn.LayerNorm(out), nn.ReLU()]


# ---- training


def train(
    cells: Sequence[Cell] | CellCodes,
    labelled: Sequence[Cell] | CellCodes,
    zc_standardised: Tensor,
    *,
    config: GVAEConfig | None = None,
    steps: int,
    batch_size: int = 64,  # paper: Tab. 6
    seed: int = 0,
    device: str = "auto",
    regularised: bool = True,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    log_every: int = 100,
    zc_hash: str = "",
) -> tuple[GVAE, TrainLog]:
    """Train a G-VAE on mixed batches: unlabelled cells, and a share of labelled ones for the terms of Eq. 5.

    AdamW with a cosine from `learning_rate` to 0, KL warm-up, at most `steps` steps; stops earlier once the loss has
    not fallen for `patience` epochs (App. A). A naive model sees the same batches and only loses Eq. 5. On a CPU with a
    fixed thread count a resumed run equals an uninterrupted one bit for bit. The checkpoint is left in place, complete,
    for the caller to clear once the result is saved.

    Args:
        cells: unlabelled cells, or their `CellCodes` (saves making 400,000 cells canonical again).
        labelled: labelled cells.
        zc_standardised: their z after `ZCTransform`, (n_labelled, 4).
        steps: upper bound, and length of the cosine.
        batch_size: cells a step, `config.labelled_fraction` of them labelled.
        log_every: steps a log row averages over.
        zc_hash: `ZCTransform.hash` of the transform, kept with the model.

    Raises:
        ValueError: no cells, or labels and labelled cells differ in number.
        FloatingPointError: the loss is no longer finite.
    """
    began, config, device = time.monotonic(), config or GVAEConfig(), store.pick_device(device)
    cells, labelled = as_codes(cells).to(device), as_codes(labelled).to(device)
    batches = MixedBatches(cells, labelled, zc_standardised.float().to(device))
    model = _initialised(config, seed=seed, regularised=regularised, zc_hash=zc_hash).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay, fused=True)
    generator = torch.Generator(device).manual_seed(seed)
    checkpoint = checkpoint or Checkpoint.none()
    done, rows, sums, seconds = _restore(checkpoint.load(), model, optimizer, generator)
    n_labelled = round(batch_size * config.labelled_fraction) if len(labelled) else 0
    warmup = config.kl_warmup * steps
    epoch = math.ceil(len(cells) / batch_size / log_every)  # in log rows
    for step in trange(done, steps, initial=done, total=steps, desc="G-VAE", disable=not progress):
        if step % log_every == 0 and _stalled(rows, epoch=epoch, patience=config.patience):
            break
        optimizer.param_groups[0]["lr"] = 0.5 * config.learning_rate * (1 + math.cos(math.pi * step / steps))
        kl_weight = config.kl_weight * min(1.0, (step + 1) / max(warmup, 1))
        codes, zc = batches.draw(batch_size, n_labelled, generator=generator)
        loss = gvae_loss(model, codes, zc, kl_weight=kl_weight, regularised=regularised, generator=generator)
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        optimizer.step()
        sums += torch.stack([getattr(loss, name).detach() for name in _PARTS])  # no .item(): a step never waits
        done = step + 1
        if done % log_every == 0 or done == steps:
            rows.append(_row(done, sums / ((done - 1) % log_every + 1), kl_weight))
            sums.zero_()
        if checkpoint.due():
            checkpoint.save(_state(done, rows, sums, seconds + time.monotonic() - began, model, optimizer, generator))
    seconds += time.monotonic() - began
    checkpoint.save(_state(done, rows, sums, seconds, model, optimizer, generator))
    _store_statistics(model, cells)
    return model.eval(), TrainLog(rows, done, seconds)


_PARTS = ("total", "reconstruction", "kl", "triplet", "predictor", "decorrelation", "loose_ends", "cycle")


def _initialised(config: GVAEConfig, *, seed: int, **options) -> GVAE:
    """A model whose weights depend on `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GVAE(config, **options)


def _row(step: int, parts: Tensor, kl_weight: float) -> dict:
    row = {"step": step, "kl_weight": kl_weight, **dict(zip(_PARTS, parts.tolist(), strict=True))}
    if not math.isfinite(row["total"]):
        raise FloatingPointError(f"The G-VAE loss must stay finite; it is {row}. Lower config.learning_rate.")
    return row


def _stalled(rows: list[dict], *, epoch: int, patience: int) -> bool:
    """Whether the loss at full KL weight has not fallen for `patience` epochs of `epoch` log rows each (App. A)."""
    totals = [row["total"] for row in rows if row["kl_weight"] == rows[-1]["kl_weight"]]
    means = [sum(totals[i : i + epoch]) / epoch for i in range(0, len(totals) - epoch + 1, epoch)]
    return len(means) > patience and min(means[-patience:]) >= min(means[:-patience])


def _state(done: int, rows: list, sums: Tensor, seconds: float, model: GVAE, optimizer, generator) -> dict:
    trained = {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()}
    return {"step": done, "rows": rows, "sums": sums, "seconds": seconds, "generator": generator.get_state(), **trained}


def _restore(state: dict | None, model: GVAE, optimizer, generator) -> tuple[int, list, Tensor, float]:
    """Steps done, log rows, running sums and seconds of a stored state, whose weights are put back; or of a start."""
    if state is None:
        return 0, [], torch.zeros(len(_PARTS), device=model.device), 0.0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"])
    return state["step"], state["rows"], state["sums"].to(model.device), state["seconds"]


def _store_statistics(model: GVAE, codes: CellCodes, most: int = 20_000) -> None:
    """Aggregate mean and std of mu over (at most `most`) training cells, kept with the weights."""
    mu = model.encode(codes[:most])
    model.latent_mean.copy_(mu.mean(dim=0))
    model.latent_std.copy_(mu.std(dim=0, correction=0))
