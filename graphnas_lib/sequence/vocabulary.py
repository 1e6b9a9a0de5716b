"""Tokens of the sequence generator (Sec. 3.3): conditions as bins, designs as one token a field, and their grammar.

`BOS p f n s | family channels stride | ... | EOS`, where p, f, n, s are bins of the conditions y = z(alpha) or DROP.
Every condition slot is always there, so the prefix has five tokens whatever is asked. The paper gives no tokenisation;
its 64 positions (Tab. 6) are 4 conditions and 20 cells of 3 tokens. `head_channels` and `stem_stride` have no tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from graphnas_lib.clusters import ZC_NAMES
from graphnas_lib.macro import CHANNELS, MAX_CELLS, STRIDES, HLArchitecture, HLTriple

CONDITIONS = (*ZC_NAMES[2:], *ZC_NAMES[:2])  # y: the sizes first, then naswot and snip_ssnr; trained weights hold this
LOGARITHMIC = tuple(name != "naswot" for name in CONDITIONS)  # ours: bins of log10; NASWOT is a log-determinant already
PAD, BOS, EOS, DROP = range(4)
PREFIX = 1 + len(CONDITIONS)
MAX_NEW = 3 * MAX_CELLS + 1


class IllegalSequenceError(ValueError):
    """Tokens that are no design; only unmasked decoding can produce them."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens and their meaning: PAD BOS EOS DROP, four blocks of bins, families, channels, strides."""

    n_families: int
    bins: int  # of one condition
    low: tuple[float, ...]  # lower end of each condition's bins, after log10 where `LOGARITHMIC`
    high: tuple[float, ...]
    seen: tuple[tuple[int, ...], ...] = ()  # tokens of each condition that the history has; () where nobody knows

    @classmethod
    def fit(cls, conditions: Tensor, *, n_families: int, bins: int) -> Vocabulary:
        """Bins between the 0.5% and 99.5% quantiles of raw conditions (n, 4), NaN where unknown; ends are open."""
        values = _logged(check_conditions(conditions))
        ends = values.nanquantile(values.new_tensor([0.005, 0.995]), dim=0)  # (2, 4)
        low, high = torch.where(ends.isnan(), values.new_tensor([[0.0], [1.0]]), ends)
        high = torch.where(high > low, high, low + 1e-3)
        made = cls(n_families, bins, tuple(low.tolist()), tuple(high.tolist()))
        columns = made.condition_tokens(conditions).T.tolist()
        return replace(made, seen=tuple(tuple(sorted({*column} - {DROP})) or (DROP,) for column in columns))

    @property
    def families(self) -> int:
        """First family token; before it lie the special tokens and the bins."""
        return 4 + len(CONDITIONS) * self.bins

    @property
    def channels(self) -> int:
        """First channel token."""
        return self.families + self.n_families

    @property
    def strides(self) -> int:
        """First stride token."""
        return self.channels + len(CHANNELS)

    def block(self, place: int) -> tuple[int, int]:
        """First and one past the last token of a place of a design: families, channels and strides take turns."""
        starts = (self.families, self.channels, self.strides, len(self))
        return starts[place % 3], starts[place % 3 + 1]

    def __len__(self) -> int:
        return self.strides + len(STRIDES)

    def condition_tokens(self, conditions: Tensor, *, jitter: Tensor | float = 0.0) -> Tensor:
        """Raw conditions (n, 4), NaN = not given, to tokens (n, 4); `jitter` in bins is added before rounding."""
        values = _logged(check_conditions(conditions))
        low, high = values.new_tensor(self.low), values.new_tensor(self.high)
        place = (values - low) / (high - low) * self.bins + jitter  # (n, 4)
        bins = place.floor().nan_to_num(0.0).clamp(0, self.bins - 1).long()
        offset = 4 + self.bins * torch.arange(len(CONDITIONS), device=values.device)
        return torch.where(values.isnan(), torch.full_like(bins, DROP), bins + offset)

    def prefix(self, conditions: Tensor, *, jitter: Tensor | None = None) -> Tensor:
        """BOS and the tokens of raw conditions (n, 4), (n, 5); of a request, without jitter, the nearest seen ones."""
        tokens = self.condition_tokens(conditions, jitter=0.0 if jitter is None else jitter)
        for i, seen in enumerate(self.seen if jitter is None else ()):
            known = tokens.new_tensor(seen)
            nearest = known[(tokens[:, i, None] - known).abs().argmin(dim=1)]
            tokens[:, i] = torch.where(tokens[:, i] == DROP, DROP, nearest)
        return functional.pad(tokens, (1, 0), value=BOS)

    def range(self, name: str) -> tuple[float, float]:
        """Raw range of one condition that the bins cover."""
        i = CONDITIONS.index(name)
        return tuple(10**x if LOGARITHMIC[i] else x for x in (self.low[i], self.high[i]))

    @property
    def unknown(self) -> set[str]:
        """Conditions that no network of the history had."""
        return {name for name, seen in zip(CONDITIONS, self.seen) if set(seen) <= {DROP}}

    def name(self, token: int) -> str:
        """A token of a design in words."""
        if token == EOS:
            return "end"
        if token >= self.strides:
            return f"stride {STRIDES[token - self.strides]}"
        wide = token >= self.channels
        return f"{CHANNELS[token - self.channels]} channels" if wide else f"family {token - self.families}"

    def encode(self, hl: HLArchitecture) -> list[int]:
        """Tokens of a design, EOS last, without the prefix."""
        tokens = []
        for triple in hl.triples:
            if triple.cluster >= self.n_families:
                raise ValueError(f"A design's families must be 0 to {self.n_families - 1}; got {triple.cluster}.")
            width, stride = CHANNELS.index(triple.channels), STRIDES.index(triple.stride)
            tokens += [self.families + triple.cluster, self.channels + width, self.strides + stride]
        return [*tokens, EOS]

    def decode(self, tokens: list[int]) -> HLArchitecture:
        """Design of tokens without the prefix, up to EOS; IllegalSequenceError names the first bad place."""
        fields = []
        for i, token in enumerate(tokens):
            if token == EOS and i % 3 == 0 and 3 <= i <= 3 * MAX_CELLS:
                rows = [fields[j : j + 3] for j in range(0, i, 3)]
                return HLArchitecture(tuple(HLTriple(k, CHANNELS[c], STRIDES[s]) for k, c, s in rows))
            start, end = self.block(i)
            if not start <= token < end:
                name = ("a family or EOS", "channels", "a stride")[i % 3]
                raise IllegalSequenceError(f"Token {i} of a design must be {name}; got {token}.")
            fields.append(token - start)
        raise IllegalSequenceError(f"A design must end in EOS after 1 to {MAX_CELLS} cells; got {len(tokens)} tokens.")

    @classmethod
    def from_dict(cls, data: dict) -> Vocabulary:
        """Inverse of `asdict`, by way of JSON too."""
        known = tuple(map(tuple, data.get("seen", ())))
        return cls(data["n_families"], data["bins"], tuple(data["low"]), tuple(data["high"]), known)


def check_conditions(conditions: Tensor) -> Tensor:
    """Raw conditions (n, 4) as float64; ValueError on a wrong shape or a value that has no logarithm."""
    conditions = torch.as_tensor(conditions, dtype=torch.float64)
    if conditions.ndim != 2 or conditions.shape[1] != len(CONDITIONS):
        raise ValueError(f"conditions must be (n, 4) in the order {CONDITIONS}; got {tuple(conditions.shape)}.")
    if bool((conditions[:, list(LOGARITHMIC)] <= 0).any()) or bool(conditions.isinf().any()):
        wanted = "finite (NaN = not given) and params, flops, snip_ssnr positive"
        raise ValueError(f"conditions must be {wanted}; they are not.")
    return conditions


def _logged(conditions: Tensor) -> Tensor:
    logarithmic = torch.tensor(LOGARITHMIC, device=conditions.device)
    return torch.where(logarithmic, conditions.clamp_min(1e-300).log10(), conditions)


def drop_conditions(conditions: Tensor, *, rate: float, generator: torch.Generator) -> Tensor:
    """Raw conditions (n, 4) with some set to NaN: the sets that are requested later, or each on its own.

    10% of the rows keep parameters alone, 10% FLOPs alone, 10% both, 5% nothing; in the rest each is dropped with
    probability `rate` (App. A drops tokens "randomly"; the shares are ours).
    """
    n = len(conditions)
    case = torch.rand(n, 1, generator=generator)
    keep = torch.rand(n, len(CONDITIONS), generator=generator) >= rate
    for bound, kept in ((0.35, (0, 0, 0, 0)), (0.30, (1, 1, 0, 0)), (0.20, (0, 1, 0, 0)), (0.10, (1, 0, 0, 0))):
        keep = torch.where(case < bound, torch.tensor(kept, dtype=torch.bool), keep)
    return conditions.masked_fill(~keep, math.nan)


@dataclass(frozen=True)
class GrammarMask:
    """Logits processor that leaves the legal tokens alone (`transformers` calls it with ids and scores)."""

    vocabulary: Vocabulary
    max_strides: int = MAX_CELLS  # how many cells may have stride 2

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """ids (B, prefix + tokens so far), scores (B, vocabulary) -> scores with -inf at illegal tokens."""
        v, place = self.vocabulary, input_ids.shape[1] - PREFIX  # the prefix is constant: all rows share the phase
        start, end = v.block(place)
        legal = torch.zeros_like(scores, dtype=torch.bool)
        if place < 3 * MAX_CELLS:
            legal[:, start:end] = True
        if place % 3 == 0 and place > 0:
            legal[:, EOS] = True
        if place % 3 == 2:
            used = (input_ids[:, PREFIX:] == v.strides + 1).sum(dim=1)
            legal[:, v.strides + 1] = used < self.max_strides
        return scores.masked_fill(~legal, -math.inf)
