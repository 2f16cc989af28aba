"""Keys of providers: read from the environment or a file, kept in this process, shown to nobody."""

import os
import re

from models.catalog import LLM
from models.errors import ConfigurationError
from models.textfiles import read_text

_VISIBLE = re.compile(r"[\x21-\x7e]{1,4096}")


class Key:
    """The key of one LLM, if it has one; a file is read again after the provider refused what it held."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._value = read_key(llm)

    @property
    def value(self) -> str | None:
        return self._value

    def read_again(self) -> None:
        """Take the key that is there now, for it may have been changed; keeps the old one when none is."""
        try:
            self._value = read_key(self._llm)
        except ConfigurationError:
            return

    def __repr__(self) -> str:
        return "Key(...)"


def read_key(llm: LLM) -> str | None:
    """The key that an LLM's entry names, None when it names none.

    Raises ConfigurationError, which names the place and never what is in it.
    """
    if llm.api_key_env is not None:
        place, text = f"the environment variable {llm.api_key_env}", os.environ.get(llm.api_key_env, "")
    elif llm.api_key_file is not None:
        place = f"the file {llm.api_key_file}"
        try:
            text = read_text(llm.api_key_file.expanduser())
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigurationError(f"{place} with an API key cannot be read ({type(error).__name__})") from None
    else:
        return None
    key = text.strip()
    if not key:
        raise ConfigurationError(f"{place} holds no API key")
    if not _VISIBLE.fullmatch(key):
        raise ConfigurationError(f"{place} holds more than an API key: spaces, line ends or other characters")
    return key
