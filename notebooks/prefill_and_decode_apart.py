# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Prefill and decode: together or apart?
#
# Two GPUs can share all requests, or one can compute prompts and hand their KV over a link to the other, which
# generates. Apart, no prompt ever delays somebody's next token; but each side is one GPU, and KV has to travel.

# %%
from pathlib import Path

import matplotlib.pyplot as plt

import kvsim

HERE = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
PROJECT = HERE if (HERE / "scenarios").is_dir() else HERE.parent

WORKLOAD = {
    "generate": {"name": "lognormal_poisson", "n": 1500, "rate_per_s": 10, "prompt_mean": 1200, "output_mean": 200}
}
COMMON = {
    "workload": WORKLOAD,
    "model": "llama-3.1-8b",
    "scheduler": {"async_scheduling": False},  # pools that prefill or decode only have none yet: so on neither side
    "slo": {"ttft_ms": 500, "tpot_ms": 30, "itl_ms": 100},
}
TOGETHER = kvsim.Scenario(**COMMON, cluster={"gpu": "h100-sxm", "replicas": 2})
APART = kvsim.Scenario(
    **COMMON,
    cluster={
        "gpu": "h100-sxm",
        "pools": [{"role": "prefill"}, {"role": "decode"}],
        "link": {"bytes_per_s": "25GB/s", "latency_s": 1e-3},
    },
)
RATES = [2, 4, 8, 12, 16, 20, 24, 28, 32]

# %% [markdown]
# ## The same requests on both
#
# Every rate is run with three seeds, the same for both designs: what differs is the design.

# %%
frames = {
    name: kvsim.sweep(scenario, {"workload.generate.rate_per_s": RATES}, repetitions=3)
    for name, scenario in (("together", TOGETHER), ("apart", APART))
}
for name, frame in frames.items():
    print(name)
    by_rate = frame.groupby("workload.generate.rate_per_s")
    print(by_rate[["p99_ttft_ms", "p99_tpot_ms", "p99_itl_ms", "slo_attainment"]].mean().round(2).to_string())

# %% [markdown]
# ## One run each, request by request
#
# At 16 requests per second: the longest pause that each reader saw between two tokens.

# %%
runs = {
    name: kvsim.run(scenario, **{"workload.generate.rate_per_s": 16})
    for name, scenario in (("together", TOGETHER), ("apart", APART))
}
for name, result in runs.items():
    print(f"{name}: longest gap, P99: {result.requests['max_itl_s'].quantile(0.99) * 1e3:.1f} ms")
runs["apart"]

# %% [markdown]
# ## The answer in one figure
#
# Apart, gaps between tokens stay short at any load, and the prefill GPU is what runs out first; together, two GPUs take
# prompts, so first tokens come sooner under load.

# %%
figure, (first, gaps, share) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
colours = {"together": "#0072B2", "apart": "#D55E00"}
for name, frame in frames.items():
    by_rate = frame.groupby("workload.generate.rate_per_s")
    for axes, column, scale in ((first, "p99_ttft_ms", 1), (gaps, "p99_itl_ms", 1), (share, "slo_attainment", 100)):
        middle = by_rate[column].mean() * scale
        axes.plot(middle.index, middle, marker="o", color=colours[name], label=name)
        axes.fill_between(
            middle.index, by_rate[column].min() * scale, by_rate[column].max() * scale, color=colours[name], alpha=0.2
        )
first.set(xlabel="requests per second", ylabel="ms", title="P99 time to first token", ylim=(0, None))
gaps.set(xlabel="requests per second", ylabel="ms", title="P99 gap between two tokens", ylim=(0, None))
share.set(xlabel="requests per second", ylabel="%", title="requests that keep the SLO", ylim=(0, 102))
share.legend(loc="lower left")
plt.show()
