"""What keeps a Python process from pausing while requests or jobs wait."""

import gc


def keep_pauses_short() -> None:
    """Leave what is there by now out of garbage collections; call once a process has loaded what it will use.

    A full collection would look through all modules, and halt a busy process for as long as that takes.
    """
    gc.freeze()
