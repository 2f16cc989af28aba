"""The console script ``headrace``: what must be in place before anything else is imported."""


def main() -> None:
    """Run a command; Ctrl-C ends it with 130, from the first moment on."""
    try:
        from api.cli import main as run  # here, for it takes most of a second, in which Ctrl-C may come
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
