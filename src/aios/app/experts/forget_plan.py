"""What it takes to train an expert again without a passage.

Takes an expert and the id of a passage; gives a plan: what is there, what would be trained, who
else holds the passage. A passage is told by the digest of its text, so it is found in older
versions and other experts under any id. Nothing is written.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aios.app.edits.generation_plan import ignore_reject, read_input
from aios.app.edits.journal import file_digest
from aios.app.experts.publishing import with_recorded_settings
from aios.app.experts.registry import open_store, read_documents, require_dataset
from aios.core.config.schemas import Config
from aios.core.data.near_duplicates import jaccard
from aios.core.errors import AdapterMismatchError, StorageError, UsageError
from aios.core.experts import lineage
from aios.core.experts.provenance import Document, Documents, passage_digest
from aios.core.experts.registry import refuse_frozen
from aios.core.files import valid_id
from aios.core.protocols import LanguageModel
from aios.core.seal.generator_card import passage_hash
from aios.core.training.examples import passage_text
from aios.core.types import Passage
from aios.storage.expert_records import read_card
from aios.storage.expert_trash import ExpertTrash
from aios.storage.expert_versions import ExpertVersions
from aios.storage.experts import FileExpertStore
from aios.storage.generators import read_card as read_generator_card

_NAMED = 5


@dataclass(frozen=True, slots=True)
class ForgetPlan:
    """What forgetting a passage takes.

    Attributes:
        expert_id: The expert.
        passage: The passage's id, as given.
        documents: Ids of the passage, or of its parts, in the expert; empty where only older
            versions hold it: then nothing is to be trained, and the fields of a training say
            nothing.
        digests: Digests of their texts.
        versions: Numbers of older versions that hold it.
        unknown_versions: Numbers of older versions that do not say what they were made from.
        children: Experts below this one that hold it.
        other_experts: Other experts that hold it.
        trash: Entries of the trash that hold it.
        dataset: The file that is trained on.
        dataset_unchanged: Whether it is, byte by byte, the file of before.
        still_in_dataset: Whether the passage is in it.
        passages_left: Passages of it that stay.
        examples: Training examples that the expert was made of.
        examples_of_it: Of these, made of the passage.
        self_edits_of_it: Self-edits of the passage.
        near_duplicates: Ids of passages that stay and say nearly the same.
        restem: Whether ReST-EM is run again first.
        generator_knows: Whether the generator that wrote was optimised on the passage; None
            where there is none, or that cannot be told.
    """

    expert_id: str
    passage: str
    documents: tuple[str, ...]
    digests: tuple[str, ...]
    versions: tuple[int, ...]
    unknown_versions: tuple[int, ...]
    children: tuple[str, ...]
    other_experts: tuple[str, ...]
    trash: tuple[str, ...]
    dataset: Path | None = None
    dataset_unchanged: bool = False
    still_in_dataset: bool = False
    passages_left: int = 0
    examples: int = 0
    examples_of_it: int = 0
    self_edits_of_it: int = 0
    near_duplicates: tuple[str, ...] = ()
    restem: bool = False
    generator_knows: bool | None = None


@dataclass(frozen=True, slots=True)
class Retraining:
    """A plan with what carries it out.

    Attributes:
        plan: The plan.
        config: The expert's recorded settings over the machine's.
        only: Ids of the passages of the dataset that are trained on.
        use_self_edits: Whether the expert was trained on self-edits.
        forgotten: The passage, or its parts, as the dataset has them.
    """

    plan: ForgetPlan
    config: Config
    only: frozenset[str]
    use_self_edits: bool
    forgotten: tuple[Passage, ...]


def plan_retraining(
    config: Config,
    expert_id: str,
    passage: str,
    model: LanguageModel,
    *,
    dataset: Path | None = None,
) -> Retraining:
    """Plans the training of an expert without a passage.

    Args:
        config: The resolved config; what decides the training comes from the expert's card.
        expert_id: The expert.
        passage: A passage's id; a long passage's id means all of its parts.
        model: The expert's base model.
        dataset: The file that it was trained on, where it is not in its place any more.

    Raises:
        UnknownExpertError: There is no such expert.
        FrozenExpertError: It is frozen.
        AdapterMismatchError: The model is not its base model.
        UsageError: It was not trained on the passage, or cannot be trained again: its settings or
            documents were not recorded, or the file or other passages of it are gone.
        StorageError: A file of the registry is damaged.
    """
    store = open_store(config)
    refuse_frozen(store.require(expert_id), "trained")
    documents = read_documents(store.folder(expert_id))
    found = documents.of(passage)
    older = _older_versions(store, expert_id)
    everywhere = (*found, *(one for docs in older.values() for one in docs.of(passage)))
    if not everywhere:
        raise _not_there(expert_id, passage, documents)
    plan = _holders(store, expert_id, passage, everywhere, older)
    if not found:
        return Retraining(plan, config, frozenset(), use_self_edits=False, forgotten=())
    return _with_training(
        replace(plan, documents=tuple(one.id for one in found)),
        config,
        store,
        documents,
        model,
        dataset,
    )


def _with_training(
    plan: ForgetPlan,
    config: Config,
    store: FileExpertStore,
    documents: Documents,
    model: LanguageModel,
    dataset: Path | None,
) -> Retraining:
    """The plan with the training that it takes. Raises as `plan_retraining`."""
    card, digests = store.read_card(plan.expert_id), frozenset(plan.digests)
    job = with_recorded_settings(config, _settings(card, plan.expert_id))
    if card.get("base_digest") != model.digest:
        raise AdapterMismatchError(
            f"expert {plan.expert_id!r} was trained on another base model than {model.name}",
            "set model.name to the base model that `aios experts show` names",
        )
    path = require_dataset(dataset or Path(str(card.get("dataset", ""))), plan.expert_id)
    passages = tuple(read_input(job, path, model, ignore_reject))
    kept = _kept(passages, documents, digests, path, plan.expert_id)
    forgotten = tuple(one for one in passages if passage_digest(one) in digests)
    of_it = documents.of(plan.passage)
    plan = replace(
        plan,
        dataset=path,
        dataset_unchanged=file_digest(path) == card.get("dataset_sha256"),
        still_in_dataset=bool(forgotten),
        passages_left=len(kept),
        examples=sum(one.examples for one in documents.trained),
        examples_of_it=sum(one.examples for one in of_it),
        self_edits_of_it=sum(len(one.self_edits) for one in of_it),
        near_duplicates=_near_duplicates(kept, forgotten, job.data.near_duplicate_threshold),
        restem=card.get("restem") is not None,
        generator_knows=_generator_knows(job, forgotten),
    )
    only = frozenset(one.id for one in kept)
    writes = card.get("strategy") is not None
    return Retraining(plan, job, only, use_self_edits=writes, forgotten=forgotten)


def versions_that_hold(
    store: FileExpertStore, expert_id: str, passage: str, digests: Collection[str]
) -> tuple[int, ...]:
    """Numbers of the older versions of an expert that hold a passage."""
    older = _older_versions(store, expert_id)
    paths = {one.number: one.folder for one in ExpertVersions(store).list(expert_id)}
    return tuple(
        number
        for number, documents in older.items()
        if documents.hold(digests) or (not documents.known and _names_it(paths[number], passage))
    )


def trash_that_holds(store: FileExpertStore, digests: Collection[str]) -> tuple[str, ...]:
    """Names of entries of the trash that hold a passage, in a version of theirs or another."""
    found = []
    for entry in ExpertTrash(store).list():
        folders = [entry.folder / "expert", *(entry.folder / "versions").glob("*")]
        if any(read_documents(folder).hold(digests) for folder in folders if folder.is_dir()):
            found.append(entry.name)
    return tuple(found)


def _older_versions(store: FileExpertStore, expert_id: str) -> dict[int, Documents]:
    versions = ExpertVersions(store).list(expert_id)
    return {one.number: read_documents(one.folder) for one in versions if not one.current}


def _names_it(folder: Path, passage: str) -> bool:
    """Whether the card of a version without documents names a passage, as older ones do."""
    ids = read_card(folder).get("passages")
    return isinstance(ids, list) and any(
        isinstance(one, str) and Document(one, "").is_part_of(passage) for one in ids
    )


def _not_there(expert_id: str, passage: str, documents: Documents) -> UsageError:
    if not documents.known:
        return UsageError(
            f"it is not recorded which passages expert {expert_id!r} was trained on",
            "train it anew, on a file without the passage: aios hrm-hf train-expert --overwrite",
        )
    ids = [one.id for one in documents.trained]
    near = difflib.get_close_matches(passage, ids, n=3)
    remedy = f"did you mean {' or '.join(near)}?" if near else ""
    return UsageError(
        f"expert {expert_id!r} was not trained on a passage {passage!r}",
        remedy or f"`aios experts show {expert_id}` lists its passages",
    )


def _settings(card: Mapping[str, Any], expert_id: str) -> Mapping[str, Any]:
    settings = card.get("settings")
    if not isinstance(settings, Mapping):
        raise UsageError(
            f"the settings that expert {expert_id!r} was trained with are not recorded",
            "train it anew, on a file without the passage: aios hrm-hf train-expert --overwrite",
        )
    return settings


def _kept(
    passages: tuple[Passage, ...],
    documents: Documents,
    digests: Collection[str],
    path: Path,
    expert_id: str,
) -> tuple[Passage, ...]:
    """The passages that the expert was made from, without those of these digests.

    Raises:
        UsageError: Some are not in the file any more, or none is left.
    """
    wanted = {one.digest: one.id for one in documents.trained}
    wanted.update(dict.fromkeys(documents.held_out - wanted.keys(), "one that was held out"))
    for digest in digests:
        wanted.pop(digest, None)
    kept = tuple(one for one in passages if passage_digest(one) in wanted)
    missing = wanted.keys() - {passage_digest(one) for one in kept}
    if missing:
        names = sorted({wanted[digest] for digest in missing})
        shown = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
        raise UsageError(
            f"{len(missing)} of the {len(wanted)} other passages of expert {expert_id!r} are gone "
            f"from {path}, or have changed: {shown}",
            "name the file that it was trained on with --dataset, or train it anew: "
            "aios hrm-hf train-expert --overwrite",
        )
    if not kept:
        raise UsageError(
            f"expert {expert_id!r} was trained on nothing but this passage",
            f"delete it for good: aios experts delete {expert_id} --purge",
        )
    return kept


def _near_duplicates(
    kept: tuple[Passage, ...], forgotten: tuple[Passage, ...], threshold: float
) -> tuple[str, ...]:
    texts = [passage_text(one) for one in forgotten]
    return tuple(
        one.id
        for one in kept
        if any(jaccard(passage_text(one), text) >= threshold for text in texts)
    )


def _generator_knows(job: Config, forgotten: tuple[Passage, ...]) -> bool | None:
    """Whether the generator that is used again was optimised on the passage."""
    if job.seal.generator is None or not forgotten:
        return None
    with suppress(UsageError, StorageError):  # the training itself says what is wrong with it
        card = read_generator_card(job.seal.generator)
        if any(passage_hash(one) in card.passage_ids for one in forgotten):
            return True
        return False if len(card.passage_ids) == card.passages else None
    return None


def _holders(
    store: FileExpertStore,
    expert_id: str,
    passage: str,
    found: Collection[Document],
    older: Mapping[int, Documents],
) -> ForgetPlan:
    """The plan as far as it says who holds the passage."""
    digests = frozenset(one.digest for one in found)
    experts = {expert.expert_id: expert for expert in store.list()}
    others = []
    for name in filter(valid_id, experts):  # others have no folder
        documents = [read_documents(store.folder(name)), *_older_versions(store, name).values()]
        if name != expert_id and any(one.hold(digests) for one in documents):
            others.append(name)
    below = lineage.descendants(experts, expert_id)
    holding = versions_that_hold(store, expert_id, passage, digests)
    return ForgetPlan(
        expert_id=expert_id,
        passage=passage,
        documents=(),
        digests=tuple(sorted(digests)),
        versions=holding,
        unknown_versions=tuple(n for n in older if not older[n].known and n not in holding),
        children=tuple(name for name in others if name in below),
        other_experts=tuple(name for name in others if name not in below),
        trash=trash_that_holds(store, digests),
    )
