"""Which words of a message say what it is about, and which texts hold them.

`coverage` is the share of a message's weight that a text has. A word weighs by three things:

- Words of grammar weigh nothing, common words of everyday English little: the experts' texts are
  far too few to learn from them that "year" says less than "uranium". In other languages this part
  has no effect.
- Words that stand in the texts of many experts weigh little, since they cannot tell one from
  another: the inverse document frequency (Spärck Jones 1972), with experts for documents.
- A word that no expert has weighs fully. So a message about something else gets a low share even
  where a word or two happen to be in a text.

Presence counts and not frequency: BM25 (Robertson and Zaragoza 2009) in the limit k1 = 0. Passages
are short and of one length, so that frequency says little; and a share of the message, unlike a
BM25 sum, means the same for every message, which a threshold needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from aios.core.data.near_duplicates import words

FloatArray = NDArray[np.float64]

MAX_CHARACTERS = 20_000
COMMON_WEIGHT = 0.5
SMOOTHING = 1.0
_LONGEST_WORD = 64

_GRAMMAR = """
a an the this that these those there here i me my mine myself you your yours yourself he him his
himself she her hers herself it its itself we us our ours ourselves they them their theirs
themselves one ones someone somebody something anyone anybody anything everyone everybody
everything nobody nothing who whom whose what which when where why how whether whatever whichever
whoever if then else than because so as of at by for with without about against between into
through during before after above below to from up down in out on off over under again further once
and but or nor not no only own same too very can could will would shall should may might must do
does did doing done don doesn didn isn aren wasn weren won wouldn couldn shouldn can't be am is are
was were been being have has had having s t d ll re ve m just also each both few more most other
some such any all either neither yet still even ever never always often sometimes already within
among along across toward towards upon per via onto until till since while although though however
therefore thus hence etc yes no ok okay oh hi hello hey please thanks thank sorry well now today
let lets get got gets getting
"""

_COMMON = """
able accept account act action active actually add age ago agree allow almost alone amount another
answer appear apply approach area argue arrive ask associate attempt available average away back bad
base basic become began begin beginning behind believe belong benefit best better big bit black
blue body book both bottom break bring brought build building built business buy call called came
car care carry case cause center central centre century certain change character child children
choose city claim class clear close cold college color colour come common community company compare
complete concern condition consider consist contain continue control cost country couple course
create current cut daily date day days dead deal decade decide decision degree depend describe
design despite detail develop development die died difference different difficult direct discover
discuss distance doctor door double draw drive due early easy eat economy education effect effort
eight either end enough enter entire especially establish even event eventually example exist
expect experience explain express extend eye face fact fail fall family famous far fast father
feature feel feet field fight figure fill final finally find fine fire first five follow following
food foot force foreign form former forward found four free friend front full fun function future
game gave general generally girl give given go god going gone good government great ground group
grow growth guess guy half hand happen happened hard hate head health hear heard heart held help
high hit hold home hope hot hour hours house household human hundred husband idea identify image
important improve include including increase increased indicate influence information inside
instead interest international involve involved issue item job join keep kept key kill kind kinds
knew know known lack land language large last late later law lay lead leader leading learn least
leave led left less letter level lie life light like likely limit line list listen literature
little live lived living local location long longer look lose lost lot love low made main mainly
major make making man manage many mark market matter mean means meant measure meet meeting member
members men mention method middle might mile miles million mind minute minutes miss modern moment
money month months morning mother move movement much music name named names national natural nature
near nearly necessary need needed new news next nice night nine normal north note notice number
numbers occur occurred offer office officer official old open opened opinion order organisation
organization original originally others outside paper parent parents part particular parts party
pass past pay people percent percentage perhaps period person personal phone physical pick picture
piece place places plan play played player point political poor popular population position
possible power practice present president press pretty prevent previous probably problem problems
process produce produced product program project protect prove provide provided public pull purpose
push put question quick quickly quite raise ran range rate rather reach read ready real realise
realize really reason reasons receive received recent recently recommend record red reduce refer
referred region relate related relationship release released remain remember remove replace report
represent require required research respond response rest result results return right rise road
role room rule run said save saw say says school science season second section see seem seen sell
send sense separate serve service set seven several share short show shown side sign significant
similar simple simply single sister situation six size sleep small smart social society soon sort
sound south space speak special specific spend stand standard start started state states stay step
stop story street strong student students study style subject success sudden suggest support sure
surface system table take taken taking talk teach team technology tell ten tend term terms test
text think third though thought thousand three throughout throw time times title together told
tomorrow tonight took top total town trade traditional travel tried true try trying turn turned two
type types typical understand unit university use used user using usual usually value various vary
version view visit voice wait walk want war watch water way ways week weeks went west white whole
wide wife win wish woman women wonder word words work worked working works world worry worse worst
write writer writing written wrong wrote year years yesterday young
"""


def terms(text: str) -> tuple[str, ...]:
    """The distinct words of a text that carry meaning, stemmed, in order of appearance.

    Of a text longer than `MAX_CHARACTERS`, beginning and end count.
    """
    return tuple(dict.fromkeys(_stem(w) for w in words(_shortened(text)) if w not in _STOP))


def information(text: str) -> float:
    """How much a text says by itself: the number of its words, common ones at `COMMON_WEIGHT`."""
    return sum(map(_prior, terms(text)))


class TermIndex:
    """Texts, each belonging to an expert, to be looked up by the words of a message.

    Args:
        texts: The texts, by expert; an expert may have none.
    """

    def __init__(self, texts: Sequence[Iterable[str]]) -> None:
        held: dict[str, list[int]] = {}
        experts: dict[str, set[int]] = {}
        owners: list[int] = []
        for expert, own in enumerate(texts):
            for text in own:
                for term in terms(text):
                    held.setdefault(term, []).append(len(owners))
                    experts.setdefault(term, set()).add(expert)
                owners.append(expert)
        self.owners: NDArray[np.intp] = np.asarray(owners, dtype=np.intp)
        self._held = {term: np.asarray(own, dtype=np.intp) for term, own in held.items()}
        self._weights = {
            term: _prior(term) * _rarity(len(own), len(texts)) for term, own in experts.items()
        }

    def coverage(self, message: str) -> FloatArray:
        """The share of a message's weight that each text has, in [0, 1), shape (texts,)."""
        found = np.zeros(len(self.owners))
        total = SMOOTHING
        for term in terms(message):
            weight = self._weights.get(term)
            total += _prior(term) if weight is None else weight
            if weight is not None:
                found[self._held[term]] += weight
        return found / total


def _rarity(experts: int, all_experts: int) -> float:
    """Inverse expert frequency: 1 for a word of a single expert, near 0 for one of all."""
    if experts <= 1:
        return 1.0
    return math.log((all_experts + 1) / (experts + 0.5)) / math.log((all_experts + 1) / 1.5)


def _shortened(text: str) -> str:
    half = MAX_CHARACTERS // 2
    return text if len(text) <= MAX_CHARACTERS else f"{text[:half]} {text[-half:]}"


@lru_cache(maxsize=1 << 16)
def _prior(stem: str) -> float:
    return COMMON_WEIGHT if stem in _COMMON_STEMS else 1.0


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    """An English word without its plural, past or -ing ending; other words nearly as they are.

    Plurals as the S stemmer (Harman 1991); then -ing and -ed, where a vowel and three letters stay.
    """
    word = word[:_LONGEST_WORD]
    if len(word) > 4 and word.endswith("ies") and word[-4] not in "ae":
        word = word[:-3] + "y"
    elif len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes")):
        word = word[:-2]
    elif len(word) > 3 and word.endswith("s") and word[-2] not in "us":
        word = word[:-1]
    for ending in ("ing", "ed"):
        left = word[: -len(ending)]
        if word.endswith(ending) and len(left) >= 3 and any(c in "aeiouy" for c in left):
            word = left[:-1] if left[-1] == left[-2] and left[-1] not in "lsz" else left
            break
    return word[:-1] if len(word) > 4 and word.endswith("e") else word


_STOP = frozenset(_GRAMMAR.split())
_COMMON_STEMS = frozenset(map(_stem, _COMMON.split()))
