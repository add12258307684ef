"""What a generator learns from: prompts, and the self-edits that were worth writing.

Takes self-edits that were kept; gives training examples in which the model writes each one as the
answer to its strategy's prompt. The loss is on the answer and on the token that ends it. It is the
policy's own supervised step of ReST-EM (Singh et al. 2023, arXiv 2312.06585, algorithm 1, line 7;
SEAL, arXiv 2506.10943, section 3.1).

Deviation: SEAL learns the raw completion. Here the completion is written anew from the items of
the self-edit, since these were tried and helped: preambles, reasoning, lines that were cut off and
what the quality filter dropped are not learned.

A self-edit that was put together here (blanks in the passage's sentences, say) has no prompt of
its own. It is learned as the answer to a prompt that asks for its form, if that is among the
strategies: so a model that cannot write good questions yet can learn to from some that helped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aios.core.protocols import LanguageModel
from aios.core.seal.strategies import SelfEditStrategy, guarded_plug_in
from aios.core.types import Passage, SelfEdit, TrainExample


def policy_examples(
    model: LanguageModel,
    strategies: Mapping[str, SelfEditStrategy],
    edits: Iterable[SelfEdit],
    passages: Mapping[str, Passage],
) -> tuple[TrainExample, ...]:
    """Prompt and self-edit as training examples, with loss on the self-edit alone.

    Args:
        model: The model that is trained: its chat format, and its end of a turn.
        strategies: By name; every edit's is there.
        edits: What to learn. Left out are edits without an item, and those of strategies that
            cannot be learned (`SelfEditStrategy.learnable`) unless the one that they are
            `taught_as` is there.
        passages: By id; every edit's is there.

    Returns:
        An example for each edit that can be learned, in order. Its text is the prompt, the
        completion and the end of turn; its loss span is all but the prompt; its source is the
        name of the strategy whose prompt it is.

    Raises:
        BackendError: Another package's strategy failed.
        UsageError: A passage is empty.
    """
    end = model.end_of_turn
    examples = []
    for edit in edits:
        written = strategies[edit.strategy]
        can = written.learnable and written.writes
        strategy = written if can else strategies.get(written.taught_as)
        if strategy is None or not edit.items:
            continue
        with guarded_plug_in(strategy, "prompt_text"):
            prompt = strategy.prompt_text(model, passages[edit.passage_id])
        with guarded_plug_in(strategy, "format_completion"):
            text = prompt + strategy.format_completion(edit.items) + end
        spans = ((len(prompt), len(text)),)
        examples.append(TrainExample(text, spans, strategy.name, edit.passage_id))
    return tuple(examples)
