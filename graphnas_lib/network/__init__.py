"""Networks of plain PyTorch layers: the 28 operations, `build`, exact costs by `count`, export (Sec. 3, App. B).

One list of `Layer`s a operation is read once to build and once to count, so the two cannot disagree. `network/fast/`
holds the CPU fast paths that our own scoring and training use.
"""

from graphnas_lib.network.export import ExportError, to_code, to_onnx
from graphnas_lib.network.fast.pointwise import PointwiseConv2d
from graphnas_lib.network.modules import Costs, Network, build, count
from graphnas_lib.network.operations import layers

__all__ = ["Costs", "ExportError", "Network", "PointwiseConv2d", "build", "count", "layers", "to_code", "to_onnx"]
