"""The console script ``headrace``: it handles Ctrl-C before anything else is imported."""


def main() -> None:
    """Run a command. Ctrl-C ends it with 130, also while it is imported."""
    try:
        from api.cli import main as run  # here: this import takes long enough for a Ctrl-C
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()
