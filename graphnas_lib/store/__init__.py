"""Where things lie and how they are written: artifacts with manifests, checkpoints of long loops, parallel jobs.

Every file is written atomically and verified by SHA-256 on reading; a stage without its manifest does not exist.
`Checkpoint` keeps a long loop and `collect` runs independent jobs, so that a killed run goes on. Nothing is unpickled.
"""

from graphnas_lib.store.artifacts import (
    DESIGN_FORMATS,
    SCALE_NAMES,
    MissingArtifactError,
    TrainLog,
    check_scale,
    damage,
    data_at_hand,
    data_dir,
    default_scale,
    figures_dir,
    load,
    load_manifest,
    manifest_path,
    no_cuda,
    one_of,
    pick_device,
    read,
    results_dir,
    root,
    save,
    sha256,
    versions,
    write,
)
from graphnas_lib.store.checkpoints import Checkpoint, CorruptArtifactError, put_back, states
from graphnas_lib.store.files import alone, remedy, replaced
from graphnas_lib.store.jobs import TRIES, Journal, collect, died, end_with, gpus, on_cpu, processes, single_threaded
from graphnas_lib.store.library import library_files, library_hash, names_used
