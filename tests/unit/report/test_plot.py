"""Figures come from a run folder alone, equal for equal folders, and never fail for want of data."""

import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from kvsim.core.errors import InputError
from kvsim.core.runlog import UNFINISHED
from kvsim.metrics.slo import Slo
from kvsim.metrics.summary import summarise
from kvsim.report import plot
from kvsim.report.files import write_run
from kvsim.report.plot import plot_run
from tests.unit.metrics.tiny_log import Row, queue_log, timeline, tiny_log, trace_of

NAMES = ["latency", "timeline", "ttft_by_prompt"]


def run_folder(path, log=None, **options):
    log = queue_log(np.arange(0, 3000, 30.0), service_ms=20) if log is None else log
    trace = trace_of(log)
    return write_run(path, log, trace, summarise(log, trace, version="1", **options), "", {})


def words(svg):
    """Texts of an SVG figure: matplotlib writes each beside its glyphs, as a comment."""
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    return [node.text.strip() for node in ET.parse(svg, parser).iter() if node.tag is ET.Comment]


def test_three_figures_in_each_format(tmp_path):
    folder = run_folder(tmp_path / "run")
    written = plot_run(folder, tmp_path / "a" / "figures")
    assert written == [tmp_path / "a" / "figures" / f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")]
    for path in written:
        head = path.read_bytes()[:300]
        assert head.startswith(b"\x89PNG") if path.suffix == ".png" else b"<svg" in head or b"<?xml" in head


def test_equal_folders_give_equal_figures(tmp_path):
    first = plot_run(run_folder(tmp_path / "a"), formats=("png", "svg", "pdf"))
    second = plot_run(run_folder(tmp_path / "b"), formats=("png", "svg", "pdf"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_axes_have_units_and_the_slo_is_drawn(tmp_path):
    folder = run_folder(tmp_path / "run", slo=Slo(ttft_ms=10, e2el_ms=9000))
    plot_run(folder, formats=["svg"])
    latency = words(folder / "latency.svg")
    assert {"TTFT (s)", "TPOT (ms)", "E2EL (s)", "Requests (%)", "SLO  0.01 s", "SLO  9 s (outside)"} <= set(latency)
    assert {"Simulated time (s)", "(requests)", "(tokens)", "(%)"} <= set(words(folder / "timeline.svg"))
    assert {"Prompt length (tokens)", "Time to first token (s)"} <= set(words(folder / "ttft_by_prompt.svg"))


@pytest.mark.parametrize(
    ("log", "message"),
    [(tiny_log([]), "no request finished"), (tiny_log([Row(0, status=UNFINISHED)]), "no request finished")],
    ids=["no request", "none finished"],
)
def test_nothing_to_draw_is_said(tmp_path, log, message):
    folder = run_folder(tmp_path / "run", log)
    plot_run(folder, formats=["svg"])
    assert words(folder / "latency.svg").count(message) == 2
    assert message in words(folder / "ttft_by_prompt.svg")
    assert "the timeline is empty" in words(folder / "timeline.svg")


def test_one_finished_request_is_enough(tmp_path):
    plot_run(run_folder(tmp_path / "run", tiny_log([Row(0, (100, 200))], timeline=timeline((0, 0, 0, 1, 1)))))


@pytest.mark.parametrize(
    ("replicas", "labels"),
    [
        (2, {"replica 0 (prefill)", "replica 1 (decode)"}),
        (8, {"range of 1 prefill replicas", "median (prefill)", "range of 7 decode replicas", "median (decode)"}),
    ],
)
def test_many_replicas_become_median_and_range(tmp_path, replicas, labels):
    samples = [(t, k, k, t // 10, k) for t in (0, 10, 20) for k in range(replicas)]
    log = tiny_log(
        [Row(0, (10, 20))],
        timeline=timeline(*samples),
        roles=("prefill",) + ("decode",) * (replicas - 1),
        total_blocks=(100,) * replicas,
        peak_used_blocks=(1,) * replicas,
    )
    folder = run_folder(tmp_path / "run", log)
    plot_run(folder, formats=["svg"])
    assert labels <= set(words(folder / "timeline.svg"))


def test_a_sample_holds_until_the_next_one(monkeypatch):
    time_s, replica, values = np.array([0.0, 1, 1, 4]), np.array([0, 0, 1, 0]), np.array([5.0, 6, 7, 8])
    instants, held = plot._held(time_s, replica, values, [0, 1])
    assert (instants.tolist(), held.tolist()) == ([0, 1, 4], [[5, 0], [6, 7], [8, 7]])
    monkeypatch.setattr(plot, "MANY_INSTANTS", 2)
    assert plot._held(time_s, replica, values, [0, 1])[0].tolist() == [0, 4]


def test_many_requests_become_a_density(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "MANY_POINTS", 10)
    folder = run_folder(tmp_path / "run")
    plot_run(folder, formats=["svg"])
    assert "Requests per cell" in words(folder / "ttft_by_prompt.svg")


def test_warm_up_is_shaded_and_left_out(tmp_path):
    samples = timeline((0, 0, 0, 1, 1), (3000, 0, 0, 1, 1))
    log = tiny_log([Row(a, (a + 10, a + 20)) for a in (0, 1000, 2000)], timeline=samples)
    folder = run_folder(tmp_path / "run", log, warmup_s=0.5)
    plot_run(folder, formats=["svg"])
    assert "Time to first token  (n = 2)" in words(folder / "latency.svg")
    assert "warm-up" in words(folder / "timeline.svg")


@pytest.mark.parametrize(
    ("formats", "problem"),
    [(["gif"], "formats: unknown format 'gif'; known: png, svg, pdf"), ([], "unknown format none")],
)
def test_unknown_formats(tmp_path, formats, problem):
    with pytest.raises(InputError, match=problem):
        plot_run(run_folder(tmp_path / "run"), formats=formats)


def test_what_is_no_run_folder(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        plot_run(tmp_path)


def test_a_target_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file cannot be written: File exists; name another folder"):
        plot_run(run_folder(tmp_path / "run"), tmp_path / "file")


def test_pyplot_and_the_users_settings_are_left_alone(tmp_path):
    script = """
import sys
import matplotlib
from kvsim.report.plot import plot_run
matplotlib.rcParams["font.size"] = 23
plot_run(sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams["font.size"] == 23
"""
    subprocess.run([sys.executable, "-c", script, str(run_folder(tmp_path / "run"))], check=True)
