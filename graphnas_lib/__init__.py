"""Open, runnable form of *Towards Neural Architecture Search through Hierarchical Generative Modeling*.

One paper concept a module; start at `graphnas_lib.design` (budget in, networks out) or at the numbered notebooks.
Importing the package imports nothing heavy.
"""

__version__ = "0.1.0"
