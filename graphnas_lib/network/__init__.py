"""Networks of plain PyTorch layers: the 28 operations, `build`, exact costs by `count`, export (Sec. 3, App. B).

One list of `Layer`s a operation is read once to build and once to count, so the two cannot disagree. `network/fast/`
holds the CPU fast paths; `accelerated` lends them to a network while we score or train it, and nobody else holds one.
"""

from graphnas_lib.network.export import ExportError, need_onnx, to_code, to_onnx, unwrapped
from graphnas_lib.network.fast.switch import accelerated
from graphnas_lib.network.modules import Costs, Network, build, checked_task, count, depth, moved
from graphnas_lib.network.operations import Layer, layers, sequence
