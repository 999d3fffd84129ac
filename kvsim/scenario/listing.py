"""What a scenario can name, with a line on each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kvsim.core import plugins
from kvsim.scenario import seats

SEAT_OF = {"schedulers": "scheduler", "routers": "router", "kv": "kv", "costs": "cost"}


def entries(kind: str) -> Iterator[tuple[str, str]]:
    """(name, description) of everything of a kind: models, gpus, readers, generators (and their parts), transforms, or
    the policies of a seat."""
    if kind == "models":
        from kvsim.models import MODELS, load_model

        for name in MODELS:
            model = load_model(name)
            size = f"{model.parameters() / 1e9:.1f} B parameters"
            if model.active_parameters() < 0.8 * model.parameters():
                size += f" ({model.active_parameters() / 1e9:.1f} B active)"
            kv = f"{model.kv_bytes_per_token() / 1024:.1f} KiB of KV a token"
            yield name, f"{size}, {model.layers} layers, {kv}, {model.max_model_len} tokens"
    elif kind == "gpus":
        from kvsim.hardware import GPUS, load_gpu

        for name in GPUS:
            gpu = load_gpu(name)
            yield (
                name,
                f"{gpu.memory_bytes / 2**30:.1f} GiB, {gpu.hbm_bytes_per_s / 1e12:.2f} TB/s, "
                f"{gpu.bf16_flops_per_s / 1e12:.0f} TFLOP/s bf16, link {gpu.gpu_link_bytes_per_s / 1e9:.0f} GB/s",
            )
    elif kind == "generators":
        for name, generator in sorted(seats.generators().items()):
            yield name, first_line(generator)
        for kind_of_part, table in seats.parts().values():
            for name in sorted(table):
                yield f"{kind_of_part}: {name}", first_line(plugins.load(kind_of_part, name, table))
    elif kind == "transforms":
        for name, transform in sorted(seats.transforms().items()):
            yield name, first_line(transform)
    elif kind == "readers":
        from kvsim.workload.readers import READERS

        yield from _policies("trace format", READERS)
    else:
        yield from _policies(SEAT_OF[kind], seats.table(SEAT_OF[kind]))


def first_line(target: Callable[..., Any]) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join((target.__doc__ or "").strip().split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".").replace("``", "")


def _policies(seat: str, table: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in sorted(table):
        yield name, first_line(plugins.load(seat, name, table))
