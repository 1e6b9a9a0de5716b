"""Our Tables 5 and 6: what each stage cost at a scale, and the sizes of its models."""

from __future__ import annotations

import pandas as pd

from graphnas_lib import store
from graphnas_lib.paper import SCALES

DATA_STAGES = ("cells", "labels")


def costs(scale: str) -> dict[str, dict[str, dict]]:
    """Our Table 5 in the form that `plots.compare` takes: hours, with the device in the note."""

    def of(*stages: str) -> dict:
        spent, devices = hours(stages, scale)
        return {"value": spent, "n": 1, "note": f"hours on {devices}"}

    return {
        "Data gen.": {"Metrics predictor": of(*DATA_STAGES), "Seq. Gen.": of("evolution")},
        "Training": {"Metrics predictor": of("gvae"), "CCNF": of("ccnf"), "Seq. Gen.": of("sequence")},
    }


def hours(stages: tuple[str, ...], scale: str) -> tuple[float, str]:
    """Hours that some stages took together, and on which devices."""
    manifests = [store.load_manifest(stage, scale) for stage in stages]
    devices = sorted({manifest["device"] for manifest in manifests})
    return sum(manifest["seconds"] for manifest in manifests) / 3600, ", ".join(devices)


def stage_costs(scale: str) -> pd.DataFrame:
    """Seconds, device, seed and megabytes of every stage that a scale has; MissingArtifactError where it has none."""
    paths, rows = sorted(store.data_dir(scale).glob("*.manifest.json")), []
    if not paths:
        store.load_manifest(DATA_STAGES[0], scale)  # it says how to make the first
    for path in paths:
        manifest = store.read(path)
        megabytes = sum(entry["bytes"] for entry in manifest["files"].values()) / 1e6
        rows.append({key: manifest[key] for key in ("stage", "seconds", "device", "seed")} | {"megabytes": megabytes})
    return pd.DataFrame(rows)


def hyperparameters(scale: str) -> dict[str, dict[str, dict]]:
    """Our Table 6: the sizes of one scale under the paper's row names."""
    s, columns = SCALES[scale], ("G-VAE", "Metrics predictor", "CCNF", "Seq. Gen.")
    rows = {
        "ARCH: Number of layers": (4, 2, s.ccnf_layers, s.sequence_layers),
        "ARCH: Hidden dimension": (s.gvae_hidden, s.latent_dim, s.ccnf_hidden, None),
        "ARCH: Output dimension": (s.latent_dim, 4, s.latent_dim, s.sequence_hidden),
        "TRAIN: Batch size": (s.gvae_batch, None, s.ccnf_batch, s.sequence_batch),
        "TRAIN: Learning rate": (s.gvae_lr, None, None, None),
    }
    return {
        row: {column: {"value": value, "n": 1} for column, value in zip(columns, values) if value is not None}
        for row, values in rows.items()
    }
