"""Azure LLM inference traces of May 2024: a week of code (16.8 M rows) and of conversation (27.3 M rows)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kvsim.core.trace import Trace
from kvsim.workload.readers.azure_2023 import Azure2023, read_azure
from kvsim.workload.readers.table import Quarantine, header, zoned


@dataclass(frozen=True)
class Azure2024:
    """``TIMESTAMP,ContextTokens,GeneratedTokens`` with a time zone: ``2024-05-10 00:00:00.009930+00:00``.

    Source: github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2024.md (Stojkovic et al., DynamoLLM,
    HPCA 2025).
    """

    columns: ClassVar[tuple[str, ...]] = Azure2023.columns

    def recognises(self, head: str) -> bool:
        """True if the three columns are there, no fourth, and the first stamp has a time zone."""
        names = header(head)
        return set(self.columns) <= set(names) and "NumImages" not in names and zoned(head, "TIMESTAMP")

    def read(self, path: Path, quarantine: Quarantine | None = None) -> Trace:
        """Every row becomes a request. Raises InputError for a bad cell, a length below 1, or times out of order."""
        return read_azure(path, quarantine, in_zone=True)
