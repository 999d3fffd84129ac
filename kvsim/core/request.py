"""One request while it is alive: what was asked for, and how far it has got."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kvsim.core.content import Content

WAITING: Final = 0
PREFILLING: Final = 1
DECODING: Final = 2
HELD: Final = 3
OFFERED: Final = 4
SENDING: Final = 5
ENDED: Final = 6
LEAVING: Final = 7


class Request:
    """A request inside a replica; compared by identity, dropped when it ends.

    ``id`` is the row of the trace, counted from 0. ``target_tokens`` is prompt + generated tokens: what has to be in KV
    before the next token can be sampled. ``computed_tokens`` is how much of it is in KV; while the request
    decodes as part of the batch it is not touched per step: ask ``replica.context_tokens_of(request)``.
    ``output_tokens`` is what this replica will generate at most (already cut at ``max_model_len``).

    The fields below the line belong to the engine and the KV pool; a policy reads the ones above it.
    """

    __slots__ = (
        "admission",
        "arrival_ns",
        "computed_tokens",
        "content",
        "ends_by_eos",
        "enters_ns",
        "finish_step",
        "gap_from_ns",
        "generated_tokens",
        "held_blocks",
        "id",
        "joined_step",
        "max_gap_ns",
        "output_tokens",
        "phase",
        "preemptions",
        "priority",
        "prompt_tokens",
        "replica",
        "state",
        "target_tokens",
        "watched",
    )

    def __init__(self, id: int, arrival_ns: int, prompt_tokens: int, output_tokens: int, priority: int = 0) -> None:
        self.id = id
        self.arrival_ns = arrival_ns
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.priority = priority
        self.state = WAITING
        self.target_tokens = prompt_tokens
        self.computed_tokens = 0
        self.generated_tokens = 0
        self.preemptions = 0
        # ---- engine and KV pool
        self.enters_ns = arrival_ns  # at its present replica
        self.held_blocks = 0
        self.ends_by_eos = False  # the engine cannot know that its last token is the last
        self.content: Content | None = None  # what others may have in common with it; None: nothing
        self.admission = 0
        self.joined_step = 0
        self.finish_step = 0  # 0: it has not decoded since it was admitted
        self.phase = -1
        self.gap_from_ns = 0
        self.max_gap_ns = 0
        self.replica: object = None
        self.watched = False

    @property
    def in_prefill(self) -> bool:
        """It runs, and part of its prompt (or recomputation) is still to be computed; not a decode that sat out."""
        return self.state == PREFILLING and not self.finish_step

    def __repr__(self) -> str:
        return f"Request({self.id}, prompt_tokens={self.prompt_tokens}, output_tokens={self.output_tokens})"
