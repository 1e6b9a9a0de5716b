"""The sequence generator h (Eq. 10-12): a GPT-Neo decoder that writes macro designs for a requested budget.

In training conditions are dropped at random, which is what lets a request name parameters, FLOPs, or both. Decoding is
greedy (the paper's "deterministic sampling at the macro level") and follows a grammar mask, so that every output is a
legal design: a cell at least, 20 at most, and no more strides than the resolution allows.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from graphnas_lib import store
from graphnas_lib.macro import HLArchitecture
from graphnas_lib.sequence.vocabulary import (
    BOS,
    CONDITIONS,
    EOS,
    MAX_NEW,
    PAD,
    PREFIX,
    GrammarMask,
    IllegalSequenceError,
    Vocabulary,
    check_conditions,
    drop_conditions,
)
from graphnas_lib.store import Checkpoint, TrainLog


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """Sizes and training of the generator; the defaults are the paper's (Tab. 6, GPT-Neo-125M)."""

    n_families: int = 32  # deviation D01
    bins: int = 128  # ours: 7.5% a bin over four decades; the paper gives no tokenisation
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    dropout: float = 0.0
    lr: float = 1e-3
    batch_size: int = 1
    weight_decay: float = 0.05
    schedule: str = "constant"  # or "cosine", to 0
    warmup: int = 0
    clip: float = 1.0  # ours: 1e-3 at batch 1 is rough
    drop_rate: float = 0.3  # "randomly dropping tokens" (App. A); the rate is ours
    jitter: float = 0.5  # bins; ours
    input_shape: tuple[int, ...] = (3, 32, 32)  # where the FLOPs of the conditions were counted

    def __post_init__(self):
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        store.one_of("schedule", self.schedule, ("constant", "cosine"))
        if self.hidden % self.heads:
            raise ValueError(f"hidden must be a multiple of heads; got {self.hidden} and {self.heads}.")

    @classmethod
    def small(cls, **changes) -> SequenceConfig:
        """Trained from scratch: 5M parameters, lr 5e-4, warm-up, cosine, dropout 0.1, batch 64 (ours)."""
        ours = {"hidden": 256, "layers": 6, "heads": 8, "dropout": 0.1, "lr": 5e-4, "batch_size": 64}
        return cls(**{**ours, "schedule": "cosine", "warmup": 500, **changes})


class SequenceGenerator:
    """h: a GPT-Neo language model over `Vocabulary`, with initial weights of a seed.

    `pretrained` is the folder of a GPT-Neo checkpoint (`model.safetensors`) of the same width and depth; its blocks,
    final norm and first positions are taken, its token embeddings cannot be.
    """

    def __init__(
        self, config: SequenceConfig, vocabulary: Vocabulary, *, seed: int = 0, pretrained: Path | str | None = None
    ):
        self.config, self.vocabulary = config, vocabulary
        self.model = _gpt_neo(config, len(vocabulary), seed)
        if pretrained is not None:
            _load_trunk(self.model, Path(pretrained))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> SequenceGenerator:
        """Move the weights; returns self."""
        self.model.to(device)
        return self

    def generate(
        self,
        *,
        params: float | None = None,
        flops: float | None = None,
        naswot: float | None = None,
        snip_ssnr: float | None = None,
        n: int = 1,
        masked: bool = True,
        seed: int | None = None,
        max_strides: int = 3,
    ) -> HLArchitecture | list[HLArchitecture | None] | None:
        """Macro designs for a request (Eq. 12); greedy unless `seed` is given.

        Args:
            params, flops, naswot, snip_ssnr: the request, None for any; FLOPs in the paper's unit at
                `config.input_shape`.
            n: designs, given as a list unless it is 1; without a seed the n best beams.
            masked: follow the grammar; without it an illegal sequence comes back as None.
            seed: sample instead of decoding greedily.
            max_strides: how many cells may have stride 2 (3 keep a side of 32 at 4).
        """
        request = [math.nan if value is None else float(value) for value in (params, flops, naswot, snip_ssnr)]
        rows = check_conditions(torch.tensor([request]))
        for name, value in zip(CONDITIONS, request, strict=True):
            low, high = self.vocabulary.range(name)
            if not math.isnan(value) and name in self.vocabulary.unknown:
                raise ValueError(f"The generator learnt from a history without {name}; got {value:.3g}. Leave it out.")
            if not math.isnan(value) and not 0.9 * low <= value <= 1.1 * high:
                message = f"The generator knows {name} from {low:.3g} to {high:.3g}; {value:.3g} gets the nearest bin."
                warnings.warn(message, stacklevel=2)
        found = self.generate_many(rows, n=n, masked=masked, seed=seed, max_strides=max_strides)
        return found[0][0] if n == 1 else found[0]

    def generate_many(
        self, conditions: Tensor, *, n: int = 1, masked: bool = True, seed: int | None = None, max_strides: int = 3
    ) -> list[list[HLArchitecture | None]]:
        """`n` designs for each raw request of `conditions` (b, 4), NaN = not given; see `generate`."""
        prefix = self.vocabulary.prefix(conditions).to(self.device)
        sampling = {"do_sample": True, "num_beams": 1, "top_k": 0} if seed is not None else {"num_beams": n}
        mask = GrammarMask(self.vocabulary, max_strides=max_strides)
        self.model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=_cuda(self.device)):
            torch.manual_seed(seed or 0)  # `transformers` samples from the global generator
            tokens = self.model.generate(
                input_ids=prefix,
                attention_mask=torch.ones_like(prefix),
                max_new_tokens=MAX_NEW,
                num_return_sequences=n,
                logits_processor=[mask] if masked else None,
                **sampling,
            )
        designs: list[HLArchitecture | None] = []
        for row in tokens[:, PREFIX:].tolist():
            try:
                designs.append(self.vocabulary.decode(row))
            except IllegalSequenceError:
                designs.append(None)
        return [designs[i : i + n] for i in range(0, len(designs), n)]

    def next_token(self, place: int, **request: float | None) -> dict[str, float]:
        """Legal tokens at a place of the greedy design for a request, in words, and their probabilities (Eq. 10).

        Args:
            place: how many tokens of the design are written before it; 0 is its first.
            request: as of `generate`.
        """
        written = self.vocabulary.encode(self.generate(**request))
        if not 0 <= place < len(written):
            raise ValueError(f"The design for this request has {len(written)} tokens, from 0 on; got {place}.")
        rows = torch.tensor([[request.get(name) or math.nan for name in CONDITIONS]])
        ids = torch.cat([self.vocabulary.prefix(rows), torch.tensor([written[:place]], dtype=torch.long)], dim=1)
        ids = ids.to(self.device)
        with torch.no_grad():
            scores = GrammarMask(self.vocabulary, max_strides=3)(ids, self.model(input_ids=ids).logits[:, -1])[0]
        found = enumerate(scores.softmax(dim=0).tolist())
        return {self.vocabulary.name(token): share for token, share in found if scores[token] > -math.inf}

    def to_files(self, *, half: bool = False) -> dict:
        """Content for `artifacts.save("sequence", ...)`; `half` stores float16 (half the size)."""
        weights = {name: w for name, w in self.model.state_dict().items() if name != "lm_head.weight"}  # tied
        if half:
            weights = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
        settings = {"config": asdict(self.config), "vocabulary": asdict(self.vocabulary)}
        return {"sequence.safetensors": weights, "sequence.json": settings}

    @classmethod
    def load(cls, scale: str | None = None) -> SequenceGenerator:
        """The trained generator of a scale (default: the one that ships)."""
        scale = scale or store.default_scale()
        settings = store.load("sequence", "sequence.json", scale)
        generator = cls(SequenceConfig(**settings["config"]), Vocabulary.from_dict(settings["vocabulary"]))
        weights = store.load("sequence", "sequence.safetensors", scale)
        missing, unexpected = generator.model.load_state_dict(weights, strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:
            came = f"missing {missing[:3]}, unexpected {unexpected[:3]}"
            raise ValueError(f"Weights must fit their configuration; {came}. Load both from one run.")
        generator.model.tie_weights()
        return generator


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _gpt_neo(config: SequenceConfig, tokens: int, seed: int) -> nn.Module:
    """GPT-Neo of our shape; every field is passed, since the defaults are those of the 1.3B model."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    pairs, odd = divmod(config.layers, 2)
    kinds = [[["global", "local"], pairs]] * (pairs > 0) + [[["global"], 1]] * odd  # window 256 > 66: the same here
    shape = GPTNeoConfig(
        vocab_size=tokens,
        max_position_embeddings=PREFIX + MAX_NEW,
        hidden_size=config.hidden,
        num_layers=config.layers,
        num_heads=config.heads,
        attention_types=kinds,
        window_size=256,
        resid_dropout=config.dropout,
        embed_dropout=config.dropout,
        attention_dropout=config.dropout,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTNeoForCausalLM(shape)


def _load_trunk(model: nn.Module, folder: Path) -> None:
    """Blocks, final norm and first positions of a GPT-Neo checkpoint; only safetensors, nothing is unpickled."""
    path = folder / "model.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"A pretrained GPT-Neo must be a folder with model.safetensors; got {folder.name}.")
    stored = {name.removeprefix("transformer."): w for name, w in store.read(path).items()}
    for name, w in model.transformer.state_dict().items():
        if name.startswith("wte"):
            continue
        found = stored.get(name)
        if name == "wpe.weight" and found is not None:
            found = found[: len(w)]
        if found is None or found.shape != w.shape:
            came = f"got {'nothing' if found is None else tuple(found.shape)}. Match hidden, layers, heads"
            raise ValueError(f"Pretrained {name} must have shape {tuple(w.shape)}; {came}.")
        w.copy_(found)


def sequence_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """L_SG (Eq. 10): mean -log p over triples and EOS, in nats; the prefix and PAD carry no loss.

    Args:
        logits: (B, L, vocabulary), of the token after each place.
        ids: (B, L).
    """
    targets = ids[:, 1:].clone()
    targets[:, : PREFIX - 1] = PAD
    total = functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="sum")
    return total / (targets != PAD).sum().clamp_min(1)  # 0, not NaN, where nothing carries loss


def train(
    designs: list[HLArchitecture],
    conditions: Tensor,
    *,
    config: SequenceConfig,
    steps: int,
    seed: int,
    batch_size: int | None = None,
    weights: Tensor | None = None,
    pretrained: Path | str | None = None,
    device: torch.device | str = "cpu",
    checkpoint: Checkpoint | None = None,
    log_every: int = 50,
    progress: bool = False,
) -> tuple[SequenceGenerator, TrainLog]:
    """Train h on the history of the evolution (Eq. 10-11).

    Args:
        designs: macro designs of H.
        conditions: their raw y (n, 4) in the order of `CONDITIONS`; NaN where unknown.
        seed: of weights, batches, dropping, jitter and dropout.
        batch_size: overrides `config.batch_size`.
        weights: sampling weights of the designs (n,), for example by T-CET; default uniform.
        pretrained: see `SequenceGenerator`.
        checkpoint: where to store and resume; a resumed run equals an uninterrupted one.
        log_every: steps between the rows of the log.
    """
    if not designs or len(designs) != len(conditions):
        raise ValueError(f"Every design must have its conditions; got {len(designs)} and {len(conditions)} rows.")
    vocabulary = Vocabulary.fit(conditions, n_families=config.n_families, bins=config.bins)
    sg = SequenceGenerator(config, vocabulary, seed=seed, pretrained=pretrained).to(device)
    optimizer = torch.optim.AdamW(_parameter_groups(sg.model, config.weight_decay), lr=config.lr)
    batches = _Batches(vocabulary, designs, conditions, weights, config, batch_size or config.batch_size, seed)
    checkpoint, parts = checkpoint or Checkpoint(), {"model": sg.model, "optimizer": optimizer}
    run = {"step": 0, "rows": [], "seconds": 0.0} | store.put_back(checkpoint.load(), **parts)
    started = time.monotonic() - run["seconds"]
    sg.model.train()
    with torch.random.fork_rng(devices=_cuda(sg.device)):  # dropout draws from the global generator
        steps_left = range(run["step"], steps)
        for step in tqdm(steps_left, initial=run["step"], total=steps, disable=not progress, desc="generator"):
            ids = batches(step).to(sg.device)
            torch.manual_seed(_step_seed(seed, step))
            loss = sequence_loss(sg.model(input_ids=ids, attention_mask=(ids != PAD).long()).logits, ids)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm, rate = nn.utils.clip_grad_norm_(sg.model.parameters(), config.clip), _rate(config, step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            if step % log_every == 0 or step == steps - 1:
                run["rows"].append({"step": step, "loss": loss.item(), "lr": rate, "grad_norm": norm.item()})
            if checkpoint.due():
                run |= {"step": step + 1, "seconds": time.monotonic() - started}
                checkpoint.save(run | store.states(**parts))
    sg.model.eval()
    return sg, TrainLog(run["rows"], steps, time.monotonic() - started)


class _Batches:
    """Batch of a step as token ids (B, L); a function of seed and step alone."""

    def __init__(self, vocabulary, designs, conditions, weights, config, batch_size, seed):
        tokens = [torch.tensor(vocabulary.encode(design)) for design in designs]
        self.macros = nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=PAD)  # (n, <= 61)
        self.conditions = check_conditions(conditions)
        chances = torch.ones(len(designs)) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
        sums = np.cumsum(chances.numpy())  # added one after another in float32, as torch.multinomial does at each call
        self.limits = torch.from_numpy(sums / sums[-1]).double()
        self.vocabulary, self.config, self.batch_size, self.seed = vocabulary, config, batch_size, seed

    def __call__(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(_step_seed(self.seed, step))
        chosen = self.rows(generator)
        kept = drop_conditions(self.conditions[chosen], rate=self.config.drop_rate, generator=generator)
        jitter = self.config.jitter * (2 * torch.rand(kept.shape, generator=generator) - 1)
        prefix = self.vocabulary.prefix(kept, jitter=jitter)  # (B, 5)
        macros = self.macros[chosen]
        return torch.cat([prefix, macros[:, : int((macros != PAD).sum(dim=1).max())]], dim=1)

    def rows(self, generator: torch.Generator) -> Tensor:
        """Designs of a batch (B,), by their weights; for B > 1 those that torch.multinomial draws, in less time."""
        return torch.searchsorted(self.limits, torch.rand(self.batch_size, dtype=torch.float64, generator=generator))


def _step_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Decay on matrices alone: not on norms, biases and embeddings."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        (decayed if parameter.ndim >= 2 and "wte" not in name and "wpe" not in name else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _rate(config: SequenceConfig, step: int, steps: int) -> float:
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, steps - config.warmup)))
