"""A network for a budget as data: its sizes and score, and the files that it is written to and read from."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean

import pandas as pd
import torch
from torch import nn

from graphnas_lib import __version__, network, store
from graphnas_lib.macro import Architecture, HLArchitecture, JSONText
from graphnas_lib.network import build, count
from graphnas_lib.plots import plot_architecture, render


@dataclass(frozen=True, kw_only=True)
class Design(JSONText):
    """One network for a budget; input shape, classes and `dense` are as `design` was asked."""

    called = "A design"
    architecture: Architecture  # cells, widths, strides, and the families that the cells were drawn for
    params: int  # trainable
    flops: int  # the paper's unit (2 x MACs) at `input_shape`
    macs: int  # multiply-accumulates of convolutions and linear layers at `input_shape`
    tcet: float | None  # on `batch`; compare it within one call only. None: others promised more
    batch: str  # what T-CET is taken on in this call, in words
    input_shape: tuple[int, ...] = (3, 32, 32)
    classes: int = 10
    dense: bool = False

    @property
    def task(self) -> dict:
        """Input shape and outputs as arguments of `network.build` and `network.count`."""
        return {"input_shape": self.input_shape, "classes": self.classes, "dense": self.dense}

    @property
    def layers(self) -> int:
        """Convolutions and the classifier: what a training has to pass through."""
        return network.depth(self.architecture)

    @property
    def width(self) -> float:
        """Mean channels of its cells."""
        return fmean(triple.channels for triple in self.architecture.triples)

    @property
    def hl(self) -> HLArchitecture:
        """The macro design it was drawn from, after its widths were fitted."""
        return self.architecture.hl

    def build(self, *, seed: int | None = None) -> nn.Module:
        """The trainable network; `seed` as in `network.build`."""
        return build(self.architecture, **self.task, seed=seed)

    def step_milliseconds(self, *, batch: int = 16, device: str = "cpu", tries: int = 3) -> float:
        """What one forward and backward pass of a batch takes here, the quickest of some; training is many of them."""
        model = self.build(seed=0).to(device, memory_format=torch.channels_last)
        noise, times = torch.randn(batch, *self.input_shape, generator=torch.Generator().manual_seed(0)), []
        images = noise.to(device)
        with network.accelerated(model):  # as in training
            for _ in range(tries):
                began = time.perf_counter()
                model(images).sum().backward()
                next(model.parameters()).grad.sum().item()  # waits for a GPU
                times.append(1_000 * (time.perf_counter() - began))
        return min(times)

    def to_dict(self) -> dict:
        """JSON-ready form."""
        return {**vars(self), "architecture": self.architecture.to_dict(), "input_shape": list(self.input_shape)}

    @classmethod
    def from_dict(cls, data: dict) -> Design:
        """Inverse of `to_dict`; a design of an earlier version has its families beside the architecture, as "hl".

        Raises:
            ValueError: a field is missing, damaged, or does not fit the architecture; names it and the reason.
        """
        if isinstance(data, dict) and "hl" in data:
            data = dict(data)
            data["architecture"] = {"architecture": data.get("architecture"), "hl": data.pop("hl")}
        wanted = set(cls.__dataclass_fields__)
        if not isinstance(data, dict) or set(data) != wanted:
            came = sorted(data) if isinstance(data, dict) else data
            raise ValueError(f"A design must have exactly the fields {sorted(wanted)}; got {str(came)[:200]}.")
        architecture = Architecture.from_dict(data["architecture"])
        for name, kind in (("tcet", float | None), ("batch", str), ("dense", bool), ("input_shape", list)):
            if not isinstance(data[name], kind):
                raise ValueError(
                    f"A design's '{name}' must be a {getattr(kind, '__name__', kind)}; got {data[name]!r}."
                )
        made = cls(**{**data, "architecture": architecture, "input_shape": tuple(data["input_shape"])})
        for name, value in vars(count(architecture, **made.task)).items():
            if data[name] != value:
                raise ValueError(f"A design's '{name}' must be what its architecture has, {value}; got {data[name]!r}.")
        return made

    def to_code(self) -> str:
        """The network as a Python file that imports PyTorch alone (`export.to_code`)."""
        score = "not taken" if self.tcet is None else f"{self.tcet:.6g} on {self.batch}"
        made = f"A network drawn by graphnas_lib {__version__}; T-CET {score}."
        return network.to_code(self.architecture, **self.task, title=made)

    def save(self, path: Path | str, *, model: nn.Module | None = None) -> Path:
        """Write the design in the format that the path's ending names; returns the path.

        .json is what `load` reads; .py the network as code that needs PyTorch alone; .onnx the network with the weights
        of `model`, by default `build(seed=0)`; .png, .pdf and .svg a drawing.

        Raises:
            ValueError: another ending, or `model` is not this design's network.
            export.ExportError: the ONNX file would not give the network's outputs, or its packages are missing.
        """
        path = Path(path)
        if path.suffix in (".json", ".py"):
            return store.write(path, self.to_dict() if path.suffix == ".json" else self.to_code())
        if path.suffix == ".onnx":
            given = self.build(seed=0) if model is None else self._own(model)
            return network.to_onnx(given, path, input_shape=self.input_shape)
        if path.suffix.removeprefix(".") in store.DESIGN_FORMATS:
            title, side = f"{self.params:,} parameters", self.input_shape[1]
            return render(plot_architecture(self.architecture, title, resolution=side, cells=True), path)
        endings = ", ".join(f".{name}" for name in store.DESIGN_FORMATS)
        raise ValueError(f"A design is saved as {endings}; got {path.name!r}.")

    def _own(self, model: nn.Module) -> nn.Module:
        """The network inside `model`; ValueError unless it is this design's."""
        model, own = network.unwrapped(model), self.build()
        one, other = ([(name, t.shape) for name, t in net.state_dict().items()] for net in (model, own))
        same = one == other
        if type(model) is type(own):  # and not of the file that `to_code` writes, say
            task = (model.architecture.key(), model.input_shape, model.dense)
            same &= task == (self.architecture.key(), self.input_shape, self.dense)
        if not same:
            raise ValueError(
                f"The weights must be those of this design's network ({self.params:,} parameters); got another "
                f"{type(model).__name__} ({sum(p.numel() for p in model.parameters()):,} parameters)."
            )
        return model

    @classmethod
    def load(cls, path: Path | str) -> Design:
        """The design of a .json file that `save` wrote; ValueError names file, place and reason of damage."""
        try:
            return cls.from_json(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{Path(path).name}: {error}") from error


class Designs(list):
    """Designs, best first by the rule that was asked for, those without T-CET last; `unscored` counts failed ones."""

    unscored: int = 0

    def scores(self) -> str:
        """What T-CET was taken on, and of how many, in a sentence."""
        taken = sum(design.tcet is not None for design in self)
        some = "" if taken == len(self) else f" of {taken} of {len(self)} designs (`candidates` says of how many)"
        return f"T-CET{some} on {self[0].batch}."

    def table(self, *, timed: bool = False) -> pd.DataFrame:
        """One row a design; `timed` adds what a step of training takes here (`Design.step_milliseconds`)."""
        rows = []
        for design in self:
            triples = design.architecture.triples
            row = {name: getattr(design, name) for name in ("params", "flops", "macs", "tcet", "layers")}
            row["tcet"] = math.nan if design.tcet is None else design.tcet
            row |= {"step ms": round(design.step_milliseconds(), 1)} if timed else {}
            row |= {"cells": len(triples), "channels": " ".join(str(t.channels) for t in triples)}
            row |= {"strides": " ".join(str(t.stride) for t in triples), "head": design.architecture.head_channels or 0}
            rows.append(row)
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return self.table().to_string(index=False, na_rep="-") if self else "no designs"

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no designs</p>"
        return self.table().to_html(na_rep="-") + f"<p>{escape(self.scores())}</p>"
