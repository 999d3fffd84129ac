"""Writes the inputs of the recordings in ``tests/recordings``: small, seeded, one setting of interest each.

python tools/record_vllm/cases.py FOLDER
for case in FOLDER/*; do python tools/record_vllm/record.py $case tests/recordings/$(basename $case); done
"""

from __future__ import annotations

import csv
import json
import random
import sys
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "max_num_seqs": 8,
    "max_num_active_seqs": None,
    "max_num_batched_tokens": 64,
    "max_num_scheduled_tokens": None,
    "long_prefill_token_threshold": 0,
    "long_prefill_token_threshold_adaptive": False,
    "enable_chunked_prefill": True,
    "policy": "fcfs",
    "scheduler_reserve_full_isl": True,
    "watermark": 0.0,
    "prefill_schedule_interval": 1,
    "async_scheduling": False,
    "max_model_len": 256,
    "block_size": 16,
    "num_gpu_blocks": 33,
    "enable_prefix_caching": False,
}
COST = {
    "base_ns": 4_000_000,
    "per_prefill_token_ns": 60_000,
    "per_decode_request_ns": 20_000,
    "per_context_token_ns": 20,
}
BOTH = {"enable_prefix_caching": True, "policy": "priority", "scheduler_reserve_full_isl": False}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pressure": ("32 blocks for 8 requests, prompts in chunks of 64 tokens: preemption by recomputation.", {}),
    "caching": ("As pressure, with prefix caching: eviction and preemption together.", {"enable_prefix_caching": True}),
    "priority": (
        "Priorities, thresholds, prefix caching and no reserve: victims are taken out of the step they are in.",
        BOTH | {"long_prefill_token_threshold": 24},
    ),
    "active_seqs": (
        "max_num_active_seqs below max_num_seqs, max_num_scheduled_tokens below max_num_batched_tokens.",
        {"max_num_active_seqs": 4, "max_num_scheduled_tokens": 48},
    ),
    "cadence": ("prefill_schedule_interval 4: steps without prompts in between.", {"prefill_schedule_interval": 4}),
    "async_length": ("Asynchronous scheduling; requests end at max_tokens.", {"async_scheduling": True}),
    "async_eos": (
        "Asynchronous scheduling and prefix caching; requests end by a token that the scheduler cannot foresee.",
        {"async_scheduling": True, "enable_prefix_caching": True},
    ),
    "async_priority": ("Asynchronous scheduling; priorities and prefix caching.", BOTH | {"async_scheduling": True}),
}


def requests(seed: int, *, eos: bool, n: int = 60) -> list[dict[str, Any]]:
    """Bursts of prompts that share prefixes with each other and repeat what others generate."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    arrival_ns = 0
    for request_id in range(n):
        arrival_ns += rng.choice([0, 0, rng.randint(1, 60_000_000)])
        earlier = rows[rng.randrange(len(rows))] if rows and rng.random() < 0.3 else None
        if earlier and earlier["prompt_tokens"] + earlier["max_tokens"] < 200:
            begin = f"{earlier['segments']};o{earlier['id']}[0:{earlier['max_tokens']}]"
            shared = earlier["prompt_tokens"] + earlier["max_tokens"]
        else:
            shared = rng.choice([16, 31, 32, 48, 80])
            begin = f"sys{rng.randrange(3)}[0:{shared}]"
        own = rng.randint(1, 40)
        rows.append(
            {
                "id": request_id,
                "arrival_ns": arrival_ns,
                "prompt_tokens": shared + own,
                "max_tokens": min(rng.randint(1, 48), 255 - shared - own),
                "priority": rng.choice([0, 0, 1, 2]),
                "session": "",
                "turn": "",
                "ends": rng.choice(["", "eos"]) if eos else "",
                "segments": f"{begin};u{request_id}[0:{own}]",
            }
        )
    return rows


def main(folder: Path) -> None:
    for seed, (case, (about, settings)) in enumerate(CASES.items(), start=1):
        path = folder / case
        path.mkdir(parents=True, exist_ok=True)
        config = {"case": case, "about": about, "seed": seed, "config": CONFIG | settings, "cost": COST}
        (path / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        rows = requests(seed, eos=case in ("async_eos", "async_priority"))
        with open(path / "requests.csv", "w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
