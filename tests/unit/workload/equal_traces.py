"""Two traces that say the same, whatever numbers sessions, tenants, models and blocks have in them."""

import dataclasses

import numpy as np

from kvsim.core.trace import FailedRows, Trace

NAMED = ("session", "tenant", "model")


def same(one: Trace, other: Trace) -> None:
    """Equal in every column: sessions, tenants and models by name, blocks up to their numbers; but provenance."""
    for field in dataclasses.fields(Trace):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name in ("path", "format", "sha256", "source_failed") or field.name.endswith("_names"):
            continue
        if field.name in NAMED and a is not None:
            assert named(one, one, field.name) == named(other, other, field.name), field.name
        elif field.name == "prefix_hashes" and a is not None:
            assert np.array_equal(a.offsets, b.offsets)
            pairs = {*zip(a.values.tolist(), b.values.tolist(), strict=True)}
            assert len(pairs) == len({*a.values.tolist()}) == len({*b.values.tolist()})
        elif field.name == "wait_for" and a is not None:
            assert np.array_equal(a.offsets, b.offsets)
            assert np.array_equal(a.values, b.values)
        elif isinstance(a, np.ndarray):
            assert np.array_equal(a, b), field.name
        else:
            assert a == b, field.name
    failed, others = one.source_failed or NOTHING, other.source_failed or NOTHING
    for name in ("before", "arrival_ns", "prompt_tokens"):
        assert np.array_equal(getattr(failed, name), getattr(others, name)), name
    for name in NAMED:
        assert named(one, failed, name) == named(other, others, name), f"{name} of failed rows"
    unknown = np.full(len(failed), -1)
    elapsed = [unknown if rows.elapsed_ns is None else rows.elapsed_ns for rows in (failed, others)]
    assert np.array_equal(*elapsed)


def named(trace: Trace, rows: Trace | FailedRows, column: str) -> list[str | None]:
    numbers = getattr(rows, column)
    names = [*trace.names(column), None] if getattr(trace, column) is not None else [None]
    return [names[k] for k in (numbers.tolist() if numbers is not None else [-1] * len(rows))]


NOTHING = FailedRows(*(np.empty(0, np.int64) for _ in range(3)))
