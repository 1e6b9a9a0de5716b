"""A CUDA device in name alone, so that a machine without one can test where tensors lie.

Under `simulated_cuda()` torch says that it has GPUs. What is made or moved to the one in use is a `SimTensor`: `device`
is cuda:0, `is_cuda` is true, values are computed on the CPU, and what CUDA refuses is refused: a CPU tensor with
dimensions beside it, an index on the wrong side, a generator of another device, `.numpy()`. With `index=1` the second
of two GPUs is in use, and what a run makes on the first is refused. C++ (autograd above all) takes a `SimTensor` for a
CPU tensor, so that a CPU build of torch does. Not simulated: kernels (TF32, autocast, what is not deterministic),
memory, streams, other threads and processes. `COUNTS` has the operations on the device, `launches` how many of them
start a kernel or a copy.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # looks through torch.cuda when it is imported: before anything there is replaced
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

CPU = torch.device("cpu")
COUNTS: Counter[Any] = Counter()
aten, Generator, plain_to = torch.ops.aten, torch.Generator, torch.Tensor.to
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
COPIES = {aten.copy_.default, aten._foreach_copy_.default}
NO_KERNEL = {"aten::detach", "aten::alias", "aten::lift_fresh", "aten::_unsafe_view", "aten::empty_like"}
NO_KERNEL |= {"aten::empty", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
_in_use = torch.device("cuda", 0)
_generators: dict[int, Generator] = {}  # of CUDA, by C++ address: operations get them as plain ones
_backwards: set[int] = set()  # graph tasks that have seen the device


class SimTensor(torch.Tensor):
    """Values `inner` on the CPU, said to be on the GPU in use."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: _in_use)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), **layout, device=CPU)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def to(self, *args, **kwargs):
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype)
        copy = kwargs.pop("copy", False)
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        x = _ToCPU.apply(self) if device is not None and not _is_cuda(device) else self
        if not copy and dtype in (None, self.dtype) and layout is None:
            return x
        return plain_to(x, dtype or self.dtype, memory_format=layout or torch.preserve_format)

    def cpu(self, *_):
        return _ToCPU.apply(self)

    def cuda(self, *_, **__):
        return self

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *_, **__):
        raise TypeError(f"can't convert {_in_use} device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def data_ptr(self):
        return self.inner.data_ptr()

    def __deepcopy__(self, memo):
        made = SimTensor(self.inner.clone()).requires_grad_(self.requires_grad)
        made._is_param = getattr(self, "_is_param", False)
        return memo.setdefault(id(self), made)

    def __repr__(self):
        return f"cuda({self.inner!r})"


def launches() -> int:
    """Operations since `COUNTS` was cleared that are no views and no allocations; one over a list counts once."""

    def runs(func) -> bool:
        aliases = [argument.alias_info for argument in func._schema.arguments if argument.alias_info is not None]
        return func._schema.name not in NO_KERNEL and all(alias.is_write for alias in aliases)

    return sum(n for func, n in COUNTS.items() if runs(func))


def _new(name: str):  # C++ would make it on the CPU
    def new(self, *size, dtype=None, device=None, **options):
        return getattr(torch, name)(*size, dtype=dtype or self.dtype, device=device or _in_use, **options)

    return new


for _name in ("tensor", "zeros", "ones", "empty", "full"):
    setattr(SimTensor, f"new_{_name}", _new(_name))


class _ToCPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        with _disable_current_modes():
            return x.inner.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to(_in_use)


def _is_cuda(device) -> bool:
    """Whether a device is the GPU in use; another GPU is refused."""
    device = torch.device(device)
    if device.type == "cuda" and (device.index or 0) != _in_use.index:
        raise RuntimeError(f"This run is on {_in_use}; it asks for the device cuda:{device.index or 0}.")
    return device.type == "cuda"


def _on(x) -> bool:
    return isinstance(x, SimTensor)


def _inner(x):
    return x.inner if _on(x) else x


def _map(change: Callable, x: Any) -> Any:
    """What an operation takes or gives, its leaves changed; torch's own walk over trees takes as long as the rest."""
    if isinstance(x, (tuple, list)):
        return type(x)([_map(change, item) for item in x])
    return change(x)


def _leaves(values) -> Iterator[Any]:
    for x in values:
        if isinstance(x, (tuple, list)):
            yield from _leaves(x)
        else:
            yield x


def _run(func, args, kwargs):
    """One operation: refused as CUDA refuses it, else computed on the inner values and wrapped again."""
    leaves = [*_leaves(args), *_leaves(kwargs.values())]
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    there, here = [x for x in tensors if _on(x)], [x for x in tensors if not _on(x) and x.dim()]
    device, task = kwargs.get("device"), torch._C._current_graph_task_id()
    on = _is_cuda(device) if device is not None else bool(there)
    if task != -1:  # inside a backward C++ makes its zeros on what it takes for the tensors' device
        _backwards.update([task] if there else [])
        on |= device is not None and task in _backwards
    COUNTS[func] += on
    for x in leaves:
        if isinstance(x, Generator) and (x._cdata in _generators) != on:
            raise RuntimeError(f"{func}: the generator is of another device than the result.")
    if func is aten._to_copy.default:
        on |= _on(args[0])  # C++ converts a type on what it takes for the tensor's device; `SimTensor.to` leaves it
        out = func(_inner(args[0]), **{k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")})
        return SimTensor(out.clone() if out is _inner(args[0]) else out) if on else out
    if there and here and func not in COPIES:
        _refuse_mixed(func, args, tensors, here)
    options = {k: _map(_inner, v) for k, v in kwargs.items()}
    options |= {k: v for k, v in (("device", CPU), ("pin_memory", False)) if k in options}
    out = func(*_map(_inner, args), **options)
    known = {id(x.inner): x for x in there}  # in place

    def said(x):
        return known[id(x)] if id(x) in known else SimTensor(x) if on and isinstance(x, torch.Tensor) else x

    return _map(said, out)


def _refuse_mixed(func, args, tensors, here) -> None:
    """RuntimeError for tensors of both devices; only CPU indices into a tensor on the GPU are admitted."""
    own = args[0]
    if func in INDEXED and [x for x in args[1] if isinstance(x, torch.Tensor)]:
        wrong = [x for x in args[2:] if isinstance(x, torch.Tensor) and x.dim() and _on(x) != _on(own)]
        wrong += [] if _on(own) else [own]
    else:
        wrong = here
    if wrong:
        found = [(tuple(x.shape), "cuda" if _on(x) else "cpu") for x in tensors]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {_in_use} and cpu: {func} {found}"
        )


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class SimGenerator(Generator):
    """A generator that may be said to be CUDA's."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu")
        if torch.device(device).type == "cuda":
            _generators[made._cdata] = made
        return made

    device = property(lambda self: _in_use if self._cdata in _generators else CPU)

    def manual_seed(self, seed):
        super().manual_seed(seed)
        return self


def _place(x):  # without an index C++ asks CUDA for the current device
    named = isinstance(x, torch.device) or (isinstance(x, str) and x.startswith("cuda"))
    return _in_use if named and _is_cuda(x) else x


def _to(self, *args, **kwargs):
    if args and _on(args[0]):
        args = (_in_use, args[0].dtype)
    return plain_to(self, *map(_place, args), **{k: _place(v) if k == "device" else v for k, v in kwargs.items()})


def _made(make):
    def made(data, *args, device=None, requires_grad=False, **options):
        out = data.to(options.get("dtype") or data.dtype) if _on(data) else make(data, *args, **options)
        out = out if device is None else out.to(device)
        return out.requires_grad_() if requires_grad else out

    return made


def _graphed(module, sample):
    """Passes that warm up, as a capture makes them; then a forward that takes inputs of the sample's shape alone."""
    forward, shapes = module.forward, [x.shape for x in sample]
    for _ in range(3):
        torch.autograd.grad(module(*sample).sum(), list(module.parameters()), allow_unused=True)

    def replay(*inputs):
        assert [x.shape for x in inputs] == shapes, "a graph is replayed at the shapes of its capture"
        return forward(*inputs)

    module.forward = replay
    return module


def _said_of_cuda(index: int) -> dict:
    """What stands in place of names of `torch.cuda`."""
    return {
        **dict.fromkeys(("is_available", "is_initialized"), lambda: True),
        **dict.fromkeys(("_lazy_init", "synchronize", "set_rng_state", "manual_seed"), lambda *_: None),
        **dict.fromkeys(("manual_seed_all", "empty_cache"), lambda *_: None),
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: index + 1,
        "current_device": lambda: 0,
        "mem_get_info": lambda *_: (80 << 30, 80 << 30),
        "get_device_name": lambda *_: "simulated GPU",
        "get_device_capability": lambda *_: (9, 0),
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "make_graphed_callables": _graphed,
        "default_generators": tuple(SimGenerator("cuda") for _ in range(index + 1)),
    }


@contextlib.contextmanager
def simulated_cuda(index: int = 0) -> Iterator[torch.device]:
    """torch has `index + 1` GPUs, of which the last is in use. Not for code that starts threads or processes."""
    global _in_use
    future, lift = torch.__future__, torch._C._only_lift_cpu_tensors()
    overwrite, before = future.get_overwrite_module_params_on_conversion(), _in_use
    with contextlib.ExitStack() as stack:
        _in_use = torch.device("cuda", index)
        stack.callback(globals().__setitem__, "_in_use", before)
        for where, name, value in (
            *((torch.cuda, name, value) for name, value in _said_of_cuda(index).items()),
            *((torch, name, _made(getattr(torch, name))) for name in ("tensor", "as_tensor")),
            (torch, "Generator", SimGenerator),
            (torch.Tensor, "to", _to),
            (torch.Tensor, "cuda", lambda self, *_, **__: self.to(_in_use)),
        ):
            stack.enter_context(mock.patch.object(where, name, value))
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lift)
        future.set_overwrite_module_params_on_conversion(True)
        stack.callback(future.set_overwrite_module_params_on_conversion, overwrite)
        # what is for CUDA alone lacks the guards against faults of oneDNN
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        stack.enter_context(_Mode())
        yield _in_use
