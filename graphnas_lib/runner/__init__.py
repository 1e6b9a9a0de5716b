"""The notebooks, headlessly: which there are, in which order, which are fresh, how one runs; README.md and REPORT.md.

Nothing here imports PyTorch, so that deciding what is fresh takes a second.
"""

from graphnas_lib.runner.headless import duration, past_seconds, reproduce, status
from graphnas_lib.runner.manifest import Project, select
from graphnas_lib.runner.readme import save_outputs, update
