"""``headrace up``: the stack in the foreground, until Ctrl-C."""

from collections.abc import Mapping

from api.local.by_hand import curl_commands, short
from api.local.errors import Interrupted
from api.local.logs import Terminal, indent
from api.local.stack import Running, StackOptions, running_stack

EXAMPLE = {"prompt": "Why does a job queue need a database?", "max_tokens": 64}


def up(options: StackOptions, environment: Mapping[str, str]) -> None:
    """Run the stack until a signal asks to stop. Raises LocalError when something cannot start."""
    terminal = Terminal()
    try:
        with running_stack(
            options,
            environment,
            show=terminal.show,
            progress=lambda text: terminal.show("headrace", text),
        ) as running:
            terminal.say(what_next(running))
            running.supervisor.run()
        terminal.show("headrace", "stopped")
    except Interrupted:
        terminal.show("headrace", "stopped before it was ready")
    finally:
        terminal.close()


def what_next(running: Running) -> str:
    """What to type next, and where things are."""
    facts = [
        f"API docs   {running.api_url}/docs",
        f"Flower     {running.flower_url or 'off'}",
        f"Data       {short(running.data_dir)} (logs in {short(running.data_dir / 'logs')})",
        "Stop       Ctrl-C",
    ]
    commands = curl_commands(running.api_url, running.key_file, EXAMPLE)
    return "\n".join(
        [
            "",
            "  Headrace is ready. Submit a job, and read its answer with the id that comes back:",
            "",
            indent(commands),
            "",
            indent(facts, "  "),
            "",
        ]
    )
