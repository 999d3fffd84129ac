"""ServeGen's clients, composed: rates, CVs and lengths of each against its model."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import Trace
from kvsim.workload.generate import servegen
from kvsim.workload.generate.servegen import WINDOW_S, Client, read_clients

LENGTHS = {"input_tokens": "{100: 0.25, 200: 0.75}", "output_tokens": "{7: 1.0}", "reason_ratio": "{0.5: 1.0}"}


def client_files(folder: Path, number: int, windows: list[str], lengths: object | None) -> None:
    (folder / f"chunk-{number}-trace.csv").write_text("\n".join(windows) + "\n")
    if lengths is not None:
        (folder / f"chunk-{number}-dataset.json").write_text(json.dumps(lengths))


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Three clients: steady and Gamma; bursty and Weibull, idle first; one without lengths, in the second window."""
    folder = tmp_path / "pool"
    folder.mkdir()
    client_files(folder, 0, ["0,2.0,0.8,Gamma,1.5625,0.32", "600,4.0,0.8,Gamma,1.5625,0.16"], {"0": LENGTHS})
    other = {"input_tokens": "{5000: 1.0}", "output_tokens": "{1: 0.5, 3: 0.5}"}
    empty = {"input_tokens": "{}", "output_tokens": "{}"}
    client_files(folder, 7, ["0,0,0,,0,0", "600,3.0,5.0,Weibull,0.5,0.2"], {"0": other, "21600": empty})
    client_files(folder, 12, ["0,0,0,,0,0", "600,3.5,1.0,Gamma,1.0,0.3"], None)
    return folder


def by_client(trace: Trace) -> dict[int, NDArray[np.int64]]:
    """Number of a client -> its rows."""
    assert trace.tenant is not None
    assert trace.tenant_names is not None
    order = np.argsort(trace.tenant, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(trace.tenant))[:-1])
    return {int(name.removeprefix("client-")): part for name, part in zip(trace.tenant_names, rows, strict=True)}


def window_cvs(times: NDArray[np.float64], client: Client) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(measured, in the model) CV of the gaps in each window of a client that has at least 50 requests.

    The windows of all requests are told apart by their number of requests: the trace begins at the first of them, not
    at the start of its window.
    """
    counts = [round(window.rate_per_s * WINDOW_S) for window in client.windows]
    assert sum(counts) == len(times)
    parts = np.split(times, np.cumsum(counts)[:-1]) if counts else []
    gaps = [(np.diff(part), window.cv) for part, window in zip(parts, client.windows, strict=True) if len(part) >= 50]
    found = np.array([(gap.std() / gap.mean(), cv) for gap, cv in gaps]).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def test_a_composition_of_three(pool: Path) -> None:
    trace = servegen(pool, duration_s=1200, seed=1)
    assert trace.rows is not None
    assert trace.rows.read == len(trace) == 600 * (2 + 4 + 3) + 2100
    assert trace.tenant_names == ["client-0", "client-7", "client-12"]
    rows = by_client(trace)
    prompts = [trace.prompt_tokens[rows[number]] for number in (0, 7, 12)]
    assert float((prompts[0] == 200).mean()) == pytest.approx(0.75, abs=0.03)
    assert (prompts[1] == 5000).all()
    assert set(np.unique(prompts[2])) in ({5000}, {100, 200})  # borrowed from the client of about as many requests
    assert (prompts[2] == 5000).all()
    for client in read_clients(pool):
        measured, wanted = window_cvs(trace.arrival_ns[rows[client.number]] / 1e9, client)
        assert measured == pytest.approx(wanted, rel=0.1)


def test_a_part_of_the_time_is_that_part(pool: Path) -> None:
    part = servegen(pool, start_s=300, duration_s=600, seed=1)
    expected = 300 * 2.0 + 300 * (4 + 3 + 3.5)
    assert len(part) == pytest.approx(expected, rel=0.1)


def test_the_total_rate_and_the_busiest_clients_can_be_chosen(pool: Path) -> None:
    trace = servegen(pool, duration_s=1200, rate_per_s=1.0, clients=2)
    assert len(trace) == pytest.approx(1200, abs=5)
    assert trace.tenant_names == ["client-0", "client-12"]
    assert len(by_client(trace)[0]) / len(trace) == pytest.approx(3600 / 5700, abs=0.01)
    whole = servegen(pool, duration_s=1200)
    alone = servegen(pool, duration_s=1200, clients=1)
    assert np.diff(alone.arrival_ns).tolist() == np.diff(whole.arrival_ns[by_client(whole)[0]]).tolist()


def test_fitted_gaps_keep_the_family(pool: Path) -> None:
    """A Weibull shape of 0.5 has CV sqrt(5), whatever CV the window had."""
    cvs = []
    for seed in range(20):
        trace = servegen(pool, start_s=600, duration_s=600, gaps="fitted", seed=seed)
        gaps = np.diff(trace.arrival_ns[by_client(trace)[7]])
        cvs.append(gaps.std() / gaps.mean())
    assert float(np.mean(cvs)) == pytest.approx(5**0.5, rel=0.05)


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.xz"])
def test_folders_and_archives_give_the_same(kind: str, pool: Path, tmp_path: Path) -> None:
    path = pool
    if kind != "folder":
        path = tmp_path / f"pool.{kind}"
        with tarfile.open(path, "w:xz" if kind == "tar.xz" else "w") as archive:
            archive.add(pool, "data/language/m")
    assert servegen(path).prompt_tokens.tolist() == servegen(pool).prompt_tokens.tolist()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("chunk-0-trace.csv", "0,2.0,0.8\n", r"chunk-0-trace.csv:1: '0,2.0,0.8' is no window"),
        (
            "chunk-0-trace.csv",
            "0,2.0,0.8,Pareto,1,1\n",
            r"chunk-0-trace.csv:1: .* is no window; family Gamma or Weibull",
        ),
        ("chunk-0-trace.csv", "0,nan,0.8,Gamma,1,1\n", r"chunk-0-trace.csv:1: .* rate, CV and shape positive"),
        ("chunk-0-trace.csv", "0,1e300,0.8,Gamma,1,1\n", r"chunk-0-trace.csv:1: .* at most a million"),
        ("chunk-0-dataset.json", "{", r"chunk-0-dataset.json: cannot be read"),
        ("chunk-0-dataset.json", "[" * 100_000, r"chunk-0-dataset.json: cannot be read"),
        ("chunk-0-dataset.json", '{"0": {"input_tokens": "{1: 1.0}"}}', r"chunk-0-dataset.json: cannot be read"),
        (
            "chunk-0-dataset.json",
            json.dumps({"0": LENGTHS | {"input_tokens": "{1: 0.5}"}}),
            r"chunk-0-dataset.json: cannot be read: probabilities do not add up to 1",
        ),
        (
            "chunk-0-dataset.json",
            json.dumps({"0": LENGTHS | {"input_tokens": "__import__('os').getcwd()"}}),
            r"chunk-0-dataset.json: cannot be read",
        ),
    ],
)
def test_bad_files_are_named(file: str, content: str, message: str, pool: Path) -> None:
    (pool / file).write_text(content)
    with pytest.raises(InputError, match=message):
        servegen(pool)


def test_nothing_to_compose_is_refused(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no busy window of a client in this time"):
        servegen(pool, start_s=5000)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        servegen(tmp_path / "nowhere.tar")
    (tmp_path / "not.tar").write_bytes(b"\xfd7zXZ\x00 but not really")
    with pytest.raises(InputError, match="cannot be read"):
        servegen(tmp_path / "not.tar")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="holds no client"):
        servegen(empty)


@pytest.mark.parametrize(
    ("archive", "start_s", "duration_s", "inputs", "outputs"),
    [
        ("reason_deepseek-r1.tar.xz", 0, 86_400, (1_268, 208, 2_092, 23_423), (1_527, 792, 3_432, 12_607)),
        ("language_m-large.tar.xz", 208_800, 600, None, None),
    ],
)
def test_published_clients_keep_their_rates_cvs_and_lengths(
    archive: str,
    start_s: float,
    duration_s: float,
    inputs: tuple[float, ...] | None,
    outputs: tuple[float, ...] | None,
    shared_data: Path,
) -> None:
    path = shared_data / "traces/servegen" / archive
    trace = servegen(path, start_s=start_s, duration_s=duration_s, seed=2)
    clients = read_clients(path, start_s, start_s + duration_s)
    expected = np.array([client.requests(start_s, start_s + duration_s) for client in clients])
    rows = by_client(trace)
    none = np.zeros(0, np.int64)
    found = np.array([len(rows.get(client.number, none)) for client in clients])
    assert len(trace) == pytest.approx(expected.sum(), rel=0.001)
    busy = expected >= 100
    assert busy.sum() > 40
    assert found[busy] == pytest.approx(expected[busy], rel=0.02)

    measured, wanted, weights = [], [], []
    for client, volume in zip(clients, expected, strict=True):
        cvs, models = window_cvs(trace.arrival_ns[rows.get(client.number, none)] / 1e9, client)
        if len(cvs):
            measured.append(float(cvs.mean()))
            wanted.append(float(models.mean()))
            weights.append(float(volume))
    assert len(measured) > 40
    assert np.array(measured) == pytest.approx(np.array(wanted), rel=0.03)
    assert np.average(measured, weights=weights) == pytest.approx(np.average(wanted, weights=weights), rel=0.01)
    if inputs is not None and outputs is not None:
        for tokens, published in ((trace.prompt_tokens, inputs), (trace.output_tokens, outputs)):
            assert float(tokens.mean()) == pytest.approx(published[0], rel=0.02)
            assert np.percentile(tokens, [50, 90, 99]) == pytest.approx(published[1:], rel=0.02)


@pytest.mark.parametrize("family", ["Gamma", "Weibull"])
@pytest.mark.parametrize(("shape", "cv"), [(0.002, 22.0), (0.3, 0.2), (1.0, 1.0), (400.0, 0.05), (2.0, 1e6)])
def test_any_window_has_its_count_and_its_cv(family: str, shape: float, cv: float, tmp_path: Path) -> None:
    """Also where a plain draw would leave the range of float64; a CV above sqrt(n - 1) is as high as can be."""
    client_files(tmp_path, 0, [f"0,2.0,{cv},{family},{shape},1"], {"0": LENGTHS})
    for gaps in ("measured", "fitted"):
        trace = servegen(tmp_path, duration_s=600, gaps=gaps)  # type: ignore[arg-type]
        assert len(trace) == 1200
        assert (np.diff(trace.arrival_ns) >= 0).all()
        assert trace.arrival_ns[-1] <= 600 * 10**9
    found = np.diff(servegen(tmp_path, duration_s=600).arrival_ns)
    if cv < 20:
        assert float(found.std() / found.mean()) == pytest.approx(cv, rel=0.05)
