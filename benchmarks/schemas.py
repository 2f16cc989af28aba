"""What becomes of public JSON Schemas on the local engine, and how many jobs in a form a small model completes.

    python -m benchmarks.schemas --corpus FOLDER [--sample 1500] [--seed 1]
    python -m benchmarks.schemas --jobs 50

``FOLDER`` has JSON files of one of two forms. JSONSchemaBench's (its ``maskbench/data``): ``{"schema", "tests":
[{"data", "valid"}]}``. JSON-Schema-Test-Suite's (one of its drafts): a list of such objects. Each schema goes the way
of a job's: its grammar is built and tried in the child process, with its limits; then llama.cpp's sampler is asked,
token by token, whether that grammar takes each instance.
"""

import argparse
import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs

from models.catalog import load_catalog
from models.sources import resolve_source
from workers.engine.engine import Engine, EngineOptions
from workers.engine.gbnf_reader import read_grammar
from workers.engine.grammar_states import GrammarStates, TooManyPlacesError
from workers.engine.grammars import Found, Grammars
from workers.engine.model import Model
from workers.engine.sampling import Sampling
from workers.engine.sequence import Work
from workers.engine.vocabulary import Vocabulary, open_vocabulary

_HANGS_S = 30.0

JOBS: dict[str, tuple[Any, str]] = {  # Any: JSON Schemas
    "enum": (
        {"type": "object", "properties": {"mood": {"type": ["string", "null"], "enum": ["good", "bad", None]}}},
        "What is the mood of this text: 'I like the sun'?",
    ),
    "bounds 1..5": (
        {"type": "object", "properties": {"stars": {"type": "integer", "minimum": 1, "maximum": 5}}},
        "How many stars of five does a good book get?",
    ),
    "date pattern": (
        {"type": "object", "properties": {"day": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"}}},
        "When did the first man walk on the moon?",
    ),
    "recursive tree": (
        {
            "$defs": {
                "Node": {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string"},
                        "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
                    },
                    "required": ["name", "children"],
                }
            },
            "$ref": "#/$defs/Node",
        },
        "Describe a company's departments as a tree.",
    ),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A schema with texts that follow it or do not."""

    name: str
    schema: Any  # Any: a JSON Schema
    tests: list[tuple[str, bool]]


def read_cases(folder: Path) -> Iterator[Case]:
    """The cases of a corpus, in the order of their files."""
    for path in sorted(folder.rglob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for at, entry in enumerate(content if isinstance(content, list) else [content]):
            tests = [(json.dumps(test["data"], ensure_ascii=False), test["valid"]) for test in entry.get("tests", [])]
            yield Case(f"{path.stem}#{at}", entry["schema"], [test for test in tests if _is_text(test[0])])


def outcome(case: Case, found: Found | None, vocabulary: Vocabulary) -> str:
    """What became of a schema, by the instances that came with it: ``narrower`` when some that follow it are left out,
    ``wrong`` when one that does not gets through although the grammar is said to be exact."""
    if found is None:
        return "refused"
    try:
        states = GrammarStates(read_grammar(found.text), vocabulary.pieces)
        taken = [(_takes(states, text), valid) for text, valid in case.tests]
    except TooManyPlacesError:
        return "loosened"
    if any(takes and not valid for takes, valid in taken):
        return "wrong" if found.exact else "loosened"
    if not found.exact:
        return "loosened"
    return "exact" if all(takes for takes, valid in taken if valid) else "narrower"


def _takes(states: GrammarStates, text: str) -> bool:
    state = states.start
    for char in text:
        following = states.after(state, char)
        if following is None:
            return False
        state = following
    return state.ends


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


async def measure(cases: list[Case], model: Path) -> Counter[str]:
    """How many schemas are converted how."""
    vocabulary, grammars = open_vocabulary(model), Grammars()
    counts: Counter[str] = Counter()
    try:
        for case in cases:
            form = {"type": "json_schema", "json_schema": {"name": "n", "schema": case.schema}}
            try:
                found = await asyncio.wait_for(grammars.find("benchmark", model, form), _HANGS_S)
                said = outcome(case, found, vocabulary)
            except TimeoutError:
                said = "hung"
            counts[said] += 1
            if said in ("wrong", "hung", "refused"):
                print(f"{said}: {case.name}")
    finally:
        await grammars.close()
    return counts


def report(counts: Counter[str]) -> None:
    """Print the shares."""
    whole = counts.total()
    for name in ("exact", "narrower", "loosened", "wrong", "refused", "hung"):
        print(f"{name:10} {counts[name]:6} {counts[name] / whole:7.1%}")
    print(f"of {whole} schemas; exactly or loosened: {(counts['exact'] + counts['loosened']) / whole:.1%}")


def run_jobs(number: int, model: Path, max_tokens: int) -> None:
    """Answer so many jobs of each form, and print how many are whole and follow their schema."""
    engine = Engine(Model.load(model), EngineOptions(parallel=8, cells=4096, context_window=512, threads=2))
    try:
        for name, (said, question) in JOBS.items():
            schema = {"required": list(said.get("properties", {})), **said}
            form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
            found = asyncio.run(_find(model, form))
            check = jsonschema_rs.validator_for(schema)
            prompt = engine.model.prompt([{"role": "user", "content": question}])
            tickets = [
                engine.submit(Work(prompt, max_tokens, Sampling(temperature=1.0, seed=seed), grammar=found.text))
                for seed in range(number)
            ]
            answers = [ticket.future.result() for ticket in tickets]
            whole = [answer for answer in answers if answer.finish_reason == "stop"]
            valid = sum(check.is_valid(json.loads(answer.text)) for answer in whole)
            tokens = sum(len(answer.tokens) for answer in answers) / number
            print(f"{name:15} {valid} of {number} completed, {tokens:.0f} tokens each")
    finally:
        engine.close()


async def _find(model: Path, form: dict[str, Any]) -> Found:  # Any: a JSON Schema
    grammars = Grammars()
    try:
        found = await grammars.find("benchmark", model, form)
        assert found is not None
        return found
    finally:
        await grammars.close()


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a folder of schemas with instances")
    parser.add_argument("--sample", type=int, default=1500, help="so many of them, at random; 0 for all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=0, help="so many jobs of each form")
    parser.add_argument("--max-tokens", type=int, default=200)
    asked = parser.parse_args()
    model = resolve_source(load_catalog().llms["smollm2-135m"].source or "")
    if asked.corpus is not None:
        cases = list(read_cases(asked.corpus))
        random.Random(asked.seed).shuffle(cases)
        report(asyncio.run(measure(cases[: asked.sample or None], model)))
    if asked.jobs:
        run_jobs(asked.jobs, model, asked.max_tokens)


if __name__ == "__main__":
    main()
