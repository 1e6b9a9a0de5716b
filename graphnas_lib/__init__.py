"""Open, runnable form of *Towards Neural Architecture Search through Hierarchical Generative Modeling*.

One paper concept a module; start at `graphnas_lib.design` (budget in, networks out) or at the numbered notebooks.
Importing the package imports nothing heavy.
"""

import os

__version__ = "0.1.0"

# Threads of PyTorch's OpenMP spin for milliseconds while they wait for each other, which on cores that others use as
# well makes a small network tens of times slower; so short a wait costs nothing on idle ones. Read as PyTorch loads.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
