"""Write a generated trace: ``python -m kvsim.workload.generate KIND --out FILE``.

python -m kvsim.workload.generate burstgpt-like --start-day 9 --rows 2000 --seed 1 --out burstgpt_like.csv
python -m kvsim.workload.generate chat-sessions --sessions 100 --seed 1 --out chat_sessions.csv
python -m kvsim.workload.generate lognormal-poisson --rows 10000 --rate 5.8 --seed 1 --out w.parquet
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kvsim.core.errors import InputError
from kvsim.workload.generate.burstgpt import BurstGPTRows, burstgpt_like_days, write_burstgpt_csv
from kvsim.workload.generate.recipes import chat_sessions, lognormal_poisson
from kvsim.workload.writers import write_plain_csv, write_plain_parquet


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one trace, as the command line says. Returns the exit code: 0, or 2 for a mistake in the arguments."""
    parser = argparse.ArgumentParser(prog="python -m kvsim.workload.generate", description="Write a synthetic trace.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    burst = kinds.add_parser("burstgpt-like", help="rows in the format and with the statistics of BurstGPT_1")
    burst.add_argument(
        "--days", type=int, default=None, help="default 61, as BurstGPT_1; with --rows, as many as it takes"
    )
    burst.add_argument("--rows", type=int, default=None, help="stop after so many")
    burst.add_argument("--start-day", type=int, default=0, help="the first 9 days are conversation alone (default 0)")
    burst.add_argument("--start-hour", type=int, default=0, help="hour of the day at which it begins")
    burst.add_argument("--rate", type=float, default=1.0, help="multiple of BurstGPT_1's rows (default 1)")
    chat = kinds.add_parser("chat-sessions", help="conversations with think times, history growing")
    chat.add_argument("--sessions", type=int, default=100)
    poisson = kinds.add_parser("lognormal-poisson", help="Poisson arrivals, lognormal lengths")
    poisson.add_argument("--rows", type=int, default=10_000)
    poisson.add_argument("--rate", type=float, default=5.8, help="requests per second (default 5.8)")
    for kind in (burst, chat, poisson):
        kind.add_argument("--seed", type=int, default=0)
        kind.add_argument("--out", type=Path, required=True, help="file to write; .parquet gives Parquet")
    given = parser.parse_args(arguments)

    parquet = given.out.suffix == ".parquet"
    try:
        if given.seed < 0:
            raise InputError(f"{given.seed} is not a seed", key="--seed", hint="allowed: whole numbers from 0")
        if given.kind == "burstgpt-like":
            if parquet:
                raise InputError("burstgpt-like writes CSV", key="--out", hint="name a .csv file")
            if given.rows is not None and given.rows < 1:
                raise InputError(f"{given.rows} is too few", key="rows", hint="allowed: whole numbers from 1")
            most = 61 if given.rows is None else 10**6
            days = burstgpt_like_days(
                most if given.days is None else given.days,
                start_day=given.start_day,
                start_hour=given.start_hour,
                rate=given.rate,
                seed=given.seed,
            )
            write_burstgpt_csv(_first(days, given.rows), given.out)
            return 0
        if given.kind == "chat-sessions":
            trace = chat_sessions(given.sessions, seed=given.seed)
        else:
            trace = lognormal_poisson(given.rows, given.rate, seed=given.seed)
        (write_plain_parquet if parquet else write_plain_csv)(trace, given.out)
    except (InputError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def _first(parts: Iterator[BurstGPTRows], rows: int | None) -> Iterator[BurstGPTRows]:
    """The parts up to the row with this number."""
    left = rows
    for part in parts:
        yield part[slice(None, left)]
        if left is not None:
            left -= len(part)
            if left <= 0:
                return


if __name__ == "__main__":
    sys.exit(main())
