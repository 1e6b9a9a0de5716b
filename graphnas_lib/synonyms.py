"""Synonymous micro designs: cells near a ZC vector, near a cell, or of a family (Sec. 3.2, Tab. 1, Eq. 8-9).

`CellSampler` joins decoder, flow and families: omega(x-hat) of Eq. 9 is `generate_cell`, alpha(alpha-hat) of Eq. 8 is
`realise`. The rows of Table 1 are `random_cells`, `neighbourhood_cells` and `ccnf_cells`: one decode a
request, failures kept as None, because "Gen. success" counts them. Everywhere else a decode that is no valid cell is
drawn again, at most 16 times, then replaced by the family's medoid and counted in `CellSampler.fallbacks`; and one that
is known not to be of the family is, at most 8 times (deviation D49).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from graphnas_lib import artifacts
from graphnas_lib.ccnf import CCNF
from graphnas_lib.clusters import Families, zc_distance
from graphnas_lib.gvae import GVAE
from graphnas_lib.macro import Architecture, HLArchitecture, Triple, stack_cell
from graphnas_lib.network import Costs, count
from graphnas_lib.space import Cell

BLOCK = 32  # cells a pool makes at once: one at a time costs as much as a dozen
MAX_TRIES = 16
FAMILY_TRIES = 8  # draws until the nearest valid cell is taken
SIGMAS = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0)  # of neighbourhoods
HALVINGS = 3  # of a step between them


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
        costs: exact size of a cell's network as z has it (`label_costs`), to tell which family a drawn cell is of;
            None takes q's word for the size too.

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
    ):
        hashes = {"G-VAE": gvae.zc_hash, "CCNF": ccnf.config.zc_hash, "families": families.zc_transform.hash()}
        if len({h for h in hashes.values() if h}) > 1:
            raise ValueError(f"All parts must be trained on one transform of z; theirs are {hashes}. Train them anew.")
        if gvae.config.latent_dim != ccnf.config.latent_dim:
            raise ValueError(
                f"G-VAE and CCNF must share the latent size; got {gvae.config.latent_dim} and {ccnf.config.latent_dim}."
            )
        self.gvae, self.ccnf, self.families, self.temperature = gvae.eval(), ccnf.eval(), families, temperature
        self.costs = costs
        self.requests = self.attempts = self.fallbacks = 0
        self._blocks: dict[tuple[int, int, int], list[Cell]] = {}

    @classmethod
    def load(
        cls, scale: str | None = None, *, device: str | torch.device = "cpu", temperature: float = 1.0
    ) -> CellSampler:
        """The sampler of a scale's artifacts; MissingArtifactError names the stage that is not there."""
        scale = scale or artifacts.default_scale("families", "gvae", "ccnf")
        gvae, ccnf = GVAE.load(scale).to(device), CCNF.load(scale, device=device)
        return cls(gvae, ccnf, Families.load(scale), temperature=temperature, costs=label_costs(scale))

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
        """A valid cell for each entry, of its family if tries suffice; at last the nearest drawn, or the medoid."""
        cells: list[Cell | None] = [None] * len(families)
        misses = [math.inf] * len(families)
        pending = list(range(len(families)))
        for tried in range(1, MAX_TRIES + 1):
            asked = [families[i] for i in pending]
            drawn = self._decode(self.centres(asked), generator, self.temperature)
            self.attempts += drawn.n_attempts
            for i, cell, miss in zip(pending, drawn.cells, self._misses(drawn.cells, asked), strict=True):
                if miss < misses[i]:
                    cells[i], misses[i] = cell, miss
            pending = [i for i in pending if misses[i] > 0 and (tried < FAMILY_TRIES or cells[i] is None)]
            if not pending:
                break
        self.requests += len(families)
        self.fallbacks += len(pending)
        for i in pending:
            cells[i] = self._medoid(families[i])
        return cells

    def _misses(self, cells: Sequence[Cell | None], families: list[int]) -> list[float]:
        """0 for a cell of its family, else how far it is from the centre; infinite for None."""
        misses, valid = [math.inf] * len(cells), [i for i, cell in enumerate(cells) if cell is not None]
        if not valid:
            return misses
        zc = self.known_zc([cells[i] for i in valid])
        wanted = torch.tensor([families[i] for i in valid])
        distances = zc_distance(zc, self.families.means[wanted].to(zc))
        same = self.families.assign(zc, standardised=True) == wanted
        for i, inside, distance in zip(valid, same.tolist(), distances.tolist(), strict=True):
            misses[i] = 0.0 if inside else max(distance, 1e-9)
        return misses

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

    def _medoid(self, family: int) -> Cell:
        if not self.families.medoid_cells:
            raise ValueError(
                f"No valid cell of family {family} in {MAX_TRIES} tries, and the families hold no medoid cells to fall "
                "back on. Fit them with `cells=`."
            )
        return Cell.from_dict(self.families.medoid_cells[family]).canonical()

    def _decode(self, zc: Tensor, generator: torch.Generator, temperature: float) -> Generated:
        noise = torch.randn(len(zc), self.ccnf.config.latent_dim, generator=generator)  # (n, m)
        units = self.families.zc_transform.inverse
        return _decoded(self.gvae, self.ccnf.sample(zc, noise=noise, temperature=temperature, units=units))


def label_costs(scale: str) -> Callable[[Cell], Costs] | None:
    """Params and FLOPs of a cell's network as the labels of this scale have them; None where they are not at hand."""
    if not artifacts.manifest_path("labels", scale).exists():
        return None
    facts = artifacts.load_manifest("labels", scale)["config"]
    return partial(_label_costs, facts["resolution"], facts["classes"])


def _label_costs(resolution: int, classes: int, cell: Cell) -> Costs:
    return count(stack_cell(cell), input_shape=(3, resolution, resolution), classes=classes)


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

    Tried in steps of `SIGMAS`, then halfway between; the widest where none suffices.
    """
    wanted = len({cell.key() for cell in like})

    def drawn(sigma: float) -> tuple[Generated, bool]:
        found = neighbourhood_cells(sampler, reference, n, seed=seed, sigma=sigma)
        return found, len({cell.key() for cell in found.valid[: len(like)]}) >= wanted

    low = 0.0
    for sigma in SIGMAS:
        found, enough = drawn(sigma)
        if enough:
            break
        low = sigma
    for _ in range(HALVINGS if enough else 0):
        nearer, enough = drawn(middle := (low + sigma) / 2)
        low, sigma, found = (low, middle, nearer) if enough else (middle, sigma, found)
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
    cell: Cell | str,
    n: int = 20,
    seed: int = 0,
    scale: str | None = None,
    *,
    sampler: CellSampler | None = None,
    temperature: float = 1.0,
) -> list[Cell]:
    """Distinct valid cells near `cell`: draws of the flow given its predicted ZC vector q(f(cell)) (Sec. 3.2).

    Args:
        cell: a valid cell, or a NATS-Bench architecture string; never among its own synonyms.
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
    cell = Cell.from_nats(cell) if isinstance(cell, str) else cell
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
