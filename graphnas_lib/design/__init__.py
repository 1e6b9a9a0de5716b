"""Budget in, networks out: draw sequences, realise and fit them to the budget, select by T-CET, write (Sec. 3.3).

`design(params=1e6)` returns `Designs`; each `Design` builds and saves itself.
"""

from graphnas_lib.design.budget import Trained, below, design
from graphnas_lib.design.designs import Design
from graphnas_lib.design.fitting import BudgetUnreachable, quantity
from graphnas_lib.design.kept import FILE, KeptNetworks
from graphnas_lib.design.references import REFERENCES, Reference, reference
from graphnas_lib.design.repeated import SCORED, dense_cell, repeated
