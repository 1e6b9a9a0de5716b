"""The sequence generator (Sec. 3.3): vocabulary and grammar of network sequences, and the GPT-Neo that speaks it.

`SequenceGenerator.load(scale).generate(params=1e6)` gives an `HLArchitecture` for a budget.
"""

from graphnas_lib.sequence.generator import SequenceConfig, SequenceGenerator, train
from graphnas_lib.sequence.vocabulary import CONDITIONS, MAX_NEW, PREFIX
