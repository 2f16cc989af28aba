"""Typer's groups and commands with Headrace's defaults: help without arguments, and flags shown without a type."""

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class _Command(TyperCommand):
    """A command whose help shows ``--json`` without a type, because a flag takes no value."""

    def get_params(self, ctx: Any) -> list[Any]:  # Any: Typer's own copy of Click has no public types
        return _without_types_of_flags(super().get_params(ctx))


class _Group(TyperGroup):
    """As :class:`_Command`, for a command that has subcommands."""

    def get_params(self, ctx: Any) -> list[Any]:  # Any: see above
        return _without_types_of_flags(super().get_params(ctx))


class Commands(typer.Typer):
    """A group of commands; all of Headrace's are made with it."""

    def __init__(self, **options: Any) -> None:  # Any: as Typer's own
        super().__init__(cls=_Group, no_args_is_help=True, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:  # Any: as Typer's own
        return super().command(name, cls=_Command, **options)


def _without_types_of_flags(params: list[Any]) -> list[Any]:  # Any: see above
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params
