"""A ``vllm serve`` line read into scenario keys, and the line of a scenario."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from kvsim.core import plugins
from kvsim.core.errors import InputError
from kvsim.models import MODELS
from kvsim.scenario import seats
from kvsim.scenario.keys import ClusterKeys, EngineKeys, KVKeys
from kvsim.scenario.messages import nearest
from kvsim.scenario.presets import PRESETS
from kvsim.scenario.resolve import Resolved, ResolvedPool
from kvsim.scenario.scenario import Scenario
from kvsim.scenario.source import Key, Override

_KNOWN = tomllib.loads((Path(__file__).parent / "data" / "vllm_arguments.toml").read_text())
NO_EFFECT = frozenset(_KNOWN["no_effect"].split())
EFFECT = frozenset(_KNOWN["effect"].split())
SWITCHES = frozenset(_KNOWN["switches"].split())
BARE = frozenset(_KNOWN["flags"].split()) | SWITCHES
EITHER = frozenset(_KNOWN["either"].split())
READABLE = frozenset(_KNOWN["readable"].split())
SHORT: dict[str, str] = _KNOWN["short"]

OPTION = "--engine-args"
PRESET = "vllm@0.33"

RENAMED: dict[str, Key] = {"model": ("model",), "data_parallel_size": ("cluster", "replicas")}
"""Arguments whose key has another name. All others are found in the section that has a key of their name."""

SAME_NAME = {"scheduling_policy": "policy"}
"""Arguments whose key may be called so."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stream_interval": (1,),
    "scheduling_policy": ("fcfs",),
    "dtype": ("auto",),
    "performance_mode": ("balanced",),
    "cpu_offload_gb": (0,),
    "mm_processor_cache_gb": (0,),
}
"""Values with which an argument needs no model. (A switch that is turned off needs none either.)"""

DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class EngineArguments:
    """What a ``vllm serve`` line asks for.

    ``overrides``: keys of the scenario, in the order of the line. ``notes``: one sentence for each argument that is not
    modelled, and one for those that change nothing here.
    """

    overrides: tuple[Override, ...]
    notes: tuple[str, ...]


def read_engine_args(text: str) -> EngineArguments:
    """The arguments of ``vllm serve`` (with or without these two words, and the model) as overrides of a scenario.

    Raises InputError for an argument that vLLM does not have (with the nearest), for a value of the wrong kind, and
    for one that is missing.

    >>> read = read_engine_args("vllm serve meta-llama/Llama-3.1-8B-Instruct -tp 2 --max-num-seqs 64 --port 80")
    >>> [(".".join(map(str, o.key)), o.value) for o in read.overrides]
    [('model', 'llama-3.1-8b'), ('cluster.tensor_parallel_size', 2), ('scheduler.max_num_seqs', 64)]
    >>> read.notes
    ('no effect here: --port',)
    """
    overrides: list[Override] = []
    not_modelled: list[str] = []
    no_effect: list[str] = []
    arguments = list(_arguments(text))
    shares_experts = any(name == "enable_expert_parallel" and value for _, name, value in arguments)
    for written, name, value in arguments:
        if name in NO_EFFECT:
            no_effect.append(written)
            continue
        if name == "model":
            entry = _catalogue_entry(str(value))
            if entry is None:
                not_modelled.append(f"{value} is not in the catalogue of models: the scenario's own is used")
                continue
            value = entry
        key = ("cluster", name) if name == "data_parallel_size" and shares_experts else _key_of(name)
        if key is not None and _accepted(key, value):
            overrides.append(Override(key, value, f"{OPTION} "))
        elif value is True or (value is not False and value not in NEUTRAL.get(name, ())):  # True == 1
            reason = "is not modelled" if key else PRESETS[PRESET].ignored.get(name, "is not modelled")
            not_modelled.append(f"{written} {reason}")
    if no_effect:
        not_modelled.append(f"no effect here: {', '.join(no_effect)}")
    return EngineArguments(tuple(overrides), tuple(not_modelled))


def check_version(scenario: Scenario) -> None:
    """Raises InputError for a scenario of an engine whose arguments are others than those known here."""
    preset = scenario.engine.preset
    if preset in PRESETS and preset != PRESET:
        problem = (
            f"the lines that are read and written are those of {PRESET}, whose arguments are not those of {preset}"
        )
        raise scenario.source.error(problem, ("engine", "preset"), f"set the keys of {preset} themselves")


def shadowed(scenario: Scenario, read: EngineArguments) -> Iterator[str]:
    """Notes on keys that do not reach a pool, because the pool has that section of its own."""
    for pool in scenario.cluster.pools or ():
        own = {str(o.key[0]) for o in read.overrides if getattr(pool, str(o.key[0]), None) is not None}
        own |= {str(o.key[1]) for o in read.overrides if o.key[0] == "cluster" and getattr(pool, str(o.key[1]), None)}
        for section in sorted(own):
            yield f"the {pool.role} pool has {section} of its own, which stays"


def _arguments(text: str) -> Iterator[tuple[str, str, Any]]:
    """Each argument as written, its name, and its value."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"cannot be taken apart: {error}", key=OPTION) from None
    words = [word for word in words if word.strip()]  # a line that is continued leaves a word of white space
    model, words = _model_first(words)
    if model is not None:
        yield "model", "model", model
    at = 0
    while at < len(words):
        option = words[at]
        if not option.startswith("-"):
            raise InputError(f"{option!r} follows no argument", key=OPTION, hint="the model comes first")
        option = re.sub(r"-O=?(?=.)", "--optimization-level=", option) if option.startswith("-O") else option
        written, equals, value = option.partition("=")
        values = [value] if value else []
        at += 1
        while not equals and at < len(words) and not re.match(r"-+[A-Za-z]", words[at]):
            values.append(words[at])
            at += 1
        name, on = _name(written)
        yield written, name, _value(written, name, values, on)


def _model_first(words: list[str]) -> tuple[str | None, list[str]]:
    """The model, if it comes first, and what follows; the command and the variables before it are left out."""
    while words and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", words[0]):
        words = words[1:]
    if words[:2] == ["vllm", "serve"]:
        words = words[2:]
    elif "-m" in words and "vllm.entrypoints.openai.api_server" in words:
        words = words[words.index("vllm.entrypoints.openai.api_server") + 1 :]
    if words and not words[0].startswith("-"):
        return words[0], words[1:]
    return None, words


def _name(written: str) -> tuple[str, bool]:
    """vLLM's name of an argument, and False if it is written to turn a switch off. Raises InputError for others."""
    name = written.lstrip("-").split(".")[0].replace("-", "_")
    name = SHORT.get(name, name)
    known = EFFECT | NO_EFFECT
    if name in known:
        return name, True
    for prefix, turned_on in (("no_", ""), ("disable_", "enable_"), ("enable_", "disable_")):
        switch = turned_on + name.removeprefix(prefix)
        if name.startswith(prefix) and switch in SWITCHES:
            return switch, False
    gone = PRESETS[PRESET].ignored.get(name)
    if gone:
        raise InputError(f"vLLM's {written} {gone}", key=OPTION, hint="remove it")
    near = nearest(name, known)
    meant = f"did you mean --{near.replace('_', '-')}?" if near else "see vllm serve --help=listgroup"
    raise InputError(f"vLLM has no argument {written}", key=OPTION, hint=meant)


def _value(written: str, name: str, values: Sequence[str], on: bool) -> Any:
    """A switch is on (or off); a number may be written 4k where vLLM takes that; several words stay text.

    Raises InputError for a value too few or too many, and for what is no number where 4k is one.
    """
    text = " ".join(values)
    if name in BARE and values:
        raise InputError(f"{written} takes no value, found {text!r}", key=OPTION, hint="the model comes first")
    if not values:
        if name not in BARE | EITHER:
            raise InputError(f"{written} needs a value", key=OPTION)
        return on
    if name == "max_model_len" and text.lower() in ("-1", "auto"):
        return None
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if name in READABLE:
        short = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt])|(\d+)([KMGT])", text)
        if not short:
            hint = "4096, 4k (thousands) or 4K (times 1024)"
            raise InputError(f"{written}: {text!r} is not a whole number", key=OPTION, hint=hint)
        return int(float(short[1]) * DECIMAL[short[2]]) if short[1] else int(short[3]) * BINARY[short[4]]
    try:
        return float(text)
    except ValueError:
        return text


SECTIONS: dict[str, type[BaseModel]] = {"cluster": ClusterKeys, "kv": KVKeys, "engine": EngineKeys}
"""Sections with keys of their own; ``scheduler`` and ``kv`` also have the parameters of their policy."""


def _key_of(name: str) -> Key | None:
    if name in RENAMED:
        return RENAMED[name]
    for field in (name, SAME_NAME.get(name, name)):
        for section in ("scheduler", "kv", "cluster", "engine"):
            model = SECTIONS.get(section)
            if (model is not None and field in model.model_fields) or field in _parameters(section):
                return section, field
    return None


def _parameters(section: str) -> dict[str, seats.Parameter]:
    """The parameters of the policy that the preset has in a section."""
    if section not in seats.TABLES:
        return {}
    policy = plugins.load(section, PRESETS[PRESET].seats[section], seats.table(section))
    return seats.parameters_of(policy)


def _accepted(key: Key, value: Any) -> bool:
    """False if the section knows the key, and refuses this value because it is not modelled."""
    model = SECTIONS.get(str(key[0]))
    if model is None or len(key) < 2 or key[1] not in model.model_fields:
        return True
    try:
        model.model_validate({str(key[1]): value})
    except ValidationError as error:
        return not any("not modelled" in detail["msg"] for detail in error.errors(include_url=False))
    return True


def _catalogue_entry(name: str) -> str | None:
    """The entry of a Hugging Face repository's model, or the ``config.json`` of a folder.

    >>> _catalogue_entry("meta-llama/Meta-Llama-3.1-8B-Instruct"), _catalogue_entry("acme/unheard-of")
    ('llama-3.1-8b', None)
    """
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return str(folder / "config.json")
    words = name.rstrip("/").rpartition("/")[2].lower().split("-")
    known = [word for word in words if word not in ("meta", "instruct", "chat", "hf", "it", "base")]
    without_version = [word for word in known if not re.fullmatch(r"v\d+(\.\d+)?", word)]
    tried = ("-".join(words), "-".join(known), "-".join(without_version))
    return next((entry for entry in tried if entry in MODELS), None)


def serve_lines(resolved: Resolved) -> tuple[list[str], list[str]]:
    """The ``vllm serve`` line of each pool of a scenario, and notes on what such a line cannot say.

    Limits that a scenario leaves to the preset are written out, so that the line does not depend on the GPU that it
    is given. Raises InputError for another version of vLLM, and for a scheduler or KV manager that is not vLLM's.
    """
    check_version(resolved.scenario)
    lines = []
    notes = []
    for pool in resolved.pools:
        line, unsaid = _serve_line(resolved, pool)
        lines.append(line)
        role = "" if pool.pool.role == "mixed" else f"{pool.pool.role} pool: "
        if pool.pool.replicas > 1:
            notes.append(f"{role}vLLM balances data-parallel ranks by a score of its own, kvsim by {_router(pool)}")
        notes += [f"{role}vLLM has no argument for {what}" for what in unsaid]
        notes.append(f"{role}to be run on {pool.gpu.name}")
    return lines, notes


def _router(pool: ResolvedPool) -> str:
    return str(pool.keys["router"]["name"])


SAID_LAST = ("enable_prefix_caching", "async_scheduling")
"""Switches whose default depends on what else is there: said either way."""


def _serve_line(resolved: Resolved, pool: ResolvedPool) -> tuple[str, list[str]]:
    """The line, and the settings (``section.key = value``) that it has no words for."""
    preset = PRESETS[PRESET]
    for seat in ("scheduler", "kv"):
        if pool.keys[seat]["name"] != preset.seats[seat]:
            name = pool.keys[seat]["name"]
            raise resolved.scenario.source.error(f"{name} is not what vLLM does", (seat,), "there is no such line")
    words = ["vllm", "serve", shlex.quote(_repository(resolved))]
    unsaid = []

    def say(name: str, value: Any) -> None:
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else f"--no-{name.replace('_', '-')}")
        elif value is not None:
            words.extend((option, shlex.quote(str(value))))

    if pool.layout.tensor_parallel_size > 1:  # others cannot be resolved yet
        say("tensor_parallel_size", pool.layout.tensor_parallel_size)
    if pool.pool.replicas > 1:
        say("data_parallel_size", pool.pool.replicas)
    say("max_model_len", resolved.cluster.max_model_len)
    say("quantization", resolved.scenario.cluster.quantization)
    if pool.keys["kv"]["kv_cache_dtype"] != "auto":
        say("kv_cache_dtype", pool.keys["kv"]["kv_cache_dtype"])
    renamed = {key: name for name, key in SAME_NAME.items()}
    for section, always in (("scheduler", ("max_num_seqs", "max_num_batched_tokens")), ("kv", ())):
        for field, parameter in _parameters(section).items():
            value = pool.keys[section][field]
            default = preset.block_size if field == "block_size" else parameter.default
            name = renamed.get(field, field)
            if name in SAID_LAST or (field not in always and value == default):
                continue
            if name in EFFECT:
                say(name, value)
            else:
                unsaid.append(f"{section}.{field} = {value}")
    for field in ("gpu_memory_utilization", "num_gpu_blocks_override", "kv_cache_memory_bytes"):
        say(field, pool.keys["kv"][field])
    for name in SAID_LAST:
        key = _key_of(name)
        say(name, key is not None and bool(pool.keys.get(str(key[0]), {}).get(str(key[1]))))
    if pool.pool.role != "mixed":
        role = "kv_producer" if pool.pool.role == "prefill" else "kv_consumer"
        words.extend(("--kv-transfer-config", shlex.quote(f'{{"kv_connector":"NixlConnector","kv_role":"{role}"}}')))
    return " ".join(words), unsaid


def _repository(resolved: Resolved) -> str:
    """Where the model's architecture was read, as ``organisation/name``; else what the scenario calls it."""
    for text in resolved.model.source.values():
        found = re.search(r"(?:huggingface\.co/|config\.json of )([\w.-]+/[\w.-]+)", text)
        if found:
            return found[1]
    return resolved.model.name
