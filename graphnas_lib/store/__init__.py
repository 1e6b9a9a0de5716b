"""Where things lie and how they are written: artifacts with manifests, checkpoints of long loops, worker processes.

Every file is written atomically and verified by SHA-256 on reading; a stage without its manifest does not exist.
`Checkpoint` keeps a long loop, so that a killed run goes on. Nothing is ever unpickled.
"""

from graphnas_lib.store.artifacts import (
    DESIGN_FORMATS,
    SCALE_NAMES,
    MissingArtifactError,
    TrainLog,
    check_scale,
    checkpoint,
    data_at_hand,
    data_dir,
    default_scale,
    figures_dir,
    library_files,
    library_hash,
    load,
    load_manifest,
    manifest_path,
    pick_device,
    read,
    results_dir,
    root,
    save,
    sha256,
    versions,
    write,
)
from graphnas_lib.store.checkpoints import Checkpoint, CorruptArtifactError
from graphnas_lib.store.workers import ON_CPU, processes, single_threaded

__all__ = [
    "Checkpoint",
    "CorruptArtifactError",
    "DESIGN_FORMATS",
    "MissingArtifactError",
    "ON_CPU",
    "SCALE_NAMES",
    "TrainLog",
    "check_scale",
    "checkpoint",
    "data_at_hand",
    "data_dir",
    "default_scale",
    "figures_dir",
    "library_files",
    "library_hash",
    "load",
    "load_manifest",
    "manifest_path",
    "pick_device",
    "processes",
    "read",
    "results_dir",
    "root",
    "save",
    "sha256",
    "single_threaded",
    "versions",
    "write",
]
