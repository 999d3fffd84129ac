"""Azure multimodal (LMM) inference trace, published 2025: a million requests of a week in October 2024."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kvsim.core.trace import Trace
from kvsim.workload.readers.azure_2023 import read_azure
from kvsim.workload.readers.table import Quarantine, header


@dataclass(frozen=True)
class Azure2025:
    """``TIMESTAMP,NumImages,ContextTokens,GeneratedTokens``; stamps as ``2024-10-15T12:00:00.269Z``.

    ``NumImages`` becomes ``images``; ``ContextTokens`` counts text and images. Source:
    github.com/Azure/AzurePublicDataset, AzureLMMInferenceDataset2025.md.
    """

    columns: ClassVar[tuple[str, ...]] = ("TIMESTAMP", "NumImages", "ContextTokens", "GeneratedTokens")

    def recognises(self, head: str) -> bool:
        """True if the four columns are there."""
        return set(self.columns) <= set(header(head))

    def read(self, path: Path, quarantine: Quarantine | None = None) -> Trace:
        """Every row becomes a request. Raises InputError for a bad cell, a length below 1, a negative number of
        images, or times out of order."""
        return read_azure(path, quarantine, in_zone=True, images=True)
