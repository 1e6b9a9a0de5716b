"""The graph variational autoencoder (Eq. 4-5): encoder, decoder, predictor q, losses, measures of its latent space.

`GVAE.load(scale).encode(cells)` gives mean latents, `.decode(latent)` cells, `.predict_zc(latent)` standardised z.
Only what encodes or trains imports PyTorch Geometric, in whose layers the encoder is written.
"""

from graphnas_lib.gvae.embedding import cluster_metrics, embed
from graphnas_lib.gvae.model import GVAE, VARIANTS
from graphnas_lib.gvae.networks import GVAEConfig
from graphnas_lib.gvae.roundtrip import element_accuracy, random_latents, reconstruction_rate, valid_draws, validity
from graphnas_lib.gvae.training import train
