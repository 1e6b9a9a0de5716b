"""Our Tables 5 and 6: what each stage cost at a scale, and the sizes of its models."""

from __future__ import annotations

from inspect import signature

import pandas as pd

from graphnas_lib import ccnf, sequence, store
from graphnas_lib.gvae import GVAEConfig
from graphnas_lib.paper import SCALES, STAGES, TABLE_5
from graphnas_lib.stages import sequence as generator

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
    """Hours, device, seed and megabytes of every stage that a scale has, in the order in which they are made.

    Raises:
        MissingArtifactError: the scale has none.
    """
    paths, rows = [store.manifest_path(stage, scale) for stage in STAGES], []
    paths = [path for path in paths if path.exists()]
    if not paths:
        store.load_manifest(DATA_STAGES[0], scale)  # it says how to make the first
    for path in paths:
        manifest = store.read(path)
        megabytes = sum(entry["bytes"] for entry in manifest["files"].values()) / 1e6
        row = {"stage": manifest["stage"], "hours": manifest["seconds"] / 3600, "seconds": manifest["seconds"]}
        rows.append(row | {key: manifest[key] for key in ("device", "seed")} | {"megabytes": megabytes})
    return pd.DataFrame(rows)


def published_hours() -> dict[str, float]:
    """The paper's hours by Table 5, under the stage of ours that ends what they pay for."""
    data, training = ({name: cell.value for name, cell in row} for row in TABLE_5)
    hours = {"labels": data["Metrics predictor"], "gvae": training["Metrics predictor"], "ccnf": training["CCNF"]}
    return hours | {"evolution": data["Seq. Gen."], "sequence": training["Seq. Gen."]}


def hyperparameters(scale: str) -> dict[str, dict[str, dict]]:
    """Our Table 6: the sizes and settings that one scale uses, under the paper's row names."""
    s, columns = SCALES[scale], ("G-VAE", "Metrics predictor", "CCNF", "Seq. Gen.")
    flow = {name: given.default for name, given in signature(ccnf.train).parameters.items()}
    tokens = generator.settings(s)[0]
    positions = sequence.PREFIX + sequence.MAX_NEW
    rows = {
        "ARCH: Input dimension": (None, s.latent_dim, s.latent_dim, positions),
        "ARCH: Number of layers": (4, 2, s.ccnf_layers, s.sequence_layers),
        "ARCH: Hidden dimension": (s.gvae_hidden, s.latent_dim, s.ccnf_hidden, positions),
        "ARCH: Output dimension": (s.latent_dim, 4, s.latent_dim, s.sequence_hidden),
        "TRAIN: Batch size": (s.gvae_batch, None, s.ccnf_batch, s.sequence_batch),
        "TRAIN: Learning rate": (s.gvae_lr, None, flow["learning_rate"], tokens.lr),
        "TRAIN: Weight decay": (GVAEConfig().weight_decay, None, flow["weight_decay"], tokens.weight_decay),
    }
    return {
        row: {column: {"value": value, "n": 1} for column, value in zip(columns, values) if value is not None}
        for row, values in rows.items()
    }
