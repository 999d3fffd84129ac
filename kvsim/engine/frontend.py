"""The front end of a pool: how many requests it takes before it refuses more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvsim.core.cluster import QUEUE_LIMITS, Pool
from kvsim.core.runlog import NEVER

if TYPE_CHECKING:
    from kvsim.engine.recorder import RequestColumns
    from kvsim.engine.replica import Replica


class FrontEnd:
    """Refuses a request when it arrives, by what is alive in all replicas of the pool at that moment.

    ``max_num_queued_reqs``: there would be more requests than that, waiting or running. ``max_num_queued_tokens``: the
    prompts of those that have not got their first token make so many tokens; the prompt of the new one does not
    count, chunks that are computed and hits in the prefix cache do not lower it.

    Source: vLLM 0.33.0, ``vllm/v1/engine/async_llm.py`` (``check_admission``); the client gets HTTP 503.
    """

    __slots__ = ("_columns", "_max_requests", "_max_tokens", "_replicas", "_unanswered")

    def __init__(self, pool: Pool, replicas: Sequence[Replica], columns: RequestColumns) -> None:
        self._max_requests, self._max_tokens = pool.queue_limits
        self._replicas = replicas
        self._columns = columns
        self._unanswered: list[tuple[int, int]] = []  # (request, prompt tokens) without a first token when last seen

    def refuses(self, i: int, prompt_tokens: int, now_ns: int) -> str:
        """Why request ``i`` is refused, or "" and it is taken."""
        for replica in self._replicas:
            replica.settle(now_ns)
        if self._max_requests is not None:
            alive = sum(replica.alive_count for replica in self._replicas)
            if alive + 1 > self._max_requests:
                return QUEUE_LIMITS[0]
        if self._max_tokens is not None:
            answered, ended = self._columns.first_token_ns, self._columns.finish_ns
            self._unanswered = [row for row in self._unanswered if answered[row[0]] == ended[row[0]] == NEVER]
            if sum(tokens for _, tokens in self._unanswered) >= self._max_tokens:
                return QUEUE_LIMITS[1]
            self._unanswered.append((i, prompt_tokens))
        return ""
