"""Sizes and rates as people write them: ``80GiB``, ``80GB``, ``900GB/s``."""

import re
from typing import Final

FACTORS: Final = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kMGT]?i?)B(/s)?\s*")


def parse_bytes(text: str, *, per_second: bool = False) -> int:
    """Whole bytes (or bytes per second) of a size with a unit. GB is 10^9 bytes, GiB is 2^30.

    Raises ValueError, worded for the person who wrote it.

    >>> parse_bytes("80GiB"), parse_bytes("80 GB"), parse_bytes("900GB/s", per_second=True)
    (85899345920, 80000000000, 900000000000)
    """
    found = _SIZE.fullmatch(text)
    per = "/s" if per_second else ""
    if found is None or found[2] not in FACTORS or (found[3] or "") != per:
        example = "25GB/s or 25e9" if per_second else "80GiB, 80GB"
        raise ValueError(f"{text!r} is not a number of bytes{' per second' * per_second}; write {example} or a number")
    return round(float(found[1]) * FACTORS[found[2]])
