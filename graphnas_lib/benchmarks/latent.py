"""P2 and P3: the paper's own models trained on NATS-Bench's cells, where every cell that they draw has been trained.

One seed trains a regularised and a naive G-VAE and a flow on four fifths of the cells; the others serve as references
alone. `samples` draws around each reference as Table 1 does, and keeps what lies in the table; `smoothness` asks how
well neighbours in the latent space tell accuracy. Two decoders are read: the model's own, which may leave the table for
the wider space, and the nearest cell of the table in latent space, which cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from graphnas_lib import ccnf, gvae
from graphnas_lib.benchmarks.premise import SIZE, one_hot, standardised_logs
from graphnas_lib.benchmarks.scores import ALPHA
from graphnas_lib.ccnf import CCNF, CCNFConfig
from graphnas_lib.clusters import Families
from graphnas_lib.gvae import GVAE, GVAEConfig
from graphnas_lib.space import Cell, CellCodes

SIGMAS = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5)  # of the training latents' deviation
COOLER = "flow, cooler"
TEMPERATURES = {"flow": 1.0, COOLER: 0.5}  # the first is the paper's
MIN_CELLS = 5  # distinct cells of the table that a comparison around a reference needs
FORMS = ("decoder", "nearest")
HELD_OUT = 0.2
FOLDS, NEIGHBOURS, PAIRS = 5, 10, 20_000
AT_ONCE = 4_096  # latents whose distances to all cells are in memory
MOST_CELLS = 100  # distinct cells compared around a reference
BEST_DECODES = 20  # times as many decodes around the best cell, since few of the decoder's lie in the table


@dataclass(frozen=True, kw_only=True)
class Training:
    """Sizes of one seed. `flow.latent_dim` must be that of `gvae`."""

    gvae: GVAEConfig
    naive: GVAEConfig
    flow: CCNFConfig
    gvae_steps: int = 2_500
    flow_steps: int = 4_000
    batch: int = 256
    families: int = 32
    references: int = 200  # held-out cells, beside the best of the table
    decodes: int = 1_000  # of a strategy, at each reference and width


class Subspace:
    """Cells of the table, the models of one seed on them, and the way back from a draw to a row of the table.

    Args:
        cells: `networks("nats", ...)`.
        shuffled: train on permuted z: the control that must not win.
    """

    def __init__(self, cells: pd.DataFrame, training: Training, *, seed: int, shuffled: bool = False, progress=False):
        self.cells, self.training, self.seed = cells, training, seed
        rng = np.random.default_rng(seed)
        self.zc = cells[list(ALPHA)].to_numpy(float, copy=True)
        if shuffled:
            self.zc = rng.permutation(self.zc)
        self.codes = CellCodes.of([Cell.from_nats(text) for text in cells["arch"]])
        self.rows = {cell.key(): i for i, cell in enumerate(self.codes.cells())}
        order = rng.permutation(len(cells))
        order = np.concatenate([order[order != self.best], [self.best]])  # the best cell is a reference, not trained on
        n = round(len(cells) * (1 - HELD_OUT))
        self.known, self.held_out = np.sort(order[:n]), np.sort(order[n:])
        self.families = Families.fit(self.zc[self.known], n_clusters=training.families, seed=seed)
        self.z = self.families.transform(self.zc)
        self.gvae = self._gvae(training.gvae, regularised=True, progress=progress)
        mu, logvar = self.gvae.encode_distribution(self.codes[torch.from_numpy(self.known)])
        posterior = mu, logvar, self.gvae.predict_zc(mu)
        config = replace(training.flow, latent_dim=training.gvae.latent_dim, zc_hash=self.gvae.zc_hash)
        options = {"config": config, "steps": training.flow_steps, "batch_size": training.batch, "seed": seed}
        self.flow: CCNF = ccnf.train(posterior, progress=progress, **options)[0]
        z = self.z[torch.from_numpy(self.known)]
        self.flow.zc_low.copy_(z.amin(dim=0))
        self.flow.zc_high.copy_(z.amax(dim=0))
        self.mu = self.gvae.encode(self.codes)

    def _gvae(self, config: GVAEConfig, *, regularised: bool, progress: bool) -> GVAE:
        cells, index = self.codes, torch.from_numpy(self.known)
        options = {"config": config, "steps": self.training.gvae_steps, "batch_size": self.training.batch}
        options |= {"seed": self.seed, "device": "cpu", "regularised": regularised, "progress": progress}
        digest = self.families.zc_transform.hash()
        return gvae.train(cells[index], cells[index], self.z[index], zc_hash=digest, **options)[0]

    @cached_property
    def best(self) -> int:
        """Row of the most accurate cell of the table on CIFAR-10."""
        return int(self.cells["cifar10"].to_numpy().argmax())

    def rows_of(self, latent: Tensor, form: str) -> np.ndarray:
        """Row of the table that each latent (n, m) decodes to: -1 for a valid cell outside it, -2 for none."""
        if form == "nearest":
            scale = self.gvae.latent_std.clamp(min=1e-6)
            cells = self.mu / scale
            parts = [torch.cdist(part / scale, cells).argmin(dim=1) for part in latent.split(AT_ONCE)]
            return torch.cat(parts).numpy()
        cells = self.gvae.decode(latent)
        return np.array([self.rows.get(cell.key(), -1) if cell else -2 for cell in cells])

    def references(self, rng: np.random.Generator) -> np.ndarray:
        """The best cell, and held-out ones: equally many of each tenth by accuracy, the top hundredth besides."""
        others = self.held_out[self.held_out != self.best]
        ranked = others[np.argsort(-self.cells["cifar10"].to_numpy()[others])]
        wanted = min(self.training.references, len(ranked))
        top = ranked[: max(1, min(wanted // 10, len(ranked) // 100))]
        tenths = np.array_split(np.setdiff1d(ranked, top, assume_unique=True), 10)
        least, more = divmod(wanted - len(top), 10)
        counts = least + (rng.permutation(10) < more)
        each = [rng.choice(part, min(len(part), n), replace=False) for part, n in zip(tenths, counts, strict=True)]
        return np.concatenate([[self.best], top, *each])


# ---- P2


def samples(space: Subspace, tasks: Sequence[str]) -> pd.DataFrame:
    """Table 1's strategies and three controls around each reference, compared at equal numbers of distinct cells.

    Returns:
        form, reference (row), group ("best" or "held out"), strategy, n distinct cells compared, valid and in_table
        (shares of the decodes), sigma, mean accuracy of each task, `min_`, `max_` and `std_` of the first task, spread
        of standardised z.
    """
    rng = np.random.default_rng([space.seed, 2])
    generator = torch.Generator().manual_seed(space.seed)
    sizes, hot = standardised_logs(space.zc[:, SIZE]), one_hot(space.cells["arch"])
    rows = []
    for reference in space.references(rng):
        latents = _drawn(space, reference, generator)
        cost = np.abs(sizes - sizes[reference]).sum(1) + 1e-9 * rng.random(len(sizes))
        edits = np.abs(hot - hot[reference]).sum(1) + 1e-3 * rng.random(len(hot))
        ordered = {"equal size": np.argsort(cost), "edits": np.argsort(edits), "random": rng.permutation(len(sizes))}
        for form in FORMS:
            found = {name: space.rows_of(latent, form) for name, latent in latents.items()}
            distinct = {name: _distinct(row, reference) for name, row in found.items()}
            widths = [f"sigma {sigma}" for sigma in SIGMAS]
            wanted = min(len(distinct["flow"]), MOST_CELLS)
            enough = [name for name in widths if len(distinct[name]) >= wanted]
            near = enough[0] if enough else max(widths, key=lambda name: len(distinct[name]))
            compared = {"neighbourhood": distinct[near]} | {name: distinct[name] for name in TEMPERATURES}
            n = min(wanted, len(distinct[near]), MOST_CELLS)
            compared |= {name: order[order != reference] for name, order in ordered.items()}
            for name, cells in compared.items():
                decoded = found[near if name == "neighbourhood" else name] if name not in ordered else np.zeros(1)
                told = {"form": form, "reference": int(reference), "strategy": name}
                told |= {"group": "best" if reference == space.best else "held out", "n": min(n, len(cells))}
                told |= {"valid": float((decoded >= -1).mean()), "in_table": float((decoded >= 0).mean())}
                told |= {"sigma": float(near.split()[1]) if name == "neighbourhood" else float("nan")}
                rows.append(told | _outcome(space, cells[:n], tasks))
    return pd.DataFrame(rows)


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose reference has `MIN_CELLS` distinct cells in every strategy; the cooler flow has no say."""
    decides = rows["strategy"] != COOLER
    least = rows["n"].where(decides).groupby([rows["form"], rows["reference"]]).transform("min")
    return rows[(least >= MIN_CELLS) & (decides | (rows["n"] >= MIN_CELLS))]


def _drawn(space: Subspace, reference: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Latents of the flow given z of the reference, and of neighbourhoods of the reference."""
    n, m = space.training.decodes * (BEST_DECODES if reference == space.best else 1), space.mu.shape[1]
    z = space.z[reference].clamp(space.flow.zc_low, space.flow.zc_high).expand(n, -1)
    found = {}
    for name, temperature in TEMPERATURES.items():
        found[name] = space.flow.sample(z, noise=torch.randn(n, m, generator=generator), temperature=temperature)
    for sigma in SIGMAS:
        noise = torch.randn(n, m, generator=generator) * space.gvae.latent_std
        found[f"sigma {sigma}"] = space.mu[reference] + sigma * noise
    return found


def _distinct(rows: np.ndarray, reference: int) -> np.ndarray:
    """Rows of the table in the order in which they first came, the reference left out."""
    rows = rows[(rows >= 0) & (rows != reference)]
    return rows[np.sort(np.unique(rows, return_index=True)[1])]


def _outcome(space: Subspace, rows: np.ndarray, tasks: Sequence[str]) -> dict[str, float]:
    accuracy = space.cells[list(tasks)].to_numpy()[rows]
    if not len(rows):
        return dict.fromkeys(tasks, float("nan"))
    first, spread = accuracy[:, 0], space.z.numpy()[rows].std(0).mean()
    told = dict(zip(tasks, accuracy.mean(0).tolist()))
    return told | {"min_": first.min(), "max_": first.max(), "std_": first.std(), "spread": float(spread)}


# ---- P3


def smoothness(space: Subspace, tasks: Sequence[str]) -> pd.DataFrame:
    """How well neighbours tell accuracy: R squared of k nearest neighbours, five folds, and Spearman near by.

    Returns:
        task, by ("regularised", "naive", "z", "edits"), r2, spearman (of distance with difference of accuracy, in pairs
        up to the tenth percentile of distance), n.
    """
    from scipy.stats import spearmanr
    from sklearn.model_selection import cross_val_predict
    from sklearn.neighbors import KNeighborsRegressor

    naive = space._gvae(space.training.naive, regularised=False, progress=False)
    points = {"regularised": space.mu.numpy(), "naive": naive.encode(space.codes).numpy()}
    points |= {"z": space.z.numpy(), "edits": one_hot(space.cells["arch"])}
    rng, rows = np.random.default_rng([space.seed, 3]), []
    for task in tasks:
        known = space.cells[task].notna().to_numpy()
        accuracy = space.cells[task].to_numpy()[known]
        order, (a, b) = rng.permutation(len(accuracy)), rng.integers(len(accuracy), size=(2, PAIRS))
        for name, every in points.items():
            x = every[known] + 1e-6 * rng.standard_normal(every[known].shape)
            model = KNeighborsRegressor(min(NEIGHBOURS, len(order) // 2), metric="manhattan")
            said = cross_val_predict(model, x[order], accuracy[order], cv=FOLDS)
            r2 = 1 - ((said - accuracy[order]) ** 2).mean() / accuracy.var()
            distance, apart = np.abs(x[a] - x[b]).sum(1), np.abs(accuracy[a] - accuracy[b])
            near = (a != b) & (distance <= np.quantile(distance[a != b], 0.1))
            told = {"task": task, "by": name, "r2": float(r2), "n": len(order)}
            rows.append(told | {"spearman": float(spearmanr(distance[near], apart[near]).statistic)})
    return pd.DataFrame(rows)


# ---- for P6


def family_pools(space: Subspace, n: int) -> list[list[int]]:
    """For each family n draws of the flow at its centre: rows of the table (nearest form), in the order drawn."""
    generator = torch.Generator().manual_seed(space.seed + 1)
    flow, pools = space.flow, []
    for centre in space.families.means.clamp(flow.zc_low, flow.zc_high):
        noise = torch.randn(n, space.training.gvae.latent_dim, generator=generator)
        pools.append(space.rows_of(flow.sample(centre.expand(n, -1), noise=noise), "nearest").tolist())
    return pools
