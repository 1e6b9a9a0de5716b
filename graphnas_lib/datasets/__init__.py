"""Real data in, tensors out: images, and the tasks of NAS-Bench-360 with their metrics.

`load(name)` finds images in `$GRAPHNAS_DATA` or `data/`; `load_task(name)` does so for Table 4. A file that is not what
its format promises raises CorruptArtifactError, one that is absent MissingDataError.
"""

from graphnas_lib.datasets.archives import MissingDataError
from graphnas_lib.datasets.images import NAMES, Dataset, ImageFolderDataset, load, located, normalise, roots
from graphnas_lib.datasets.nasbench360 import available, load_task
from graphnas_lib.datasets.tasks import TASKS, DivergedError, Task
