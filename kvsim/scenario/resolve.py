"""From a scenario to what the engine runs: every default decided, every file read, every policy built."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import kvsim.hardware
import kvsim.models
from kvsim import __version__
from kvsim.core import plugins
from kvsim.core.cluster import QUEUE_LIMITS, Cluster, HostMemory, Pool, RunOptions, not_with_swapping
from kvsim.core.content import carried_on
from kvsim.core.errors import InputError
from kvsim.core.hardware import Gpu, Link
from kvsim.core.layout import ONE_GPU, Layout
from kvsim.core.model import ModelSpec
from kvsim.core.seats import StepCost
from kvsim.core.trace import Trace
from kvsim.hardware import GPUS, HOST_LINKS, load_gpu
from kvsim.kv.memory import KVLedger, kv_ledger
from kvsim.models import MODELS, load_model
from kvsim.scenario import seats
from kvsim.scenario.keys import PoolKeys, TraceKeys
from kvsim.scenario.lock import check_lock, lock_text, scenario_hash, sha256_of
from kvsim.scenario.messages import nearest
from kvsim.scenario.presets import PRESETS, Preset
from kvsim.scenario.scenario import Scenario
from kvsim.scenario.source import Key
from kvsim.workload import read_trace
from kvsim.workload.readers import READERS
from kvsim.workload.reading import recognised
from kvsim.workload.transforms import limit, rate_scale

LAYOUT = tuple(field.name for field in dataclasses.fields(Layout))
"""Keys of a pool or the cluster that say how its GPUs share a model; tensor_parallel_size first."""

TRACE: Key = ("workload", "trace", "path")


@dataclass(frozen=True)
class ResolvedPool:
    """One pool: what the engine runs, the GPU and the memory ledger behind it, and its keys written out.

    ``files`` maps a key (relative to the pool) to the file that it names.
    """

    pool: Pool
    gpu: Gpu
    layout: Layout
    ledger: KVLedger
    keys: Mapping[str, Any]
    files: Mapping[Key, Path]


@dataclass(frozen=True)
class Resolved:
    """A scenario with nothing left to decide.

    ``notes`` say where the run differs from what the preset's engine does. ``keys`` are the scenario with every
    default written out, ``checksums`` the SHA-256 of the file behind a key. ``scenario_hash`` covers both, with the
    checksum of each file in place of its path, so that it is the same wherever the files lie.
    """

    scenario: Scenario
    trace: Trace
    model: ModelSpec
    pools: tuple[ResolvedPool, ...]
    cluster: Cluster
    options: RunOptions
    notes: tuple[str, ...]
    keys: Mapping[str, Any]
    checksums: Mapping[Key, str]
    scenario_hash: str

    @property
    def lock(self) -> str:
        """The text of scenario.lock.yaml: running it gives the same result."""
        return lock_text(self.scenario.label, self.keys, self.checksums)

    @property
    def gpus(self) -> int:
        """GPUs provisioned in all pools."""
        return sum(p.pool.replicas * p.layout.gpus for p in self.pools)


Read = Callable[..., Trace]
"""``read_trace``, or what remembers what it read, called in the same way."""


def resolve(scenario: Scenario, *, allow_plugins: bool = True, read: Read = read_trace) -> Resolved:
    """Read the files that a scenario names, and build what it describes.

    With ``allow_plugins`` off, policies of others (``package.module:Class``) are refused. ``read`` reads the trace (a
    sweep shares one between its runs). Raises InputError for anything that is missing, unknown or does not fit
    together, and for a lock whose files have changed.
    """
    preset = _preset(scenario)
    model, model_name, model_file = _model(scenario)
    max_model_len = _max_model_len(scenario, model)
    pools = tuple(_pools(scenario, preset, model, max_model_len, allow_plugins))
    keys, files = _written_out(scenario, model_name, model_file, max_model_len, pools)
    trace = _trace(scenario, keys, files, allow_plugins, read)
    checksums = {key: (key == TRACE and trace.sha256) or sha256_of(path) for key, path in files.items()}
    check_lock(scenario, files, checksums)
    workload, link = scenario.workload, scenario.cluster.link
    return Resolved(
        scenario=scenario,
        trace=trace,
        model=model,
        pools=pools,
        cluster=Cluster(
            pools=tuple(p.pool for p in pools),
            max_model_len=max_model_len,
            link=None if link is None else Link(link.bytes_per_s, link.latency_s),
            reject_oversized=scenario.cluster.reject_oversized,
        ),
        options=RunOptions(
            mode=scenario.engine.mode,
            seed=scenario.seed,
            closed_sessions=workload.sessions == "closed",
            max_concurrency=workload.max_concurrency,
            client_timeout_ns=_ns(workload.client_timeout_s),
            give_up_at_deadline=workload.deadlines == "give_up",
            horizon_ns=_ns(scenario.measure.horizon_s),
            timeline_instants=scenario.measure.timeline_instants,
        ),
        notes=(
            *preset.notes,
            *_cache_notes(preset, pools, trace),
            *_async_notes(preset, pools),
            *_notes(scenario, model, pools, max_model_len),
            *_trace_notes(scenario, trace),
        ),
        keys=keys,
        checksums=checksums,
        scenario_hash=scenario_hash(keys, checksums),
    )


def _ns(time_s: float | None) -> int | None:
    return None if time_s is None else round(time_s * 1e9)


def _preset(scenario: Scenario) -> Preset:
    name = scenario.engine.preset
    if name not in PRESETS:
        near = nearest(name, PRESETS)
        meant = f"did you mean {near!r}? " if near else ""
        raise scenario.source.error(
            f"unknown preset {name!r}", ("engine", "preset"), f"{meant}known: {', '.join(PRESETS)}"
        )
    mode, modes = scenario.engine.performance_mode, PRESETS[name].performance_modes
    if mode not in modes:
        raise scenario.source.error(f"{name} has no mode {mode!r}", ("engine", "performance_mode"), " or ".join(modes))
    return PRESETS[name]


def _model(scenario: Scenario) -> tuple[ModelSpec, str, Path]:
    """The model, what a lock calls it, and its file."""
    folder = scenario.source.folder(("model",))
    with scenario.source.locate(("model",)):
        model = load_model(scenario.model, folder)
    if scenario.model in MODELS:
        return model, scenario.model, _entry(kvsim.models.__file__, scenario.model)
    path = (folder / Path(scenario.model).expanduser()).resolve()
    return model, str(path), path


def _entry(package_file: str, name: str) -> Path:
    """The data file of a catalogue entry."""
    return Path(package_file).with_name("data") / f"{name}.toml"


def _max_model_len(scenario: Scenario, model: ModelSpec) -> int:
    asked = scenario.cluster.max_model_len
    if asked is not None and asked > model.max_model_len:
        raise scenario.source.error(
            f"{asked} is not allowed: {model.name} ends at {model.max_model_len} tokens",
            ("cluster", "max_model_len"),
            f"at most {model.max_model_len}",
        )
    return asked or model.max_model_len


def _pools(
    scenario: Scenario, preset: Preset, model: ModelSpec, max_model_len: int, allow_plugins: bool
) -> Iterator[ResolvedPool]:
    """The pools in the order in which a request meets them: prefill, then decode."""
    if scenario.cluster.pools is None:
        keys = PoolKeys(role="mixed", replicas=scenario.cluster.replicas)
        pools: list[tuple[Key, PoolKeys]] = [((), keys)]
    else:
        pools = [(("cluster", "pools", idx), pool) for idx, pool in enumerate(scenario.cluster.pools)]
        pools.sort(key=lambda item: item[1].role == "decode")
    for at, pool in pools:
        yield _PoolResolver(scenario, preset, model, max_model_len, allow_plugins, at, pool).resolve()


@dataclass(frozen=True)
class _PoolResolver:
    """Builds one pool; ``at`` is where its own keys are (empty: it is the cluster itself)."""

    scenario: Scenario
    preset: Preset
    model: ModelSpec
    max_model_len: int
    allow_plugins: bool
    at: Key
    keys: PoolKeys

    def resolve(self) -> ResolvedPool:
        gpu, gpu_name, gpu_file = self._gpu()
        layout = self._layout()
        model = self._stored(*self._formats)
        router, _ = self._seat("router")
        scheduler = self._scheduler(gpu)
        kv, ledger = self._kv(model, gpu, layout, scheduler)
        cost, cost_key = self._seat("cost")
        self._refuse_untimed(cost)
        step_cost = self._start(cost, cost_key, model, gpu, layout)
        policies = {"router": router, "scheduler": scheduler, "kv": kv, "cost": cost}
        written: dict[str, Any] = {"role": self.keys.role, "replicas": self.keys.replicas}
        written |= {"gpu": gpu_name, **dataclasses.asdict(layout)}
        files: dict[Key, Path] = {("gpu",): gpu_file}
        for seat, policy in policies.items():
            written[seat] = {"name": self._name(seat), **seats.values_of(policy)}
            files |= {(seat, field): path for field, path in seats.files_of(policy)}
        written["kv"] |= self._memory() | {"kv_cache_dtype": self._own("kv")[0].kv_cache_dtype}
        return ResolvedPool(
            pool=Pool(
                role=self.keys.role,
                replicas=self.keys.replicas,
                scheduler=scheduler,
                kv=kv,
                kv_blocks=ledger.blocks,
                cost=step_cost,
                router=router,
                kv_bytes_per_token=model.kv_bytes_per_token(layout) * layout.tensor_parallel_size,
                host=self._host(scheduler, kv, ledger, model, gpu),
            ),
            gpu=gpu,
            layout=layout,
            ledger=ledger,
            keys=written,
            files=files,
        )

    def _start(self, cost: Any, key: Key, model: ModelSpec, gpu: Gpu, layout: Layout) -> StepCost:
        """The cost model's prices; what it has against the model is reported at the model, or the format asked for."""
        whole = {"layout": layout} if getattr(cost, "layouts", ()) else {}

        def start(model: ModelSpec) -> StepCost:
            step_cost: StepCost = cost.start(model, gpu, layout.tensor_parallel_size, **whole)
            return step_cost

        try:
            return start(model)
        except InputError as error:
            if error.key == "model" and error.file is None:
                raise self.scenario.source.error(error.problem, self._blamed(start), error.hint) from None
            with self.scenario.source.locate(key):
                raise

    def _blamed(self, start: Callable[[ModelSpec], StepCost]) -> Key:
        """The key of the format without which the cost model takes the model; else the model's."""
        method, dtype = self._formats
        quantization: Key = ("cluster", "quantization")
        kv_cache_dtype: Key = (*self._own("kv")[1], "kv_cache_dtype")
        for key, formats in (
            (quantization, (None, dtype)),
            (kv_cache_dtype, (method, "auto")),
            (quantization, (None, "auto")),  # it takes neither
        ):
            try:
                start(self._stored(*formats))
            except InputError:
                continue
            return key
        return ("model",)

    def _own(self, name: str) -> tuple[Any, Key]:
        """A value of the pool where it has one, else of the scenario; and where it is written."""
        own = getattr(self.keys, name)
        if own is not None:
            return own, (*self.at, name)
        if name in seats.TABLES:
            return getattr(self.scenario, name), (name,)
        return getattr(self.scenario.cluster, name), ("cluster", name)

    def _gpu(self) -> tuple[Gpu, str, Path]:
        name, key = self._own("gpu")
        folder = self.scenario.source.folder(key)
        with self.scenario.source.locate(key):
            gpu = load_gpu(name, folder)
        if name in GPUS:
            return gpu, name, _entry(kvsim.hardware.__file__, name)
        path = (folder / Path(name).expanduser()).resolve()
        return gpu, str(path), path

    def _layout(self) -> Layout:
        """The parallel layout, which the model can be shared by."""
        layout = Layout(**{name: self._own(name)[0] for name in LAYOUT})
        try:
            self.model.check(layout)
        except InputError as error:
            raise self.scenario.source.error(error.problem, self._own(str(error.key))[1], error.hint) from None
        return layout

    def _refuse_untimed(self, cost: Any) -> None:
        """Layouts whose bytes are counted, and whose time this cost model does not know."""
        timed = getattr(cost, "layouts", ())
        for name in LAYOUT[1:]:
            value, key = self._own(name)
            if value != getattr(ONE_GPU, name) and name not in timed:
                cost_name = self._name("cost")
                raise self.scenario.source.error(
                    f"{value!r} is not modelled yet: its memory is counted, but cost {cost_name} cannot time it",
                    key,
                    f"{' and '.join(('tensor_parallel_size', *timed))} alone can be timed",
                )

    @property
    def _formats(self) -> tuple[str | None, str]:
        """Those that are asked for, of weights and of KV."""
        return self.scenario.cluster.quantization, self._own("kv")[0].kv_cache_dtype

    def _stored(self, method: str | None, dtype: str) -> ModelSpec:
        """The model with weights and KV in these formats."""
        model = self.model
        try:
            model = model if method is None else model.with_quantization(method)
            return model.with_kv_cache_dtype(dtype)
        except InputError as error:
            kv_key = (*self._own("kv")[1], "kv_cache_dtype")
            key: Key = ("cluster", "quantization") if error.key == "quantization" else kv_key
            raise self.scenario.source.error(error.problem, key, error.hint) from None

    def _name(self, seat: str) -> str:
        keys, _ = self._own(seat)
        name: str = keys.name or self.preset.seats[seat]
        return name

    def _seat(self, seat: str, **defaults: Any) -> tuple[Any, Key]:
        keys, key = self._own(seat)
        policy = seats.build(
            seat,
            self._name(seat),
            keys.parameters,
            self.scenario.source,
            key,
            defaults=defaults,
            known=tuple(name for name in type(keys).model_fields if name != "name"),
            allow_plugins=self.allow_plugins,
        )
        return policy, key

    def _scheduler(self, gpu: Gpu) -> Any:
        """The scheduler, with the preset's batch limits for this GPU where none are given."""
        scheduler, key = self._seat("scheduler")
        keys, _ = self._own("scheduler")
        given = {
            name: value for name, value in keys.parameters.items() if name in ("max_num_seqs", "max_num_batched_tokens")
        }
        whole_prompts = not getattr(scheduler, "enable_chunked_prefill", self._name("scheduler") != "prefill_first")
        doubled = self.scenario.engine.performance_mode == "throughput"
        seqs, tokens = self.preset.batch(gpu, self.max_model_len, whole_prompts=whole_prompts, doubled=doubled, **given)
        limits = {"max_num_seqs": seqs, "max_num_batched_tokens": tokens}
        fields = seats.parameters_of(type(scheduler))
        scheduler = dataclasses.replace(scheduler, **{name: n for name, n in limits.items() if name in fields})
        source = self.scenario.source
        for name in QUEUE_LIMITS:
            if self.keys.role != "mixed" and getattr(scheduler, name, None) is not None:
                raise source.error(
                    f"queue limits are modelled in mixed pools only, this is a {self.keys.role} pool",
                    (*key, name),
                    "leave it out",
                )
        workload = self.scenario.workload
        gives_up = workload.client_timeout_s is not None or workload.deadlines == "give_up"
        if getattr(scheduler, "async_scheduling", False) is None:
            scheduler = dataclasses.replace(scheduler, async_scheduling=self.keys.role == "mixed" and not gives_up)
        elif getattr(scheduler, "async_scheduling", False):
            if self.keys.role != "mixed":
                raise source.error(
                    f"asynchronous scheduling is modelled in mixed pools only, this is a {self.keys.role} pool",
                    (*key, "async_scheduling"),
                    "leave it out or set it to false",
                )
            if gives_up:
                raise source.error(
                    "clients that give up are not modelled with asynchronous scheduling yet",
                    (*key, "async_scheduling"),
                    "set it to false, or leave out workload.client_timeout_s and deadlines: give_up",
                )
        seqs = scheduler.max_num_seqs
        budgets = {"max_num_batched_tokens": scheduler.max_num_batched_tokens}
        scheduled = getattr(scheduler, "max_num_scheduled_tokens", None)
        if scheduled is not None:
            budgets["max_num_scheduled_tokens"] = scheduled
        budget, tokens = min(budgets.items(), key=lambda item: item[1])
        if whole_prompts and tokens < self.max_model_len:
            raise source.error(
                f"{tokens} is not allowed: prompts are not split, so one of up to max_model_len = "
                f"{self.max_model_len} tokens has to fit in a step",
                (*key, budget),
                f"at least {self.max_model_len}, or a smaller cluster.max_model_len",
            )
        # Nobody is admitted beyond a smaller budget, since those who run have had a token of it each; unless prompts
        # are held back.
        if budget == "max_num_scheduled_tokens" and getattr(scheduler, "prefill_schedule_interval", 1) == 1:
            budget, tokens = "max_num_batched_tokens", scheduler.max_num_batched_tokens
        if seqs > tokens:
            takes = "every running request takes a token of a step"
            if "max_num_seqs" in given:
                raise source.error(
                    f"{seqs} is not allowed: {takes}, and {budget} is {tokens}",
                    (*key, "max_num_seqs"),
                    f"at most {tokens}",
                )
            raise source.error(
                f"{tokens} is not allowed: {takes}, and max_num_seqs is {seqs} by default",
                (*key, budget),
                f"at least {seqs}, or a smaller max_num_seqs",
            )
        active = getattr(scheduler, "max_num_active_seqs", None)
        if active is not None and active > seqs:
            raise source.error(
                f"{active} is not allowed: max_num_seqs is {seqs}", (*key, "max_num_active_seqs"), f"at most {seqs}"
            )
        return scheduler

    def _host(self, scheduler: Any, kv: Any, ledger: KVLedger, model: ModelSpec, gpu: Gpu) -> HostMemory | None:
        """Where preempted requests are swapped to, if they are."""
        if getattr(scheduler, "preemption_mode", "recompute") != "swap":
            return None
        source, (_, key) = self.scenario.source, self._own("scheduler")
        what = not_with_swapping(self.keys.role, scheduler, kv)
        if what:
            raise source.error(f"swapping is not modelled with {what}", (*key, "preemption_mode"), "use recompute")
        link, bytes_per_s = scheduler.swap_link, scheduler.swap_bytes_per_s
        if link is not None and bytes_per_s is not None:
            raise source.error("swap_link is given as well", (*key, "swap_bytes_per_s"), "leave out one of them")
        if bytes_per_s is None:
            bytes_per_s = gpu.host_link_bytes_per_s if link is None else HOST_LINKS[link]
        if not bytes_per_s:
            raise source.error(
                f"the path from {gpu.name} to its host is not known", (*key, "preemption_mode"), "give swap_link"
            )
        calls = 2 * model.layers  # keys and values of each layer
        return HostMemory(
            blocks=int(scheduler.swap_space_gib * 2**30) // ledger.block_bytes,
            block_copy_s=max(ledger.block_bytes / bytes_per_s, calls * scheduler.swap_call_s),
        )

    def _memory(self) -> dict[str, Any]:
        keys, _ = self._own("kv")
        share = keys.gpu_memory_utilization
        return {
            "gpu_memory_utilization": self.preset.gpu_memory_utilization if share is None else share,
            "num_gpu_blocks_override": keys.num_gpu_blocks_override,
            "kv_cache_memory_bytes": keys.kv_cache_memory_bytes,
        }

    def _kv(self, model: ModelSpec, gpu: Gpu, layout: Layout, scheduler: Any) -> tuple[Any, KVLedger]:
        kv, key = self._seat("kv", block_size=self.preset.block_size)
        if getattr(kv, "enable_prefix_caching", False) is None:
            swaps = getattr(scheduler, "preemption_mode", "recompute") == "swap"
            is_on = "prefix caching" in self.preset.on_by_default and self.keys.role == "mixed" and not swaps
            kv = dataclasses.replace(kv, enable_prefix_caching=is_on)
        if self.keys.role != "mixed" and getattr(kv, "enable_prefix_caching", False):
            raise self.scenario.source.error(
                f"prefix caching is modelled in mixed pools only, this is a {self.keys.role} pool",
                (*key, "enable_prefix_caching"),
                "leave it out or set it to false",
            )
        memory = self._memory()
        try:
            ledger = kv_ledger(
                model,
                gpu,
                layout,
                max_num_batched_tokens=scheduler.max_num_batched_tokens,
                max_num_seqs=scheduler.max_num_seqs,
                block_size=kv.block_size,
                engine=self.preset.memory,
                **memory,
            )
        except InputError as error:  # it does not fit: because of what kv asks for, or of the model itself
            place: Key = (*key, error.key) if error.key in memory else ("model",)
            raise self.scenario.source.error(error.problem, place, error.hint) from None
        return kv, ledger


def _written_out(
    scenario: Scenario, model: str, model_file: Path, max_model_len: int, pools: tuple[ResolvedPool, ...]
) -> tuple[dict[str, Any], dict[Key, Path]]:
    """The scenario with every default in place, without expect, output and lock; and the file behind each key."""
    keys = scenario.model_dump(exclude={"expect", "output", "lock"})
    keys["model"] = model
    files: dict[Key, Path] = {("model",): model_file}
    cluster = keys["cluster"] | {"max_model_len": max_model_len}
    for name in ("router", "scheduler", "kv", "cost"):
        del keys[name]
    if scenario.cluster.pools is None:
        (pool,) = pools
        own = {name: value for name, value in pool.keys.items() if name not in seats.TABLES and name != "role"}
        keys |= {"cluster": cluster | own} | {name: pool.keys[name] for name in seats.TABLES}
        files |= {(key if key[0] in seats.TABLES else ("cluster", *key)): path for key, path in pool.files.items()}
    else:
        for name in ("gpu", "replicas", *LAYOUT):
            del cluster[name]
        keys["cluster"] = cluster | {"pools": [dict(pool.keys) for pool in pools]}
        for idx, pool in enumerate(pools):
            files |= {("cluster", "pools", idx, *key): path for key, path in pool.files.items()}
    return keys, files


def _trace(scenario: Scenario, keys: dict[str, Any], files: dict[Key, Path], allow_plugins: bool, read: Read) -> Trace:
    """The requests; writes what was found about them into ``keys`` and ``files``."""
    workload, source = scenario.workload, scenario.source
    if workload.trace is not None:
        trace = _read(scenario, workload.trace, keys["workload"]["trace"], files, allow_plugins, read)
    else:
        trace = _generate(scenario, keys["workload"], files, allow_plugins)
    trace = _transformed(scenario, trace, keys["workload"], files, allow_plugins)
    if workload.outputs_end_by is not None:
        ends = np.full(len(trace), workload.outputs_end_by == "eos", np.int64)
        trace = dataclasses.replace(trace, ends_by_eos=ends)
    if not workload.history_in_prompts:
        trace = dataclasses.replace(trace, history=np.full(len(trace), -1, np.int64))
    if workload.sessions == "closed" and trace.session is None and trace.wait_for is None:
        raise source.error(
            "closed sessions need a trace that has sessions",
            ("workload", "sessions"),
            "columns session_id and think_s, or wait_for; or sessions: open",
        )
    if workload.deadlines == "give_up" and trace.deadline_ns is None:
        raise source.error(
            "nobody can give up at a deadline: the trace has none",
            ("workload", "deadlines"),
            "a column deadline_s, or client_timeout_s for all requests",
        )
    return trace


def _read(
    scenario: Scenario, wanted: TraceKeys, keys: dict[str, Any], files: dict[Key, Path], allow_plugins: bool, read: Read
) -> Trace:
    from kvsim.workload.readers.files import located  # pyarrow is imported when a trace is read, not before

    source = scenario.source
    path: str | Path = wanted.path
    if "://" not in wanted.path:
        path = (source.folder(TRACE) / Path(wanted.path).expanduser()).resolve()
        if not path.exists():
            from_file = source.file is not None and not source.overridden(TRACE)
            start = "the scenario file" if from_file else "the working directory"
            raise source.error(f"{path} does not exist", TRACE, f"a relative path starts at {start}")
    at = ("workload", "trace", "format")
    with source.locate(TRACE), located(path) as local:
        with source.locate(at):
            name = recognised(local) if wanted.format.name in (None, "auto") else str(wanted.format.name)
            reader = plugins.load("trace format", name, READERS, allow_plugins=allow_plugins)
            values = seats.arguments(seats.parameters_of(reader), wanted.format.parameters, source, at)
            parameters = seats.values_of(seats.call(reader, values, name, source, at))
        with source.locate(("workload", "trace")):
            trace = read(local, name, allow_plugins, parameters=values, on_bad_row=wanted.on_bad_row)
    trace = dataclasses.replace(trace, path=str(path))
    files[TRACE] = Path(path)  # an address is only named in messages: its checksum is the trace's
    keys |= {"path": str(path), "format": {"name": name, **parameters} if parameters else name}
    if wanted.limit is not None:
        trace = limit(trace, wanted.limit)
    if wanted.rate_scale != 1.0:
        with source.locate(("workload", "trace")):
            trace = rate_scale(trace, wanted.rate_scale)
    return trace


def _generate(scenario: Scenario, keys: dict[str, Any], files: dict[Key, Path], allow_plugins: bool) -> Trace:
    """A trace from the scenario's seed and the arguments of a generator."""
    from kvsim.workload.generate.arrivals import ClosedLoop

    section, key = scenario.workload.generate, ("workload", "generate")
    assert section is not None  # the keys were checked: a workload is read or generated
    table = seats.generators()
    name = section.name or seats.UNNAMED["generator"]
    if name not in table:
        near = nearest(name, table)
        meant = f"did you mean {near!r}? " if near else ""
        hint = f"{meant}known: {', '.join(sorted(table))}"
        raise scenario.source.error(f"unknown generator {name!r}", (*key, "name"), hint)
    parameters = seats.parameters_of(table[name])
    given = seats.arguments(parameters, section.parameters, scenario.source, key, allow_plugins=allow_plugins)
    defaults = {p.name: p.default for p in parameters.values() if not p.required}
    values = {**defaults, "seed": scenario.seed, **given}
    if isinstance(values.get("arrivals"), ClosedLoop) and scenario.workload.sessions != "closed":
        problem, hint = "a closed loop has no arrival times of its own", "write workload.sessions: closed"
        raise scenario.source.error(problem, (*key, "arrivals"), hint)
    trace: Trace = seats.call(table[name], values, name, scenario.source, key)
    keys["generate"] = {"name": name, **{p: seats.plain(values[p], parameters[p].hint) for p in parameters}}
    for p in parameters:
        files |= dict(seats.files_in(values[p], (*key, p)))
    return trace


def _cache_notes(preset: Preset, pools: tuple[ResolvedPool, ...], trace: Trace) -> Iterator[str]:
    """What is found in the prefix cache, where that needs saying."""
    if not all(getattr(resolved.pool.kv, "enable_prefix_caching", False) for resolved in pools):
        if "prefix caching" in preset.on_by_default:
            yield "prefix caching: off (vLLM's default is on)"
    elif trace.prefix_hashes is None and trace.segments is None:
        carry_on = int((carried_on(trace) >= 0).sum())
        if not carry_on:
            yield "prefix caching: the trace does not say what prompts share, so only preempted requests find blocks"
            return
        in_session = trace.session[trace.session >= 0] if trace.session is not None else np.empty(0)
        later = len(in_session) - len(np.unique(in_session))
        if carry_on < later:
            yield (
                f"prefix caching: {later - carry_on} of {later} later turns are too short for the turn before, prompt "
                "and answer: their history was cut, and they are taken to share nothing with it"
            )


def _async_notes(preset: Preset, pools: tuple[ResolvedPool, ...]) -> Iterator[str]:
    if "async scheduling" not in preset.on_by_default:
        return
    if not all(getattr(resolved.pool.scheduler, "async_scheduling", False) for resolved in pools):
        yield "async scheduling: off (vLLM's default is on)"


def _transformed(
    scenario: Scenario, trace: Trace, keys: dict[str, Any], files: dict[Key, Path], allow_plugins: bool
) -> Trace:
    """The trace after ``workload.transforms``, in their order. Each with a seed has one of its own by default."""
    table, source = seats.transforms(), scenario.source
    for idx, section in enumerate(scenario.workload.transforms):
        key: Key = ("workload", "transforms", idx)
        name = section.name
        if name is None or name not in table:
            near = nearest(name or "", table)
            meant = f"did you mean {near!r}? " if near else ""
            problem = f"unknown transform {name!r}" if name else "name is missing"
            raise source.error(problem, (*key, "name"), f"{meant}known: {', '.join(sorted(table))}")
        parameters = seats.without(seats.parameters_of(table[name]), "trace")
        given = seats.arguments(parameters, section.parameters, source, key, allow_plugins=allow_plugins)
        values = {p.name: p.default for p in parameters.values() if not p.required}
        if "seed" in parameters:
            values["seed"] = scenario.seed + idx
        values |= given
        trace = seats.call(table[name], {"trace": trace, **values}, name, source, key)
        keys["transforms"][idx] = {"name": name, **{p: seats.plain(values[p], parameters[p].hint) for p in values}}
        for p, value in values.items():
            files |= dict(seats.files_in(value, (*key, p)))
    return trace


def _notes(scenario: Scenario, model: ModelSpec, pools: tuple[ResolvedPool, ...], max_model_len: int) -> Iterator[str]:
    if model.kinds & {"sliding"}:
        yield f"sliding windows of {model.name}: KV behind them is kept (vLLM frees it, and holds more requests)"
    for resolved in pools:
        name = "" if resolved.pool.role == "mixed" else f"{resolved.pool.role} pool: "
        generic = getattr(resolved.pool.cost, "generic_operators", ())
        if generic:
            yield f"{name}no measurements of {resolved.gpu.name} for {', '.join(generic)}: generic efficiencies"
        for note in getattr(resolved.pool.cost, "notes", ()):
            yield f"{name}{note}"
        tokens = resolved.pool.kv_blocks * resolved.pool.kv.block_size
        if tokens < max_model_len:
            yield (
                f"{name}KV holds {tokens} tokens, less than max_model_len {max_model_len}: vLLM would not start; here "
                "requests that can never fit are "
                + ("rejected" if scenario.cluster.reject_oversized else "left waiting")
            )
    if scenario.lock is not None and scenario.lock.kvsim != __version__:
        yield f"the lock was written by kvsim {scenario.lock.kvsim}, this is {__version__}: results may differ"


def _trace_notes(scenario: Scenario, trace: Trace) -> Iterator[str]:
    """What the trace says and the engine does not play yet."""
    if scenario.engine.frontend_s and scenario.workload.max_concurrency is not None:
        early = f"{scenario.engine.frontend_s * 1e3:g} ms before"
        yield f"frontend_s: with max_concurrency a request is sent {early} the one whose place it takes has ended"
    if trace.images is not None and trace.images.any():
        pictured = int((trace.images > 0).sum())
        yield f"{pictured} requests have images: their tokens are part of the prompt, encoding them takes no time here"
