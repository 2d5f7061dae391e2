"""The two ways a run ends on purpose.

`cli.main` prints either as one line and exits with code 2; anything else is a bug and keeps its traceback.
"""


class InputError(ValueError):
    """Bad input at the door. The message says what was wrong, the value seen, and what to write instead."""


class RunStopped(RuntimeError):
    """A run that must not go on (wrong weights in the sampler, NaN in the loss). The last checkpoint is kept.

    Args:
        message: what is said.
        everywhere: every process of the run raises it at once, so that it is enough if the first one says so.
    """

    def __init__(self, message: str, *, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere
