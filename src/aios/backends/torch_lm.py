"""Generation and scoring on transformers models, with or without an adapter.

`TorchLM` is a `core.protocols.LanguageModel`. Adapters are put on the same base weights by PEFT
and switched per call, so a base model and any number of experts share one copy of the weights,
which no call changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from aios.backends.devices import choose_device, choose_dtype, prepare_cpu
from aios.backends.encoding import Encoded, Row, encode, fill_rows, pack
from aios.backends.models import ModelSource
from aios.backends.sampling import sample
from aios.core.errors import BackendError, ModelError, NonFiniteError, OutOfMemoryError
from aios.core.types import Completion, GenerationRequest, Score, ScoreRequest

_SCORE_ROW_TOKENS = 512  # tokens of one packed row when scoring; measured best on a CPU


class TorchLM:
    """A transformers causal language model.

    Args:
        model: The model, or the PeftModel that holds it.
        tokenizer: Its fast tokenizer.
        name: A short name for people.
        digest: Digest of the weights; computed from them if not given.
        adapter: Name of the PEFT adapter that is active in this view; None for the base model.
        adapter_digest: That adapter's digest.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str | None = None,
        digest: str | None = None,
        adapter: str | None = None,
        adapter_digest: str = "",
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"the tokenizer of {name or 'this model'} is not a fast one",
                "use a model with a tokenizer.json",
            )
        self.model = model
        self.tokenizer = tokenizer
        self._name = name or getattr(model.config, "name_or_path", "") or "model"
        self._digest = digest or _weights_digest(model)
        self._adapter = adapter
        self._adapter_digest = adapter_digest
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

        Raises:
            ModelError: It cannot be loaded.
            UsageError: Unknown device or dtype.
        """
        prepare_cpu(threads)
        where = choose_device(device)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.path, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                source.path,
                dtype=choose_dtype(dtype, where),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(
                f"cannot load model {source.name!r} from {source.path}: {error}",
                "check the folder, or pull the model again (aios models pull)",
            ) from error
        return cls(model.to(where), tokenizer, name=source.name, digest=source.digest)

    def view(self, adapter: str | None, adapter_digest: str = "") -> TorchLM:
        """The same weights with another adapter active (or none)."""
        twin: TorchLM = object.__new__(TorchLM)
        twin.__dict__.update(self.__dict__)
        twin._adapter, twin._adapter_digest = adapter, adapter_digest
        return twin

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
        return int(getattr(self.model.config, "max_position_embeddings", 2048))

    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, without special tokens."""
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def format_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Renders messages with the model's own chat template."""
        if not getattr(self.tokenizer, "chat_template", None):
            return "\n\n".join(m["content"] for m in messages) + "\n\n"
        text: str = self.tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=True
        )
        return text

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """Writes completions; see `core.protocols.LanguageModel.generate`."""
        with self.active() as model, _translated_errors("generate"):
            return sample(
                model,
                self.tokenizer,
                requests,
                context_length=self.context_length,
                end_tokens=self._end_tokens(),
                device=self.device,
            )

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Scores continuations; see `core.protocols.LanguageModel.score`.

        Requests are sorted by length and packed, so the order given does not matter for speed.
        """
        encoded = [self.encode_request(r) for r in requests]
        order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i].ids), encoded[i].ids))
        scores: list[Score | None] = [None] * len(encoded)
        with self.active(), torch.inference_mode(), _translated_errors("score"):
            lengths = (len(encoded[i].ids) for i in order)
            for members in fill_rows(lengths, _SCORE_ROW_TOKENS):
                indices = [order[m] for m in members]
                row = pack([encoded[i] for i in indices], self.device)
                for i, score in zip(indices, self._score_row(row, len(indices)), strict=True):
                    scores[i] = score
        return [s for s in scores if s is not None]

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

    def hidden_states(self, row: Row) -> Tensor:
        """Last hidden states of a packed row, ``[T, d]``."""
        out = self._bare().get_decoder()(
            input_ids=row.ids,
            position_ids=row.positions,
            attention_mask=row.mask,
            use_cache=False,
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def output_head(self) -> Tensor:
        """The output embedding's weight, ``[V, d]``."""
        weight: Tensor = self._bare().get_output_embeddings().weight
        return weight

    @contextmanager
    def active(self) -> Iterator[Any]:
        """The module with this view's adapter on and all others off."""
        if not isinstance(self.model, PeftModel):
            yield self.model
        elif self._adapter is None:
            with self.model.disable_adapter():
                yield self._bare()
        else:
            self.model.set_adapter(self._adapter)
            yield self._bare()

    def _bare(self) -> Any:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def _score_row(self, row: Row, members: int) -> list[Score]:
        logits = (self.hidden_states(row)[row.predicting] @ self.output_head().T).float()
        picked = logits.gather(1, row.targets[:, None])[:, 0] - torch.logsumexp(logits, dim=-1)
        right = logits.argmax(dim=-1) == row.targets
        if not bool(torch.isfinite(picked).all()):
            raise NonFiniteError("a log-probability is not finite", "try model.dtype: float32")
        scores = []
        for member in range(members):
            mine = row.owner.to(picked.device) == member
            scores.append(
                Score(float(picked[mine].sum()), int(mine.sum()), bool(right[mine].all()))
            )
        return scores

    def _end_tokens(self) -> frozenset[int]:
        found: set[int] = set()
        for holder in (getattr(self.model, "generation_config", None), self.tokenizer):
            value = getattr(holder, "eos_token_id", None)
            found.update(value if isinstance(value, list) else [] if value is None else [value])
        return frozenset(found)


@contextmanager
def _translated_errors(what: str) -> Iterator[None]:
    """Turns torch's out-of-memory errors into ours."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"out of memory while trying to {what}: {error}",
            "use a smaller seal.batch_size or training.batch_size",
            retryable=True,
        ) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(
            f"out of memory while trying to {what}",
            "close other programs, or use a smaller batch size",
            retryable=True,
        ) from error


def _weights_digest(model: Any) -> str:
    """SHA-256 over names, shapes and bytes of all weights."""
    state = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        state.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
