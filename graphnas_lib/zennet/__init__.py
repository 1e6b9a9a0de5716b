"""The search space of ZenNAS: networks of residual, bottleneck and inverted blocks, as a baseline for Table 2."""

from graphnas_lib.zennet.blocks import INVERTED_KINDS, ZenNet
from graphnas_lib.zennet.space import build, count, initial, mutate
