"""Records, step by step, what an installed vLLM's own scheduler decides, in the format that kvsim can replay.

    python tools/record_vllm/record.py CASE OUT

CASE is a folder with the inputs of a case (``config.json`` and ``requests.csv``; results in it are ignored), OUT the
folder for the recording: the same two files, filled in, and ``steps.jsonl.gz``. No model runs and no GPU is needed:
vLLM's scheduler and KV cache manager are driven under a synthetic clock. The format, the driver's rules and what to
do for a new version of vLLM are in ``README.md`` beside this file.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import inspect
import json
import sys
import tempfile
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEDULER_KEYS = (
    "max_num_seqs",
    "max_num_active_seqs",
    "max_num_batched_tokens",
    "max_num_scheduled_tokens",
    "long_prefill_token_threshold",
    "long_prefill_token_threshold_adaptive",
    "enable_chunked_prefill",
    "policy",
    "scheduler_reserve_full_isl",
    "watermark",
    "prefill_schedule_interval",
    "async_scheduling",
)
"""Keys of ``config`` that are passed to vLLM's SchedulerConfig, in the order in which they are written."""

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 1000,
    "torch_dtype": "float16",
}
"""A plain decoder-only model: full attention, one KV cache group. Nothing of it enters a decision."""

INPUTS = ("id", "arrival_ns", "prompt_tokens", "max_tokens", "priority", "session", "turn", "ends", "segments")
OUTCOMES = (
    "status",
    "generated_tokens",
    "first_scheduled_ns",
    "first_token_ns",
    "finish_ns",
    "admissions",
    "preemptions",
    "cached_tokens_first",
    "cached_tokens_total",
)


END = 0
"""The token that ends a request of ``ends`` = eos; all others are numbered from 1."""


class Tokens:
    """Numbers for tokens: two are equal exactly if stream and position are."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, int], int] = {}

    def number(self, stream: str, position: int) -> int:
        return self._numbers.setdefault((stream, position), len(self._numbers) + 1)

    def prompt(self, segments: str) -> list[int]:
        """``name[a:b];...``: tokens a to b - 1 of the stream ``name``."""
        numbers = []
        for segment in segments.split(";"):
            name, _, bounds = segment.removesuffix("]").partition("[")
            start, _, end = bounds.partition(":")
            numbers += [self.number(name, position) for position in range(int(start), int(end))]
        return numbers


def make_scheduler(config: dict[str, Any]) -> Any:
    """vLLM's scheduler with these parameters; what this version of vLLM does not know is an error."""
    import torch
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    folder = Path(tempfile.mkdtemp(prefix="record_vllm_"))
    (folder / "config.json").write_text(json.dumps(MODEL | {"max_position_embeddings": config["max_model_len"]}))
    model = ModelConfig(
        model=str(folder), skip_tokenizer_init=True, dtype="float16", max_model_len=config["max_model_len"], seed=0
    )
    asked = {key: config[key] for key in SCHEDULER_KEYS if config.get(key) is not None}
    known = inspect.signature(SchedulerConfig).parameters
    unknown = sorted(set(asked) - set(known))
    if unknown:
        sys.exit(f"Error: this vLLM's SchedulerConfig has no {', '.join(unknown)}")
    limits = {"max_model_len": config["max_model_len"], "is_encoder_decoder": False}
    asked |= {key: value for key, value in limits.items() if key in known}
    cache = CacheConfig(block_size=config["block_size"], enable_prefix_caching=config["enable_prefix_caching"])
    vllm_config = VllmConfig(
        model_config=model,
        cache_config=cache,
        scheduler_config=SchedulerConfig(**asked),
        device_config=DeviceConfig(device="cpu"),
    )
    cache.num_gpu_blocks = config["num_gpu_blocks"]
    group = KVCacheGroupSpec(
        ["layer"],
        FullAttentionSpec(block_size=config["block_size"], num_kv_heads=1, head_size=1, dtype=torch.float32),
    )
    kv_cache = KVCacheConfig(num_blocks=config["num_gpu_blocks"], kv_cache_tensors=[], kv_cache_groups=[group])
    scheduler_class = vllm_config.scheduler_config.get_scheduler_cls()
    return scheduler_class(
        vllm_config=vllm_config,
        kv_cache_config=kv_cache,
        structured_output_manager=StructuredOutputManager(vllm_config),
        block_size=config["block_size"],
    )


class Watched:
    """vLLM's scheduler, and a note of what it does inside one ``schedule()``.

    Wrapped are ``KVCacheManager.allocate_slots``, ``Scheduler._preempt_request`` and
    ``BlockPool._maybe_evict_cached_block``: look for their successors if a version has none of that name.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.manager = scheduler.kv_cache_manager
        self.pool = self.manager.block_pool
        self.admitted: list[list[int]] = []
        self.preempted: list[list[int]] = []
        self.refused: list[list[Any]] = []
        self.evicted = 0
        allocate, preempt, evict = (
            self.manager.allocate_slots,
            scheduler._preempt_request,
            self.pool._maybe_evict_cached_block,
        )

        def allocate_slots(request: Any, num_new_tokens: int, num_new_computed_tokens: int = 0, **more: Any) -> Any:
            waits, resumed = request.status.name in ("WAITING", "PREEMPTED"), request.num_preemptions > 0
            blocks = allocate(request, num_new_tokens, num_new_computed_tokens, **more)
            if blocks is None:
                self.refused.append([number(request), "w" if waits else "r"])
            elif waits:
                self.admitted.append([number(request), num_new_computed_tokens, int(resumed)])
            return blocks

        def preempt_request(request: Any, *arguments: Any, **more: Any) -> Any:
            held = len(self.manager.get_blocks(request.request_id).blocks[0])
            self.preempted.append([number(request), request.num_computed_tokens, request.num_output_tokens, held])
            return preempt(request, *arguments, **more)

        def maybe_evict(block: Any) -> bool:
            dropped: bool = evict(block)
            self.evicted += dropped
            return dropped

        self.manager.allocate_slots = allocate_slots
        scheduler._preempt_request = preempt_request
        self.pool._maybe_evict_cached_block = maybe_evict

    def take_notes(self) -> dict[str, list[Any]]:
        notes = {"admitted": self.admitted, "preempted": self.preempted, "alloc_failed": self.refused}
        self.admitted, self.preempted, self.refused = [], [], []
        return notes

    def free_blocks(self) -> int:
        return int(self.pool.get_num_free_blocks())

    def cached_blocks(self) -> int:
        return sum(block.block_hash is not None for block in self.pool.blocks)


def number(request: Any) -> int:
    return int(request.request_id.removeprefix("r"))


@dataclass(frozen=True)
class Planned:
    """What ``schedule()`` returned, and which of its requests sample a token."""

    output: Any
    samples: list[bool]


class Recording:
    """One case: hands requests over, asks for steps, lets the clock run, and answers with tokens."""

    def __init__(self, about: dict[str, Any], rows: list[dict[str, str]]) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.request import Request

        self.config, self.cost, self.rows = about["config"], about["cost"], rows
        self.watched = Watched(make_scheduler(self.config))
        self.scheduler = self.watched.scheduler
        self.tokens = Tokens()
        self.caching = bool(self.config["enable_prefix_caching"])
        init_none_hash(sha256)
        hasher = get_request_block_hasher(self.config["block_size"], sha256) if self.caching else None
        self.requests: dict[int, Any] = {}
        self.lengths: dict[int, int] = {}
        self.outcomes: dict[int, dict[str, Any]] = {}
        for row in rows:
            request_id = int(row["id"])
            prompt = self.tokens.prompt(row["segments"])
            if len(prompt) != int(row["prompt_tokens"]):
                sys.exit(f"Error: request {request_id}: segments have {len(prompt)} tokens, not {row['prompt_tokens']}")
            output = int(row["max_tokens"])
            if row.get("ends") == "eos":  # the scheduler learns of the end when it sees the last token
                parameters = SamplingParams(max_tokens=self.config["max_model_len"], stop_token_ids=[END])
            else:
                parameters = SamplingParams(max_tokens=output, ignore_eos=True)
            self.lengths[request_id] = output
            self.requests[request_id] = Request(
                request_id=f"r{request_id:05d}",
                prompt_token_ids=prompt,
                sampling_params=parameters,
                pooling_params=None,
                arrival_time=int(row["arrival_ns"]),
                priority=int(row["priority"] or 0),
                block_hasher=hasher,
            )
            self.outcomes[request_id] = dict.fromkeys(OUTCOMES, "") | {
                "status": "waiting",
                "cached": [],
                "admissions": 0,
                "preemptions": 0,
                "cached_tokens_total": 0,
            }
        self.coming = deque(sorted((int(row["arrival_ns"]), int(row["id"])) for row in rows))
        self.steps: list[dict[str, Any]] = []
        self.end_status = "drained"

    # -- driver -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        if self.config.get("async_scheduling"):
            self.run_async()
        else:
            self.run_sync()
        for request_id, outcome in self.outcomes.items():
            if outcome["status"] == "waiting":
                kind = "preempted" if self.requests[request_id].num_preemptions else "waiting"
                outcome["status"] = f"stuck_{kind}"
                self.end_status = "stuck"
            outcome["generated_tokens"] = self.requests[request_id].num_output_tokens

    def run_sync(self) -> None:
        """One step at a time: its results are there before the next is planned."""
        now = 0
        while True:
            arrived = self.hand_over(now)
            if not self.scheduler.get_num_unfinished_requests():
                if not self.coming:
                    return
                now = self.coming[0][0]
                continue
            planned, step = self.schedule(arrived)
            step |= {"start_ns": now, "end_ns": now + self.duration_ns(step)}
            self.results(planned, step)
            now = step["end_ns"]
            if not step["id"] and not step.get("preempted"):
                if not self.coming:
                    return
                now = self.coming[0][0]

    def run_async(self) -> None:
        """As ``EngineCore.step_with_batch_queue`` with room for two steps; the host takes no time.

        ``plan_ns`` is the clock at ``schedule()``, ``start_ns`` and ``end_ns`` are those of the step on the device.
        """
        now, device_free_ns = 0, 0
        queue: deque[tuple[Planned, dict[str, Any]]] = deque()
        while True:
            arrived = self.hand_over(now)
            if self.scheduler.get_num_unfinished_requests():
                planned, step = self.schedule(arrived)
                duration_ns = self.duration_ns(step)
                start_ns = max(now, device_free_ns) if step["id"] else now
                step |= {"plan_ns": now, "start_ns": start_ns, "end_ns": start_ns + duration_ns}
                if step["id"]:
                    device_free_ns = step["end_ns"]
                queue.append((planned, step))
                if len(queue) < 2 and step["id"]:
                    continue
            if not queue:
                if not self.coming:
                    return
                now = self.coming[0][0]
                continue
            planned, step = queue.popleft()
            now = max(now, step["end_ns"])
            self.results(planned, step)
            if all(not other["id"] and not other.get("preempted") for other in (step, *(other for _, other in queue))):
                if not self.coming:
                    return
                now = max(now, self.coming[0][0])

    def hand_over(self, now: int) -> list[int]:
        """Every request that has arrived; the front end refuses prompts that fill the context."""
        arrived = []
        while self.coming and self.coming[0][0] <= now:
            _, request_id = self.coming.popleft()
            request = self.requests[request_id]
            if request.num_prompt_tokens >= self.config["max_model_len"]:
                self.outcomes[request_id]["status"] = "rejected"
            else:
                self.scheduler.add_request(request)
                arrived.append(request_id)
        return arrived

    def schedule(self, arrived: list[int]) -> tuple[Planned, dict[str, Any]]:
        self.watched.evicted = 0
        context = {request_id: request.num_computed_tokens for request_id, request in self.requests.items()}
        # prompt and generated tokens, those that are still being computed included
        total = {
            request_id: request.num_tokens + request.num_output_placeholders
            for request_id, request in self.requests.items()
        }
        output = self.scheduler.schedule()
        notes = self.watched.take_notes()
        for request_id, cached, _resumed in notes["admitted"]:
            context[request_id] = cached
            outcome = self.outcomes[request_id]
            outcome["admissions"] += 1
            outcome["cached"].append(cached)
        for request_id, *_ in notes["preempted"]:
            self.outcomes[request_id]["preemptions"] += 1
        ids, tokens, contexts, kinds, samples = [], [], [], [], []
        for name, count in output.num_scheduled_tokens.items():
            request_id = int(name.removeprefix("r"))
            request = self.requests[request_id]
            one_left = total[request_id] - context[request_id] == 1
            ids.append(request_id)
            tokens.append(count)
            contexts.append(context[request_id])
            kinds.append("d" if one_left and total[request_id] > request.num_prompt_tokens else "p")
            samples.append(context[request_id] + count == total[request_id])
        running, waiting = self.scheduler.get_request_counts()
        step: dict[str, Any] = {"step": len(self.steps), "id": ids, "n": tokens, "c": contexts, "k": "".join(kinds)}
        step |= {name: values for name, values in ({"arrived": arrived} | notes).items() if values}
        step["prefill_tokens"] = sum(n for n, kind in zip(tokens, kinds, strict=True) if kind == "p")
        step["decode_requests"] = kinds.count("d")
        step["context_tokens"] = sum(contexts)
        step |= {"waiting": waiting, "running": running, "free_blocks": self.watched.free_blocks()}
        if self.caching and self.watched.evicted:
            step["evicted"] = self.watched.evicted
        self.steps.append(step)
        return Planned(output, samples), step

    def duration_ns(self, step: dict[str, Any]) -> int:
        if not step["id"]:
            return 0
        cost = self.cost
        duration: int = cost["base_ns"] + cost["per_prefill_token_ns"] * step["prefill_tokens"]
        duration += cost["per_decode_request_ns"] * step["decode_requests"]
        return duration + cost["per_context_token_ns"] * step["context_tokens"]

    def results(self, planned: Planned, step: dict[str, Any]) -> None:
        """Tell the scheduler what the step has sampled: one token for each request whose tokens are all computed."""
        from vllm.v1.outputs import ModelRunnerOutput

        names = list(planned.output.num_scheduled_tokens)
        sampled = [
            [self.next_token(request_id)] if samples else []
            for request_id, samples in zip(step["id"], planned.samples, strict=True)
        ]
        finished = []
        before = {name: self.requests[int(name.removeprefix("r"))].num_output_tokens for name in names}
        self.scheduler.update_from_output(
            planned.output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: index for index, name in enumerate(names)},
                sampled_token_ids=sampled,
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
            ),
        )
        for name in names:
            request_id = int(name.removeprefix("r"))
            outcome, request = self.outcomes[request_id], self.requests[request_id]
            if outcome["first_scheduled_ns"] == "":
                outcome["first_scheduled_ns"] = step["start_ns"]
            if request.num_output_tokens > before[name] and outcome["first_token_ns"] == "":
                outcome["first_token_ns"] = step["end_ns"]
            if request.is_finished() and outcome["status"] != "finished":  # else this step's token came too late
                outcome |= {"status": "finished", "finish_ns": step["end_ns"]}
                finished.append(request_id)
        if finished:
            step["finished"] = finished
        step["free_blocks_end"] = self.watched.free_blocks()
        if self.caching:
            step["cached_blocks"] = self.watched.cached_blocks()

    def next_token(self, request_id: int) -> int:
        request = self.requests[request_id]
        position = request.num_output_tokens
        if request.sampling_params.stop_token_ids and position + 1 == self.lengths[request_id]:
            return END
        return self.tokens.number(f"o{request_id}", position)

    # -- files ------------------------------------------------------------------------------------------------

    def write(self, about: dict[str, Any], folder: Path) -> None:
        import vllm

        folder.mkdir(parents=True, exist_ok=True)
        config = self.config | {"usable_blocks": self.config["num_gpu_blocks"] - 1}
        config["watermark_blocks"] = self.watched.manager.watermark_blocks
        kind = type(self.scheduler)
        filled = {name: about[name] for name in ("case", "about", "seed") if name in about}
        filled |= {"vllm_version": vllm.__version__, "scheduler_class": f"{kind.__module__}.{kind.__qualname__}"}
        filled |= {"config": config, "cost": self.cost, "summary": self.summary()}
        (folder / "config.json").write_text(json.dumps(filled, indent=1) + "\n")
        with open(folder / "requests.csv", "w", newline="") as file:
            given = [name for name in INPUTS if name != "ends" or any(row.get("ends") for row in self.rows)]
            table = csv.DictWriter(file, (*given, *OUTCOMES), extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            for row in self.rows:
                outcome = self.outcomes[int(row["id"])]
                cached = outcome["cached"]
                outcome["cached_tokens_total"] = sum(cached)
                outcome["cached_tokens_first"] = cached[0] if cached else ""
                table.writerow({name: row.get(name, "") for name in given} | outcome)
        # no name and no time in the packed file: recording twice gives the same bytes
        with open(folder / "steps.jsonl.gz", "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
            for step in self.steps:
                file.write(json.dumps(step, separators=(",", ":")).encode() + b"\n")

    def summary(self) -> dict[str, Any]:
        status = Counter(outcome["status"] for outcome in self.outcomes.values())
        return {
            "steps": len(self.steps),
            "empty_steps": sum(not step["id"] for step in self.steps),
            "end_status": self.end_status,
            "makespan_ns": max((step["end_ns"] for step in self.steps), default=0),
            "requests": len(self.rows),
            "finished": status["finished"],
            "rejected": status["rejected"],
            "preemptions": sum(outcome["preemptions"] for outcome in self.outcomes.values()),
            "scheduled_prefill_tokens": sum(step["prefill_tokens"] for step in self.steps),
            "scheduled_decode_requests": sum(step["decode_requests"] for step in self.steps),
            "prompt_tokens": sum(int(row["prompt_tokens"]) for row in self.rows),
            "generated_tokens": sum(outcome["generated_tokens"] for outcome in self.outcomes.values()),
            "cached_tokens_total": sum(sum(outcome["cached"]) for outcome in self.outcomes.values()),
            "evicted_blocks": sum(step.get("evicted", 0) for step in self.steps),
            "max_running": max((step["running"] for step in self.steps), default=0),
            "max_waiting": max((step["waiting"] for step in self.steps), default=0),
            "min_free_blocks": min((step["free_blocks"] for step in self.steps), default=0),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", metavar="CASE", type=Path, help="folder with config.json and requests.csv")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the recording")
    given = parser.parse_args()
    about = json.loads((given.case / "config.json").read_text())
    with open(given.case / "requests.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    recording = Recording(about, rows)
    recording.run()
    recording.write(about, given.out)
    print(f"{given.out}: {len(recording.steps)} steps, {recording.end_status}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
