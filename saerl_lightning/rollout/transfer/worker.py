"""Worker: methods that vLLM's worker processes get by `--worker-extension-cls`, called over HTTP by the trainer."""

from __future__ import annotations

from pathlib import Path


class Worker:
    """Says whether a server sees a file that the trainer wrote. vLLM adds its methods to its own worker's."""

    def read_probe(self, path: str) -> str:
        """Reads a probe of FileTransfer; "" if it is not there. No other file is read.

        Args:
            path: Path of the file.
        """
        probe = Path(path)
        return probe.read_text(errors="replace")[:64] if probe.name == "probe" and probe.is_file() else ""
