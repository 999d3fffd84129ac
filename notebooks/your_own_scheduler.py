# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A scheduler of your own, and what it does
#
# A policy is a frozen dataclass in a file of yours. Here: first come, first served, but a prompt may take only as much
# of a step as keeps the step short for those who are reading. It is written, checked, run, swept and compared.

# %%
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

import kvsim

POLICY = '''
"""Prompts in small pieces while somebody reads, whole when nobody does."""

from dataclasses import dataclass

from kvsim.core.seats import Plan, ReplicaView


@dataclass(frozen=True)
class GentlePrefill:
    """All decodes, and beside them at most ``chunk_tokens`` of one prompt; alone, a prompt takes the whole step."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    chunk_tokens: int = 256
    async_scheduling: bool | None = None  # planned ahead, as vLLM's own is by default

    every_step = False  # it never looks at the clock, so the engine may leap

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        if plan.make_room():  # the youngest lost their blocks so that the others can grow: let nobody in
            return
        chunk = self.chunk_tokens if replica.decoding_count else None
        if replica.prefilling:  # finish what was started
            plan.prefill(replica.prefilling[0], chunk)
        elif replica.waiting and replica.running_count < self.max_num_seqs:
            plan.admit(replica.waiting.first, chunk)
'''
folder = tempfile.TemporaryDirectory()
Path(folder.name, "gentle_prefill.py").write_text(POLICY)
sys.path.insert(0, folder.name)

# %% [markdown]
# ## Does it keep the contract?

# %%
from kvsim.testing import check_target  # noqa: E402  (it imports the policy that was just written)

checks = list(check_target("gentle_prefill:GentlePrefill"))
print(*checks, sep="\n")
if not any(check.problem for check in checks):
    print("gentle_prefill:GentlePrefill keeps the contract of its seat")

# %% [markdown]
# ## Its one parameter
#
# `choices` may hold whole policies, so the built-in scheduler and ours with several chunk sizes are one sweep. Every
# point sees the same three sets of requests.

# %%
scenario = kvsim.Scenario(
    workload={"generate": {"name": "lognormal_poisson", "n": 1200, "rate_per_s": 14, "prompt_mean": 1000}},
    model="llama-3.1-8b",
    cluster={"gpu": "h100-sxm"},
    slo={"ttft_ms": 1000, "itl_ms": 60},
)
sizes = (64, 128, 256, 512, 1024)
policies = ["chunked_prefill", *({"name": "gentle_prefill:GentlePrefill", "chunk_tokens": size} for size in sizes)]
frame = kvsim.sweep(scenario, {"scheduler": policies}, repetitions=3)
columns = ["p99_ttft_ms", "p99_itl_ms", "mean_tpot_ms", "slo_attainment"]
print(frame.groupby("scheduler", sort=False)[columns].mean().round(3).to_string())

# %% [markdown]
# ## Side by side, request by request
#
# Two runs of the same requests, in folders; `kvsim compare` does the same on the command line. Its intervals come from
# resampling blocks of requests in pairs, and a verdict needs the whole interval on one side of the margin.

# %%
from kvsim.report.compare import compare_runs, comparison_table  # noqa: E402

base, gentle = Path(folder.name, "chunked_prefill"), Path(folder.name, "gentle")
results = {
    "chunked_prefill": kvsim.run(scenario, out=base),
    "gentle, 256 tokens": kvsim.run(scenario, out=gentle, scheduler="gentle_prefill:GentlePrefill"),
}
print(comparison_table(compare_runs([base, gentle]), "chunked_prefill").replace(f"{folder.name}/", ""))

# %% [markdown]
# ## The answer in one figure
#
# Nobody waits long between two tokens any more, and first tokens pay for it. Smaller pieces move further along the
# same exchange: the curve on the right is what the policy offers; where to stand on it is yours to choose.

# %%
figure, (first, gaps, trade) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
for (name, result), colour in zip(results.items(), ("#0072B2", "#D55E00"), strict=True):
    for axes, column in ((first, "ttft_s"), (gaps, "max_itl_s")):
        values = np.sort(result.requests[column].dropna()) * 1e3
        axes.plot(values, np.linspace(0, 100, len(values)), color=colour, label=name)
first.set(xscale="log", xlabel="ms", ylabel="requests (%)", title="time to first token")
gaps.set(xscale="log", xlabel="ms", title="longest gap between two tokens")
gaps.legend(loc="upper center", fontsize="small")
means = frame.groupby("scheduler", sort=False)[["p99_ttft_ms", "p99_itl_ms"]].mean()
ours = means.iloc[1:]
trade.plot(ours["p99_itl_ms"], ours["p99_ttft_ms"], marker="o", color="#D55E00", label="gentle")
for size, (_, row) in zip(sizes, ours.iterrows(), strict=True):
    where = (row["p99_itl_ms"], row["p99_ttft_ms"])
    trade.annotate(f"{size}", where, xytext=(6, 4), textcoords="offset points")
trade.plot(means["p99_itl_ms"].iloc[:1], means["p99_ttft_ms"].iloc[:1], "s", color="#0072B2", label="chunked_prefill")
trade.set(xlabel="P99 gap between tokens (ms)", ylabel="P99 time to first token (ms)", title="what a chunk size buys")
trade.set(yscale="log")
for axes in (first, gaps):
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
trade.yaxis.set_major_formatter("{x:g}")
trade.legend()
plt.show()
folder.cleanup()
