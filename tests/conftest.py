"""What every test may ask for: the folder with published data, where there is one."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Recordings, traces and profiles: ``KVSIM_DATA``, else ``../shared`` beside the project; skips without it."""
    folder = Path(os.environ.get("KVSIM_DATA") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"needs the data folder {folder} (set KVSIM_DATA)")
    return folder
