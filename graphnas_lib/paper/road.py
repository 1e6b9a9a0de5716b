"""The road of the paper as one graph: what each stage reads of the stages before it, and of the scale.

`stages.toml` is the declaration. A stage is given only the sizes that it declares, so that what decides its result and
what it reads cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from graphnas_lib.paper.scales import SCALES, frozen, read


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What a stage reads and makes."""

    needs: tuple[str, ...] = ()  # the stages before it
    sizes: tuple[str, ...] = ()  # fields of `Scale`
    items: str = ""  # what it makes in words, a format of its sizes
    data: tuple[str, ...] = ()  # data sets, as `store.data_at_hand` names them
    also: tuple[str, ...] = ()  # those that it takes where they are
    on_cpu: bool = False  # whether it has no use for a GPU


class Sizes(SimpleNamespace):
    """The name of a scale and those of its sizes that one stage declares, as attributes; AttributeError for others."""

    def __getattr__(self, name: str):
        raise AttributeError(
            f"A stage must declare the sizes it reads in graphnas_lib/paper/stages.toml; this one declares "
            f"{', '.join(vars(self))} and asks for {name!r}. Declare it there."
        )


STAGES: dict[str, Declared] = {stage: Declared(**frozen(entry)) for stage, entry in read("stages.toml").items()}


def sizes(stage: str, scale: str) -> Sizes:
    """The sizes of a scale as a stage may read them."""
    every = SCALES[scale]
    return Sizes(name=every.name, **{name: getattr(every, name) for name in STAGES[stage].sizes})
