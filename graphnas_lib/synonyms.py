"""Synonymous micro designs: cells near a ZC vector, near a cell, or of a family (Sec. 3.2, Tab. 1, Eq. 8-9).

`CellSampler` joins decoder, flow and families: omega(x-hat) of Eq. 9 is `generate_cell`, alpha(alpha-hat) of Eq. 8 is
`realise`. The rows of Table 1 are `random_cells`, `neighbourhood_cells` and `ccnf_cells`: one decode a
request, failures kept as None, because "Gen. success" counts them. Everywhere else a decode that is no valid cell, or
is known not to have what was asked for, the family or the ZC vector, is drawn again, at most 16 times; then the nearest
is taken (deviation D49), or, where none was valid, the family's medoid, counted in `CellSampler.fallbacks`.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor

from graphnas_lib import store
from graphnas_lib.ccnf import CCNF
from graphnas_lib.clusters import Families, zc_distance
from graphnas_lib.gvae import GVAE
from graphnas_lib.macro import Architecture, HLArchitecture, stack_cell
from graphnas_lib.network import Costs, count
from graphnas_lib.space import Cell

CELLS_PER_POOL = 32  # made at once: one at a time costs as much as a dozen; 256 at once a third each
MAX_DRAWS = 16  # until the nearest valid cell is taken
MAX_ZC_GAP_STD = 0.2  # standard deviations within which every component of z must lie to be that asked for
NEIGHBOURHOOD_SIGMAS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0)
SIGMA_HALVINGS = 3  # of a step between them


@dataclass(frozen=True)
class Generated:
    """Cells as they came, None for a decode that is no valid cell, and the number of decodes they took."""

    cells: list[Cell | None]
    n_attempts: int

    @property
    def valid(self) -> list[Cell]:
        """The cells that are one."""
        return [cell for cell in self.cells if cell is not None]


class CellSampler:
    """The generator of cells: the flow over the latents of a G-VAE, its decoder, and the families of Eq. 9, joined.

    Args:
        temperature: factor on the flow's noise in `generate_cell` and `realise`; 1 is Eq. 9 as printed.
        costs: exact size of a cell's network as z has it (`label_costs`), to tell which family a drawn cell is of;
            None takes q's word for the size too.
        pool: cells that `generate_cell` makes at once; another number gives other cells.

    Attributes:
        requests, attempts, fallbacks: cells asked of `generate_cells` and the pools, decodes made for them, and
            requests answered by a medoid. A healthy model has no fallbacks.

    Raises:
        ValueError: the parts were trained on different transforms of z, or differ in latent size.
    """

    def __init__(
        self,
        gvae: GVAE,
        ccnf: CCNF,
        families: Families,
        *,
        temperature: float = 1.0,
        costs: Callable[[Cell], Costs] | None = None,
        pool: int = CELLS_PER_POOL,
    ):
        hashes = {"G-VAE": gvae.zc_hash, "CCNF": ccnf.config.zc_hash, "families": families.zc_transform.hash()}
        if len({h for h in hashes.values() if h}) > 1:
            raise ValueError(f"All parts must be trained on one transform of z; theirs are {hashes}. Train them anew.")
        sizes = gvae.config.latent_dim, ccnf.config.latent_dim
        if sizes[0] != sizes[1]:
            raise ValueError(f"G-VAE and CCNF must share the latent size; got {sizes[0]} and {sizes[1]}.")
        self.gvae, self.ccnf, self.families, self.temperature = gvae.eval(), ccnf.eval(), families, temperature
        self.costs, self.pool = costs, pool
        self.requests = self.attempts = self.fallbacks = 0
        self._blocks: dict[tuple[int, int, int], list[Cell]] = {}

    @classmethod
    def load(cls, scale: str | None = None, *, device: str | torch.device = "cpu", **options) -> CellSampler:
        """The sampler of a scale's artifacts, with further `options`; MissingArtifactError names what is not there."""
        scale = scale or store.default_scale("families", "gvae", "ccnf")
        gvae, ccnf = GVAE.load(scale).to(device), CCNF.load(scale, device=device)
        return cls(gvae, ccnf, Families.load(scale), costs=label_costs(scale), **options)

    def sample(self, zc: Tensor, *, seed: int, temperature: float = 1.0) -> Generated:
        """Decode one draw of the flow for each condition, a standardised ZC vector, (n, 4) (Sec. 3.2)."""
        return self._decode(zc, _generator("sample", seed), temperature)

    def generate_cell(self, family: int, *, index: int, seed: int = 0) -> Cell:
        """omega(x-hat) of Eq. 9: the `index`-th cell of a family, a function of (seed, family, index) alone.

        Cells come from pools of consecutive indices, made at the first request for one of them.

        Raises:
            ValueError: no such family, or a negative index.
        """
        if index < 0:
            raise ValueError(f"index must be 0 or above; got {index}.")
        block = (seed, family, index // self.pool)
        if block not in self._blocks:
            self._blocks[block] = self._fill([family] * self.pool, _generator("pool", *block))
        return self._blocks[block][index % self.pool]

    def generate_cells(self, families: Sequence[int], *, seed: int) -> list[Cell]:
        """One cell for each family of a list (Eq. 9) in a single solve; a function of (seed, the list)."""
        return self._fill(list(families), _generator("cells", seed))

    def _fill(self, families: list[int], generator: torch.Generator) -> list[Cell]:
        """A valid cell for each entry, of its family if draws suffice; at last the nearest drawn, or the medoid."""
        wrong = [family for family in families if not 0 <= family < self.families.n_clusters]
        if wrong:
            raise ValueError(f"A family must be an index from 0 to {self.families.n_clusters - 1}; got {wrong[0]}.")

        def draw(rows: list[int]) -> Generated:
            return self._decode(self.centres([families[i] for i in rows]), generator, self.temperature)

        def misses(cells: list[Cell], rows: list[int]) -> list[float]:  # 0 in the family, else how far from its centre
            zc, wanted = self.known_zc(cells), torch.tensor([families[i] for i in rows])
            distances = zc_distance(zc, self.families.means[wanted].to(zc)).clamp(min=1e-9)
            return torch.where(self.families.assign(zc, standardised=True) == wanted, 0.0, distances).tolist()

        found = checked_draws(len(families), draw, misses)
        self.requests += len(families)
        self.attempts += found.n_attempts
        self.fallbacks += found.cells.count(None)
        medoids = self.families.medoid_cells
        if None in found.cells and not medoids:
            tried = f"No valid cell of family {families[found.cells.index(None)]} in {MAX_DRAWS} tries"
            raise ValueError(f"{tried}, and the families hold no medoid cells. Fit them with `cells=`.")
        pairs = zip(found.cells, families, strict=True)
        return [cell or Cell.from_dict(medoids[family]).canonical() for cell, family in pairs]

    def known_zc(self, cells: Sequence[Cell]) -> Tensor:
        """z of cells without a pass through their networks, standardised, (n, 4): exact sizes where `costs` tell them,
        else and for the other two what q says."""
        zc = self.gvae.predict_zc(self.gvae.encode(cells)).cpu()
        if self.costs is not None:
            raw = self.families.inverse(torch.zeros_like(zc))  # (n, 4); of these only the sizes are used
            sizes = [self.costs(cell) for cell in cells]
            raw[:, 2:] = torch.tensor([[size.params, size.flops] for size in sizes], dtype=raw.dtype)
            zc[:, 2:] = self.families.transform(raw)[:, 2:]
        return zc

    def centres(self, families: list[int]) -> Tensor:
        """mu of each family of a list (Eq. 9), (n, 4), moved into the range of conditions that the flow learnt."""
        flow = self.ccnf
        return self.families.means[families].to(flow.zc_low).clamp(flow.zc_low, flow.zc_high)

    def _decode(self, zc: Tensor, generator: torch.Generator, temperature: float) -> Generated:
        noise = torch.randn(len(zc), self.ccnf.config.latent_dim, generator=generator)  # (n, m)
        units = self.families.zc_transform.inverse
        return self.decode(self.ccnf.sample(zc, noise=noise, temperature=temperature, units=units))

    def decode(self, latent: Tensor) -> Generated:
        """One decode for each latent vector, (n, m)."""
        return Generated(self.gvae.decode(latent), len(latent))


def label_costs(scale: str) -> Callable[[Cell], Costs] | None:
    """Params and FLOPs of a cell's network as the labels of this scale have them; None where they are not at hand."""
    if not store.manifest_path("labels", scale).exists():
        return None
    facts = store.load_manifest("labels", scale)["config"]
    shape, classes = (3, facts["resolution"], facts["resolution"]), facts["classes"]
    return lambda cell: count(stack_cell(cell), input_shape=shape, classes=classes)


def checked_draws(
    n: int, draw: Callable[[list[int]], Generated], misses: Callable[[list[Cell], list[int]], list[float]]
) -> Generated:
    """For each of n requests the first draw that misses nothing, of `MAX_DRAWS`; else the one that misses least.

    Args:
        draw: indices of requests -> one decode for each.
        misses: valid cells and the requests they are for -> how much each misses, 0 for nothing.

    Returns:
        A cell a request, None where no decode gave a valid one; and all decodes.
    """
    cells: list[Cell | None] = [None] * n
    least, pending, attempts = [math.inf] * n, list(range(n)), 0
    for _ in range(MAX_DRAWS):
        drawn = draw(pending)
        attempts += drawn.n_attempts
        valid = [(i, cell) for i, cell in zip(pending, drawn.cells, strict=True) if cell is not None]
        found = misses([cell for _, cell in valid], [i for i, _ in valid]) if valid else []
        for (i, cell), miss in zip(valid, found, strict=True):
            if miss < least[i]:
                cells[i], least[i] = cell, miss
        pending = [i for i in pending if least[i] > 0]
        if not pending:
            break
    return Generated(cells, attempts)


def _generator(*key: object) -> torch.Generator:
    """A CPU generator whose seed is a hash of `key`: nearby keys give unrelated streams."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


# ---- the three samplers of Table 1


def random_cells(sampler: CellSampler, n: int, *, seed: int) -> Generated:
    """Row "Random": decode n draws of N(mean, std^2) in the latent space, those of the training cells' f."""
    gvae = sampler.gvae
    noise = torch.randn(n, gvae.config.latent_dim, generator=_generator("random", seed))
    return sampler.decode(gvae.latent_mean.cpu() + gvae.latent_std.cpu() * noise)


def neighbourhood_cells(
    sampler: CellSampler, reference: Cell, n: int, *, seed: int, sigma: float, near: Tensor | None = None
) -> Generated:
    """Row "Neighbourhood": f^-1(f(r) + eps), eps normal, n times (Sec. 3.2).

    Its deviation is `sigma` times the training latents' in each dimension, whose units differ (deviation D48). Draws
    are kept as by `ccnf_cells` where a standardised ZC vector `near`, (4,), is given.
    """
    latent = sampler.gvae.encode([reference]).cpu()  # (1, m)
    generator = _generator("neighbourhood", seed)

    def draw(rows: list[int]) -> Generated:
        noise = torch.randn(len(rows), latent.shape[1], generator=generator)
        return sampler.decode(latent + sigma * sampler.gvae.latent_std.cpu() * noise)

    return _kept(sampler, draw, n, near)


def matched_neighbourhood(
    sampler: CellSampler, reference: Cell, like: Sequence[Cell], n: int, *, seed: int, near: Tensor | None = None
) -> tuple[Generated, float]:
    """The smallest neighbourhood whose first valid cells are as many and as distinct as `like`, and its sigma.

    Tried in steps of `NEIGHBOURHOOD_SIGMAS`, then halfway between; the widest where none suffices. `near` as in
    `neighbourhood_cells`.
    """
    wanted = len({cell.key() for cell in like})

    def drawn(sigma: float) -> tuple[Generated, bool]:
        found = neighbourhood_cells(sampler, reference, n, seed=seed, sigma=sigma, near=near)
        return found, len({cell.key() for cell in found.valid[: len(like)]}) >= wanted

    low = 0.0
    for sigma in NEIGHBOURHOOD_SIGMAS:
        found, enough = drawn(sigma)
        if enough:
            break
        low = sigma
    for _ in range(SIGMA_HALVINGS if enough else 0):
        nearer, enough = drawn(middle := (low + sigma) / 2)
        low, sigma, found = (low, middle, nearer) if enough else (middle, sigma, found)
    return found, sigma


def ccnf_cells(
    sampler: CellSampler,
    zc_reference: Tensor,
    n: int,
    *,
    seed: int | torch.Generator,
    temperature: float = 1.0,
    checked: bool = False,
) -> Generated:
    """Row "CCNF": n draws of the flow given z(r), standardised, (4,) (Sec. 3.2); `seed` may be a source of noise.

    With `checked` each is the first of `MAX_DRAWS` known to be within `MAX_ZC_GAP_STD` of z(r), else the nearest (D49).
    """
    zc = zc_reference.reshape(-1)
    generator = seed if isinstance(seed, torch.Generator) else _generator("sample", seed)

    def draw(rows: list[int]) -> Generated:
        return sampler._decode(zc.expand(len(rows), -1), generator, temperature)

    return _kept(sampler, draw, n, zc if checked else None)


def _kept(sampler: CellSampler, draw: Callable[[list[int]], Generated], n: int, near: Tensor | None) -> Generated:
    """n draws; where a ZC vector (4,) is given, each the first within `MAX_ZC_GAP_STD` of it in every component."""

    def misses(cells: list[Cell], rows: list[int]) -> list[float]:  # the largest deviation of a component
        off = (sampler.known_zc(cells) - near).abs().amax(dim=1)
        return torch.where(off <= MAX_ZC_GAP_STD, 0.0, off).tolist()

    return draw(list(range(n))) if near is None else checked_draws(n, draw, misses)


def realise(hl_architecture: HLArchitecture, sampler: CellSampler, *, seed: int) -> Architecture:
    """alpha(alpha-hat) of Eq. 8: a cell generated for every high-level triple, channels and strides kept."""
    families = [triple.cluster for triple in hl_architecture.triples]
    return hl_architecture.with_cells(sampler.generate_cells(families, seed=seed))


def synonyms(
    cell: Cell | str,
    n: int = 20,
    seed: int = 0,
    scale: str | None = None,
    *,
    sampler: CellSampler | None = None,
    temperature: float = 1.0,
) -> list[Cell]:
    """Distinct valid cells near `cell`: checked draws of the flow given its ZC vector (Sec. 3.2, D49).

    The vector is what is known without images: exact parameters and FLOPs, q(f(cell)) for the rest.

    Args:
        cell: a valid cell, or a NATS-Bench architecture (`space.nats_operations`); never among its own synonyms.
        scale: whose artifacts to load when no `sampler` is given.
        temperature: factor on the flow's noise; lower is nearer and less varied.

    Raises:
        InvalidCellError: `cell` computes nothing.

    Warns:
        UserWarning: 16 n cells held fewer than n distinct ones; fewer come.
    """
    cell = cell if isinstance(cell, Cell) else Cell.from_nats(cell)
    sampler = sampler or CellSampler.load(scale)
    zc, generator = sampler.known_zc([cell])[0], _generator("synonyms", index(seed), cell.key())
    distinct = {cell.key(): cell}
    for _ in range(MAX_DRAWS):
        drawn = ccnf_cells(sampler, zc, n, seed=generator, temperature=temperature, checked=True)
        for candidate in drawn.valid:
            distinct.setdefault(candidate.key(), candidate)
        found = list(distinct.values())[1 : n + 1]
        if len(found) == n:
            return found
    came = f"{MAX_DRAWS * n} cells must give {n} distinct synonyms; they gave {len(found)}"
    warnings.warn(f"{came}. Raise the temperature (now {temperature}) or ask for fewer.", stacklevel=2)
    return found
