"""What of a conversation is worth learning: the statements in it, as passages.

Takes messages (``role``, ``content``); gives a few short passages, those that say the most first.
A passage is a run of neighbouring statements of one message. Questions, greetings, thanks and
commands are left out; of "Please remember that my dog is called Rufus" the statement stays. Rules
only, no model: what is learned was said, word for word. The word lists are English; in other
languages questions are still left out by their mark, and the rest counts as statements.

How much a passage says is counted in names, numbers and dates (`aios.core.seal.answer_spans`), and
in statements of a speaker about themselves. A text without any of them, and without a phrase that
could be asked for, is no passage.

Everything in a conversation is hostile: what is read of it, and what is given, is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from aios.core.data.splitting import split_passage, split_sentences
from aios.core.seal.answer_spans import find_answer_spans
from aios.core.types import Passage

MAX_MESSAGES = 200  # the last ones that are read
MAX_CHARACTERS = 8_000  # of a message that are read
PASSAGE_TOKENS = 96  # of a passage, at most

_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_OPENING = re.compile(
    r"(?:(?:please|also|and|so|but|well|oh|ok|okay|hi|hello|hey|yes|no|yeah|sure|thanks|actually"
    r"|fyi|by the way|just so you know|for your information|to be clear)\b[,:!]?\s+)*"
    r"(?:(?:please\s+)?(?:remember|note|keep in mind|bear in mind|don['’]t forget)\b"
    r"(?:\s+that\b|\s*[:,])?\s+(?!to\b))?",
    re.IGNORECASE,
)
_QUESTION_WORDS = frozenset(
    "what who whom whose which where when why how is are am was were do does did can could will "
    "would shall should may might has have had".split()
)
_COMMANDS = frozenset(
    """act add advise analyse analyze answer ask assume brainstorm calculate change check clarify
    classify come compare complete compose compute consider continue convert correct count create
    decide define delete describe design discuss display do don't don’t draft edit elaborate explain
    extract fill find finish fix forget format generate give go guess help identify ignore imagine
    improve keep let let's let’s list look make name note outline output paraphrase pick plan
    pretend print proofread propose provide read recommend remember remind remove repeat rephrase
    replace respond return rewrite say search show shorten simplify solve sort speak start state
    stop suggest summarise summarize take talk teach tell test think translate try turn use verify
    wait walk write""".split()
)
_SMALL_TALK = frozenset(
    """a absolutely again all alright amazing and awesome bye cheers cool day dear excellent fine
    for good goodbye great greetings got ha haha hello help hey hi how i is it it's it’s lot lovely
    makes many meet more morning much nice night no nope of oh ok okay perfect please pleasure
    really right see sense sorry sounds sure thank thanks that that's that’s the there this to today
    tomorrow too understood very welcome well wonderful wow yeah yep yes you your""".split()
)
_SELF = frozenset(
    "i i'm i’m i've i’ve i'd i’d my mine me we we're we’re we've we’ve our us".split()
)
_FEWEST_WORDS = 3
_WORTH = {"date": 2.0, "number": 2.0, "name": 2.0, "clause": 0.5, "phrase": 0.25}
_ABOUT_SELF = 1.0
_MAX_WORTH = 12.0


@dataclass(frozen=True, slots=True)
class Found:
    """A passage, and how much it says.

    Attributes:
        passage: The passage.
        worth: More for more names, numbers and dates.
        message: Position of its message in the conversation.
    """

    passage: Passage
    worth: float
    message: int


def conversation_passages(
    messages: Sequence[Mapping[str, str]],
    limit: int,
    *,
    count_tokens: Callable[[str], int],
    learned: Collection[str] = (),
    exclude: Collection[str] = (),
    roles: Collection[str] = ("user",),
    max_tokens: int = PASSAGE_TOKENS,
) -> tuple[Passage, ...]:
    """The passages of a conversation that are to be learned next.

    Args:
        messages: The conversation, oldest first; the last `MAX_MESSAGES` are read.
        limit: Most passages.
        count_tokens: Tokens of a text.
        learned: Ids of passages that were learned before; they come after all others.
        exclude: Ids of passages that are not wanted.
        roles: Whose statements count.
        max_tokens: Most tokens of a passage.

    Returns:
        Those not yet learned first, among them those that say the most, among equals the latest.
        A passage that was said twice is there once. Ids are content hashes.
    """
    found: dict[str, Found] = {}
    first = max(0, len(messages) - MAX_MESSAGES)
    for position, message in enumerate(messages[first:], start=first):
        if message.get("role") not in roles:
            continue
        for text in statements(str(message.get("content", "")), count_tokens, max_tokens):
            passage = Passage.make(text, source=f"message {position + 1}")
            if passage.id not in exclude and (worth := worth_of(text)) > 0:
                found[passage.id] = Found(passage, worth, position)
    order = sorted(
        found.values(), key=lambda f: (f.passage.id in learned, -f.worth, -f.message, f.passage.id)
    )
    return tuple(f.passage for f in order[: max(0, limit)])


def statements(
    text: str, count_tokens: Callable[[str], int], max_tokens: int = PASSAGE_TOKENS
) -> Iterator[str]:
    """The runs of statements in a message, each of at most `max_tokens` tokens.

    Args:
        text: What was said; its first `MAX_CHARACTERS` characters are read, code is left out.
        count_tokens: Tokens of a text.
        max_tokens: Most tokens of a run; a longer statement is cut between clauses or words.
    """
    run: list[str] = []
    for sentence in split_sentences(_CODE.sub("\n\n", text[:MAX_CHARACTERS])):
        statement = as_statement(sentence)
        if run and (not statement or count_tokens(" ".join([*run, statement])) > max_tokens):
            yield " ".join(run)
            run = []
        if not statement:
            continue
        if count_tokens(statement) > max_tokens:
            yield from split_passage(statement, max_tokens, count_tokens)
        else:
            run.append(statement)
    if run:
        yield " ".join(run)


def as_statement(sentence: str) -> str:
    """What a sentence states, without the words that only lead up to it; empty if nothing."""
    sentence = " ".join(sentence.split())
    opening = _OPENING.match(sentence)
    body = sentence[opening.end() :] if opening else sentence
    words = [word.lower() for word in _WORD.findall(body)]
    count = sum(1 + ("'" in word or "’" in word) for word in words)  # "I'm" is two
    if count < _FEWEST_WORDS or body.rstrip("\"'”’») ").endswith(("?", "？", "؟")):
        return ""
    if words[0] in _COMMANDS or all(word in _SMALL_TALK for word in words):
        return ""
    if words[0] in _QUESTION_WORDS and not _opens_a_statement(body, words):
        return ""
    return body[0].upper() + body[1:]


def _opens_a_statement(body: str, words: Sequence[str]) -> bool:
    """Whether a sentence that begins like a question states something all the same.

    "Will is my brother." has a full stop, "When I was ten we moved" goes on with its subject;
    "what is my dog called" is a question typed in haste.
    """
    return body.endswith(".") or (words[0] == "when" and words[1] not in _QUESTION_WORDS)


def worth_of(text: str) -> float:
    """How much a text says: names, numbers and dates count most; 0 for nothing to ask for."""
    spans = {
        sentence[span.start : span.end].lower(): _WORTH[span.kind]
        for sentence in split_sentences(text)
        for span in find_answer_spans(sentence)
    }
    about_self = any(word.lower() in _SELF for word in _WORD.findall(text))
    return min(_MAX_WORTH, sum(spans.values()) + _ABOUT_SELF * about_self)
