"""The card of a generator: what it was trained from, on what, and how it did.

A *generator* is a LoRA adapter over a base model that has learned to write self-edits. Takes the
figures of the ReST-EM run that made it; gives a record that stands beside the adapter as
``generator.json``. Cards are read from folders that come from anywhere, so `from_json` accepts
known keys of the right types and bounded sizes, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from aios.core.errors import StorageError
from aios.core.files import encode_json
from aios.core.seal.prompt_templates import AUTO
from aios.core.seal.prompts import PromptBuilder
from aios.core.types import LoraRecipe, Passage, content_hash

CARD_VERSION: Literal[1] = 1
MOST_PASSAGE_IDS = 10_000


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds control characters")
    return text


def _strategy_name(text: str) -> str:
    if text == AUTO:
        raise ValueError("is no strategy's name")
    return _printable(text)


_Text = Annotated[str, Field(max_length=500), AfterValidator(_printable)]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16,128}$")]
_Strategy = Annotated[str, Field(pattern=r"^[^\s:,=]{1,128}$"), AfterValidator(_strategy_name)]
_Share = Annotated[float, Field(ge=0, le=1 + 1e-6)]  # sums and quotients are rounded
_Count = Annotated[int, Field(ge=0, le=10**12)]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """A round of the run that the generator comes from.

    Attributes:
        number: From 0, the untrained generator.
        tried: Candidates with a reward.
        rewarded: Of these, rewarded.
        kept: Candidates that were learned from.
        held_out: Mean improvement over the baseline on held-out passages; None without any.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    number: _Count
    tried: _Count
    rewarded: _Count
    kept: _Count
    held_out: float | None = None


@dataclass(frozen=True, slots=True)
class RewardRule:
    """What made a self-edit worth learning.

    Attributes:
        kind: What trials were judged by: ``loss``, ``perplexity`` or ``accuracy``.
        baseline: What a self-edit had to beat: ``passage`` or ``base``.
        threshold: The margin that decided in the last round; None where none did.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    kind: _Text
    baseline: _Text
    threshold: float | None


@dataclass(frozen=True, slots=True)
class GeneratorCard:
    """What is known of a generator.

    Attributes:
        base_model: Name of the base model.
        base_digest: Its digest; the adapter is for no other.
        adapter_digest: SHA-256 of the adapter's safetensors file.
        strategies: Each strategy's share of the candidates that a next round would make.
        prompts_digest: `prompts_digest` of the prompts that these strategies were asked by.
        round: Number of the round that made it, from 1.
        rounds: All rounds up to that one.
        data_fingerprint: Hash of the passages that it was optimised on.
        passages: How many these are.
        reward: What made a self-edit worth learning.
        recipe: How the adapter was trained.
        created_at: ISO 8601 time.
        aios_version: Version of the program that made it.
        passage_ids: `passage_hash` of the passages, of many the first `MOST_PASSAGE_IDS`: nobody
            is to examine the generator on them unawares.
        version: Version of this record's form.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    base_model: _Text
    base_digest: _Digest
    adapter_digest: _Digest
    strategies: Annotated[Mapping[_Strategy, _Share], Field(min_length=1, max_length=100)]
    prompts_digest: _Digest
    round: _Count
    rounds: Annotated[tuple[RoundSummary, ...], Field(max_length=1000)]
    data_fingerprint: _Text
    passages: _Count
    reward: RewardRule
    recipe: LoraRecipe
    created_at: _Text
    aios_version: _Text
    passage_ids: Annotated[tuple[_Digest, ...], Field(max_length=MOST_PASSAGE_IDS)] = ()
    version: Literal[1] = CARD_VERSION

    @property
    def strategy(self) -> str:
        """The strategy with the largest share; of equal ones the first."""
        return max(self.strategies, key=lambda name: self.strategies[name])

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: object, where: str = "the generator's card") -> GeneratorCard:
        """Reads what `to_json` gave.

        Args:
            record: A JSON value.
            where: What it was read from, for messages.

        Raises:
            StorageError: It is no card, or of a newer form.
        """
        version = record.get("version") if isinstance(record, dict) else None
        if type(version) is int and version > CARD_VERSION:
            raise StorageError(
                f"{where} has version {version}, which this program does not know",
                "update AI-OS, or use a generator of your own",
            )
        try:
            return _adapter().validate_json(encode_json(record), strict=True)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            place = ascii(".".join(map(str, fault["loc"])))[1:-1][:100]
            raise StorageError(
                f"{where} is not valid: {place or 'the whole'}: {fault['msg']}",
                "restore the generator's folder from a copy, or train it again",
            ) from error


@cache
def _adapter() -> TypeAdapter[GeneratorCard]:
    return TypeAdapter(GeneratorCard)


def passage_hash(passage: Passage) -> str:
    """Hash of a passage's title and text, whatever id its file gives it."""
    return content_hash("passage", passage.title, passage.text)


def prompts_digest(prompts: PromptBuilder, strategies: Iterable[str]) -> str:
    """Hash of the prompt templates of strategies, in any order.

    A generator writes well in answer to the prompts that it was trained with. Names without a
    template count by themselves; the values of variables do not count.

    Args:
        prompts: Where prompts come from.
        strategies: Names.
    """
    known = set(prompts.strategies)
    return content_hash(
        "prompts",
        [
            [name, asdict(prompts.template(name)) if name in known else None]
            for name in sorted(set(strategies))
        ],
    )
