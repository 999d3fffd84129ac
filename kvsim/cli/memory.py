"""``kvsim memory``: what a model takes on each GPU of a layout, and the KV that is left room for."""

from __future__ import annotations

from typing import Any

import click

from kvsim.cli.ranges import FiniteRange

PRESET = "vllm@0.33"


@click.command
@click.argument("model", metavar="MODEL")
@click.option("--gpu", default="h100-sxm", show_default=True, help="Catalogue name, or path of a GPU file.")
@click.option("--tensor-parallel-size", "-tp", type=click.IntRange(1), default=1, show_default=True)
@click.option("--pipeline-parallel-size", "-pp", type=click.IntRange(1), default=1, show_default=True)
@click.option("--data-parallel-size", "-dp", type=click.IntRange(1), default=1, show_default=True)
@click.option("--enable-expert-parallel", "-ep", is_flag=True)
@click.option("--decode-context-parallel-size", "-dcp", type=click.IntRange(1), default=1, show_default=True)
@click.option("--prefill-context-parallel-size", "-pcp", type=click.IntRange(1), default=1, show_default=True)
@click.option("--quantization", help="Quantise a 16 bit model when it is loaded: fp8.")
@click.option("--kv-cache-dtype", default="auto", show_default=True)
@click.option("--gpu-memory-utilization", type=FiniteRange(0, 1, min_open=True), help="Default: the preset's.")
@click.option("--max-num-batched-tokens", type=click.IntRange(1), help="Default: the preset's for this GPU.")
@click.option("--max-num-seqs", type=click.IntRange(1), help="Default: the preset's for this GPU.")
def memory(
    model: str,
    gpu: str,
    quantization: str | None,
    kv_cache_dtype: str,
    gpu_memory_utilization: float | None,
    max_num_batched_tokens: int | None,
    max_num_seqs: int | None,
    **layout: Any,
) -> None:
    """Count the bytes that MODEL takes on each GPU of a layout.

    MODEL is a catalogue name, or the path of a config.json. Layouts that cannot be timed yet are counted too.
    """
    from kvsim.core.layout import Layout
    from kvsim.hardware import load_gpu
    from kvsim.kv.memory import kv_ledger
    from kvsim.models import load_model
    from kvsim.scenario.presets import PRESETS

    spec = load_model(model)
    spec = (spec.with_quantization(quantization) if quantization else spec).with_kv_cache_dtype(kv_cache_dtype)
    card, preset, ranks = load_gpu(gpu), PRESETS[PRESET], Layout(**layout)
    limits = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens}
    seqs, tokens = preset.batch(card, spec.max_model_len, whole_prompts=False, doubled=False, **limits)
    share = gpu_memory_utilization or preset.gpu_memory_utilization
    spec.check(ranks)
    active = f" ({spec.active_parameters() / 1e9:.2f} B per token)" if "experts" in spec.weights() else ""
    click.echo(f"{spec.name}: {spec.parameters() / 1e9:.2f} B parameters{active}, {spec.layers} layers")
    click.echo(f"{ranks.gpus} x {card.name}, {PRESET}, {ranks}")
    for stage in range(ranks.pipeline_parallel_size):
        what = f"stage {stage}" if ranks.pipeline_parallel_size > 1 else "each GPU"
        weights = f"{spec.weight_bytes(ranks, stage) / 1e9:.2f} GB of weights"
        click.echo(
            f"  {what}: {len(spec.stage(ranks, stage))} layers, {weights}, "
            f"{spec.kv_bytes_per_token(ranks, stage)} bytes of KV a token"
        )
    if spec.state_bytes():
        state = f"{spec.state_bytes(ranks) / 1e6:.1f} MB per request and GPU"
        click.echo(f"Layers with a state of constant size: {state}. A KV pool beside it is not modelled yet.")
        return
    found = kv_ledger(spec, card, ranks, share, tokens, seqs, preset.block_size, engine=preset.memory)
    fullest = f" of stage {found.stage}, the fullest" if ranks.pipeline_parallel_size > 1 else ""
    click.echo(f"One GPU{fullest}:")
    for row in found.rows():
        click.echo(f"  {row.label:<16}{row.bytes / 1e9:>9.2f} GB  {row.source}")
    per = "per data-parallel rank" if ranks.data_parallel_size > 1 else "per replica"
    click.echo(f"{found.blocks} KV blocks = {found.tokens} tokens {per}")
