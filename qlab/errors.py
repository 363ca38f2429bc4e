"""Every error the lab raises on purpose.

    QLabError
    ├── UnsupportedModel   the network cannot be captured or quantized as asked
    ├── BadUpload          a file that cannot be read: broken, wrong kind, too large
    │   └── UnsafeFile     a file that would have run code or left its folder
    ├── DataMismatch       data that does not fit the model, or labels that do not fit the data
    ├── NonFinite          NaN or Inf where numbers are needed
    ├── NotObserved        a range is needed of a tensor that never held a value
    ├── InvalidConfig      a spec, mapping or experiment that cannot be carried out
    ├── RunFailed          a job that ended without a result
    └── Cancelled          a job that the user stopped

A message says what was found, where, and what to do. Pages show it in one box; `detail` is folded.
"""


class QLabError(Exception):
    """Base of all errors a user can act on. `detail` holds technical text that is shown folded."""

    def __init__(self, message: str, *, detail: str | None = None) -> None:
        super().__init__(message)
        self.detail = detail


class UnsupportedModel(QLabError):
    """The network cannot be captured or quantized as asked."""


class BadUpload(QLabError):
    """A file that cannot be read: broken, of a wrong kind, or too large."""


class UnsafeFile(BadUpload):
    """A file that would have run code, or that reaches outside its folder."""


class DataMismatch(QLabError):
    """Data that does not fit the model, or labels that do not fit the data."""


class NonFinite(QLabError):
    """NaN or Inf in data or activations. tensor: which one, first_sample: of the batch it was first seen in; None where
    that says nothing."""

    def __init__(
        self, message: str, *, detail: str | None = None, tensor: str | None = None, first_sample: int | None = None
    ) -> None:
        super().__init__(message, detail=detail)
        self.tensor, self.first_sample = tensor, first_sample


class NotObserved(QLabError):
    """A range is needed of a tensor that never held a value."""


class InvalidConfig(QLabError):
    """A spec, mapping or experiment that cannot be carried out."""


class RunFailed(QLabError):
    """A job that ended without a result."""


class Cancelled(QLabError):
    """A job that the user stopped."""
