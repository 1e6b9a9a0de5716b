"""The graph variational auto-encoder as it is used: cells to latents, latents to cells, latents to z (Eq. 4-5).

`latent` is the paper's f, `zc` its z (standardised by `clusters.ZCTransform`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from graphnas_lib import store
from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.gvae.networks import CellDecoder, GraphEncoder, GVAEConfig, Rescaled
from graphnas_lib.space import Cell, CellCodes, Decoded, as_codes, connect_loose_ends, decoded, hard_decode

VARIANTS = {"regularised": "gvae", "naive": "gvae_naive"}  # -> prefix of the files
CELLS_A_PASS = 1024  # of an encoder or decoder: their states stay in the cache


class GVAE(nn.Module):
    """Encoder f, decoder f^-1 and predictor q (Sec. 3.1).

    Attributes:
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
        starts = range(0, max(len(codes), 1), CELLS_A_PASS)
        parts = [self.encoder(codes[i : i + CELLS_A_PASS].to(self.device)) for i in starts]
        return torch.cat([mu for mu, _ in parts]), torch.cat([logvar for _, logvar in parts])

    def encode(self, cells: Sequence[Cell] | CellCodes) -> Tensor:
        """Mean latents f(x), (n, m). The first call imports PyTorch Geometric, in whose layers the encoder is."""
        return self.encode_distribution(cells)[0]

    @torch.no_grad()
    def decode_raw(self, latent: Tensor, *, repair: str | None = None) -> list[Decoded]:
        """f^-1 with its outcome, one `Decoded` a row of `latent` (n, m); equal graphs are made canonical once.

        `repair` None decodes what the decoder says; "loose_ends" first joins nodes that nothing leaves to the output
        and nodes that nothing enters to the input (`space.connect_loose_ends`).
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
        latent = torch.as_tensor(latent, dtype=self.latent_mean.dtype, device=self.device)
        if latent.dim() != 2 or latent.shape[1] != self.config.latent_dim:
            raise ValueError(f"latent must be (n, {self.config.latent_dim}); got {tuple(latent.shape)}.")
        parts = [hard_decode(self.decoder(part)) for part in latent.split(CELLS_A_PASS)]
        return CellCodes(torch.cat([p.edges for p in parts]), torch.cat([p.operations for p in parts]))

    def to_files(self, prefix: str = "gvae", *, half: bool = False) -> dict:
        """Files for `store.save("gvae", ...)`: weights (with `half` float16 on disk; `load` gives float32), sizes."""
        weights = dict(self.state_dict())
        if half:
            weights |= {key: weight.half() for key, weight in self.named_parameters()}
        facts = {"config": asdict(self.config), "zc_hash": self.zc_hash}
        return {f"{prefix}.safetensors": weights, f"{prefix}.json": facts}

    @classmethod
    def load(cls, scale: str | None = None, variant: str = "regularised") -> GVAE:
        """A trained G-VAE of a scale's artifacts; MissingArtifactError says how to make it."""
        name = VARIANTS[store.one_of("variant", variant, VARIANTS)]
        scale = scale or store.default_scale("gvae")
        fields = store.load("gvae", f"{name}.json", scale)
        model = cls(GVAEConfig(**fields["config"]), regularised=variant == "regularised", zc_hash=fields["zc_hash"])
        model.load_state_dict(store.load("gvae", f"{name}.safetensors", scale))
        return model.eval()
