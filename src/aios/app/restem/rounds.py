"""A ReST-EM run's directory as a `RoundStore`: journals, adapters, candidates and the state.

What a run has written, tried and trained is in its directory as soon as it is done; a run that
goes on finds it there. The state is one small record, committed last in every round.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from aios import __version__
from aios.app.composition import Run, build_prompts
from aios.app.edits.journal import JournalledEdits, generation_fingerprint
from aios.app.restem.records import read_state
from aios.core.config.schemas import Config
from aios.core.files import atomic_write_bytes, confined, encode_json, guarded
from aios.core.protocols import LanguageModel, ShouldStop
from aios.core.restem import ReSTEMState, RoundReport, TriedPassage, tried_to_json
from aios.core.seal.generator_card import (
    MOST_PASSAGE_IDS,
    GeneratorCard,
    RewardRule,
    RoundSummary,
    prompts_digest,
)
from aios.core.seal.passage_edits import PassageEdits
from aios.core.seal.restem_rules import ReSTEMSettings
from aios.core.seal.self_edit_generator import SelfEditGenerator
from aios.core.seal.strategies import get_strategy
from aios.core.types import AdapterRef, Passage, content_hash
from aios.storage.generators import write_generator
from aios.storage.journal import Journal


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run is on, as its state file says it.

    Attributes:
        dataset: The file of passages.
        train: Ids of the passages that are optimised on.
        held_out: Ids of the held-out passages.
        data_fingerprint: Hash of the passages optimised on, with their questions.
        passage_ids: `passage_hash` of the passages that are optimised on; for the card alone.
    """

    dataset: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    data_fingerprint: str
    passage_ids: tuple[str, ...] = ()


class RecordedRounds:
    """A `core.seal.restem_store.RoundStore` in a run directory.

    Args:
        config: The resolved config.
        run: The run.
        model: The base model.
        settings: How rounds are run; part of what results follow from.
        facts: What the run is on.
        should_stop: Asked before each passage that self-edits are written of.
    """

    def __init__(
        self,
        config: Config,
        run: Run,
        model: LanguageModel,
        settings: ReSTEMSettings,
        facts: RunFacts,
        should_stop: ShouldStop,
    ) -> None:
        self.config, self.run, self.model = config, run, model
        self.settings, self.facts, self.should_stop = settings, facts, should_stop
        self.path = run.directory.path

    def load(self) -> ReSTEMState | None:
        """The state committed last."""
        state = read_state(self.path).state
        return state if state.rounds else None

    def commit(self, state: ReSTEMState) -> None:
        """Replaces the state file."""
        facts = asdict(self.facts)
        del facts["data_fingerprint"], facts["passage_ids"]
        finished = bool(state.stopped)
        self.run.directory.commit_state({**state.to_json(), "finished": finished, **facts})
        shutil.rmtree(self.run.directory.checkpoints, ignore_errors=True)  # of rounds that are done

    def write(
        self, generator: SelfEditGenerator, passages: Sequence[Passage], stage: str
    ) -> Iterable[PassageEdits]:
        """Has self-edits written, journalled by passage.

        What failed is tried again when the run goes on, until the trials have begun: what these
        have said is of the self-edits that there were.
        """
        plan = [
            [p.id, [[part.strategy.name, part.num_edits] for part in generator.parts_of(p)]]
            for p in passages
        ]
        fingerprint = {
            **generation_fingerprint(self.config, self.facts.data_fingerprint, generator),
            "seed": generator.seed,
            "plan": content_hash(plan),
        }
        with Journal(self._inside(f"{stage}.edits.journal"), fingerprint) as journal:
            edits = JournalledEdits(
                generator,
                journal,
                self.should_stop,
                self.run.emit,
                try_again=not self._trials_of(stage).exists(),
            )
            for result, _ in edits.run(passages):
                yield result

    def records(self, stage: str) -> AbstractContextManager[Journal]:
        """What trials have said, journalled by batch."""
        trials = asdict(self.settings.trials)
        fingerprint = {
            "input": self.facts.data_fingerprint,
            "model": self.model.digest,
            **{f"trial {name}": value for name, value in trials.items()},
        }
        return Journal(self._trials_of(stage), fingerprint)

    def _trials_of(self, stage: str) -> Path:
        return self._inside(f"{stage}.trials.journal")

    def fit_folder(self, number: int) -> Path:
        """Checkpoints of a round's training."""
        return self.run.directory.checkpoints / f"generator-{number}"

    def publish(self, number: int, adapter: AdapterRef, state: ReSTEMState) -> str:
        """Puts a round's generator in place, with its card."""
        place = f"rounds/{number}/generator"
        write_generator(self._inside(place), adapter, self.card(number, adapter, state))
        return place

    def adapter(self, place: str, digest: str, base_digest: str) -> AdapterRef:
        """A generator of this run."""
        return AdapterRef(confined(self.path, place), digest, base_digest)

    def keep(self, number: int, part: str, tried: Sequence[TriedPassage]) -> None:
        """Writes ``rounds/<n>/<part>.jsonl``."""
        lines = [encode_json(tried_to_json(passage)) + b"\n" for passage in tried]
        atomic_write_bytes(self._inside(f"rounds/{number}/{part}.jsonl"), b"".join(lines))

    def card(self, number: int, adapter: AdapterRef, state: ReSTEMState) -> GeneratorCard:
        """The card of a round's generator: of the strategies, those that the model writes."""
        prompts = build_prompts(self.config)
        learned = {
            name: share
            for name, share in state.shares.items()
            if get_strategy(name, prompts).learnable
        }
        restem = self.config.restem
        last = state.rounds[-1]
        return GeneratorCard(
            base_model=self.model.name,
            base_digest=self.model.digest,
            adapter_digest=adapter.digest,
            strategies=learned,
            prompts_digest=prompts_digest(prompts, learned),
            round=number,
            rounds=tuple(map(_summary, state.rounds)),
            data_fingerprint=self.facts.data_fingerprint,
            passages=len(self.facts.train),
            reward=RewardRule(restem.reward, restem.baseline, last.threshold),
            recipe=self.settings.recipe,
            created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            aios_version=__version__,
            passage_ids=self.facts.passage_ids[:MOST_PASSAGE_IDS],
        )

    def _inside(self, name: str) -> Path:
        path = confined(self.path, name)
        with guarded("make", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _summary(report: RoundReport) -> RoundSummary:
    held_out = None if report.held_out is None else report.held_out.mean
    return RoundSummary(report.number, report.tried, report.rewarded, report.kept, held_out)
