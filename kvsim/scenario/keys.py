"""The keys of a scenario file, their types and their defaults.

A default of null means that the engine preset, the model or the GPU decides (see ``presets.py`` and ``resolve.py``).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from kvsim.scenario.units import parse_bytes


def _size(value: Any) -> Any:
    return parse_bytes(value) if isinstance(value, str) else value


def _rate(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return parse_bytes(value, per_second=True) if isinstance(value, str) else value


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Bytes = Annotated[int, BeforeValidator(_size, json_schema_input_type=int | str)]
BytesPerSecond = Annotated[int, BeforeValidator(_rate, json_schema_input_type=float | str)]


class Section(BaseModel):
    """A mapping whose keys are all known."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


class SeatKeys(Section):
    """A seat: the name of a policy, and that policy's own parameters (checked against its fields)."""

    model_config = ConfigDict(extra="allow")

    name: str | None = Field(default=None, description="A built-in, or package.module:Class. Null: the preset's.")

    @property
    def parameters(self) -> dict[str, Any]:
        """What was written beside the known keys."""
        return dict(self.model_extra or {})


class KVKeys(SeatKeys):
    """The KV manager, and how much memory it gets."""

    gpu_memory_utilization: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the GPU's total memory that the engine may use. Null: the preset's.",
    )
    num_gpu_blocks_override: int | None = Field(
        default=None,
        ge=1,
        description="KV blocks per replica, for instance as an engine logged them, instead of the ledger's.",
    )
    kv_cache_memory_bytes: Bytes | None = Field(
        default=None, ge=1, description="Bytes of KV cache per GPU instead of what the ledger leaves; takes 20GiB."
    )
    kv_cache_dtype: str = Field(
        default="auto",
        description="Format of a KV value: auto (16 bit), fp8, fp8_e4m3, fp8_e5m2, fp8_ds_mla, nvfp4 or nvfp4_ds_mla.",
    )


class TraceKeys(Section):
    """A request trace in a file."""

    path: str = Field(description="The trace: a file (packed or not), a tar archive or a folder of documents.")
    format: Annotated[SeatKeys, BeforeValidator(_named)] = Field(
        default=SeatKeys(name="auto"),
        description="A reader (kvsim list readers; package.module:Class), or auto: recognised from the content. A "
        "mapping gives the reader's parameters: {name: plain, columns: {arrival_ms: ts}}.",
    )
    on_bad_row: Literal["refuse", "quarantine"] = Field(
        default="refuse",
        description="A row that breaks the format's rules stops the run, or is set aside: counted, and written to "
        "rejected_rows.csv with its reason.",
    )
    limit: int | None = Field(default=None, ge=1, description="Only the first so many requests.")
    rate_scale: float = Field(
        default=1.0, gt=0, description="Arrivals so many times as dense; lengths stay as they are."
    )


class WorkloadKeys(Section):
    """Who asks, when, and for how much: a trace from a file, or a generated one."""

    trace: TraceKeys | None = Field(default=None, description="Replay this file.")
    generate: SeatKeys | None = Field(default=None, description="Make a trace: a generator's name and arguments.")
    transforms: list[SeatKeys] = Field(
        default_factory=list,
        description="Changes to the trace before it is played, in this order: each a name and its arguments.",
    )
    sessions: Literal["open", "closed"] = Field(
        default="open",
        description="open: every request at its recorded time. closed: think time after the end of what it waits for: "
        "the session's previous turn, or all the requests that the trace names.",
    )
    history_in_prompts: bool = Field(
        default=True,
        description="A turn's prompt begins with the prompt and the answer of the turn before, unless it is too short "
        "for both (a history that was cut). False: sessions say nothing of what prompts share; only block ids do.",
    )
    max_concurrency: int | None = Field(
        default=None,
        ge=1,
        description="Closed loop: at most so many requests in flight; the others wait at the client.",
    )
    client_timeout_s: float | None = Field(
        default=None, gt=0, description="The client gives up so many seconds after sending."
    )
    deadlines: Literal["report", "give_up"] = Field(
        default="report",
        description="Deadlines that the trace gives single requests. report: say who kept them. give_up: the client "
        "leaves then, too.",
    )
    outputs_end_by: Literal["max_tokens", "eos"] | None = Field(
        default=None,
        description="max_tokens: the client's limit, as in benchmarks that ignore EOS. eos: a stop token, which a step "
        "planned ahead cannot foresee (scheduler.async_scheduling). Null: as the trace says, else max_tokens.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> WorkloadKeys:
        if (self.trace is None) == (self.generate is None):
            raise ValueError("give either trace: {path: ...} or generate: {name: ...}")
        return self


class LinkKeys(Section):
    """The path of KV from the prefill pool to the decode pool."""

    bytes_per_s: BytesPerSecond = Field(
        ge=1, description="Bandwidth, shared by the transfers that run: 25GB/s or 25e9."
    )
    latency_s: float = Field(default=0.0, ge=0, description="Added once per transfer.")


class PoolKeys(Section):
    """Equal replicas of one role. What is null is taken from the scenario's own keys."""

    role: Literal["mixed", "prefill", "decode"] = Field(description="What the replicas of this pool do.")
    replicas: int = Field(default=1, ge=1, description="Number of replicas in this pool.")
    gpu: str | None = Field(default=None, description="Catalogue name or path of a GPU file.")
    tensor_parallel_size: int | None = Field(default=None, ge=1, description="Ranks that share heads and MLPs.")
    pipeline_parallel_size: int | None = Field(default=None, ge=1, description="Stages of consecutive layers.")
    data_parallel_size: int | None = Field(default=None, ge=1, description="Copies of attention that share experts.")
    enable_expert_parallel: bool | None = Field(default=None, description="Deal out whole experts.")
    decode_context_parallel_size: int | None = Field(default=None, ge=1, description="Ranks that share KV tokens.")
    prefill_context_parallel_size: int | None = Field(default=None, ge=1, description="Ranks that share a prompt.")
    router: SeatKeys | None = Field(default=None, description="Which replica of this pool gets a request.")
    scheduler: SeatKeys | None = Field(default=None, description="What runs in the next step.")
    kv: KVKeys | None = Field(default=None, description="Where KV lives, and how much memory it gets.")
    cost: SeatKeys | None = Field(default=None, description="How long a step takes.")


class ClusterKeys(Section):
    """The replicas that serve: equal ones, or a pool of each role."""

    gpu: str = Field(default="h100-sxm", description="Catalogue name (kvsim list gpus) or path of a GPU file.")
    replicas: int = Field(default=1, ge=1, description="Number of replicas.")
    tensor_parallel_size: int = Field(
        default=1, ge=1, description="Ranks that share attention heads and MLP columns; alone: GPUs per replica."
    )
    pipeline_parallel_size: int = Field(
        default=1, ge=1, description="Stages of consecutive layers. Checked; above 1 not timed yet."
    )
    data_parallel_size: int = Field(
        default=1,
        ge=1,
        description="Copies of attention, each with requests of its own, that share the experts of a mixture. "
        "Checked; above 1 not timed yet. (Copies of a whole model are replicas.)",
    )
    enable_expert_parallel: bool = Field(
        default=False, description="Deal out whole experts to the ranks instead of slices of each."
    )
    decode_context_parallel_size: int = Field(
        default=1, ge=1, description="Ranks that share the tokens of KV they would each hold. Checked; not timed yet."
    )
    prefill_context_parallel_size: int = Field(
        default=1, ge=1, description="Further ranks that share the tokens of a prompt. Checked; not timed yet."
    )
    quantization: str | None = Field(
        default=None, description="Quantise a 16 bit model when it is loaded: fp8. Null: as the checkpoint is."
    )
    max_model_len: int | None = Field(
        default=None, ge=2, description="Limit of prompt + output in tokens. Null: the model's own."
    )
    reject_oversized: bool = Field(
        default=True, description="Reject a request whose KV can never fit. False: it waits for ever, as in vLLM."
    )
    pools: list[PoolKeys] | None = Field(
        default=None,
        description="One pool of role prefill and one of role decode (then a link is needed), or one mixed.",
    )
    link: LinkKeys | None = Field(default=None, description="Joins the prefill and the decode pool.")

    @model_validator(mode="after")
    def _pools_and_link(self) -> ClusterKeys:
        roles = sorted(pool.role for pool in self.pools or [])
        if self.pools is not None:
            if roles not in (["mixed"], ["decode", "prefill"]):
                found = ", ".join(roles) or "none"
                raise ValueError(f"pools must be one prefill and one decode, or one mixed; found {found}")
            if "replicas" in self.model_fields_set:
                raise ValueError("replicas is stated per pool when there are pools")
        if len(roles) == 2 and self.link is None:
            raise ValueError("a prefill and a decode pool need link: {bytes_per_s: ...}")
        if len(roles) != 2 and self.link is not None:
            raise ValueError("link joins a prefill and a decode pool, and there are none")
        return self


class EngineKeys(Section):
    """Whose defaults and admission rules apply, and how the clock advances."""

    preset: str = Field(default="vllm@0.33", description="Versioned defaults of an engine.")
    mode: Literal["leap", "step"] = Field(
        default="leap", description="leap skips steps in which nothing changes; same results."
    )
    performance_mode: Literal["balanced", "interactivity", "throughput"] = Field(
        default="balanced",
        description="throughput: twice the preset's max_num_seqs and max_num_batched_tokens, as far as they are not "
        "given. (interactivity, finer CUDA graphs for small batches, is not modelled.)",
    )
    frontend_s: float = Field(
        default=0.0,
        ge=0,
        description="Time between client and scheduler, both ways together: HTTP, tokenising, streaming. It is part of "
        "TTFT and end-to-end latency; vLLM's own metrics leave it out.",
    )

    @field_validator("performance_mode")
    @classmethod
    def _without_graphs(cls, mode: str) -> str:
        if mode == "interactivity":
            raise ValueError("is not modelled: step times do not depend on the sizes of CUDA graphs")
        return mode


class SLOKeys(Section):
    """Bounds per request, inclusive, in milliseconds; null is unbounded; all must hold."""

    ttft_ms: float | None = Field(default=None, ge=0, description="Time to first token.")
    tpot_ms: float | None = Field(default=None, ge=0, description="Time per output token after the first.")
    e2el_ms: float | None = Field(default=None, ge=0, description="End to end.")
    itl_ms: float | None = Field(default=None, ge=0, description="Largest gap between two tokens of the request.")
    normalized_tpot_ms: float | None = Field(default=None, ge=0, description="End to end, divided by output tokens.")


class MeasureKeys(Section):
    """What part of the run counts."""

    warmup_s: float = Field(
        default=0.0, ge=0, description="Requests that arrive before this are simulated, not measured."
    )
    horizon_s: float | None = Field(default=None, gt=0, description="Stop here; what is not done is unfinished.")
    timeline_instants: int | None = Field(
        default=2000, ge=1, description="Samples in timeline.parquet. Null: every step."
    )


class OutputKeys(Section):
    """Where the result folder goes."""

    dir: str | None = Field(default=None, description="Result folder. Null: runs/ and the scenario's name, here.")


class ExpectKeys(Section):
    """What must hold: a figure of summary.json and a comparison ("< 800"), or the value that it must have."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": {"type": ["string", "number"]}})

    vs_baseline: dict[str, str] | None = Field(
        default=None, description='Figure -> how far it may move: "+3%" (at most 3 % up), "-3%", "3%" (either way).'
    )
    baseline: str | None = Field(default=None, description="The baseline file. Null: NAME.baseline.json, beside this.")
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Of a verdict where seeds differ.")
    seeds: int = Field(default=3, ge=2, description="Seeds to begin with.")
    max_seeds: int = Field(default=12, ge=2, description="Most seeds to run before there is no verdict.")

    @property
    def bounds(self) -> dict[str, Any]:
        """Figure -> comparison, as written."""
        return dict(self.model_extra or {})


class LockKeys(Section):
    """Written by a run, in ``scenario.lock.yaml`` only: what the files that it read were."""

    label: str = Field(description="Name of the run.")
    kvsim: str = Field(description="Version that wrote it.")
    files: dict[str, str] = Field(description="Key of the scenario -> SHA-256 of the file it names.")


class ScenarioKeys(Section):
    """One question to the simulator: a workload, a cluster, and what to measure."""

    workload: WorkloadKeys = Field(description="Who asks, when, and for how much.")
    model: str = Field(
        default="llama-3.1-8b",
        description="Catalogue name (kvsim list models), or path of a model file or Hugging Face config.json.",
    )
    cluster: ClusterKeys = Field(default_factory=ClusterKeys, description="The replicas that serve.")
    router: SeatKeys = Field(default_factory=SeatKeys, description="Which replica gets a request.")
    engine: EngineKeys = Field(default_factory=EngineKeys, description="A preset's name, or preset and mode.")
    scheduler: SeatKeys = Field(default_factory=SeatKeys, description="What runs in the next step.")
    kv: KVKeys = Field(default_factory=KVKeys, description="Where KV lives, and how much memory it gets.")
    cost: SeatKeys = Field(default_factory=SeatKeys, description="How long a step takes.")
    slo: SLOKeys = Field(default_factory=SLOKeys, description="Bounds that make a request good.")
    measure: MeasureKeys = Field(default_factory=MeasureKeys, description="What part of the run counts.")
    expect: ExpectKeys | None = Field(default=None, description="What must hold; kvsim check and pytest look at it.")
    seed: int = Field(default=0, ge=0, description="Everything random follows from it.")
    output: OutputKeys = Field(default_factory=OutputKeys, description="Where the result folder goes.")
    lock: LockKeys | None = Field(default=None, description="In scenario.lock.yaml: version and checksums of the run.")
