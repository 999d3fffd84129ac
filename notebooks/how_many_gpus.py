# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # How many GPUs does this traffic take?
#
# The same requests, three types of GPU, one SLO. First what one replica of each type does as the load grows; then the
# fewest replicas that keep the SLO, with the noise of the traffic taken into account; then what that costs.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import kvsim
from kvsim.workload import read_trace

HERE = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
PROJECT = HERE if (HERE / "scenarios").is_dir() else HERE.parent

TRACE = PROJECT / "traces" / "burstgpt_like.csv"
GPUS = {"h100-sxm": 2.69, "a100-80gb-sxm": 1.39, "l40s": 0.79}  # USD per hour, list prices of one cloud: put yours here
SCENARIO = kvsim.Scenario(
    workload={"trace": {"path": str(TRACE), "rate_scale": 100}},
    model="llama-3.1-8b",
    cluster={"max_model_len": 8192},
    router="least_tokens",
    slo={"ttft_ms": 2000, "tpot_ms": 100},
)
read_trace(TRACE)

# %%
SCENARIO  # noqa: B018  (the last value of a cell is shown)

# %% [markdown]
# ## One replica, ever more load
#
# A sweep is a scenario with lists where it has values; it gives a DataFrame with a row per run and a column per figure.
# Runs are computed on all cores, and kept if `out=` names a folder.

# %%
load = kvsim.sweep(SCENARIO, {"cluster.gpu": list(GPUS), "workload.trace.rate_scale": [12.5, 25, 50, 100, 200, 400]})
print(load.pivot_table(index="workload.trace.rate_scale", columns="cluster.gpu", values="slo_attainment").round(3))

# %% [markdown]
# ## The fewest replicas
#
# `kvsim.capacity` bisects. The recorded trace is one sample of its traffic: it is resampled in blocks of time, and the
# answer keeps the SLO even if that noise is against us. Overloaded runs never count, and nothing is extrapolated.

# %%
answers = kvsim.capacity(
    SCENARIO, {"cluster.gpu": list(GPUS)}, find="replicas", attainment=0.9, confidence=0.95, seeds=4, prices=GPUS
)
fleet = pd.DataFrame(
    {
        "GPU": [answer.point["cluster.gpu"] for answer in answers],
        "replicas": [answer.value for answer in answers],
        "interval": [answer.interval for answer in answers],
        "attainment": [answer.attainment for answer in answers],
        "USD per hour": [answer.usd_per_hour for answer in answers],
        "USD per million tokens": [answer.usd_per_million_tokens for answer in answers],
    }
).set_index("GPU")
print(fleet.round(3).to_string())
print("the cheapest:", fleet["USD per hour"].idxmin())

# %% [markdown]
# ## The answer in one figure
#
# Left: each curve falls where one replica gives up; above the dashed line it keeps the SLO for 90 % of the requests.
# Right: what the fleet costs for the whole traffic; lines reach over what resampled traffic would have cost.

# %%
figure, (share, cost) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
colours = dict(zip(GPUS, ("#0072B2", "#D55E00", "#009E73"), strict=True))
for gpu, rows in load.groupby("cluster.gpu", sort=False):
    share.plot(rows["request_rate"], rows["slo_attainment"] * 100, marker="o", color=colours[gpu], label=gpu)
share.axhline(90, color="#555555", linestyle="--", linewidth=1)
share.set(
    xscale="log",
    xlabel="requests per second",
    ylabel="requests that keep the SLO (%)",
    title="one replica",
    ylim=(0, 102),
)
share.set_xticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
share.minorticks_off()
share.legend()
for idx, answer in enumerate(answers):
    gpu, usd = answer.point["cluster.gpu"], answer.usd_per_million_tokens
    low, high = answer.usd_per_million_tokens_interval
    cost.bar(idx, usd, color=colours[gpu], yerr=[[usd - low], [high - usd]], capsize=5, width=0.6)
    cost.annotate(
        f"{answer.value:g} x {gpu}", (idx, high), ha="center", va="bottom", xytext=(0, 3), textcoords="offset points"
    )
cost.set_xticks(range(len(answers)), [answer.point["cluster.gpu"] for answer in answers])
cost.set(ylabel="USD per million tokens", title=f"a fleet for {answers[0].requests_per_s:.0f} requests per second")
cost.margins(y=0.15)
plt.show()
