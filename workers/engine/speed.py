"""How fast an engine writes. Pure."""

_HALF_LIFE_S = 30.0


class Speed:
    """Tokens per second of work, over about the last minute of it."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    @property
    def tokens_per_s(self) -> float | None:
        return self._tokens / self._seconds if self._seconds else None

    def learn(self, tokens: int, took_s: float) -> None:
        """A step wrote so many tokens in so many seconds."""
        fade = 0.5 ** (took_s / _HALF_LIFE_S)
        self._tokens = self._tokens * fade + tokens
        self._seconds = self._seconds * fade + took_s
