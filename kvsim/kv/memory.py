"""How many KV blocks fit on a GPU: what is subtracted from its memory, term by term."""

from dataclasses import dataclass
from math import ceil
from typing import Final

from kvsim.core.errors import InputError
from kvsim.core.hardware import Gpu
from kvsim.core.model import ModelSpec

SAMPLER_BYTES_PER_LOGIT: Final = 31
"""Peak bytes per request and vocabulary entry while sampling (logits, a float32 copy, probabilities, a sort).
Source: what is left of the KV pool that vLLM 0.19 logged for Llama-3.1-8B on an RTX 4090 (2,588 blocks); 0.15: 61."""

RUNTIME_BYTES: Final = 160_000_000
"""CUDA libraries and workspaces beside PyTorch's own memory. Source: vLLM's startup logs ("non-torch memory") give
0.05 to 0.16 GiB; the pool logged by 0.15 for Llama-2-7B on an H100 (7,463 blocks) leaves 0.16 GB."""

COLLECTIVE_BYTES: Final = 360_000_000
"""Communication buffers with more than one rank. Source: NCCL 342 to 392 MB, aiconfigurator@095f58a5 systems."""

GRAPH_BASE_BYTES: Final = 300_000_000
GRAPH_BYTES: Final = 3_000_000
"""CUDA graphs: a base and so much per captured graph. Source: vLLM's startup logs since 0.21 ("Estimated CUDA graph
memory"): 0.26 GiB for 5 graphs, 0.35 for 9, 0.53 for 86 (Qwen2.5-7B)."""


@dataclass(frozen=True)
class LedgerRow:
    """One line of the ledger: what, how many bytes of one GPU (negative: taken away), and where that comes from."""

    label: str
    bytes: int
    source: str


@dataclass(frozen=True)
class KVLedger:
    """Where the memory of one GPU goes, in bytes, and the KV blocks that are left.

    ``num_gpu_blocks`` is the number that vLLM logs. One of them, the null block, never holds a request's tokens:
    ``blocks``, one less, is what the simulator can hand out. ``override`` names the option that fixed the pool
    instead of the terms above it ("" if none did).
    """

    memory_bytes: int
    gpu_memory_utilization: float
    budget_bytes: int
    weight_bytes: int
    activation_bytes: int
    other_bytes: int
    cuda_graph_bytes: int
    kv_bytes: int
    block_bytes: int
    block_size: int
    num_gpu_blocks: int
    override: str = ""

    @property
    def blocks(self) -> int:
        """Blocks that requests can hold: all but vLLM's null block."""
        return self.num_gpu_blocks - 1

    @property
    def tokens(self) -> int:
        """Tokens of context that the blocks hold."""
        return self.blocks * self.block_size

    def rows(self) -> tuple[LedgerRow, ...]:
        """The ledger in the order of the subtraction, ending with the KV pool."""
        if self.override:
            pool = LedgerRow("KV cache", self.kv_bytes, f"set by {self.override}")
            return (
                LedgerRow("GPU memory", self.memory_bytes, "total that the driver reports"),
                LedgerRow("weights", -self.weight_bytes, "parameters of one rank"),
                pool,
            )
        share = f"memory x gpu_memory_utilization {self.gpu_memory_utilization:g}, rounded up"
        return (
            LedgerRow("GPU memory", self.memory_bytes, "total that the driver reports"),
            LedgerRow("usable", self.budget_bytes, share),
            LedgerRow("weights", -self.weight_bytes, "parameters of one rank"),
            LedgerRow("peak activation", -self.activation_bytes, "MLP at max_num_batched_tokens or sampler"),
            LedgerRow("other", -self.other_bytes, "CUDA libraries, rotary table, communication buffers"),
            LedgerRow("CUDA graphs", -self.cuda_graph_bytes, "vLLM's estimate by number of graphs"),
            LedgerRow("KV cache", self.kv_bytes, "what is left"),
        )


def kv_ledger(
    model: ModelSpec,
    gpu: Gpu,
    tensor_parallel_size: int,
    gpu_memory_utilization: float,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    block_size: int,
    num_gpu_blocks_override: int | None = None,
    kv_cache_memory_bytes: int | None = None,
    *,
    cuda_graphs: bool = True,
) -> KVLedger:
    """The KV pool of one rank, as vLLM sizes it when it starts.

    ``num_gpu_blocks_override`` sets vLLM's number of blocks (null block included), ``kv_cache_memory_bytes`` the size
    of the pool; both need only fit beside the weights. ``cuda_graphs`` False leaves their estimate out (eager mode,
    and vLLM before 0.21). Raises InputError if not even two blocks are left (one besides the null block), saying how
    much is missing and which tensor_parallel_size would do.

    Source: vLLM ``gpu_worker.determine_available_memory``; the terms at the constants above.
    """

    def ledger(ranks: int) -> KVLedger:
        weight_bytes = model.parameters(ranks) * model.dtype_bytes
        budget_bytes = ceil(gpu.memory_bytes * gpu_memory_utilization)
        activation_bytes = _activation_bytes(model, ranks, max_num_batched_tokens, max_num_seqs)
        rotary_bytes = model.max_model_len * model.head_dim * model.dtype_bytes
        other_bytes = RUNTIME_BYTES + rotary_bytes + (COLLECTIVE_BYTES if ranks > 1 else 0)
        graph_bytes = GRAPH_BASE_BYTES + GRAPH_BYTES * captured_graphs(max_num_seqs) if cuda_graphs else 0
        block_bytes = block_size * model.kv_bytes_per_token(ranks)
        kv_bytes = budget_bytes - weight_bytes - activation_bytes - other_bytes - graph_bytes
        override = ""
        if num_gpu_blocks_override is not None:
            override, kv_bytes = "num_gpu_blocks_override", num_gpu_blocks_override * block_bytes
        elif kv_cache_memory_bytes is not None:
            override, kv_bytes = "kv_cache_memory_bytes", kv_cache_memory_bytes
        return KVLedger(
            memory_bytes=gpu.memory_bytes,
            gpu_memory_utilization=gpu_memory_utilization,
            budget_bytes=budget_bytes,
            weight_bytes=weight_bytes,
            activation_bytes=activation_bytes,
            other_bytes=other_bytes,
            cuda_graph_bytes=graph_bytes,
            kv_bytes=kv_bytes,
            block_bytes=block_bytes,
            block_size=block_size,
            num_gpu_blocks=kv_bytes // block_bytes,
            override=override,
        )

    found = ledger(tensor_parallel_size)
    if found.override and found.num_gpu_blocks < 2:
        raise InputError(
            f"{found.num_gpu_blocks} blocks are too few: one is the null block, which holds no tokens",
            key=found.override,
            hint=f"a block has {found.block_bytes} bytes here",
        )
    missing = _missing_bytes(found)
    if missing > 0:
        larger = [ranks for ranks in _rank_counts(model) if ranks > tensor_parallel_size]
        fitting = next((ranks for ranks in larger if _missing_bytes(ledger(ranks)) <= 0), None)
        remedy = f"tensor_parallel_size {fitting} would fit" if fitting else "no tensor_parallel_size would fit"
        raise InputError(
            f"{model.name} does not fit on {gpu.name} with tensor_parallel_size {tensor_parallel_size}: "
            f"{missing / 1e9:.2f} GB per GPU are missing",
            key=found.override or "model",
            hint=remedy,
        )
    return found


def captured_graphs(max_num_seqs: int) -> int:
    """How many CUDA graphs vLLM captures: one per batch size for decodes, one for mixed batches up to twice as large.

    Sizes are 1, 2, 4, multiples of 8 up to 256 and of 16 up to 512. Source: vLLM ``VllmConfig`` capture sizes and
    startup logs (2 requests: 2 + 3, 8: 4 + 5, 256: 35 + 51).

    >>> [captured_graphs(n) for n in (2, 8, 256)]
    [5, 9, 86]
    """
    sizes = [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]
    return len([size for size in sizes if size <= max_num_seqs] + [size for size in sizes if size <= 2 * max_num_seqs])


def _activation_bytes(model: ModelSpec, tensor_parallel_size: int, tokens: int, requests: int) -> int:
    """Hidden states and residual of a full batch, plus the larger of MLP (gate, up, product) and sampler."""
    hidden = tokens * 2 * model.hidden_size * model.dtype_bytes
    mlp = tokens * 3 * (model.intermediate_size // tensor_parallel_size) * model.dtype_bytes
    sampler = min(requests, tokens) * model.vocab_size * SAMPLER_BYTES_PER_LOGIT
    return hidden + max(mlp, sampler)


def _missing_bytes(ledger: KVLedger) -> int:
    """Bytes by which weights and pool exceed the GPU; the smallest pool is the null block and one more."""
    if ledger.override:
        return ledger.weight_bytes + ledger.kv_bytes - ledger.memory_bytes
    return 2 * ledger.block_bytes - ledger.kv_bytes


def _rank_counts(model: ModelSpec) -> list[int]:
    """Powers of two that divide the attention heads."""
    return [1 << power for power in range(model.heads.bit_length()) if model.heads % (1 << power) == 0]
