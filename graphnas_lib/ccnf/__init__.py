"""The conditional continuous normalizing flow over the latent space (Eq. 6-7): field, traces, objectives, sampling.

`CCNF.sample(zc)` draws latent cells that should have the zero-cost vector `zc`; `CCNF.log_prob` is Eq. 6.
"""

from graphnas_lib.ccnf.flow import CCNF, CCNFConfig
from graphnas_lib.ccnf.latents import PosteriorBatches, gaussian_baselines
from graphnas_lib.ccnf.training import train
