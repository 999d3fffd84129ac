"""How long prompts and outputs are, together."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import Trace
from kvsim.workload.generate.distributions import Distribution, positive, refuse_none, whole

Tokens = NDArray[np.int64]


class Lengths(Protocol):
    """Pairs of prompt and output tokens."""

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Prompts and outputs, (n,) int64 each, at least 1."""
        ...


@dataclass(frozen=True)
class Independent:
    """Prompt and output tokens, each from a distribution of its own."""

    prompt: Distribution
    output: Distribution

    def __post_init__(self) -> None:
        refuse_none(prompt=self.prompt, output=self.output)

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        return whole(self.prompt.sample(n, rng)), whole(self.output.sample(n, rng))


@dataclass(frozen=True)
class ByPrompt:
    """Outputs that depend on the prompt: lognormal around a mean that is given for some prompts.

    ``output_means`` are [prompt tokens, mean output tokens] pairs, straight lines between, level beyond. The default
    is BurstGPT's conversation with ChatGPT (``img/req-res.png``: 5 and 95 % of the outputs at 2,000 tokens are 200 and
    700, so sigma = ln(700 / 200) / 3.29).
    """

    prompt: Distribution
    output_means: tuple[tuple[float, float], ...] = ((30, 265), (100, 160), (300, 160), (2000, 450))
    sigma: float = 0.381

    def __post_init__(self) -> None:
        prompts = [prompt for prompt, _ in self.output_means]
        if not prompts or prompts != sorted(prompts) or min(mean for _, mean in self.output_means) <= 0:
            hint = "allowed: [prompt, mean output] pairs, prompts rising, means positive"
            raise InputError("these are not means by prompt", key="output_means", hint=hint)
        positive("sigma", self.sigma)
        refuse_none(prompt=self.prompt)

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        prompts = whole(self.prompt.sample(n, rng))
        known, means = np.array(self.output_means, np.float64).T
        mean = np.interp(prompts, known, means)
        return prompts, whole(mean * np.exp(self.sigma * rng.standard_normal(n) - self.sigma**2 / 2))


@dataclass(frozen=True)
class FromTrace:
    """Pairs drawn with replacement from the requests of a trace file, in any built-in format."""

    path: Path
    format: str = "auto"

    @cached_property
    def trace(self) -> Trace:
        """The trace. Raises InputError if it cannot be read or holds nothing."""
        from kvsim.workload.reading import read_trace

        trace = read_trace(self.path, self.format, allow_plugins=False)
        if not len(trace):
            raise InputError("holds no requests", file=self.path)
        return trace

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        rows = rng.integers(len(self.trace), size=n)
        return self.trace.prompt_tokens[rows], self.trace.output_tokens[rows]


LENGTHS: Final = {
    name: f"{__name__}:{kind.__name__}"
    for name, kind in {"by_prompt": ByPrompt, "from_trace": FromTrace, "independent": Independent}.items()
}
