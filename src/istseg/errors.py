"""Errors a user can act on.

Every message says what is wrong, where, and what to do. The command line prints them without a traceback and exits with
`EXIT_BAD_INPUT`, so that Nextflow can tell bad data (never retried) from a fault of the machine (retried).
"""

EXIT_BAD_INPUT = 65  # EX_DATAERR of sysexits.h
EXIT_OUT_OF_MEMORY = 247  # retried with more memory (conf/base.config)


class IstsegError(Exception):
    """Base of all errors with a message for the user."""


class InputError(IstsegError):
    """One or more problems of the input, all reported at once.

    Parameters
    ----------
    problems
        One sentence each: what, where, what to do.
    """

    def __init__(self, problems: str | list[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DeviceError(IstsegError):
    """The device that was asked for is not there."""


class DiskFullError(IstsegError):
    """There is no room, or no quota is left, for what a stage writes."""


def as_written(text: str, staged: object, written: str | None) -> str:
    """A message that names the path that a person wrote, not where a task sees the file or folder."""
    return text.replace(str(staged), written) if written else text
