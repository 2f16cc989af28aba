"""Whether the engine's greedy answers to many prompts at once are those of Llama, one at a time, up to ties.

    python -m benchmarks.engine_correctness [--model smollm2|gemma|<path>] [--prompts 32] [--tokens 64]

All prompts run together in one engine, and alone in ``Llama`` of the same build, with flash attention (as the engine)
and without (its default). Of every answer that differs, the first difference must be a numeric tie: computed anew in
several forms by llama.cpp (all at once, little by little, in company, ...), some form gives the engine's token too, or
the gap between the two tokens is below what gaps move by between these forms, as measured in this run.
"""

from argparse import Namespace
from collections.abc import Sequence

from benchmarks.engine_work import LocalModel, engine_parser, local_model, prepare_output, verdict
from benchmarks.ground import print_machine
from tests.workers.engine.reference import (
    WINDOW,
    Plain,
    Tokens,
    engine_answers,
    find_differences,
    make_prompts,
    measure_noise,
)
from workers.engine.engine import Engine, EngineOptions
from workers.engine.model import Model

NOISE_SAMPLES = 4


def answers_of_engine(model: LocalModel, options: Namespace) -> tuple[list[Tokens], list[Tokens]]:
    """The prompts, and the engine's answers to all of them at once."""
    loaded = Model.load(model.path, chat_template=model.chat_template)
    prompts = make_prompts(loaded, options.prompts)
    size = EngineOptions(
        parallel=options.prompts,
        cells=sum(len(prompt) + options.tokens for prompt in prompts),
        context_window=WINDOW,
        threads=options.threads,
    )
    engine = Engine(loaded, size)
    try:
        answers = engine_answers(engine, prompts, options.tokens)
        shared = engine.stats.shared_tokens
    finally:
        engine.close()
    lengths = sorted(map(len, prompts))
    print(f"{len(prompts)} prompts of {lengths[0]}-{lengths[-1]} tokens; {shared} tokens came from shared beginnings")
    return prompts, answers


def compare(plain: Plain, prompts: Sequence[Tokens], answers: Sequence[Tokens], tokens: int) -> bool:
    """Print how an engine's answers differ from those of ``Llama``; whether every difference is a tie."""
    expected = [plain.greedy(prompt, tokens) for prompt in prompts]
    differences = find_differences(plain, prompts, expected, answers)
    step = max(1, len(prompts) // NOISE_SAMPLES)
    sample = list(zip(prompts, expected, strict=True))[::step]
    noise = measure_noise(plain, ((prompt, right[: len(right) // 2]) for prompt, right in sample))
    print(f"  {len(prompts) - len(differences)} of {len(prompts)} equal, {sum(map(len, expected))} tokens")
    print(
        f"  the gap between the two likeliest tokens is usually {noise.usual_gap:.3f}; by the form of the computation"
        f" it moves by {noise.usual:.4f}, at most {noise.most:.4f}"
    )
    for one in differences:
        what = "a tie" if noise.ties(one) else "NO TIE"
        alone = ", and a form without the engine gives the engine's token too" if one.least_gap < 0 else ""
        print(
            f"  prompt {one.prompt} ({one.prompt_tokens} tokens) differs from token {one.position} on: {what},"
            f" gap {one.gap:.4f} ({one.least_gap:.4f} to {one.most_gap:.4f}){alone}",
            flush=True,
        )
    return all(map(noise.ties, differences))


def main() -> None:
    """Compare and print."""
    parser = engine_parser(__doc__)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64, help="the most that are generated for each")
    options = parser.parse_args()
    model = local_model(options.model)
    print_machine()
    prepare_output()
    prompts, answers = answers_of_engine(model, options)
    passed = True
    for flash in (True, False):
        print(f"{model.path.name}, Llama with flash attention {'on' if flash else 'off'}")
        with Plain(model.path, model.chat_template, flash_attention=flash, threads=options.threads) as plain:
            equal = compare(plain, prompts, answers, options.tokens)
        print(f"  every difference is a tie: {verdict(equal)}")
        passed &= equal
    if not passed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
