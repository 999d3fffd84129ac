"""A step time looked up in measured tables."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.hardware import Gpu
from kvsim.core.model import ModelSpec
from kvsim.core.shape import BatchShape

# Stretches shorter than this are cheaper as a list than as an array (measured: about 70 ns a step, 4 us an array).
ARRAY_FROM_STEPS = 56


@dataclass(frozen=True)
class Table:
    """Seconds = linear[tokens of the batch] + decode attention[decodes, mean context] + prefill attention[chunks].

    Three CSV files with a header; the last column, ``ms_all_layers``, is milliseconds of the whole model:

    - ``linear_csv``: ``num_tokens``; the batch's tokens are rounded up to a multiple of ``token_grid``
    - ``decode_csv``: ``batch_size,kv_tokens_mean_ceil64``; the mean context of the decodes, truncated to an integer,
      is rounded up to a multiple of ``context_grid``
    - ``prefill_csv``: ``chunk_tokens``; chunks are taken as one of length sqrt(sum of chunk^2), rounded half to even.
      The table knows no context before a chunk: a step with one is refused.

    ``counts_new_token``: a decode's context includes the token it computes in this step. Nothing is extrapolated: a
    step outside the tables raises InputError. Model and GPU are those that were measured, whatever the scenario says.

    Source of the rules: Vidur (Agrawal et al., MLSys 2024), ``execution_time_predictor``.
    """

    linear_csv: Path
    decode_csv: Path
    prefill_csv: Path
    token_grid: int = 8
    context_grid: int = 64
    counts_new_token: bool = True

    def start(self, model: ModelSpec, gpu: Gpu, tensor_parallel_size: int) -> "TableStep":
        """Reads the tables. Raises InputError for a file that is missing or cannot be understood."""
        return TableStep(self)


class TableStep:
    """Prices steps from the tables of a ``Table``, held as seconds."""

    __slots__ = ("_context_grid", "_counts_new_token", "_decode_s", "_linear_s", "_prefill_s", "_table", "_token_grid")

    def __init__(self, table: Table) -> None:
        self._table = table
        self._token_grid = table.token_grid
        self._context_grid = table.context_grid
        self._counts_new_token = table.counts_new_token
        self._linear_s = {tokens: s for (tokens,), s in _read(table.linear_csv, 1).items()}
        self._prefill_s = {tokens: s for (tokens,), s in _read(table.prefill_csv, 1).items()}
        self._decode_s = _rows(_read(table.decode_csv, 2), table)

    def step_s(self, shape: BatchShape) -> float:
        """Seconds of one step. Raises InputError if the tables do not hold it."""
        decodes = shape.decode_requests
        step_s = self._linear(shape.prefill_tokens + decodes)
        if shape.prefill_tokens:
            step_s += self._prefill(shape)
        if decodes:
            row, grid, mean = self._decode_row(shape), self._context_grid, self._mean_context(shape)
            try:
                step_s += row[(mean + grid - 1) // grid]
            except IndexError:
                raise self._beyond(decodes, mean) from None
        return step_s

    def steps_s(self, shape: BatchShape, steps: int) -> Sequence[float] | NDArray[np.float64]:
        """Seconds of each of ``steps`` decode steps, (steps,): every decode gains a token of context per step."""
        # The sum of contexts grows by one per decode, so their mean, truncated, grows by exactly one.
        fixed_s, row, grid = self._linear(shape.decode_requests), self._decode_row(shape), self._context_grid
        first = self._mean_context(shape) + grid - 1
        if (first + steps - 1) // grid >= len(row):
            raise self._beyond(shape.decode_requests, self._mean_context(shape) + steps - 1)
        if steps < ARRAY_FROM_STEPS:
            return [fixed_s + row[context // grid] for context in range(first, first + steps)]
        return fixed_s + np.array(row, dtype=np.float64)[np.arange(first, first + steps) // grid]

    def _linear(self, tokens: int) -> float:
        grid = self._token_grid
        try:
            return self._linear_s[-(-tokens // grid) * grid]
        except KeyError:
            raise InputError(
                f"no time for a batch of {tokens} tokens",
                file=self._table.linear_csv,
                hint=f"it holds {_span(self._linear_s)} in steps of {grid}",
            ) from None

    def _prefill(self, shape: BatchShape) -> float:
        if shape.prefill_context_tokens:
            raise InputError(
                f"no time for chunks with {shape.prefill_context_tokens} tokens of context before them",
                file=self._table.prefill_csv,
                hint="use a scheduler that prefills whole prompts",
            )
        length = round(sqrt(shape.prefill_chunk_squares))
        try:
            return self._prefill_s[length]
        except KeyError:
            raise InputError(
                f"no time for {shape.prefill_requests} chunks that amount to one of {length} tokens",
                file=self._table.prefill_csv,
                hint=f"it holds {_span(self._prefill_s)}",
            ) from None

    def _mean_context(self, shape: BatchShape) -> int:
        mean = shape.decode_context_tokens // shape.decode_requests
        return mean + 1 if self._counts_new_token else mean

    def _decode_row(self, shape: BatchShape) -> list[float]:
        try:
            return self._decode_s[shape.decode_requests]
        except KeyError:
            raise InputError(
                f"no time for {shape.decode_requests} decodes",
                file=self._table.decode_csv,
                hint=f"it holds {_span(self._decode_s)}",
            ) from None

    def _beyond(self, decodes: int, mean_context: int) -> InputError:
        longest = (len(self._decode_s[decodes]) - 1) * self._context_grid
        return InputError(
            f"no time for {decodes} decodes with a mean context of {mean_context} tokens",
            file=self._table.decode_csv,
            hint=f"it holds contexts up to {longest}",
        )


def _read(path: Path, keys: int) -> dict[tuple[int, ...], float]:
    """Key columns -> seconds. Raises InputError naming the file and line."""
    times: dict[tuple[int, ...], float] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            if next(lines, [])[keys:] != ["ms_all_layers"]:
                raise InputError(
                    f"not a table of step times: its header must be {keys} key column(s), then ms_all_layers", file=path
                )
            for number, cells in enumerate(lines, start=2):
                try:
                    key = tuple(int(cell) for cell in cells[:keys])
                    (ms,) = cells[keys:]
                    times[key] = float(ms) / 1e3
                except ValueError:
                    raise InputError(
                        f"cannot read {','.join(cells)!r}",
                        file=path,
                        line=number,
                        hint=f"expected {keys} integer(s) and a number of milliseconds",
                    ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", file=path) from error
    if not times:
        raise InputError("has no rows", file=path)
    return times


def _rows(times: Mapping[tuple[int, ...], float], table: Table) -> dict[int, list[float]]:
    """Decode times as one list per batch size, indexed by context / grid. Raises InputError for a gap."""
    rows: dict[int, list[float]] = {}
    for (batch_size, context), seconds in sorted(times.items()):
        row = rows.setdefault(batch_size, [])
        if context != len(row) * table.context_grid:
            raise InputError(
                f"batch_size {batch_size}: the row after context {(len(row) - 1) * table.context_grid} is {context}",
                file=table.decode_csv,
                hint=f"contexts must run from 0 in steps of context_grid = {table.context_grid}",
            )
        row.append(seconds)
    return rows


def _span(table: Mapping[int, object]) -> str:
    return f"{min(table)} to {max(table)}"
