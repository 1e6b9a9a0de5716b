"""The SGD loop under every trained comparison: resumable, seeded by step, on one device or under torchrun.

The randomness of step i (which samples, their augmentation, dropout) is a function of the seed and i alone; a
checkpoint therefore holds weights, momentum and the step, and a run that resumes from one equals the uninterrupted run.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from graphnas_lib.datasets import DivergedError
from graphnas_lib.network import accelerated
from graphnas_lib.store import Checkpoint
from graphnas_lib.training.recipes import Recipe, learning_rate, steps_per_epoch

STEPS_BETWEEN_CHECKS = 64  # of the loss; each look waits for the device
GRAPHED = "GRAPHNAS_GRAPHED"  # names a variable: "1" trains by CUDA graphs (`tests/benchmarks/first_gpu.py` measures)

Loss = Callable[[Tensor], Tensor]  # of the outputs of a batch
Draw = Callable[[Tensor, int], tuple[Tensor, Loss]]  # sample positions and the step's own seed -> inputs, loss

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


@dataclass
class LoopState:
    """State of the loop, and what is left of it at the end; `extra` is the caller's and goes into the checkpoint."""

    step: int = 0
    rows: list[dict] = field(default_factory=list)  # one an epoch: epoch, step, loss, lr
    seconds: float = 0.0
    extra: dict = field(default_factory=dict)
    total: Tensor | None = None  # loss summed over the epoch so far
    diverged: bool = False

    def save(self, checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.SGD) -> None:
        """Write all that the next step depends on."""
        momentum = [optimizer.state[p].get("momentum_buffer") for p in _parameters(optimizer)]
        checkpoint.save({**vars(self), "model": model.state_dict(), "momentum": momentum})

    @classmethod
    def restore(cls, checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.SGD) -> LoopState:
        """State to go on from: that of `save`, whose tensors go back where they were, or a new one."""
        parameters, stored = _parameters(optimizer), checkpoint.load()
        device = parameters[0].device
        if stored is None:
            return cls(total=torch.zeros((), device=device))
        model.load_state_dict(stored.pop("model"))
        for parameter, momentum in zip(parameters, stored.pop("momentum")):
            if momentum is not None:
                optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
        return cls(**stored | {"total": stored["total"].to(device)})


ONE_PROCESS = SimpleNamespace(  # in place of an `accelerate.Accelerator`
    process_index=0,
    num_processes=1,
    prepare_model=lambda model: model,
    backward=lambda loss: loss.backward(),
    reduce=lambda value, reduction: value,
)


def stream(seed: int, *key: int | str) -> int:
    """A 32-bit seed of its own for every (seed, key)."""
    text = "/".join(str(part) for part in (seed, *key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def initialise(model: nn.Module, recipe: Recipe, *, seed: int) -> None:
    """Draw every weight anew from `seed`, on the CPU; PyTorch's own scheme, then the recipe's if it has one.

    ZenNAS's scheme ("xavier") is Xavier-normal with gain 3.26033 and zero biases; its residual units start closed
    (`close`: the last norm's scale is zero), which GraphNet's cells do not have.
    """
    model.cpu()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(seed, "weights"))
        for module in model.modules():
            if callable(getattr(module, "reset_parameters", None)):
                module.reset_parameters()
            if recipe.init == "xavier" and isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                nn.init.xavier_normal_(module.weight, gain=3.26033)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in model.modules() if recipe.init == "xavier" else ():
            if callable(getattr(module, "close", None)):
                module.close()


def optimizer_for(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD as the recipe says, clipping included; with `no_decay_norm` neither normalisation layers nor biases decay."""
    free = {id(p) for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    free |= {id(p) for name, p in model.named_parameters() if name.endswith("bias")}
    free = free if recipe.no_decay_norm else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in free], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if id(p) in free], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = True if trained and trained[0].is_cuda else None
    optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused)

    def clip(*_) -> None:
        nn.utils.clip_grad_norm_(trained, recipe.clip)

    if recipe.clip is not None:
        optimizer.register_step_pre_hook(clip)
    return optimizer


def place(model: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    """The model on `device` in training mode, channels-last, its batch normalisation as the recipe says."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = module.momentum if recipe.bn_momentum is None else recipe.bn_momentum
            module.eps = module.eps if recipe.bn_eps is None else recipe.bn_eps
    return model.train().to(device, memory_format=torch.channels_last)


def forward(model: nn.Module, inputs: Tensor, bfloat16: bool = True) -> Tensor:
    """Outputs in float32; images channels-last, with `bfloat16` autocast inside on CUDA."""
    if inputs.dim() == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bfloat16 and inputs.device.type == "cuda"):
        return model(inputs).float()


def step_of(model: nn.Module, recipe: Recipe, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What a training step computes of its inputs: `forward`, or with `$GRAPHNAS_GRAPHED` = 1 the same as a CUDA graph.

    It is captured at the first batch and replayed for others of its shape; a network with hooks is not captured.
    """
    eager = partial(forward, model, bfloat16=recipe.bfloat16)
    if device.type != "cuda" or os.environ.get(GRAPHED) != "1" or any(m._forward_hooks for m in model.modules()):
        return eager
    shell, captured = nn.Sequential(model), []  # the capture replaces the shell's forward, and not the network's

    def step(inputs: Tensor) -> Tensor:
        if not captured:
            buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
            layout = torch.channels_last if inputs.dim() == 4 else torch.contiguous_format
            with torch.autocast("cuda", torch.bfloat16, enabled=recipe.bfloat16, cache_enabled=False):
                torch.cuda.make_graphed_callables(shell, (inputs.clone(memory_format=layout),))
            for buffer, before in buffers:  # the passes that warm it up move running means
                buffer.copy_(before)
            captured.append(inputs.shape)
        return shell(inputs).float() if inputs.shape == captured[0] else eager(inputs)

    return step


@contextmanager
def surroundings(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside the `with`, dropout draws from forked generators, and fast paths of a CPU or cuDNN's own trials are on."""
    before = torch.backends.cudnn.benchmark  # of its kernels, for the few shapes there are
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), accelerated(model):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def fit(
    model: nn.Module,
    recipe: Recipe,
    n: int,
    draw: Draw,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    ahead: int = 0,
    after_epoch: Callable[[LoopState], None] = lambda state: None,
    accelerator=None,
) -> LoopState:
    """Train a model in place on n samples; stops when the loss is not finite, or `after_epoch` raises DivergedError.

    Args:
        draw: makes a batch: positions (B,) in 0 .. n - 1, seed of the step -> inputs on `device`, loss of the outputs.
        ahead: batches to make in advance in a second thread, for data that is decoded while it is read.
        after_epoch: called at the end of each epoch, for validation; may write into the state's `extra`.
        checkpoint: left in place, complete, for the caller to clear once the result is kept.
    """
    checkpoint, accelerator = checkpoint or Checkpoint(), accelerator or ONE_PROCESS
    rank, world = accelerator.process_index, accelerator.num_processes
    per_epoch = steps_per_epoch(n, recipe.batch_size, world)
    if not per_epoch:
        raise ValueError(f"Training needs at least {2 * world} samples a batch; got {n} samples in all.")
    optimizer = optimizer_for(place(model, recipe, device), recipe)
    state = LoopState.restore(checkpoint, model, optimizer)
    step = step_of(accelerator.prepare_model(model), recipe, device)
    started = time.perf_counter() - state.seconds
    steps = range(state.step, 0 if state.diverged else recipe.epochs * per_epoch)
    bar = tqdm(total=steps.stop, initial=steps.start, disable=not progress, desc=recipe.name, unit="step")
    with bar, surroundings(model, device):
        for inputs, loss_of in batches(draw, samples(n, recipe.batch_size, seed, steps, rank, world), ahead):
            _reseed(device, stream(seed, "step", state.step, rank))
            rate = learning_rate(recipe, state.step, per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = loss_of(step(inputs))
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            state.total += loss.detach()
            state.step += 1
            bar.update()
            ended = state.step % per_epoch == 0
            if ended or state.step % STEPS_BETWEEN_CHECKS == 0:
                mean = accelerator.reduce(state.total, "mean").item() / per_epoch
                state.diverged = not math.isfinite(mean)
            if ended and not state.diverged:
                bar.set_postfix(loss=f"{mean:.3f}")
                row = {"epoch": state.step // per_epoch, "step": state.step, "loss": mean, "lr": rate}
                _end_epoch(state, row, model, after_epoch)
            state.seconds = time.perf_counter() - started
            if state.diverged:
                break
            if checkpoint.due() and rank == 0:
                state.save(checkpoint, model, optimizer)
    if rank == 0:
        state.save(checkpoint, model, optimizer)  # a kill from here on loses the test alone
    return state


def _end_epoch(state: LoopState, row: dict, model: nn.Module, after_epoch: Callable[[LoopState], None]) -> None:
    state.rows.append(row)
    state.total.zero_()
    try:
        after_epoch(state)
    except DivergedError:
        state.diverged = True
    model.train()


def _reseed(device: torch.device, seed: int) -> None:
    """Generators that dropout draws from; the caller has forked them, so nothing outside sees it."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)


def batches(draw: Draw, drawn: Iterable[tuple[Tensor, int]], ahead: int) -> Iterator[tuple[Tensor, Loss]]:
    """A batch for each of the `samples`; with `ahead`, made by a second thread in the same order."""
    if not ahead:
        yield from (draw(*sample) for sample in drawn)
        return
    pool, queue = ThreadPoolExecutor(1), deque()
    try:
        for sample in drawn:
            queue.append(pool.submit(draw, *sample))
            if len(queue) > ahead:
                yield queue.popleft().result()
        yield from (future.result() for future in queue)
    finally:
        pool.shutdown(cancel_futures=True)


def samples(n: int, size: int, seed: int, steps: range, rank: int, world: int) -> Iterator[tuple[Tensor, int]]:
    """Positions of each step's samples, a new order every epoch, and the step's seed."""
    per_epoch, known, order = steps_per_epoch(n, size, world), -1, torch.empty(0)
    for step in steps:
        epoch, position = divmod(step, per_epoch)
        if epoch != known:
            generator = torch.Generator().manual_seed(stream(seed, "order", epoch))
            known, order = epoch, torch.randperm(n, generator=generator)
        batch = order[position * size : (position + 1) * size]
        yield batch[rank::world], stream(seed, "batch", step, rank)


def _parameters(optimizer: torch.optim.SGD) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
