"""The look of `--help`: groups of verbs by task, and tables of options that leave the text as much room as possible."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

START = "Start"
DISTIL = "Distil a teacher"
USE = "Use a student"
JUDGE = "Judge models"
RESEARCH = "Compare methods"
GROUPS = (START, DISTIL, USE, JUDGE, RESEARCH)
"""Groups of verbs, in the order in which `rmd --help` shows them; each verb names its own in `rmd.cli.app`."""


class Verbs(TyperGroup):
    """The verbs of `rmd`, in the order of their groups."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the verbs by group; within a group, in the order in which they were registered."""
        groups = {name: getattr(command, "rich_help_panel", None) for name, command in self.commands.items()}
        return sorted(groups, key=lambda name: GROUPS.index(groups[name]) if groups[name] in GROUPS else len(GROUPS))


def tidy(command: Any, parent: Any = None) -> None:
    """Drop from a command's help, and from the help of those below it, what takes room and tells a user nothing.

    That is the type of flags, which take no value; Python's types of arguments; and bounds, which the error about a
    value outside them states.

    Args:
        command: a command or a group, as `typer.main.get_command` returns it. It has no type here, since typer brings
            click's classes under names of its own, or needs click.
        parent: the context of the group above it, whose names of the help option it shares.
    """
    from typer import rich_utils

    rich_utils.RANGE_STRING = ""
    context = command.context_class(command, parent=parent, info_name=command.name, **command.context_settings)
    for parameter in command.get_params(context):
        if parameter.param_type_name == "argument":
            parameter.display_type_rich = _nothing
        elif parameter.is_flag and parameter.metavar is None:
            parameter.metavar = ""
    for below in getattr(command, "commands", {}).values():
        tidy(below, context)


def _nothing(ctx: object) -> None:
    """Return no type to display."""
