"""A tiny real model on disk: a random Llama of 0.1 M weights and its own tokenizer.

It knows nothing, but it is a transformers model in all respects, so what is true of it is true of
the arithmetic of any other. Its weights are drawn wide, so that its logits differ clearly and
depend on the context.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from aios.backends.models import ModelSource

CONTEXT = 256
VOCABULARY = 400
PASSAGES = Path(__file__).parents[1] / "examples" / "passages.jsonl"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `VOCABULARY` tokens, trained on the example passages."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = PASSAGES.read_text(encoding="utf-8").splitlines()
    tokenizer.train_from_iterator((json.loads(line)["text"] for line in lines), trainer)
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", **special}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **special
    )


def build_opening_tokenizer() -> PreTrainedTokenizerFast:
    """The same tokenizer, putting a beginning and an end token around every text."""
    tokenizer = build_tokenizer(bos_token="<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>",
        special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)],
    )
    return tokenizer


def build_llama(**settings: Any) -> LlamaForCausalLM:
    """A Llama of two layers with weights that depend on nothing but the settings."""
    config = LlamaConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT,
            "initializer_range": 0.2,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **settings,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return LlamaForCausalLM(config)


def build_tiny_model(folder: Path, **settings: Any) -> Path:
    """Writes the tiny model's folder, as transformers would, and returns it."""
    build_llama(**settings).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def source_of(folder: Path) -> ModelSource:
    """The folder as a base model named ``tiny``."""
    return ModelSource("tiny", "folder", folder, "d" * 64, CONTEXT, 0, 0)
