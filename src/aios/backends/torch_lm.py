"""Generation and scoring on transformers models, with or without an adapter.

`TorchLM` is a `core.protocols.LanguageModel`. Adapters are put on the same base weights by PEFT
and switched per call, so a base model and any number of experts (its views) share one copy of the
weights, which no call changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from aios.backends import chat_templates
from aios.backends.batching import ContinuousBatch
from aios.backends.chunked_loss import token_logprobs
from aios.backends.decoding import check_decodable
from aios.backends.devices import choose_device, choose_dtype, memory_errors, prepare_cpu
from aios.backends.encoding import Encoded, Row, encode, fill_rows, pack
from aios.backends.models import ModelSource
from aios.backends.packed_forward import examine, last_hidden_states, output_head
from aios.core.errors import BackendError, ModelError, NonFiniteError
from aios.core.streaming import Generated, collect
from aios.core.types import Completion, GenerationRequest, Score, ScoreRequest

if TYPE_CHECKING:
    from aios.backends.trials.bench import TorchTrialBench

_WIDTH = 32  # completions written at a time, where nobody says otherwise
_ROW_TOKENS = 512  # most tokens of a packed row; measured best on a CPU


@dataclass(slots=True)
class _Weights:
    """What all views of one base model share.

    Attributes:
        module: The transformers model, or the PeftModel around it while it has adapters.
        row_tokens: Most tokens of a packed row; None until the model has been examined.
        named: Adapters named so far.
        decodable: Whether the model has been found to write as it should.
        benches: Where temporary adapters are trained, by the adapter that they are over.
    """

    module: Any
    row_tokens: int | None = None
    named: int = 0
    decodable: bool = False
    benches: dict[str | None, TorchTrialBench] = field(default_factory=dict)


class TorchLM:
    """A transformers causal language model.

    Args:
        model: The model, which is frozen and put into evaluation mode.
        tokenizer: Its fast tokenizer.
        name: A short name for people.
        digest: Digest of weights and tokenizer; computed from them if not given.

    Raises:
        ModelError: The tokenizer is not a fast one, or the model has PEFT adapters already.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str | None = None,
        digest: str | None = None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"the tokenizer of {name or 'this model'} is not a fast one",
                "use a model with a tokenizer.json",
            )
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise ModelError(
                f"{name or 'this model'} has adapters on it",
                "give its base model, and attach the adapters to that",
            )
        self.tokenizer = tokenizer
        self._weights = _Weights(model)
        self._name = name or getattr(model.config, "name_or_path", "") or "model"
        self._digest = digest or _digest(model, tokenizer)
        self._adapter: str | None = None
        self._adapter_digest = ""
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)

    @classmethod
    def load(
        cls,
        source: ModelSource,
        *,
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
    ) -> TorchLM:
        """Loads a base model's folder; never runs code from it.

        Args:
            source: Where its files are.
            device: Where it runs; ``auto`` takes a GPU if there is one.
            dtype: Number format of the weights; ``auto`` goes by the device.
            threads: CPU threads; None for all cores.

        Returns:
            The model, on its device.

        Raises:
            ModelError: It cannot be loaded.
            UsageError: Unknown device or dtype.
        """
        prepare_cpu(threads)
        where = choose_device(device)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                source.path, local_files_only=True, trust_remote_code=False
            )
            with _no_progress_bar():
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    source.path,
                    dtype=choose_dtype(dtype, where),
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise _not_loadable(source, str(error)) from error
        model, report = loaded
        missing = sorted(report["missing_keys"])
        if missing:
            raise _not_loadable(source, f"{len(missing)} weights are missing, as {missing[0]}")
        with memory_errors(f"load {source.name}"):
            return cls(model.to(where), tokenizer, name=source.name, digest=source.digest)

    def view(self, adapter: str | None, adapter_digest: str = "") -> TorchLM:
        """The same weights with another adapter active (or none).

        Args:
            adapter: PEFT's name of an adapter that is on the weights.
            adapter_digest: That adapter's digest.
        """
        twin: TorchLM = object.__new__(TorchLM)
        twin.__dict__.update(self.__dict__)
        twin._adapter, twin._adapter_digest = adapter, adapter_digest
        return twin

    @property
    def model(self) -> Any:
        """The transformers model, or the PeftModel around it while it has adapters."""
        return self._weights.module

    @model.setter
    def model(self, module: Any) -> None:
        self._weights.module = module

    def new_adapter_name(self) -> str:
        """A name for PEFT that no adapter on these weights has had."""
        self._weights.named += 1
        return f"adapter-{self._weights.named}"

    @property
    def name(self) -> str:
        """A short name for people."""
        return self._name

    @property
    def digest(self) -> str:
        """Digest of the base model."""
        return self._digest

    @property
    def adapter_digest(self) -> str:
        """Digest of the active adapter; empty without one."""
        return self._adapter_digest

    @property
    def adapter(self) -> str | None:
        """PEFT's name of the active adapter."""
        return self._adapter

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and completion together."""
        settings = self.model.config.get_text_config()
        return int(getattr(settings, "max_position_embeddings", None) or 2048)

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, without special tokens."""
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def format_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Renders messages with the model's own chat template.

        Raises:
            UsageError: The template refuses them; many want a user to begin and the roles to take
                turns, and some know no system text.
            ModelError: The template itself is broken.
        """
        return chat_templates.render_prompt(self.tokenizer, messages)

    @property
    def end_of_turn(self) -> str:
        """The end token that the chat template puts behind an answer, or else the tokenizer's.

        Errors as `format_chat`.
        """
        return chat_templates.end_of_turn(self.tokenizer, self.end_tokens())

    def stream(
        self, requests: Iterable[GenerationRequest], *, width: int | None = None
    ) -> Iterator[Generated]:
        """Writes completions as there is room; see `core.protocols.LanguageModel.stream`."""
        self.require_decodable()
        batch = ContinuousBatch(
            self.tokenizer,
            self.generating,
            width=width or _WIDTH,
            context_length=self.context_length,
            end_tokens=self.end_tokens(),
        )
        yield from batch.run(requests)

    def require_decodable(self) -> None:
        """Finds out, once, whether the model writes as it should.

        Raises:
            ModelError: It does not (see `decoding.check_decodable`).
        """
        if not self._weights.decodable:
            with self.generating() as model:
                check_decodable(model)
            self._weights.decodable = True

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """Writes completions; see `core.protocols.LanguageModel.generate`."""
        return collect(self.stream(requests))

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Scores continuations; see `core.protocols.LanguageModel.score`.

        Requests are sorted by length and packed, so the order given does not matter for speed.
        """
        encoded = [self.encode_request(r) for r in requests]
        order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i].ids), encoded[i].ids))
        scores: list[Score | None] = [None] * len(encoded)
        row_tokens = self.row_tokens() if encoded else 0
        with self.active() as model, torch.inference_mode(), memory_errors("score"):
            for members in fill_rows((len(encoded[i].ids) for i in order), row_tokens):
                indices = [order[m] for m in members]
                row = pack([encoded[i] for i in indices], self.device)
                for i, score in zip(indices, _score_row(model, row, len(indices)), strict=True):
                    scores[i] = score
        return [s for s in scores if s is not None]

    def trial_bench(self) -> TorchTrialBench:
        """Where temporary adapters over this model are trained; the same at every call."""
        from aios.backends.trials.bench import TorchTrialBench  # which needs this module

        if self._adapter not in self._weights.benches:
            self._weights.benches[self._adapter] = TorchTrialBench(self)
        return self._weights.benches[self._adapter]

    def encode_request(self, request: ScoreRequest) -> Encoded:
        """Tokenises a score request; its continuation's tokens carry the labels.

        Raises:
            BackendError: Nothing to score, or more tokens than the context holds.
        """
        text = request.prompt + request.continuation
        encoded = encode(self.tokenizer, text, [(len(request.prompt), len(text))])
        if not encoded.label_count:
            raise BackendError(f"nothing to score in {request.continuation[:40]!r}")
        if len(encoded.ids) > self.context_length:
            raise BackendError(
                f"a text of {len(encoded.ids)} tokens does not fit the context of "
                f"{self.context_length}",
                "split it (data.max_passage_tokens)",
            )
        return encoded

    def row_tokens(self) -> int:
        """Most tokens of a packed row; 0 where every example needs a row of its own.

        Raises:
            ModelError: The model cannot be scored or trained (see `packed_forward.examine`).
        """
        if self._weights.row_tokens is None:
            with self.active() as model, memory_errors("examine the model"):
                self._weights.row_tokens = _ROW_TOKENS if examine(model) else 0
        return self._weights.row_tokens

    @contextmanager
    def generating(self) -> Iterator[Any]:
        """As `active`, with errors of memory as ours."""
        with self.active() as model, memory_errors("generate"):
            yield model

    @contextmanager
    def active(self) -> Iterator[Any]:
        """The module with this view's adapter on and all others off; must not be nested."""
        model = self.model
        adapters = model.peft_config if isinstance(model, PeftModel) else {}
        if self._adapter is not None and self._adapter not in adapters:
            raise BackendError(
                f"the adapter {self._adapter_digest[:12]} has been taken off {self._name}",
                "attach it again",
            )
        if not isinstance(model, PeftModel):
            yield model
        elif self._adapter is None:
            with model.disable_adapter():
                yield model.get_base_model()
        else:
            model.set_adapter(self._adapter)
            yield model.get_base_model()

    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a completion."""
        found: set[int] = set()
        for holder in (getattr(self.model, "generation_config", None), self.tokenizer):
            value = getattr(holder, "eos_token_id", None)
            found.update(value if isinstance(value, list) else [] if value is None else [value])
        return frozenset(found)


def _score_row(model: Any, row: Row, members: int) -> list[Score]:
    """Scores of the examples of a row, in order."""
    hidden = last_hidden_states(model, row)[row.predicting]
    logprobs, likeliest = (t.cpu() for t in token_logprobs(hidden, output_head(model), row.targets))
    if not bool(torch.isfinite(logprobs).all()):
        raise NonFiniteError("a log-probability is not finite", "try model.dtype: float32")
    scores = []
    for member in range(members):
        mine = row.owner.cpu() == member
        scores.append(
            Score(float(logprobs[mine].sum()), int(mine.sum()), bool(likeliest[mine].all()))
        )
    return scores


def _not_loadable(source: ModelSource, reason: str) -> ModelError:
    return ModelError(
        f"cannot load model {source.name!r} from {source.path}: {reason}",
        "check the folder, or pull the model again (aios models pull)",
    )


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Silences transformers' own bar, which our events and progress bars know nothing of."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _digest(model: Any, tokenizer: Any) -> str:
    """SHA-256 over names, shapes and bytes of all weights, and the tokenizer."""
    state = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        state.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        data: Tensor = tensor.detach().cpu().contiguous().reshape(-1)
        state.update(data.view(torch.uint8).numpy().tobytes())
    state.update(tokenizer.backend_tokenizer.to_str().encode())
    state.update(str(getattr(tokenizer, "chat_template", None)).encode())
    return state.hexdigest()
