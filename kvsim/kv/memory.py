"""How many KV blocks fit on a GPU: what is subtracted from its memory, term by term."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil
from types import MappingProxyType
from typing import Final

from kvsim.core.errors import InputError
from kvsim.core.hardware import Gpu
from kvsim.core.layers import Experts, Layer, Mlp
from kvsim.core.layout import Layout
from kvsim.core.model import ModelSpec


@dataclass(frozen=True)
class EngineMemory:
    """What an engine takes beside weights and KV, in bytes, as it measures or estimates it when it starts.

    - ``logit_bytes``: peak per sampled request and vocabulary entry (logits, a float32 copy, probabilities, a sort)
    - ``runtime_bytes``: CUDA libraries and workspaces beside PyTorch's own memory
    - ``collective_bytes``: communication buffers with more than one rank
    - ``graph_base_bytes``, ``graph_bytes``: CUDA graphs, a base and so much per captured graph (0: not subtracted)
    """

    logit_bytes: int
    runtime_bytes: int = 160_000_000
    collective_bytes: int = 360_000_000
    graph_base_bytes: int = 0
    graph_bytes: int = 0


ENGINES: Final[Mapping[str, EngineMemory]] = MappingProxyType(
    {
        "vllm@0.15": EngineMemory(logit_bytes=61),
        "vllm@0.19": EngineMemory(logit_bytes=31),
        "vllm@0.23": EngineMemory(logit_bytes=31, graph_base_bytes=300_000_000, graph_bytes=3_000_000),
        "vllm@0.33": EngineMemory(logit_bytes=31, graph_base_bytes=300_000_000, graph_bytes=3_000_000),
    }
)
"""Engine and version -> its memory.

Sources. Runtime: vLLM's startup logs ("non-torch memory") give 0.05 to 0.16 GiB; the pool that 0.15 logged for
Llama-2-7B on an H100 (7,463 blocks) leaves 0.16 GB. Collectives: NCCL 342 to 392 MB, aiconfigurator@095f58a5 systems.
Logits: what is left of the pools logged by 0.15 (H100) and by 0.19 for Llama-3.1-8B on an RTX 4090 (2,588 blocks).
Graphs, subtracted since 0.21: startup logs ("Estimated CUDA graph memory"), 0.26 GiB for 5 graphs, 0.35 for 9, 0.53
for 86 (Qwen2.5-7B).
"""


@dataclass(frozen=True)
class LedgerRow:
    """One line of the ledger: what, how many bytes of one GPU (negative: taken away), and where that comes from."""

    label: str
    bytes: int
    source: str


@dataclass(frozen=True)
class KVLedger:
    """Where the memory of one GPU goes, in bytes, and the KV blocks that are left.

    With pipeline parallelism it is the GPU of the stage that has room for the fewest blocks. ``num_gpu_blocks`` is
    the number that vLLM logs. One of them, the null block, never holds a request's tokens: ``blocks``, one less, is
    what the simulator can hand out. ``override`` names the option that fixed the pool instead of the terms above it
    ("" if none did). ``block_tokens`` is what a block holds of a request's context: ``block_size`` on each of the
    ranks that share its tokens.
    """

    memory_bytes: int
    gpu_memory_utilization: float
    budget_bytes: int
    weight_bytes: int
    activation_bytes: int
    runtime_bytes: int
    rotary_bytes: int
    collective_bytes: int
    cuda_graph_bytes: int
    kv_bytes: int
    block_bytes: int
    block_size: int
    num_gpu_blocks: int
    stage: int = 0
    override: str = ""
    context_ranks: int = 1

    @property
    def blocks(self) -> int:
        """Blocks that requests can hold: all but vLLM's null block."""
        return self.num_gpu_blocks - 1

    @property
    def block_tokens(self) -> int:
        """Tokens of context in one block, over all ranks that share them."""
        return self.block_size * self.context_ranks

    @property
    def tokens(self) -> int:
        """Tokens of context that the blocks hold."""
        return self.blocks * self.block_tokens

    def rows(self) -> tuple[LedgerRow, ...]:
        """The ledger in the order of the subtraction; terms of 0 bytes are left out.

        It ends with the KV pool, and what of it is too little for a block.
        """
        total = LedgerRow("GPU memory", self.memory_bytes, "total that the driver reports")
        weights = LedgerRow("weights", -self.weight_bytes, "parameters of one rank, each in its format")
        if self.override:
            return total, weights, LedgerRow("KV cache", self.kv_bytes, f"set by {self.override}")
        share = f"memory x gpu_memory_utilization {self.gpu_memory_utilization:g}, rounded up"
        unused_bytes = self.kv_bytes - self.num_gpu_blocks * self.block_bytes
        terms = (
            LedgerRow("usable", self.budget_bytes, share),
            weights,
            LedgerRow("peak activation", -self.activation_bytes, "largest layer at max_num_batched_tokens, or sampler"),
            LedgerRow("CUDA runtime", -self.runtime_bytes, "libraries and workspaces beside PyTorch"),
            LedgerRow("rotary table", -self.rotary_bytes, "a cosine and a sine per position and head dimension"),
            LedgerRow("communication", -self.collective_bytes, "buffers of more than one rank"),
            LedgerRow("CUDA graphs", -self.cuda_graph_bytes, "vLLM's estimate by number of graphs"),
            LedgerRow("KV cache", self.kv_bytes, "what is left"),
            LedgerRow("fragmentation", -unused_bytes, "of the KV cache: less than a block"),
        )
        return (total, *(term for term in terms if term.bytes))


def kv_ledger(
    model: ModelSpec,
    gpu: Gpu,
    layout: Layout,
    gpu_memory_utilization: float,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    block_size: int,
    num_gpu_blocks_override: int | None = None,
    kv_cache_memory_bytes: int | None = None,
    *,
    engine: EngineMemory,
) -> KVLedger:
    """The KV pool of one rank, as vLLM sizes it when it starts.

    Every layer keeps every token: of a layer with a window too (vLLM does so for chunked attention, and frees what
    lies behind a sliding window). ``num_gpu_blocks_override`` sets vLLM's number of blocks (null block included),
    ``kv_cache_memory_bytes`` the size of the pool; both need only fit beside the weights. Raises InputError if the
    ranks cannot share the model (naming the key), if layers keep a state instead of KV, and if not even two blocks
    are left (one besides the null block), saying how much is missing and which layout would do.

    Source: vLLM ``gpu_worker.determine_available_memory`` and ``get_kv_cache_configs``; terms: ``ENGINES``.
    """
    model.check(layout)
    if model.state_bytes(layout):
        raise InputError(
            f"{model.name} has layers with a state of constant size ({model.state_bytes() / 1e6:.1f} MB per request), "
            "which the KV pool does not hold yet",
            key="model",
        )

    limits = (gpu_memory_utilization, max_num_batched_tokens, max_num_seqs, block_size)
    overrides = (num_gpu_blocks_override, kv_cache_memory_bytes)

    def stages(layout: Layout) -> list[KVLedger]:
        every = range(layout.pipeline_parallel_size)
        return [_of_stage(model, gpu, layout, stage, *limits, *overrides, engine) for stage in every]

    found = min(stages(layout), key=lambda one: (one.num_gpu_blocks, one.stage))
    if found.override and found.num_gpu_blocks < 2:
        raise InputError(
            f"{found.num_gpu_blocks} blocks are too few: one is the null block, which holds no tokens",
            key=found.override,
            hint=f"a block has {found.block_bytes} bytes here",
        )
    missing = max(map(_missing_bytes, stages(layout)))
    if missing > 0:
        wider = _wider(model, layout)
        fitting = next((more for more in wider if max(map(_missing_bytes, stages(more))) <= 0), None)
        remedy = f"tensor_parallel_size {fitting.tensor_parallel_size}" if fitting else "no tensor_parallel_size"
        raise InputError(
            f"{model.name} does not fit on {gpu.name} with {layout}: {missing / 1e9:.2f} GB per GPU are missing",
            key=found.override or "model",
            hint=f"{remedy} would fit",
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


def _of_stage(
    model: ModelSpec,
    gpu: Gpu,
    layout: Layout,
    stage: int,
    gpu_memory_utilization: float,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    block_size: int,
    num_gpu_blocks_override: int | None,
    kv_cache_memory_bytes: int | None,
    engine: EngineMemory,
) -> KVLedger:
    """The ledger of a GPU of one pipeline stage."""
    weight_bytes = model.weight_bytes(layout, stage)
    budget_bytes = ceil(gpu.memory_bytes * gpu_memory_utilization)
    activation_bytes = _activation_bytes(model, layout, stage, max_num_batched_tokens, max_num_seqs, engine)
    rotary_bytes = model.max_model_len * model.rotary_dim * model.dtype_bytes
    collective_bytes = engine.collective_bytes if layout.gpus > 1 else 0
    graphs = captured_graphs(max_num_seqs) if engine.graph_bytes else 0
    graph_bytes = engine.graph_base_bytes + engine.graph_bytes * graphs
    block_bytes = block_size * model.kv_bytes_per_token(layout, stage)
    taken = weight_bytes + activation_bytes + engine.runtime_bytes + rotary_bytes + collective_bytes + graph_bytes
    kv_bytes, override = budget_bytes - taken, ""
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
        runtime_bytes=engine.runtime_bytes,
        rotary_bytes=rotary_bytes,
        collective_bytes=collective_bytes,
        cuda_graph_bytes=graph_bytes,
        kv_bytes=kv_bytes,
        block_bytes=block_bytes,
        block_size=block_size,
        num_gpu_blocks=kv_bytes // block_bytes,
        stage=stage,
        override=override,
        context_ranks=layout.decode_context_parallel_size,
    )


def _activation_bytes(
    model: ModelSpec, layout: Layout, stage: int, tokens: int, requests: int, engine: EngineMemory
) -> int:
    """Peak beside the weights: hidden states and residual of a full batch, and the largest layer or the sampler."""
    hidden = tokens * 2 * model.hidden_size * model.dtype_bytes
    widest = max(_block_values(layer, model, layout) for layer, _ in model.groups(model.stage(layout, stage)))
    last = stage == layout.pipeline_parallel_size - 1
    sampler = min(requests, tokens) * model.vocab_size * engine.logit_bytes if last else 0
    return hidden + max(tokens * widest * model.dtype_bytes, sampler)


def _block_values(layer: Layer, model: ModelSpec, layout: Layout) -> int:
    """Values per token that the feed-forward block of a layer needs at once: gate, up and their product.

    Of a mixture each token has so many copies as experts, and as many outputs where those are wider than gate and up.
    """
    if isinstance(layer.mlp, Mlp):
        return 3 * (layer.mlp.width // layout.tensor_parallel_size)
    if isinstance(layer.mlp, Experts):
        ranks = 1 if layout.enable_expert_parallel else layout.stage_ranks
        width = layer.mlp.width // ranks
        return layer.mlp.per_token * (max(2 * width, model.hidden_size) + width)
    return 0


def _missing_bytes(ledger: KVLedger) -> int:
    """Bytes by which weights and pool exceed the GPU; the smallest pool is the null block and one more."""
    if ledger.override:
        return ledger.weight_bytes + ledger.kv_bytes - ledger.memory_bytes
    return 2 * ledger.block_bytes - ledger.kv_bytes


def _wider(model: ModelSpec, layout: Layout) -> Iterator[Layout]:
    """The same layout with more tensor-parallel ranks (powers of two), where the model can be shared so."""
    for power in range(layout.tensor_parallel_size.bit_length(), 11):
        wider = replace(layout, tensor_parallel_size=1 << power)
        try:
            model.check(wider)
        except InputError:
            continue
        yield wider
