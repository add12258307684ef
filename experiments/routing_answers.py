"""Stage 2 of ``routing.py``: do answers get better when the router chooses who gives them?

Some experts of the set are trained as ``aios hrm-hf train-expert`` would, on their passages alone
(nothing is validated on, for the questions are what is asked here). Every question is then put to
the base model and to every expert: loss of the reference answer, and whether it is what the model
would write. From these come the arms:

- ``base``: no expert; ``single``: always the expert with the lowest loss on the development
  questions of all experts;
- ``routed``: the router at the defaults; ``mixed``: the same with up to two experts, their updates
  added with the router's weights;
- ``oracle``: the expert that learnt the passage, and the base model out of domain.

Loss by the text of the question is recorded too, so that the signal ``loss`` is measured.

One JSON line a question and model goes to ``results/routing_answers.jsonl``; what is there is not
done again, so that the run can be stopped and started. The summary is
``results/routing_answers.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiments.routing_set import DOMAINS, Message, RoutingSet, profile_of

import aios
from aios.app.chat.routing import open_signals
from aios.app.experts.training import train_expert
from aios.app.models import load_trainer
from aios.core.config.schemas import Config
from aios.core.config.serving_schemas import RoutingConfig
from aios.core.data.probes import Probe, make_probes
from aios.core.evaluation.statistics import (
    Ratio,
    difference_interval,
    relative_change_interval,
)
from aios.core.experts.routing import Router
from aios.core.experts.routing_signals import LossSignal
from aios.core.files import append_jsonl, atomic_write_json
from aios.core.protocols import AdapterTrainer, LanguageModel
from aios.core.types import AdapterRef, Passage, ScoreRequest, content_hash
from aios.storage.experts import FileExpertStore

RESULTS = Path(__file__).parent / "results"
OUT_OF_DOMAIN = 40  # questions of other articles, of the test part
ARMS = ("base", "single", "routed", "mixed", "oracle")
BASE = ""

Chosen = tuple[tuple[str, float], ...]
Mixer = Callable[[Sequence[tuple[AdapterRef, float]], Path], AdapterRef]
Row = dict[str, Any]


def answers(
    made: RoutingSet,
    artifacts: Path,
    experts: int,
    passages: int,
    *,
    results: Path = RESULTS,
    overrides: Sequence[str] = (),
    model: LanguageModel | None = None,
    mixer: Mixer | None = None,
) -> str:
    """Trains, asks, and writes the summary; gives it as Markdown."""
    config = aios.load_config(
        f"paths.artifacts={json.dumps(str(artifacts))}",
        "training.validation_fraction=0",
        *overrides,
    )
    small = reduced(made, experts, passages)
    model = model or aios.load_model(config.model.name)
    store = FileExpertStore(artifacts / "experts", model.name)
    adapters = train_missing(config, small, store, model)
    asking = Asking(
        load_trainer(config, model),
        model,
        adapters,
        results / "routing_answers.jsonl",
        mixer or mixed_adapter,
        artifacts / "mixes",
    )
    report = summary(small, config, asking)
    atomic_write_json(results / "routing_answers.json", report)
    return table(report)


def reduced(made: RoutingSet, experts: int, passages: int) -> RoutingSet:
    """The first experts with some passages each, as many of one part as of the other.

    Of the messages, the questions about these passages and some out of domain stay.
    """
    part_of = {m.passage: m.part for m in made.messages}
    learnt: dict[str, tuple[Passage, ...]] = {}
    for name in list(DOMAINS)[:experts]:
        halves = [
            [p for p in made.passages[name] if part_of[p.id] == part] for part in ("dev", "test")
        ]
        learnt[name] = tuple(p for half in halves for p in half[: passages // 2])
    kept = {p.id for own in learnt.values() for p in own}
    inside = [m for m in made.messages if m.kind == "in" and m.passage in kept]
    outside = [m for m in made.of("test") if m.kind in ("near", "far")]
    outside.sort(key=lambda m: content_hash("routing-answers", m.passage, m.text))
    return RoutingSet(
        tuple(profile_of(name, own) for name, own in learnt.items()),
        learnt,
        (*inside, *outside[:OUT_OF_DOMAIN]),
        made.follow_ups,
    )


def train_missing(
    config: Config, small: RoutingSet, store: FileExpertStore, model: LanguageModel
) -> dict[str, AdapterRef]:
    """Trains the experts that the registry does not have; gives all adapters."""
    for profile in small.profiles:
        if store.get(profile.expert_id) is not None:
            continue
        data = config.paths.artifacts / f"{profile.expert_id}.jsonl"
        data.parent.mkdir(parents=True, exist_ok=True)
        own = small.passages[profile.expert_id]
        rows = [{"id": p.id, "title": p.title, "text": p.text} for p in own]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        train_expert(
            config,
            profile.expert_id,
            data,
            name=profile.name,
            description=profile.description,
            goals=profile.goals,
            overwrite=True,
            model=model,
        )
    return {p.expert_id: store.adapter(p.expert_id) for p in small.profiles}


class Asking:
    """Puts questions to the base model, to experts and to mixes; what was asked is kept.

    Args:
        trainer: Puts adapters on the model.
        model: The base model.
        adapters: The experts' adapters.
        record: The file of rows.
        mixer: Makes one adapter of several.
        mixes: Where these go.
    """

    def __init__(
        self,
        trainer: AdapterTrainer,
        model: LanguageModel,
        adapters: Mapping[str, AdapterRef],
        record: Path,
        mixer: Mixer,
        mixes: Path,
    ) -> None:
        self._trainer, self._model, self._adapters = trainer, model, adapters
        self._record, self._mixer, self._mixes = record, mixer, mixes
        self._rows: dict[tuple[str, str], Row] = {}
        if record.exists():
            for line in record.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self._rows[row["by"], row["probe"]] = row

    def ask(self, chosen: Chosen, messages: Sequence[Message]) -> list[Row]:
        """A row for each message: loss and tokens of the answer, loss of the question's text."""
        probes = [probe_of(message) for message in messages]
        by = self._key(chosen)
        missing = [probe for probe in probes if (by, probe.id) not in self._rows]
        if missing:
            model = self._attached(chosen)
            try:
                found = model.score([probe.request for probe in missing])
                texts = model.score([ScoreRequest("", probe.question) for probe in missing])
            finally:
                if chosen:
                    self._trainer.detach(model)
            rows: list[Row] = [
                {
                    "by": by,
                    "experts": [name for name, _ in chosen],
                    "probe": probe.id,
                    "question": probe.question,
                    "nll": -answer.logprob,
                    "tokens": answer.tokens,
                    "greedy": answer.greedy,
                    "text_loss": text.loss,
                }
                for probe, answer, text in zip(missing, found, texts, strict=True)
            ]
            append_jsonl(self._record, rows)
            self._rows.update({(by, row["probe"]): row for row in rows})
        return [self._rows[by, probe.id] for probe in probes]

    def _key(self, chosen: Chosen) -> str:
        """What a row depends on besides its question: base model, adapters, weights."""
        parts = [(self._adapters[name].digest, round(weight, 3)) for name, weight in chosen]
        return content_hash(self._model.digest, parts)

    def _attached(self, chosen: Chosen) -> LanguageModel:
        if not chosen:
            return self._model
        if len(chosen) == 1:
            return self._trainer.attach(self._adapters[chosen[0][0]])
        parts = [(self._adapters[name], weight) for name, weight in chosen]
        return self._trainer.attach(self._mixer(parts, self._mixes / self._key(chosen)))


def probe_of(message: Message) -> Probe:
    """A message as a question with its reference answer."""
    assert message.question is not None
    (probe,) = make_probes({message.passage: [message.question]})
    return probe


def summary(small: RoutingSet, config: Config, asking: Asking) -> dict[str, Any]:
    """Who answers in each arm, what that gives, and how good a signal the loss is."""
    names = [profile.expert_id for profile in small.profiles]
    dev, test = small.of("dev"), small.of("test")
    on_dev = {name: loss_of(asking.ask(((name, 1.0),), dev)) for name in names}
    best = min(names, key=lambda name: (on_dev[name], name))
    signals = open_signals(config)
    route = {k: Router(small.profiles, signals, rounded(config.routing, k)) for k in (1, 2)}
    everyone: dict[str, list[Chosen]] = {
        "base": [()] * len(test),
        "single": [((best, 1.0),)] * len(test),
        "routed": [coarse(route[1].route(m.text).chosen) for m in test],
        "mixed": [coarse(route[2].route(m.text).chosen) for m in test],
        "oracle": [((m.expert, 1.0),) if m.expert else () for m in test],
    }
    rows = {arm: asked_by(asking, chosen, test) for arm, chosen in everyone.items()}
    groups = {
        "in domain": [n for n, m in enumerate(test) if m.expert],
        "out of domain": [n for n, m in enumerate(test) if not m.expert],
        "all": list(range(len(test))),
    }
    return {
        "experts": {p.expert_id: len(p.passages) for p in small.profiles},
        "signals": [signal.name for signal in signals],
        "threshold": config.routing.threshold,
        "loss_on_dev": on_dev,
        "single": best,
        "mixes_of_two": sum(len(chosen) == 2 for chosen in everyone["mixed"]),
        "groups": {
            group: {
                arm: measured([rows[arm][n] for n in numbers], rows, numbers, test) for arm in ARMS
            }
            for group, numbers in groups.items()
            if numbers
        },
        "loss_signal": loss_signal(small, asking, dev, test),
    }


def rounded(settings: RoutingConfig, top_k: int) -> RoutingConfig:
    """The settings with another number of experts."""
    return settings.model_copy(update={"top_k": top_k})


def coarse(chosen: Chosen) -> Chosen:
    """Weights in tenths, so that few mixes have to be made; they still add up to 1."""
    if len(chosen) < 2:
        return tuple((name, 1.0) for name, _ in chosen)
    first = min(9, max(1, round(chosen[0][1] * 10))) / 10
    return ((chosen[0][0], first), (chosen[1][0], round(1 - first, 1)))


def asked_by(asking: Asking, everyone: Sequence[Chosen], messages: Sequence[Message]) -> list[Row]:
    """Each message put to those chosen for it; messages for the same ones at once."""
    rows: list[Row] = [{} for _ in messages]
    for chosen in sorted(set(everyone)):
        numbers = [n for n, own in enumerate(everyone) if own == chosen]
        found = asking.ask(chosen, [messages[n] for n in numbers])
        for n, row in zip(numbers, found, strict=True):
            rows[n] = row
    return rows


def measured(
    own: Sequence[Row],
    rows: Mapping[str, Sequence[Row]],
    numbers: Sequence[int],
    messages: Sequence[Message],
) -> dict[str, Any]:
    """Loss and accuracy of an arm, and its paired change against every other."""
    clusters = [messages[n].passage for n in numbers]
    result: dict[str, Any] = {
        "loss": loss_of(own),
        "accuracy": float(np.mean([row["greedy"] for row in own])),
        "n": len(own),
        "passages": len(set(clusters)),
    }
    for arm in ("base", "single", "oracle"):
        other = [rows[arm][n] for n in numbers]
        change = relative_change_interval(ratio(own), ratio(other), clusters)
        right = difference_interval(
            [float(r["greedy"]) for r in own], [float(r["greedy"]) for r in other], clusters
        )
        result[f"against_{arm}"] = {
            "loss": [change.estimate, change.low, change.high],
            "accuracy": [right.estimate, right.low, right.high],
        }
    return result


def ratio(rows: Sequence[Row]) -> Ratio:
    """Loss as a ratio of sums."""
    return Ratio([row["nll"] for row in rows], [row["tokens"] for row in rows])


def loss_of(rows: Sequence[Row]) -> float:
    """Mean loss of an answer token."""
    return float(sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows))


def loss_signal(
    small: RoutingSet, asking: Asking, dev: Sequence[Message], test: Sequence[Message]
) -> dict[str, float]:
    """How well the loss of the question's text alone chooses, its threshold from the dev part.

    The development part has no message out of domain here, so the threshold is the one that keeps
    nine in ten of its messages.
    """
    known: dict[tuple[str | None, str], float] = {}
    for name in (None, *(p.expert_id for p in small.profiles)):
        chosen = () if name is None else ((name, 1.0),)
        for message, row in zip([*dev, *test], asking.ask(chosen, [*dev, *test]), strict=True):
            known[name, message.text] = row["text_loss"]
    route = Router(
        small.profiles,
        [LossSignal(lambda expert, text: known[expert, text])],
        RoutingConfig(threshold=0.0),
    )

    def best(message: Message) -> tuple[float, str]:
        totals = route.route(message.text).totals
        return max((score, name) for name, score in totals.items())

    threshold = float(np.quantile([best(m)[0] for m in dev], 0.1))
    inside = [best(m) for m in test if m.expert]
    wanted = [m.expert for m in test if m.expert]
    outside = [best(m)[0] < threshold for m in test if not m.expert]
    return {
        "threshold": threshold,
        "in_domain": float(
            np.mean([s >= threshold and n == w for (s, n), w in zip(inside, wanted, strict=True)])
        ),
        "best_without_threshold": float(
            np.mean([n == w for (_, n), w in zip(inside, wanted, strict=True)])
        ),
        "rejection": float(np.mean(outside)) if outside else 0.0,
    }


def mixed_adapter(parts: Sequence[tuple[AdapterRef, float]], folder: Path) -> AdapterRef:
    """One LoRA adapter that does what several do together: their ranks one after the other.

    All must be of one rank, alpha and set of modules, as those of one recipe are. With A stacked
    and B, times its weight, set side by side, B·A is the weighted sum of the updates; rank and
    alpha grow alike, so that the scale alpha / rank stays.
    """
    import torch
    from safetensors.torch import save_file

    from aios.backends.adapter_files import adapter_ref, read_adapter

    read = [read_adapter(adapter.path)[1] for adapter, _ in parts]
    settings = json.loads((parts[0][0].path / "adapter_config.json").read_text(encoding="utf-8"))
    mixed = {
        name: torch.cat([weights[name] for weights in read], dim=0)
        if ".lora_A." in name
        else torch.cat([own[name] * w for own, (_, w) in zip(read, parts, strict=True)], dim=1)
        for name in read[0]
    }
    folder.mkdir(parents=True, exist_ok=True)
    changed = {"r": settings["r"] * len(parts), "lora_alpha": settings["lora_alpha"] * len(parts)}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **changed}))
    save_file({k: v.contiguous() for k, v in mixed.items()}, folder / "adapter_model.safetensors")
    return adapter_ref(folder, parts[0][0].base_digest)


def table(report: Mapping[str, Any]) -> str:
    """The summary as Markdown."""
    lines = []
    for group, arms in report["groups"].items():
        n = arms["base"]
        lines += [
            f"### {group}: {n['n']} questions about {n['passages']} passages",
            "",
            "| arm | loss | against base | against oracle | right | against base |",
            "|---|---|---|---|---|---|",
        ]
        for arm, found in arms.items():
            cells = [
                arm,
                f"{found['loss']:.3f}",
                "{:+.1%} ({:+.1%} … {:+.1%})".format(*found["against_base"]["loss"]),
                "{:+.1%} ({:+.1%} … {:+.1%})".format(*found["against_oracle"]["loss"]),
                f"{found['accuracy']:.1%}",
                "{:+.1%} ({:+.1%} … {:+.1%})".format(*found["against_base"]["accuracy"]),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    signal = report["loss_signal"]
    lines += [
        f"always-best expert: {report['single']}; {report['mixes_of_two']} questions had a mix",
        f"signal loss: in domain {signal['in_domain']:.1%} (without threshold "
        f"{signal['best_without_threshold']:.1%}), rejected {signal['rejection']:.1%}",
        "",
    ]
    return "\n".join(lines)
