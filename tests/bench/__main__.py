"""Run the benchmark: each case in a process of its own, one JSON row per case.

``requests_per_s`` counts CPU seconds from the first event to the complete RunLog; ``process_s`` is the CPU time of
the whole process (imports, trace, loop, and for ``parquet_1e6`` reading and writing files);
``requests_per_bare_event`` is requests_per_s divided by the rate at which SimPy runs bare timeouts of one generator
process, measured before and after the loop in the same process, so it holds when the machine's speed drifts.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.bench.cases import CASES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--only", action="append", choices=sorted(CASES), help="run this case (repeatable)")
    parser.add_argument("--in-process", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_process:
        print(json.dumps(CASES[arguments.in_process](arguments.in_process)))
        return 0
    rows = []
    columns = ("case", "requests_per_s", "process_s", "peak_rss_bytes", "requests_per_bare_event")
    print(f"{columns[0]:<24}" + "".join(f"{name:>24}" for name in columns[1:]))
    for case in arguments.only or CASES:
        command = [sys.executable, "-m", "tests.bench", "--in-process", case]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append(row)
        print(
            f"{case:<24}{row['requests_per_s']:>24,.0f}{row['process_s']:>24.2f}{row['peak_rss_bytes']:>24,}"
            f"{row['requests_per_bare_event']:>24.4f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
