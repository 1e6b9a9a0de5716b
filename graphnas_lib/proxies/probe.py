"""One look at a network that leaves it as it was, bit for bit: the pass that every zero-cost proxy stands on.

`run` makes one forward (and one backward) through stand-ins for the parameters and copies of the buffers and images,
so that nothing of the caller's is written: not images, parameters, buffers, attributes, modes, `requires_grad`, `.grad`
or hooks, and no global random state moves. What it saw is keyed by layer name, layers with one weight under the first
of them. Whatever the caller's code raises is a ProxyError. `proxies` turns it into scores.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from operator import add, index

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphnas_lib.network import accelerated
from graphnas_lib.proxies.given import ProxyError, as_batch, check_scores, failing, readable

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)  # the layers that proxies score, by their `weight`
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
SINGULAR = 1e-8  # a code kernel with a pivot below this share of its largest is singular: log-determinant 0
BLOCK, BLOCK_ON_CUDA = 1 << 16, 1 << 24  # units a matrix product; up to 2^24 float32 counts exactly
CHUNK = 16  # images of an eval-mode gradient pass on a CPU
KEPT = 400 << 20  # bytes of maps that a train-mode backward keeps; parts of a network beyond them are run again
INT8 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")  # CPUs whose int8 products beat float32 here

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Pass:
    """What one forward (and backward) showed, by layer name; `kernels` is float64 (B, B)."""

    kernels: dict[str, Tensor]
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor | None]

    @property
    def saliency(self) -> dict[str, Tensor]:
        """SNIP saliency S(w) = |w dL/dw| of each layer, float64, flat; zeros where no gradient arrives."""
        return saliencies(self.weights, self.gradients)

    @property
    def gradient_norm(self) -> float:
        """Sum over layers of the L2 norm of the weight gradient: a sum of norms, not the norm of all."""
        return sum(float(g.double().norm()) for g in self.gradients.values() if g is not None)


def saliencies(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """|w dL/dw| of each layer, float64, flat, zeros without gradient; in few calls, since a GPU's cost time."""
    seen = {name: weight.detach() for name, weight in weights.items() if gradients[name] is not None}
    products = torch._foreach_mul(list(seen.values()), [gradients[name] for name in seen]) if seen else [torch.zeros(0)]
    flat = torch.cat([product.flatten() for product in products]).abs_().double()
    found = dict(zip(seen, flat.split([product.numel() for product in products])))
    return {n: found[n] if n in seen else w.new_zeros(w.numel(), dtype=torch.float64) for n, w in weights.items()}


@contextmanager
def moded(model: nn.Module, mode: str, seed: int = 0) -> Iterator[None]:
    """The model in `mode`, random state forked and seeded (dropout); all restored on leaving."""
    if mode not in ("train", "eval"):
        raise ValueError(f"mode must be 'train' or 'eval'; got {mode!r}.")
    before = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    others = random.getstate(), np.random.get_state()  # of networks that draw with these
    try:
        random.seed(seed)
        np.random.seed(seed)
        for module, _ in before:
            module.training = mode == "train"
        with torch.random.fork_rng(devices):
            torch.default_generator.manual_seed(seed)
            for index in devices:
                torch.cuda.default_generators[index].manual_seed(seed)
            yield
    finally:
        random.setstate(others[0])
        np.random.set_state(others[1])
        for module, training in before:
            module.training = training


@contextmanager
def hooked(modules: dict[str, nn.Module], hook: Callable[[str, nn.Module, Tensor, Tensor], None]) -> Iterator[None]:
    """`hook(name, module, input, output)` after each module's forward: the first tensor that goes in, and comes out."""

    def first(values: Iterable) -> Tensor | None:
        return next((value for value in values if isinstance(value, Tensor)), None)

    def call(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        x, y = first((*args, *kwargs.values())), first(output if isinstance(output, (tuple, list)) else (output,))
        if x is not None and y is not None:
            hook(name, module, x, y)

    with ExitStack() as handles:
        for name, module in modules.items():
            handles.enter_context(module.register_forward_hook(partial(call, name), with_kwargs=True))
        yield


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The scored layers by name."""
    readable(model)
    found = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    if not found:
        raise ProxyError("A scored network must have a Conv1d, Conv2d or Linear layer; this one has none.")
    return found


def weight_of(name: str, layer: nn.Module) -> nn.Parameter:
    """A scored layer's weight; ProxyError where it is computed from others."""
    if (weight := vars(layer)["_parameters"].get("weight")) is None:
        raise ProxyError(
            f"A scored layer's weight must be a plain parameter; that of '{name}' is computed. "
            "Remove its parametrisation first."
        )
    return weight


def owners(layers: dict[str, nn.Module]) -> dict[str, str]:
    """Name of each layer -> name of the first layer that has the same weight: tied layers are one."""
    first: dict[Tensor, str] = {}
    weights = {name: vars(layer)["_parameters"].get("weight") for name, layer in layers.items()}
    return {name: name if weight is None else first.setdefault(weight, name) for name, weight in weights.items()}


def stand_ins(model: nn.Module, scored: Iterable[Tensor] = ()) -> dict[Tensor, Tensor]:
    """A stand-in for each parameter (same storage, gradients on `scored` alone) and a copy of each buffer."""
    state = {p: p.detach() for p in model.parameters()}
    for weight in scored:
        state[weight].requires_grad_()
    buffers = list(model.buffers())
    copies = [torch.empty_like(buffer) for buffer in buffers]
    for kind in {(buffer.dtype, buffer.device) for buffer in buffers}:  # one call a type, not one a buffer
        pairs = [(copy, buffer) for copy, buffer in zip(copies, buffers) if (buffer.dtype, buffer.device) == kind]
        torch._foreach_copy_(*map(list, zip(*pairs)))
    return state | dict(zip(buffers, copies))


def redrawn(model: nn.Module, seed: int, *, kaiming: bool) -> tuple[nn.Module, torch.Generator]:
    """A copy with weights from N(0, 1), or Kaiming's fan-in ones, zero biases and fresh norms; and their generator."""
    readable(model)
    with failing("The network cannot be copied"):
        clone, generator = copy.deepcopy(model), torch.Generator().manual_seed(index(seed))
    with torch.no_grad():
        for module in clone.modules():
            if isinstance(module, LAYERS):
                deviation = (2 / module.weight[0].numel()) ** 0.5 if kaiming else 1.0
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * deviation)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, NORMS):
                module.reset_parameters()
    return clone, generator


_HELD = ("_parameters", "_buffers", "_modules")


@contextmanager
def substituted(model: nn.Module, state: dict[Tensor, Tensor]) -> Iterator[None]:
    """The model with the stand-ins of `state` in place of its tensors; all its attributes are back on leaving.

    Raises:
        ProxyError: a forward inside added parameters, which would be others each time.
    """
    before = [(m, dict(vars(m)), [dict(vars(m)[kind]) for kind in _HELD]) for m in model.modules()]
    known = set(model.parameters())
    try:
        for module, _, _ in before:
            for held in (vars(module)["_parameters"], vars(module)["_buffers"]):
                held.update({name: state.get(tensor, tensor) for name, tensor in held.items()})
        standing = set(model.parameters())
        yield
        if any(p not in standing and p not in known for p in model.parameters()):
            raise ProxyError("A network's forward must not make layers; this one does. Run it on a batch first.")
    finally:
        for module, attributes, helds in before:
            vars(module).clear()
            vars(module).update(attributes)
            for kind, held in zip(_HELD, helds, strict=True):
                attributes[kind].clear()
                attributes[kind].update(held)


def run(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    mode: str,
    watch: dict[str, nn.Module] | None = None,
    loss: Loss = F.cross_entropy,
) -> Pass:
    """Code kernels of the outputs of `watch` in `mode`, and gradients of the loss if there are labels.

    On a CPU each comes from a pass of its own, since fused layers are quicker than watched ones; a GPU makes one. In
    eval mode no image sees another, so that on a CPU gradients are summed over `CHUNK` images at a time, in less
    memory. A network with `.sequential_parts()` keeps at most `KEPT` bytes for its backward and runs the parts beyond
    them again. Where a GPU's memory runs out, the pass is made once more with the allocator's cache emptied, in eval
    mode `CHUNK` images at a time.

    Raises:
        ProxyError: the network or the loss fails, the outputs are not finite, the loss depends on no scored weight, a
            weight is parametrised, or memory has run out twice.
    """
    with suppress(torch.OutOfMemoryError):
        return _pass(model, images, labels, mode, watch, loss)
    torch.cuda.empty_cache()  # out here: the error held the maps
    try:
        return _pass(model, images, labels, mode, watch, loss, CHUNK)
    except torch.OutOfMemoryError as error:
        raise ProxyError(
            f"A network must fit into the GPU's memory to be scored; this one does not: {error}"
        ) from error


def _pass(model: nn.Module, images: Tensor, labels: Tensor | None, mode: str, watch, loss: Loss, chunk=None) -> Pass:
    layers = layers_of(model)
    owner = owners(layers)
    images, labels = as_batch(model, images, labels)
    weights = {n: weight_of(n, layer) for n, layer in layers.items() if owner[n] == n} if labels is not None else {}
    with failing("The network's weights cannot be read"):
        state = stand_ins(model, weights.values())
    weights = {name: state[weight] for name, weight in weights.items()}
    shared: dict[str, tuple[Tensor, int]] = {}

    def see(name: str, _module: nn.Module, _input: Tensor, output: Tensor) -> None:
        name, found = owner.get(name, name), shared_ones(output.detach())
        shared[name] = tuple(map(add, shared[name], found)) if name in shared else found  # tied layers are one

    size = len(images)
    if mode == "eval":
        size = chunk or (size if images.is_cuda else CHUNK)
    together = images.is_cuda and labels is not None and size >= len(images)
    fails = failing(f"The network fails in {mode} mode")
    with moded(model, mode), substituted(model, state), accelerated(model), fails:
        if watch and not together:
            with hooked(watch, see), torch.no_grad():
                check_scores(model(images.clone()))
        if labels is not None:
            with hooked(watch if watch and together else {}, see):
                for x, y in zip(images.split(size), labels.split(size), strict=True):
                    share = len(x) / len(images)  # the loss is a mean over the batch
                    _backward(model, x, list(weights.values()), lambda out, y=y, share=share: loss(out, y) * share)
    kernels = dict(zip(shared, code_kernels(list(shared.values())))) if shared else {}
    return Pass(kernels, weights, {name: weight.grad for name, weight in weights.items()})


def _backward(model: nn.Module, x: Tensor, weights: list[Tensor], loss: Callable[[Tensor], Tensor]) -> None:
    """Forward, and backward into the weights' `.grad`, part by part; of the maps at most `KEPT` bytes are kept."""
    parts = model.sequential_parts() if hasattr(model, "sequential_parts") and not x.is_cuda else [model]
    held, kept = 0, []  # (input, output or None: to be run again)
    with torch.enable_grad():
        for i, part in enumerate(parts):
            x = x.detach().requires_grad_(i > 0)
            saved: dict[int, int] = {}

            def note(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
                saved[tensor.data_ptr()] = tensor.nbytes
                return tensor.detach()  # an output itself would hold its own graph

            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                out = part(x if i else x.clone())  # a network may write into its input
            size = sum(saved.values())
            fits = held + size <= KEPT or i == len(parts) - 1
            held += size if fits else 0
            kept.append((x, out if fits else None))
            x = out
        check_scores(out)
        with failing(f"The loss fails on outputs {tuple(out.shape)}"):
            value = loss(out)
        if not (isinstance(value, Tensor) and value.requires_grad):
            raise ProxyError("A gradient proxy needs a loss that depends on a scored weight; this one depends on none.")
        kept[-1] = (kept[-1][0], value)
        gradient = None
        del out, x
        while kept:
            part = parts[len(kept) - 1]
            x, out = kept.pop()
            out = part(x if kept else x.clone()) if out is None else out
            if out.requires_grad:
                inputs = [*weights, x] if x.requires_grad else weights
                torch.autograd.backward(out, gradient, inputs=inputs)  # no other tensor of the caller's gets a gradient
            gradient = x.grad


def finite(name: str, value: Tensor | float) -> float:
    """`value` as a float; ProxyError, naming the proxy, when it is NaN or infinite."""
    value = float(value)
    if not math.isfinite(value):
        raise ProxyError(f"The proxy '{name}' must be finite; got {value}. The network overflows at initialisation.")
    return value


def shared_ones(units: Tensor) -> tuple[Tensor, int]:
    """X X^T of the binary codes X = 1[u > 0] of pre-activations u (B, ...), (B, B), and N, their units a sample."""
    if units.dim() == 4 and units.is_contiguous(memory_format=torch.channels_last):
        units = units.permute(0, 2, 3, 1)  # the order of units does not matter, and this takes no copy
    flat, grams = units.flatten(1), []  # (B, N)
    for block in flat.split(BLOCK_ON_CUDA if flat.is_cuda else BLOCK, dim=1):
        if block.is_cuda:
            codes = torch.gt(block, 0, out=torch.empty_like(block, dtype=torch.float32))
        else:  # NumPy compares two to four times as fast as PyTorch on a CPU
            known = block if block.dtype in (torch.float32, torch.float64, torch.float16) else block.float()
            codes = torch.from_numpy(np.greater(known.numpy(), 0).view(np.int8))
            codes = codes if INT8 else codes.float()
        grams.append(torch._int_mm(codes, codes.T) if codes.dtype == torch.int8 else codes @ codes.T)
    return grams[0] if len(grams) == 1 else torch.stack(grams).double().sum(0), flat.shape[1]


def code_kernels(shared: Sequence[tuple[Tensor, int]]) -> Tensor:
    """K[i, j] = number of units where the codes of samples i and j agree (Mellor et al., Sec. 3), from `shared_ones`.

    Returns:
        Integer-valued float64 (L, B, B) for L layers, diagonal N: X X^T + (1-X)(1-X)^T, all layers in one go.
    """
    gram = torch.stack([ones for ones, _ in shared]).double()
    ones, units = gram.diagonal(dim1=1, dim2=2), torch.tensor([n for _, n in shared], device=gram.device)
    return 2 * gram - ones[:, :, None] - ones[:, None, :] + units[:, None, None]


def safe_logdet(kernels: Tensor) -> Tensor:
    """log|K| of symmetric positive semi-definite (..., B, B); 0 where K is singular."""
    factor, info = torch.linalg.cholesky_ex(kernels)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    regular = (info == 0) & (pivots.amin(-1) > SINGULAR * pivots.amax(-1))
    return torch.where(regular, pivots.log().sum(-1), 0.0)
