"""``aios experts``: the registry of experts, and their life from creation to the trash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from aios.cli.completing import EXPERTS, GOALS, completes
from aios.cli.lazy import Entry, LazyGroup
from aios.cli.options import Command, Common, common_options, load

if TYPE_CHECKING:
    from aios.app.experts.registry import ExpertView
    from aios.core.types import Expert
    from aios.storage.expert_trash import Trashed
    from aios.storage.experts import FileExpertStore

_HERE = "aios.cli.commands.experts"
_LIFE = "aios.cli.commands.experts_life"
_VERSIONS = "aios.cli.commands.experts_versions"
ENTRIES = {
    "list": Entry(f"{_HERE}:list_experts", "List the experts, or those in the trash."),
    "show": Entry(f"{_HERE}:show", "Show what is known of an expert."),
    "create": Entry(f"{_LIFE}:create", "Make an expert of an adapter in PEFT layout."),
    "delete": Entry(f"{_LIFE}:delete", "Move an expert to the trash."),
    "restore": Entry(f"{_LIFE}:restore", "Bring a deleted expert back."),
    "edit": Entry(f"{_LIFE}:edit", "Change an expert's name, description or category."),
    "activate": Entry(f"{_HERE}:activate", "Let an expert answer messages."),
    "deactivate": Entry(f"{_HERE}:deactivate", "Let an expert answer no messages."),
    "freeze": Entry(f"{_HERE}:freeze", "Protect an expert from changes."),
    "unfreeze": Entry(f"{_HERE}:unfreeze", "Allow changes of an expert again."),
    "set-parent": Entry(f"{_HERE}:set_parent", "Put an expert below another."),
    "clear-parent": Entry(f"{_HERE}:clear_parent", "Make an expert a root of the tree."),
    "versions": Entry(f"{_VERSIONS}:versions", "List the versions of an expert."),
    "rollback": Entry(f"{_VERSIONS}:rollback", "Make an older version the current one."),
    "forget": Entry(f"{_VERSIONS}:forget", "Train an expert again without a passage."),
    "export": Entry(f"{_LIFE}:export", "Give an expert to other programs."),
    "backup": Entry(
        "aios.cli.commands.experts_backup:backup", "Copy the record of answers and feedback."
    ),
}
_DOCUMENTS_SHOWN = 10

expert_argument = click.argument("expert_id", metavar="ID", shell_complete=completes(EXPERTS))


@click.group("experts", cls=LazyGroup, entries=ENTRIES)
def experts() -> None:
    """Look after experts.

    An expert is a small adapter (LoRA) over a base model. All are listed in
    artifacts/experts/registry.json, and each has a folder beside it that PEFT (Hugging Face's
    library of adapters) loads as it is.

    Train one with `aios hrm-hf train-expert`.
    """


@click.command(
    "list",
    cls=Command,
    short_help="List the experts, or those in the trash.",
    examples=("aios experts list", "aios experts list --active --category places --json"),
)
@click.option(
    "--active/--inactive",
    "active",
    default=None,
    help="Only those that answer messages, or do not.",
)
@click.option("--category", metavar="WORD", help="Only those of this category.")
@click.option(
    "--goal",
    metavar="GOAL",
    shell_complete=completes(GOALS),
    help="Only those that serve this goal, by id or text.",
)
@click.option("--base-model", metavar="NAME", help="Only those of this base model.")
@click.option(
    "--parent",
    metavar="ID",
    shell_complete=completes(EXPERTS),
    help="Only those right below this expert in the tree.",
)
@click.option("--trash", is_flag=True, help="List the deleted experts, which can be restored.")
@common_options
def list_experts(
    common: Common,
    active: bool | None,
    category: str | None,
    goal: str | None,
    base_model: str | None,
    parent: str | None,
    trash: bool,
) -> None:
    """List the experts, or those in the trash."""
    from aios.cli.rendering import write_json

    config = load(common).config
    from aios.app.experts import registry
    from aios.core.experts.registry import ExpertFilter

    if trash:
        deleted = registry.open_trash(config).list()
        write_json({"trash": deleted}) if common.json_output else _show_trash(deleted)
        return
    wanted = ExpertFilter(active, category, goal, base_model, parent)
    found = registry.list_experts(config, wanted)
    path = registry.open_store(config).path
    if common.json_output:
        write_json({"registry": path, "experts": found})
    else:
        _show_experts(found, wanted == ExpertFilter())


@click.command(
    "show",
    cls=Command,
    short_help="Show what is known of an expert.",
    examples=("aios experts show harbours", "aios experts show harbours --documents --json"),
)
@expert_argument
@click.option("--documents", is_flag=True, help="List all the passages, not the first ten.")
@common_options
def show(common: Common, expert_id: str, documents: bool) -> None:
    """Show what is known of an expert: its place, what it was made from, how well it does.

    The first passages that it was trained on are listed, each with the mean loss of its questions
    before and after the training, where its questions were used for validation.
    """
    from aios.cli.rendering import to_json, write_json

    config = load(common).config
    from aios.app.experts.registry import show_expert

    view = show_expert(config, expert_id)
    if not common.json_output:
        _show(view, all_documents=documents)
        return
    document = to_json(view)
    trained = document.pop("documents")["trained"]
    document["passages"] = len(trained)
    write_json({**document, "documents": trained} if documents else document)


def _change(common: Common, done: str, call: Any) -> None:
    """Makes a change in the registry and says what is so now."""
    from aios.cli.rendering import write_json, write_line

    config = load(common).config
    from aios.app.experts.registry import open_store

    expert: Expert = call(open_store(config))
    if common.json_output:
        write_json(expert)
    else:
        write_line(f"{expert.expert_id} {done}")


@click.command(
    "activate",
    cls=Command,
    short_help="Let an expert answer messages.",
    examples=("aios experts activate harbours",),
)
@expert_argument
@common_options
def activate(common: Common, expert_id: str) -> None:
    """Let an expert answer messages: it is offered in a chat and by the server."""
    _change(common, "is active", lambda store: store.set_active(expert_id, True))


@click.command(
    "deactivate",
    cls=Command,
    short_help="Let an expert answer no messages.",
    examples=("aios experts deactivate harbours",),
)
@expert_argument
@common_options
def deactivate(common: Common, expert_id: str) -> None:
    """Let an expert answer no messages; it stays as it is."""
    _change(common, "is not active", lambda store: store.set_active(expert_id, False))


@click.command(
    "freeze",
    cls=Command,
    short_help="Protect an expert from changes.",
    examples=("aios experts freeze harbours",),
)
@expert_argument
@common_options
def freeze(common: Common, expert_id: str) -> None:
    """Protect an expert from changes.

    A frozen expert is not trained, deleted, rolled back or given another parent. It answers as
    before, and may get children and goals.
    """
    _change(common, "is frozen", lambda store: store.set_frozen(expert_id, True))


@click.command(
    "unfreeze",
    cls=Command,
    short_help="Allow changes of an expert again.",
    examples=("aios experts unfreeze harbours",),
)
@expert_argument
@common_options
def unfreeze(common: Common, expert_id: str) -> None:
    """Allow changes of an expert again."""
    _change(common, "is not frozen", lambda store: store.set_frozen(expert_id, False))


@click.command(
    "set-parent",
    cls=Command,
    short_help="Put an expert below another.",
    examples=("aios experts set-parent harbours places",),
)
@expert_argument
@click.argument("parent_id", metavar="PARENT", shell_complete=completes(EXPERTS))
@common_options
def set_parent(common: Common, expert_id: str, parent_id: str) -> None:
    """Put an expert below another in the tree; the parent lists it as a child."""

    def link(store: FileExpertStore) -> Expert:
        return store.set_parent(expert_id, parent_id)

    _change(common, f"is below {parent_id}", link)


@click.command(
    "clear-parent",
    cls=Command,
    short_help="Make an expert a root of the tree.",
    examples=("aios experts clear-parent harbours",),
)
@expert_argument
@common_options
def clear_parent(common: Common, expert_id: str) -> None:
    """Make an expert a root of the tree."""
    _change(common, "is a root", lambda store: store.clear_parent(expert_id))


def _show_experts(found: Sequence[Expert], unfiltered: bool) -> None:
    from aios.cli.rendering import write_line, write_table
    from aios.cli.text import format_number

    if not found:
        hint = "train one with `aios hrm-hf train-expert`" if unfiltered else "with these filters"
        write_line(f"no experts: {hint}" if unfiltered else f"no experts {hint}")
        return
    write_table(
        ("id", "name", "category", "state", "parent", "loss", "answers", "trained"),
        (
            (
                one.expert_id,
                one.name,
                one.category,
                _state(one),
                one.parent_expert_id or "",
                format_number(one.performance_metrics.get("validation_loss")),
                f"{one.total_activations:,}",
                one.last_trained[:10],
            )
            for one in found
        ),
        numeric=(5, 6),
    )


def _state(expert: Expert) -> str:
    state = "active" if expert.is_active else "inactive"
    return f"{state}, frozen" if expert.is_frozen else state


def _show_trash(deleted: Sequence[Trashed]) -> None:
    from aios.cli.rendering import write_line, write_table
    from aios.cli.text import format_bytes

    if not deleted:
        write_line("the trash is empty")
        return
    write_table(
        ("id", "name", "deleted", "size", "entry"),
        (
            (
                one.expert.expert_id,
                one.expert.name,
                one.deleted_at[:16].replace("T", " "),
                format_bytes(one.bytes),
                one.name,
            )
            for one in deleted
        ),
        numeric=(3,),
    )


def _show(view: ExpertView, *, all_documents: bool) -> None:
    from aios.cli.rendering import write_facts, write_line
    from aios.cli.text import format_bytes

    expert, made = view.expert, view.provenance
    version = view.version
    older = f", {view.older_versions} older" if view.older_versions else ""
    write_facts(
        [
            ("expert", f"{expert.expert_id} ({expert.name})"),
            ("description", expert.description),
            ("category", expert.category),
            ("state", _state(expert)),
            ("goals", "; ".join(expert.goals)),
            ("parent", expert.parent_expert_id or ""),
            ("children", ", ".join(expert.child_expert_ids)),
            ("base model", f"{expert.model_architecture} ({_short(made.get('base_digest'))})"),
            ("adapter", _short(made.get("adapter_digest"))),
            ("version", f"{version.number}{older}" if version else "its folder is gone"),
            ("created", expert.created_at),
            ("trained", expert.last_trained),
            ("on", str(made.get("dataset") or ", ".join(expert.training_datasets))),
            ("from", str(made.get("created_from", ""))),
            ("recipe", f"{made['recipe']} ({made['recipe_source']})" if "recipe" in made else ""),
            ("self-edits", f"{made['edits']} ({made['strategy']})" if "strategy" in made else ""),
            ("seed", str(made.get("seed", ""))),
            ("validation loss", _losses(expert)),
            ("answers", f"{expert.total_activations:,}" if expert.total_activations else ""),
            ("folder", f"{view.folder} ({format_bytes(view.bytes)})"),
        ]
    )
    _show_documents(view, len(view.documents.trained) if all_documents else _DOCUMENTS_SHOWN)
    if not view.documents.known:
        write_line("it is not recorded which passages it was made from")


def _show_documents(view: ExpertView, most: int) -> None:
    from aios.cli.rendering import write_line, write_table
    from aios.cli.text import format_number

    trained = view.documents.trained
    if not trained:
        return
    write_line()
    write_table(
        ("passage", "self-edits", "examples", "loss before", "loss", "read from"),
        (
            (
                one.id,
                f"{len(one.self_edits):,}",
                f"{one.examples:,}",
                format_number(one.validation_loss_before),
                format_number(one.validation_loss),
                one.source,
            )
            for one in trained[:most]
        ),
        numeric=(1, 2, 3, 4),
    )
    if len(trained) > most:
        write_line(f"and {len(trained) - most:,} more; --documents lists all")


def _losses(expert: Expert) -> str:
    from aios.cli.text import format_number

    before = expert.performance_metrics.get("validation_loss_before")
    after = expert.performance_metrics.get("validation_loss")
    if after is None:
        return ""
    return f"{format_number(before)} before, {format_number(after)} now"


def _short(digest: object) -> str:
    return str(digest)[:12] if digest else ""
