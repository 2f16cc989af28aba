"""What can go wrong in the engine."""

from models.errors import FailureCode


class ModelError(Exception):
    """A model file cannot be served; the message is for people."""


class EngineError(Exception):
    """One generation cannot be done or finished; ``code`` says why in the taxonomy of attempts."""

    def __init__(self, code: FailureCode, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s
