"""Engine presets: versioned defaults, and what of that engine is not modelled yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kvsim.core.hardware import Gpu
from kvsim.kv.memory import ENGINES, EngineMemory

GIB = 2**30


@dataclass(frozen=True)
class Preset:
    """What an engine does when nobody says otherwise.

    ``seats`` names the policy of each seat; ``block_size`` (tokens) and ``gpu_memory_utilization`` (share of the
    GPU's total memory) size the KV pool; ``batch_by_memory`` holds (least GPU memory in bytes, max_num_seqs,
    max_num_batched_tokens), largest first, and ``small_batch_gpus`` get its last row whatever their memory.
    ``memory`` is what the engine takes beside weights and KV.
    ``ignored`` maps an argument of that engine which changes nothing here to the reason: it is refused, never dropped
    in silence. ``on_by_default`` are features that the engine has on and kvsim off unless asked;
    ``performance_modes`` those that it has and that are modelled; ``notes`` say what else is to be known of the
    engine's rules.
    """

    seats: Mapping[str, str]
    block_size: int
    gpu_memory_utilization: float
    batch_by_memory: tuple[tuple[int, int, int], ...]
    small_batch_gpus: tuple[str, ...]
    memory: EngineMemory
    ignored: Mapping[str, str]
    on_by_default: tuple[str, ...] = ()
    performance_modes: tuple[str, ...] = ("balanced",)
    notes: tuple[str, ...] = ()

    def batch(
        self,
        gpu: Gpu,
        max_model_len: int,
        *,
        whole_prompts: bool,
        doubled: bool = False,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
    ) -> tuple[int, int]:
        """max_num_seqs and max_num_batched_tokens on this GPU, where they are not given; ``doubled`` by a mode for it.

        A scheduler of ``whole_prompts`` can only run prompts that fit in one step, so its token budget is at least
        ``max_model_len``. Defaults are kept consistent: tokens <= seqs * max_model_len, seqs <= tokens.
        Source: vLLM 0.33.0, ``vllm/engine/arg_utils.py``, for the API server. (Its class for offline use has 16,384,
        16,384 and 8,192 tokens from the largest GPUs to the smallest.)
        """
        small = any(name in gpu.name.lower() for name in self.small_batch_gpus)
        rows = self.batch_by_memory[-1:] if small else self.batch_by_memory
        _, seqs, tokens = next(row for row in rows if gpu.memory_bytes >= row[0])
        if doubled:
            seqs, tokens = 2 * seqs, 2 * tokens
        seqs = max_num_seqs or seqs
        if max_num_batched_tokens is not None:
            tokens = max_num_batched_tokens
        else:
            least = max_model_len if whole_prompts else 1
            tokens = min(max(tokens, least), seqs * max_model_len)
        return (max_num_seqs or min(seqs, tokens)), tokens


_NOT_YET = "is not modelled yet"
_NO_EFFECT = "changes nothing that is simulated"

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "vllm@0.33": Preset(
            # vLLM's own data-parallel balancer scores waiting * 4 + running; least_requests is its nearest relative.
            seats={"router": "least_requests", "scheduler": "chunked_prefill", "kv": "paged", "cost": "roofline"},
            block_size=16,
            gpu_memory_utilization=0.92,
            batch_by_memory=((160 * GIB, 1024, 16384), (70 * GIB, 1024, 8192), (0, 256, 2048)),
            small_batch_gpus=("a100", "gb10"),
            memory=ENGINES["vllm@0.33"],
            ignored={
                "scheduling_policy": "is written scheduler.policy here",
                "async_scheduling": "is written scheduler.async_scheduling here",
                "stream_interval": "is not modelled: ITL would be the gaps between deliveries, all else is the same",
                "performance_mode": "is written engine.performance_mode here",
                "kv_offloading_size": _NOT_YET,
                "kv_offloading_backend": _NOT_YET,
                "kv_transfer_config": "is written cluster.pools and cluster.link here",
                "speculative_config": _NOT_YET,
                "dtype": "is read from the model",
                "enforce_eager": _NOT_YET,
                "swap_space": "no longer exists: preemption is by recomputation (prefill_first has swap_space_gib)",
                "disable_log_stats": _NO_EFFECT,
                "disable_log_requests": _NO_EFFECT,
                "trust_remote_code": _NO_EFFECT,
                "served_model_name": _NO_EFFECT,
                "load_format": _NO_EFFECT,
            },
            on_by_default=("prefix caching", "async scheduling"),
            performance_modes=("balanced", "throughput"),
        ),
        # Read in 0.6.6.post1, nothing recorded: docs/engines.md.
        "vllm@0.6": Preset(
            seats={"router": "least_requests", "scheduler": "prefill_first", "kv": "paged", "cost": "roofline"},
            block_size=16,
            gpu_memory_utilization=0.90,
            batch_by_memory=((0, 256, 2048),),
            small_batch_gpus=(),
            memory=ENGINES["vllm@0.15"],  # the oldest whose pools are known
            ignored={},
            notes=(
                "vLLM 0.6: its rules are read, not recorded; ends are noticed at once here, in 0.6 a step late",
                "vLLM 0.6 splits prompts by default above 32768 tokens of context: chunked_prefill comes closer there",
            ),
        ),
    }
)
"""Preset name in a scenario -> its defaults."""
