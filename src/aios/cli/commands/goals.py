"""``aios goals``: what experts are for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from aios.cli.completing import EXPERTS, GOALS, completes
from aios.cli.lazy import Entry, LazyGroup
from aios.cli.options import Command, Common, common_options, load

if TYPE_CHECKING:
    from aios.core.experts.registry import Goal

_HERE = "aios.cli.commands.goals"
ENTRIES = {
    "add": Entry(f"{_HERE}:add", "Add a goal."),
    "list": Entry(f"{_HERE}:list_goals", "List the goals and the experts that serve them."),
    "remove": Entry(f"{_HERE}:remove", "Remove a goal, from its experts too."),
    "link-expert": Entry(f"{_HERE}:link_expert", "Let an expert serve a goal."),
    "unlink-expert": Entry(f"{_HERE}:unlink_expert", "Let an expert serve a goal no more."),
    "list-for-expert": Entry(f"{_HERE}:list_for_expert", "List the goals that an expert serves."),
}
_goal_argument = click.argument("goal", metavar="GOAL", shell_complete=completes(GOALS))
_expert_argument = click.argument("expert_id", metavar="EXPERT", shell_complete=completes(EXPERTS))


@click.group("goals", cls=LazyGroup, entries=ENTRIES)
def goals() -> None:
    """Say what experts are for.

    A goal is a line of text with an id. Messages are routed to experts by their goals, among
    other things. Experts carry the goal's text, so every reader of the registry sees it.
    """


@click.command(
    "add", cls=Command, short_help="Add a goal.", examples=('aios goals add "Answer about tides"',)
)
@click.argument("words", metavar="TEXT", nargs=-1, required=True)
@click.option("--id", "goal_id", metavar="ID", help="Its id; made of the first words by default.")
@common_options
def add(common: Common, words: tuple[str, ...], goal_id: str | None) -> None:
    """Add a goal; TEXT is one line, with or without quotes."""
    from aios.cli.rendering import write_json, write_line

    config = load(common).config
    from aios.app.experts.registry import open_goals

    goal = open_goals(config).add(" ".join(words), goal_id)
    write_json(goal) if common.json_output else write_line(f"{goal.id}: {goal.text}")


@click.command(
    "list",
    cls=Command,
    short_help="List the goals and the experts that serve them.",
    examples=("aios goals list",),
)
@common_options
def list_goals(common: Common) -> None:
    """List the goals and the experts that serve them."""
    from aios.cli.rendering import to_json, write_json, write_line, write_table

    config = load(common).config
    from aios.app.experts.browsing import goals_with_experts

    found = goals_with_experts(config)
    served = {goal.id: [one.expert_id for one in experts] for goal, experts in found}
    known = [goal for goal, _ in found]
    if common.json_output:
        write_json({"goals": [{**to_json(one), "experts": served[one.id]} for one in known]})
    elif known:
        rows = ((one.id, one.text, ", ".join(served[one.id])) for one in known)
        write_table(("id", "goal", "experts"), rows)
    else:
        write_line('no goals: add one with `aios goals add "TEXT"`')


@click.command(
    "remove",
    cls=Command,
    short_help="Remove a goal, from its experts too.",
    examples=("aios goals remove tides",),
)
@_goal_argument
@common_options
def remove(common: Common, goal: str) -> None:
    """Remove a goal, by id or text; the experts that served it lose it."""
    from aios.cli.rendering import write_json, write_line

    config = load(common).config
    from aios.app.experts.registry import open_goals

    removed, served = open_goals(config).remove(goal)
    if common.json_output:
        write_json({"goal": removed, "unlinked_experts": served})
    else:
        lost = f"; it was taken from {', '.join(served)}" if served else ""
        write_line(f"{removed.id} is removed{lost}")


@click.command(
    "link-expert",
    cls=Command,
    short_help="Let an expert serve a goal.",
    examples=("aios goals link-expert tides harbours",),
)
@_goal_argument
@_expert_argument
@common_options
def link_expert(common: Common, goal: str, expert_id: str) -> None:
    """Let an expert serve a goal, which is given by id or text."""
    from aios.cli.rendering import write_json, write_line

    config = load(common).config
    from aios.app.experts.registry import open_goals

    expert = open_goals(config).link(goal, expert_id)
    write_json(expert) if common.json_output else write_line(
        f"{expert_id} serves: {'; '.join(expert.goals)}"
    )


@click.command(
    "unlink-expert",
    cls=Command,
    short_help="Let an expert serve a goal no more.",
    examples=("aios goals unlink-expert tides harbours",),
)
@_goal_argument
@_expert_argument
@common_options
def unlink_expert(common: Common, goal: str, expert_id: str) -> None:
    """Let an expert serve a goal no more; the goal itself stays."""
    from aios.cli.rendering import write_json, write_line

    config = load(common).config
    from aios.app.experts.registry import open_goals

    expert = open_goals(config).unlink(goal, expert_id)
    write_json(expert) if common.json_output else write_line(
        f"{expert_id} serves: {'; '.join(expert.goals) or 'no goal'}"
    )


@click.command(
    "list-for-expert",
    cls=Command,
    short_help="List the goals that an expert serves.",
    examples=("aios goals list-for-expert harbours",),
)
@_expert_argument
@common_options
def list_for_expert(common: Common, expert_id: str) -> None:
    """List the goals that an expert serves; one given in its training alone has no id."""
    from aios.cli.rendering import write_json

    config = load(common).config
    from aios.app.experts.registry import open_goals

    found = open_goals(config).of_expert(expert_id)
    if common.json_output:
        write_json({"expert_id": expert_id, "goals": found})
    else:
        _show_goals(expert_id, found)


def _show_goals(expert_id: str, found: Sequence[Goal]) -> None:
    from aios.cli.rendering import write_line, write_table

    if found:
        write_table(("id", "goal"), ((one.id, one.text) for one in found))
    else:
        write_line(f"{expert_id} serves no goal")
