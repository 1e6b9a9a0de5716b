"""Synonymous micro designs: cells near a ZC vector, near a cell, or of a family (Sec. 3.2, Tab. 1, Eq. 8-9).

`CellSampler` joins decoder, flow and families: omega(x-hat) of Eq. 9 is `generate_cell`, alpha(alpha-hat) of Eq. 8 is
`realise`. The rows of Table 1 are `random_cells`, `neighbourhood_cells` and `ccnf_cells`: one decode a
request, failures kept as None, because "Gen. success" counts them. Everywhere else a decode that is no valid cell is
drawn again, at most 16 times, then replaced by the family's medoid and counted in `CellSampler.fallbacks`.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphnas_lib import artifacts
from graphnas_lib.ccnf import CCNF
from graphnas_lib.clusters import Families
from graphnas_lib.gvae import GVAE
from graphnas_lib.macro import Architecture, HLArchitecture, Triple
from graphnas_lib.space import Cell

BLOCK = 32  # cells a pool makes at once: one at a time costs as much as a dozen
MAX_TRIES = 16
SIGMAS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0)  # of neighbourhoods


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
    """The generator of cells: flow, decoder and families joined.

    Args:
        gvae: trained G-VAE.
        ccnf: flow over its latents.
        families: the mixture whose centres condition the flow (Eq. 9).
        temperature: factor on the flow's noise in `generate_cell` and `realise`; 1 is Eq. 9 as printed.

    Attributes:
        requests, attempts, fallbacks: cells asked of `generate_cells` and the pools, decodes made for them, and
            requests answered by a medoid. A healthy model has no fallbacks.

    Raises:
        ValueError: the parts were trained on different transforms of z, or differ in latent size.
    """

    def __init__(self, gvae: GVAE, ccnf: CCNF, families: Families, *, temperature: float = 1.0):
        hashes = {"G-VAE": gvae.zc_hash, "CCNF": ccnf.config.zc_hash, "families": families.zc_transform.hash()}
        if len({h for h in hashes.values() if h}) > 1:
            raise ValueError(f"All parts must be trained on one transform of z; theirs are {hashes}. Train them anew.")
        if gvae.config.latent_dim != ccnf.config.latent_dim:
            raise ValueError(
                f"G-VAE and CCNF must share the latent size; got {gvae.config.latent_dim} and {ccnf.config.latent_dim}."
            )
        self.gvae, self.ccnf, self.families, self.temperature = gvae.eval(), ccnf.eval(), families, temperature
        self.requests = self.attempts = self.fallbacks = 0
        self._blocks: dict[tuple[int, int, int], list[Cell]] = {}

    @classmethod
    def load(
        cls, scale: str | None = None, *, device: str | torch.device = "cpu", temperature: float = 1.0
    ) -> CellSampler:
        """The sampler of a scale's artifacts; MissingArtifactError names the stage that is not there."""
        scale = scale or artifacts.default_scale("families", "gvae", "ccnf")
        gvae, ccnf = GVAE.load(scale).to(device), CCNF.load(scale, device=device)
        return cls(gvae, ccnf, Families.load(scale), temperature=temperature)

    def sample(self, zc: Tensor, *, seed: int, temperature: float = 1.0) -> Generated:
        """Decode one draw of the flow for each condition (Sec. 3.2), failures kept as None.

        Args:
            zc: standardised ZC vectors, (n, 4).
            seed: source of the noise.
            temperature: factor on the noise.
        """
        return self._decode(zc, _generator("sample", seed), temperature)

    def generate_cell(self, family: int, *, index: int, seed: int = 0) -> Cell:
        """omega(x-hat) of Eq. 9: the `index`-th cell of a family, a function of (seed, family, index) alone.

        Cells come from pools of `BLOCK` consecutive indices, made at the first request for one of them.

        Raises:
            ValueError: no such family, or a negative index.
        """
        self._check_families([family])
        if index < 0:
            raise ValueError(f"index must be 0 or above; got {index}.")
        block = (seed, family, index // BLOCK)
        if block not in self._blocks:
            self._blocks[block] = self._fill([family] * BLOCK, _generator("pool", *block))
        return self._blocks[block][index % BLOCK]

    def generate_cells(self, families: Sequence[int], *, seed: int) -> list[Cell]:
        """One cell for each family of a list (Eq. 9) in a single solve; a function of (seed, the list)."""
        self._check_families(families)
        return self._fill(list(families), _generator("cells", seed))

    def _check_families(self, families: Sequence[int]) -> None:
        wrong = [family for family in families if not 0 <= family < self.families.n_clusters]
        if wrong:
            raise ValueError(f"A family must be an index from 0 to {self.families.n_clusters - 1}; got {wrong[0]}.")

    def _fill(self, families: list[int], generator: torch.Generator) -> list[Cell]:
        """A valid cell for each entry; what fails is drawn again, at last replaced by the medoid."""
        cells: list[Cell | None] = [None] * len(families)
        pending = list(range(len(families)))
        for _ in range(MAX_TRIES):
            if not pending:
                break
            drawn = self._decode(self.centres([families[i] for i in pending]), generator, self.temperature)
            self.attempts += drawn.n_attempts
            for i, cell in zip(pending, drawn.cells, strict=True):
                cells[i] = cell
            pending = [i for i in pending if cells[i] is None]
        self.requests += len(families)
        self.fallbacks += len(pending)
        for i in pending:
            cells[i] = self._medoid(families[i])
        return cells

    def centres(self, families: list[int]) -> Tensor:
        """mu of each family of a list (Eq. 9), (n, 4), moved into the range of conditions that the flow learnt."""
        flow = self.ccnf
        return self.families.means[families].to(flow.zc_low).clamp(flow.zc_low, flow.zc_high)

    def _medoid(self, family: int) -> Cell:
        if not self.families.medoid_cells:
            raise ValueError(
                f"No valid cell of family {family} in {MAX_TRIES} tries, and the families hold no medoid cells to fall "
                "back on. Fit them with `cells=`."
            )
        return Cell.from_dict(self.families.medoid_cells[family]).canonical()

    def _decode(self, zc: Tensor, generator: torch.Generator, temperature: float) -> Generated:
        noise = torch.randn(len(zc), self.ccnf.config.latent_dim, generator=generator)  # (n, m)
        return _decoded(self.gvae, self.ccnf.sample(zc, noise=noise, temperature=temperature))


def _decoded(gvae: GVAE, latent: Tensor) -> Generated:
    return Generated(gvae.decode(latent), len(latent))


def _generator(*key: object) -> torch.Generator:
    """A CPU generator whose seed is a hash of `key`: nearby keys give unrelated streams."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


# ---- the three samplers of Table 1


def random_cells(
    sampler: CellSampler, n: int, *, seed: int, latents_mean_std: tuple[Tensor, Tensor] | None = None
) -> Generated:
    """Row "Random": decode n draws of N(mean, std^2) in the latent space; by default that of the training cells' f."""
    gvae = sampler.gvae
    mean, std = latents_mean_std or (gvae.latent_mean, gvae.latent_std)
    noise = torch.randn(n, gvae.config.latent_dim, generator=_generator("random", seed))
    return _decoded(gvae, mean.cpu() + std.cpu() * noise)


def neighbourhood_cells(sampler: CellSampler, reference: Cell, n: int, *, seed: int, sigma: float) -> Generated:
    """Row "Neighbourhood": f^-1(f(r) + eps), eps normal, n times (Sec. 3.2).

    Its deviation is `sigma` times the training latents' in each dimension, whose units differ (deviation D48).
    """
    latent = sampler.gvae.encode([reference]).cpu()  # (1, m)
    noise = torch.randn(n, latent.shape[1], generator=_generator("neighbourhood", seed))
    return _decoded(sampler.gvae, latent + sigma * sampler.gvae.latent_std.cpu() * noise)


def matched_neighbourhood(
    sampler: CellSampler, reference: Cell, like: Sequence[Cell], n: int, *, seed: int
) -> tuple[Generated, float]:
    """The smallest neighbourhood whose first valid cells are as many and as distinct as `like`, and its sigma.

    Tried in steps of `SIGMAS`; the widest where none suffices.
    """
    wanted = len({cell.key() for cell in like})
    for sigma in SIGMAS:
        found = neighbourhood_cells(sampler, reference, n, seed=seed, sigma=sigma)
        if len({cell.key() for cell in found.valid[: len(like)]}) >= wanted:
            break
    return found, sigma


def ccnf_cells(sampler: CellSampler, zc_reference: Tensor, n: int, *, seed: int, temperature: float = 1.0) -> Generated:
    """Row "CCNF": n draws of the flow given z(r), standardised, (4,) (Sec. 3.2)."""
    return sampler.sample(zc_reference.reshape(1, -1).expand(n, -1), seed=seed, temperature=temperature)


# ---- architectures, and the one-line tool


def realise(hl_architecture: HLArchitecture, sampler: CellSampler, *, seed: int) -> Architecture:
    """alpha(alpha-hat) of Eq. 8: a cell generated for every high-level triple, channels and strides kept.

    Raises:
        ValueError: a triple names a family that the sampler lacks.
    """
    cells = sampler.generate_cells([triple.cluster for triple in hl_architecture.triples], seed=seed)
    pairs = zip(cells, hl_architecture.triples, strict=True)
    triples = tuple(Triple(cell, triple.channels, triple.stride) for cell, triple in pairs)
    return Architecture(triples, hl_architecture.head_channels, hl_architecture.stem_stride)


def synonyms(
    cell: Cell,
    n: int = 20,
    seed: int = 0,
    scale: str | None = None,
    *,
    sampler: CellSampler | None = None,
    temperature: float = 1.0,
) -> list[Cell]:
    """Distinct valid cells near `cell`: draws of the flow given its predicted ZC vector q(f(cell)) (Sec. 3.2).

    Args:
        cell: a valid cell; never among its own synonyms.
        n: how many.
        seed: source of the noise.
        scale: whose artifacts to load when no `sampler` is given.
        sampler: one that is loaded already.
        temperature: factor on the flow's noise; lower is nearer and less varied.

    Returns:
        At most n cells, no two of one key, in the order drawn.

    Raises:
        InvalidCellError: `cell` computes nothing.

    Warns:
        UserWarning: fewer than n distinct cells came in 16 n draws.
    """
    sampler = sampler or CellSampler.load(scale)
    zc = sampler.gvae.predict_zc(sampler.gvae.encode([cell])).cpu()  # (1, 4)
    known, found = {cell.key()}, []
    generator = _generator("synonyms", seed, cell.key())
    for _ in range(MAX_TRIES):
        for candidate in sampler._decode(zc.expand(n, -1), generator, temperature).valid:
            if candidate.key() not in known and len(found) < n:
                known.add(candidate.key())
                found.append(candidate)
        if len(found) == n:
            return found
    warnings.warn(
        f"{MAX_TRIES * n} draws must give {n} distinct synonyms; they gave {len(found)}. Raise the temperature "
        f"(now {temperature}) or ask for fewer.",
        stacklevel=2,
    )
    return found
