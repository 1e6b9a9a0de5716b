"""The networks that the authors released for CIFAR-100, where the file is at hand: what designs are held against."""

from __future__ import annotations

import json

from graphnas_lib import datasets
from graphnas_lib.macro import Architecture, Triple
from graphnas_lib.space import Cell

FILE = "released_graphnet_cifar.json"  # after visionbasicagent/HGENNAS (MIT): cells, widths, costs, recorded T-CET


def released_networks() -> list[tuple[Architecture, dict]]:
    """The ten networks, each with what was recorded for 100 classes at 32x32: params, flops, tcet.

    Raises:
        MissingDataError: the file is not at hand.
    """
    found = datasets.located(FILE)
    if found is None:
        place = "$GRAPHNAS_DATA or data/"
        raise datasets.MissingDataError(f"The released networks must lie in {place} as {FILE}; they do not.")
    content, networks = json.loads(found.read_text(encoding="utf-8")), []
    for one in content["networks"]:
        triples = []
        for stage in one["stages"]:
            cell, strides = Cell.from_dict(stage), [stage["stride"], *[1] * (stage["repeats"] - 1)]
            triples += [Triple(cell, stage["channels"], stride) for stride in strides]
        architecture = Architecture(tuple(triples), one["head_channels"], content["stem_stride"])
        networks.append((architecture, {name: one[name] for name in ("params", "flops", "tcet")}))
    return networks
