"""Files that are whole or not there."""

import os
import secrets
from pathlib import Path
from typing import Final

TEMPORARY: Final = ".kvsim-tmp-"
"""Between a file's name and a random end: a file that is being written, or what a killed process has left of it."""


def write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name, then move into place. Raises OSError; what was there before then stays."""
    temporary = path.with_name(f"{path.name}{TEMPORARY}{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
