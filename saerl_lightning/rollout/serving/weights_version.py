"""Claim: the text that a run sets as its servers' weight version, so that two runs on one server notice each other."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from saerl_lightning.lock import Holder


@dataclass(frozen=True)
class Claim:
    """The process that sends a server its weights.

    Args:
        holder: Process of the run.
    """

    holder: Holder

    @classmethod
    def of_this_process(cls) -> Claim:
        """A new claim."""
        return cls(Holder.here())

    @classmethod
    def read(cls, version: str) -> Claim | None:
        """Reads a server's weight version; None if no run of ours has set it."""
        try:
            return cls(Holder(**json.loads(version)["run"]))
        except (ValueError, TypeError, LookupError, RecursionError):
            return None

    def version(self, number: int) -> str:
        """Text of a weight version: its number, and whose it is."""
        return json.dumps({"version": number, "run": asdict(self.holder)}, separators=(",", ":"))

    def is_same(self, version: str) -> bool:
        """Whether a weight version is of this claim."""
        return Claim.read(version) == self

    @property
    def who(self) -> str:
        """Names the process."""
        return f"process {self.holder.process} on {self.holder.host}"

    @property
    def is_held(self) -> bool:
        """Whether its process runs on this machine; one on another machine can't be seen from here."""
        return self.holder.is_near and not self.holder.is_gone
