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
    """Seconds, device and seed of every stage that this scale has."""
    rows = []
    for path in sorted(store.data_dir(scale).glob("*.manifest.json")):
        manifest = store.read(path)
        size = sum(entry["bytes"] for entry in manifest["files"].values())
        rows.append({**{k: manifest[k] for k in ("stage", "seconds", "device", "seed")}, "megabytes": size / 1e6})
    return pd.DataFrame(rows)


def hyperparameters(scale: str) -> dict[str, dict[str, dict]]:
    """Our Table 6: the sizes of one scale under the paper's row names."""
    s = SCALES[scale]
    rows = {
        "ARCH: Number of layers": {
            "G-VAE": 4,
            "Metrics predictor": 2,
            "CCNF": s.ccnf_layers,
            "Seq. Gen.": s.sequence_layers,
        },
        "ARCH: Hidden dimension": {"G-VAE": s.gvae_hidden, "Metrics predictor": s.latent_dim, "CCNF": s.ccnf_hidden},
        "ARCH: Output dimension": {
            "G-VAE": s.latent_dim,
            "Metrics predictor": 4,
            "CCNF": s.latent_dim,
            "Seq. Gen.": s.sequence_hidden,
        },
        "TRAIN: Batch size": {"G-VAE": s.gvae_batch, "CCNF": s.ccnf_batch, "Seq. Gen.": s.sequence_batch},
        "TRAIN: Learning rate": {"G-VAE": s.gvae_lr},
    }
    return {row: {column: {"value": value, "n": 1} for column, value in cells.items()} for row, cells in rows.items()}
