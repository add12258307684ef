"""The exception tree: what each error means, who raises it, and who catches it.

::

    AIOSError                     anything a user can act on; carries a remedy
    ├── UsageError                wrong input, option or config: exit code 2
    │   ├── ConfigError           one or many bad config keys (all are listed together)
    │   ├── DataError             a file that cannot be read as passages
    │   ├── UnknownStrategyError  a strategy or prompt variable that is not known
    │   ├── ExpertExistsError     training an expert id that exists already
    │   ├── UnknownExpertError    an expert id that is not in the registry
    │   └── FrozenExpertError     training, changing or deleting a frozen expert
    ├── ModelError                a base model that is missing, broken or of the wrong kind
    │   └── AdapterMismatchError  an adapter made for another base model
    ├── BackendError              generation, scoring or training failed; may be retryable
    │   ├── OutOfMemoryError      the device's memory is spent
    │   ├── QueueFullError        as many texts wait to be written as may
    │   └── NonFiniteError        a loss or score is NaN or infinite
    ├── StorageError              disk full, no write access, a corrupt checkpoint or registry
    └── RunInterrupted            stopped on request, state kept: exit code 130

Two places catch them: a trial's boundary turns a `BackendError` into a `Failure`, and the command
line or web edge prints message and remedy and sets the exit code. Everything else propagates: it
is a bug.
"""

from __future__ import annotations


class AIOSError(Exception):
    """Base of all errors that a user can act on.

    Attributes:
        message: What went wrong and where, in one line.
        remedy: What to do about it, in one line; empty if the message says it.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message


class UsageError(AIOSError):
    """Wrong option, config or input. Raised before any work; exit code 2."""

    exit_code = 2


class ConfigError(UsageError):
    """One or many config keys are wrong; the message lists every one."""


class DataError(UsageError):
    """An input file cannot be read as passages, or holds none."""


class UnknownStrategyError(UsageError):
    """A strategy or a prompt variable is not known; the message lists the known ones."""


class ExpertExistsError(UsageError):
    """The expert id is taken; `--overwrite` or `--resume` was not given."""


class UnknownExpertError(UsageError):
    """No expert with this id is in the registry."""


class FrozenExpertError(UsageError):
    """The expert is frozen: it is not trained, changed or deleted before it is unfrozen."""


class ModelError(AIOSError):
    """A base model is missing, broken, or not of a kind that can be loaded."""


class AdapterMismatchError(ModelError):
    """An adapter was trained on another base model than the one it is put on."""


class BackendError(AIOSError):
    """Generation, scoring or training failed.

    Attributes:
        retryable: Whether the same call may succeed when tried again.
    """

    def __init__(self, message: str, remedy: str = "", *, retryable: bool = False) -> None:
        super().__init__(message, remedy)
        self.retryable = retryable


class OutOfMemoryError(BackendError):
    """The device has no memory left for this batch."""


class QueueFullError(BackendError):
    """As many texts wait to be written as may.

    Attributes:
        retry_after: Seconds after which to try again, as estimated.
    """

    def __init__(self, message: str, remedy: str = "", *, retry_after: float = 1.0) -> None:
        super().__init__(message, remedy, retryable=True)
        self.retry_after = retry_after


class NonFiniteError(BackendError):
    """A loss or a score is NaN or infinite; it is never used as a number."""


class StorageError(AIOSError):
    """The disk is full or read-only, or a file that we wrote is corrupt."""


class RunInterrupted(AIOSError):
    """The run was asked to stop; its state is kept. The remedy is the line to go on with."""

    exit_code = 130
