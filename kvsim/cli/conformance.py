"""``kvsim conformance``: is a preset the engine that it claims to be?"""

from __future__ import annotations

import click


@click.command
@click.argument("folder", metavar="DIR")
@click.option("--mode", type=click.Choice(["both", "step", "leap"]), default="both", help="How the run advances.")
@click.option("--case", "names", metavar="NAME", multiple=True, help="Only this recording of DIR. Repeatable.")
def conformance(folder: str, mode: str, names: tuple[str, ...]) -> int:
    """Replay the recordings of vLLM's scheduler in DIR and print where a run first differs.

    DIR is a recording, or a folder of them. In step mode every field of every step is compared; in leap mode every
    field where something changes, and that nothing does in between; in both what became of every request. Exit code 0
    if all are equal, 1 if one is not or cannot be replayed, 2 for a bad folder.
    """
    from pathlib import Path

    from kvsim.core.errors import InputError
    from kvsim.testing.conformance import Mode, cases, compare, load

    modes: tuple[Mode, ...] = ("step", "leap") if mode == "both" else ("step",) if mode == "step" else ("leap",)
    found = cases(Path(folder))
    unknown = sorted(set(names) - {path.name for path in found})
    if unknown:
        known = ", ".join(path.name for path in found)
        raise InputError(f"no recording {', '.join(unknown)} in it", file=folder, hint=f"there are: {known}")
    counts = {"equal": 0, "different": 0, "not modelled": 0}
    for path in found:
        if names and path.name not in names:
            continue
        recording = load(path)
        lacking = recording.not_modelled
        if lacking:
            counts["not modelled"] += 1
            click.echo(f"{recording.name}: not modelled: {', '.join(lacking)}")
            continue
        equal = True
        for each in modes:
            comparison = compare(recording, each)
            equal &= comparison.difference is None
            verdict = "equal" if comparison.difference is None else "DIFFERENT"
            click.echo(f"{recording.name}: {each}: {comparison.compared}: {verdict}")
            for line in comparison.difference.lines() if comparison.difference else ():
                click.echo(f"  {line}")
        counts["equal" if equal else "different"] += 1
    click.echo(", ".join(f"{count} {what}" for what, count in counts.items() if count or what == "equal"))
    return 0 if counts["equal"] == sum(counts.values()) else 1
