"""What a cost model sees of one step: totals over the batch, never the batch itself."""


class BatchShape:
    """Totals of one forward pass. Context is the tokens of a request already in KV before the step.

    All fields are exact integers, so a cost computed from them does not depend on any order.

    - ``prefill_tokens``: prompt tokens computed in this step, over all chunks
    - ``prefill_chunk_squares``: sum of chunk^2 over the chunks
    - ``prefill_chunk_contexts``: sum of chunk * context over the chunks
    - ``prefill_context_tokens``: sum of context over the chunks
    - ``prefill_requests``: number of chunks
    - ``decode_requests``: requests that compute one token each
    - ``decode_context_tokens``, ``decode_context_squares``: sum of context and of context^2 over them
    - ``sampled_requests``: requests that sample a token at the end of the step
    """

    __slots__ = (
        "decode_context_squares",
        "decode_context_tokens",
        "decode_requests",
        "prefill_chunk_contexts",
        "prefill_chunk_squares",
        "prefill_context_tokens",
        "prefill_requests",
        "prefill_tokens",
        "sampled_requests",
    )

    def __init__(
        self,
        prefill_tokens: int = 0,
        prefill_chunk_squares: int = 0,
        prefill_chunk_contexts: int = 0,
        prefill_context_tokens: int = 0,
        prefill_requests: int = 0,
        decode_requests: int = 0,
        decode_context_tokens: int = 0,
        decode_context_squares: int = 0,
        sampled_requests: int = 0,
    ) -> None:
        self.prefill_tokens = prefill_tokens
        self.prefill_chunk_squares = prefill_chunk_squares
        self.prefill_chunk_contexts = prefill_chunk_contexts
        self.prefill_context_tokens = prefill_context_tokens
        self.prefill_requests = prefill_requests
        self.decode_requests = decode_requests
        self.decode_context_tokens = decode_context_tokens
        self.decode_context_squares = decode_context_squares
        self.sampled_requests = sampled_requests

    @property
    def batch_tokens(self) -> int:
        """Tokens that pass through the linear layers in this step."""
        return self.prefill_tokens + self.decode_requests

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)}" for name in sorted(self.__slots__) if getattr(self, name))
        return f"BatchShape({fields})"
