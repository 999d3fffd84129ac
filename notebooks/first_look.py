# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A first look at kvsim
#
# What arrives, what a run gives back, and one question answered: how much traffic does one GPU take?
# Open it in Jupyter (with jupytext) or an editor that knows `# %%` cells, or run it: `python notebooks/first_look.py`.

# %%
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import kvsim
from kvsim.engine import simulate
from kvsim.scenario.resolve import resolve
from kvsim.workload import read_trace

HERE = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
PROJECT = HERE if (HERE / "scenarios").is_dir() else HERE.parent

# %% [markdown]
# ## The trace
#
# Columns, not objects: arrival in nanoseconds, prompt and output tokens. The format was recognised from the content,
# and every row of the file is accounted for.

# %%
trace = read_trace(PROJECT / "traces" / "burstgpt_like.csv")
print(f"{len(trace)} requests from a {trace.format} file; {trace.rows}")

# %%
figure, (arrivals, lengths) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
arrivals.hist(trace.arrival_ns / 3.6e12, bins=100)
arrivals.set(xlabel="hours", ylabel="requests", title="bursts, and a morning that fills up")
for name, tokens in (("prompt", trace.prompt_tokens), ("output", trace.output_tokens)):
    lengths.plot(np.sort(tokens), np.linspace(0, 1, len(tokens)), label=name)
lengths.set(xscale="log", xlabel="tokens", ylabel="share of requests", title="short questions, long tails")
lengths.legend()

# %% [markdown]
# ## A run
#
# A scenario file is one question; keys of the call replace what it says. In a notebook the result shows as a table.

# %%
result = kvsim.run(PROJECT / "scenarios" / "burstgpt.yaml")
result  # noqa: B018  (the last value of a cell is shown)

# %%
print(result)
print("verdict:", result.summary["kvsim"]["stability"])
for note in result.summary["kvsim"]["approximation"]:
    print("note:", note)

# %% [markdown]
# One row per request, and one per sampling instant and replica, as pandas frames.

# %%
requests = result.requests
print(requests[["prompt_tokens", "output_tokens", "ttft_s", "tpot_s", "max_itl_s", "good"]].describe().round(4))

# %%
figure, (first, over_time) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
first.scatter(requests["prompt_tokens"], requests["ttft_s"] * 1e3, s=4)
first.set(xlabel="prompt tokens", ylabel="TTFT, ms", xscale="log", title="what a prompt costs, and what waiting adds")
timeline = result.timeline
over_time.plot(timeline["time_s"], timeline["running"], label="running")
over_time.plot(timeline["time_s"], timeline["waiting"], label="waiting")
over_time.set(xlabel="seconds", ylabel="requests", title="one replica over time")
over_time.legend()

# %% [markdown]
# ## A question: how much traffic does one GPU take?
#
# The same requests, ever more densely. `slo_attainment` is the share of arrived requests that met every bound, and the
# verdict says from where on the percentiles measure the length of the trace, not the system.

# %%
rows = []
for rate_scale in (100, 200, 400, 800, 1600):
    summary = kvsim.run(PROJECT / "scenarios" / "burstgpt.yaml", **{"workload.trace.rate_scale": rate_scale}).summary
    rows.append(
        {
            "requests per s": summary["request_rate"],
            "p99 TTFT, ms": summary["p99_ttft_ms"],
            "p99 TPOT, ms": summary["p99_tpot_ms"],
            "SLO attainment": summary["slo_attainment"],
            "peak KV usage": summary["kvsim"]["peak_kv_usage_frac"],
            "verdict": summary["kvsim"]["stability"],
        }
    )
load = pd.DataFrame(rows).set_index("requests per s")
print(load.round(3).to_string())

# %%
figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
load["SLO attainment"].plot(ax=axes, marker="o", logx=True)
axes.set(ylabel="share of requests", ylim=(0, 1.05), title="requests that met TTFT 500 ms and TPOT 50 ms")
axes.set_xticks(load.index, [f"{rate:.0f}" for rate in load.index])
axes.minorticks_off()

# %% [markdown]
# ## Underneath: the same from objects
#
# Files are a convenience. The engine takes a trace, a cluster of pools and options, and returns a log of facts in
# integer nanoseconds. Leaping (the default) and visiting each step agree exactly.

# %%
resolved = resolve(kvsim.Scenario.load(PROJECT / "scenarios" / "burstgpt.yaml", {"workload.trace.limit": 500}))
leaping = simulate(resolved.trace, resolved.cluster, resolved.options)
stepping = simulate(resolved.trace, resolved.cluster, replace(resolved.options, mode="step"))
assert np.array_equal(leaping.finish_ns, stepping.finish_ns)
print(f"{sum(leaping.steps)} steps in {sum(leaping.stretches)} stretches; the same finish times in ns when stepping")

# %%
plt.show()
