"""What prompts begin with, and the names of their blocks."""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import Ragged
from kvsim.workload.generate.distributions import Constant, Distribution, Zipf, whole

Column = NDArray[np.int64]


@dataclass(frozen=True)
class Shared:
    """What each of n prompts begins with, in levels.

    Level l of prompt i goes up to token ``ends[i, l]`` and is chain ``chains[i, l]``. Equal chains at a level mean
    equal text up to the end of that level. Both (n, levels) int64.
    """

    chains: Column
    ends: Column

    @property
    def tokens(self) -> Column:
        """Shared tokens of each prompt, (n,)."""
        return self.ends[:, -1]


SYSTEM_PROMPT: Final = Constant(500)


class Prefixes(Protocol):
    """The shared beginnings of prompts; with sessions, of all prompts of a session."""

    def draw(self, n: int, rng: np.random.Generator) -> Shared:
        """The beginnings of n prompts."""
        ...


@dataclass(frozen=True)
class SystemPrompts:
    """``groups`` system prompts (applications, tenants), popular as Zipf says: P(k-th) proportional to k^-zipf_a.

    ``tokens`` of each are drawn once. Mooncake's conversation trace is one group of at least 512 tokens.
    """

    groups: int = 1
    tokens: Distribution = SYSTEM_PROMPT
    zipf_a: float = 1.0

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise InputError(f"{self.groups} is too few", key="groups", hint="allowed: whole numbers from 1")

    def draw(self, n: int, rng: np.random.Generator) -> Shared:
        lengths = whole(self.tokens.sample(self.groups, rng), least=0)
        group = Zipf(self.zipf_a, 1, self.groups).sample(n, rng).astype(np.int64) - 1
        return Shared(group[:, None], lengths[group][:, None])


@dataclass(frozen=True)
class RagChunks:
    """Retrieval: a system prompt, then ``chunks_per_request`` different chunks out of ``chunks``, popular as Zipf says.

    Chunks stand in the order of retrieval, so two prompts share as many as they begin with in common. Chunks are drawn
    by popularity without replacement (Gumbel's trick: the largest log p + noise).
    """

    chunks: int = 1000
    chunks_per_request: int = 5
    chunk_tokens: int = 512
    system_tokens: int = 200
    zipf_a: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.chunks_per_request <= self.chunks:
            problem = f"{self.chunks_per_request} chunks of {self.chunks}"
            raise InputError(problem, key="chunks_per_request", hint="allowed: 1 <= chunks_per_request <= chunks")
        if self.chunk_tokens < 1 or self.system_tokens < 0:
            raise InputError("chunks have at least 1 token, system prompts 0", key="chunk_tokens")

    def retrieved(self, n: int, rng: np.random.Generator) -> Column:
        """Chunk numbers of n requests, most popular 0, (n, chunks_per_request) int64."""
        log_p = -self.zipf_a * np.log(np.arange(1, self.chunks + 1))
        found = np.empty((n, self.chunks_per_request), np.int64)
        rows = max(1, 4_000_000 // self.chunks)  # 32 MB of noise at a time
        for start in range(0, n, rows):
            noise = log_p - np.log(rng.standard_exponential((min(rows, n - start), self.chunks)))
            k = self.chunks_per_request
            top = np.argpartition(-noise, k - 1, axis=1)[:, :k]
            order = np.argsort(-np.take_along_axis(noise, top, axis=1), axis=1)
            found[start : start + rows] = np.take_along_axis(top, order, axis=1)
        return found

    def draw(self, n: int, rng: np.random.Generator) -> Shared:
        chunk = self.retrieved(n, rng)
        chains = np.zeros((n, self.chunks_per_request + 1), np.int64)  # level 0: the system prompt
        used = 1
        for level in range(self.chunks_per_request):
            _, chain = np.unique(chains[:, level] * self.chunks + chunk[:, level], return_inverse=True)
            chains[:, level + 1] = used + chain
            used += int(chain.max()) + 1 if n else 0
        ends = self.system_tokens + self.chunk_tokens * np.arange(self.chunks_per_request + 1)
        return Shared(chains, np.broadcast_to(ends, chains.shape))


def name_blocks(prompt: Column, chain: Column, shared: Shared | None, block_tokens: int) -> Ragged:
    """Ids of the blocks of prompts of ``prompt`` tokens (n,), shared prefix included, as ``Trace.prefix_hashes``.

    A block that ends inside the shared prefix is named by its level and position, a full block behind it by the row's
    ``chain`` (rows of a chain extend each other), a partial last block by its row alone.
    """
    counts = -(-prompt // block_tokens)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    row = np.repeat(np.arange(len(prompt)), counts)
    position = np.arange(int(offsets[-1])) - offsets[row]
    end = (position + 1) * block_tokens

    values = _dense(chain, counts)[row] + position
    used = int(values.max()) + 1 if len(values) else 0
    if shared is not None:
        for level in reversed(range(shared.ends.shape[1])):
            inside = end <= shared.ends[row, level]
            most = -(-shared.ends[:, level] // block_tokens)
            names = used + _dense(shared.chains[:, level], most)
            values[inside] = names[row[inside]] + position[inside]
            used += int(names.max() - used + most.max()) + 1 if len(names) else 0
    partial = end > prompt[row]
    values[partial] = used + np.arange(int(partial.sum()))
    there = np.zeros(int(values.max(initial=-1)) + 1, np.bool_)
    there[values] = True
    numbers = np.cumsum(there) - 1  # without gaps
    return Ragged(numbers[values], offsets)


def _dense(chain: Column, counts: Column) -> Column:
    """A first number for each row's chain, (n,), such that chains of up to ``counts`` blocks do not overlap."""
    _, number = np.unique(chain, return_inverse=True)
    most = np.zeros(int(number.max()) + 1 if len(number) else 0, np.int64)
    np.maximum.at(most, number, counts)
    starts: Column = np.concatenate(([0], np.cumsum(most)))[number]
    return starts


PREFIXES: Final = {
    name: f"{__name__}:{kind.__name__}" for name, kind in {"rag": RagChunks, "system_prompts": SystemPrompts}.items()
}
