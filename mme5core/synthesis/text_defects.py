"""Texts that are none: placeholders, refusals, labels, addresses, endless repetition."""

from __future__ import annotations

import re
import unicodedata
import zlib

from mme5core.synthesis.labels import leaked_label

# Dots, or a line to write on. A lone "-" or "?" may be a right answer.
_DOTS, _LINES, _QUOTES = frozenset(".·。・"), frozenset("-–—_*?"), frozenset("\"'“”«»„‘’")
# As a whole answer. "none" and "string" may be right answers, "N/A" and what is in brackets of a form are not.
_PLACEHOLDER = re.compile(
    r"^\W*(n/a|n\.a\.?|null|undefined|nan|todo|tbd|tba|xxx+|lorem ipsum.{0,400}|placeholder( text)?|to be determined"
    r"|(the )?same as (the |in the )?(draft|above|before)|see (the )?(draft|above)|as (in the draft|above)"
    r"|(insert|enter|add|write|put|your) .{0,60}\b(here|text))\W*$",
    re.IGNORECASE | re.DOTALL,
)
# A name of our form in its brackets: <query>, [positive text], {{instruction}}.
_SLOT = re.compile(
    r"^\s*(\[+|<+|\{+|\(+)\s*(your |the |a |an |insert |revised |hard )*(query|positive|negatives?|instruction|text|"
    r"answer|question|caption|label|document|string)( text| here| \d+)?\s*(\]+|>+|\}+|\)+)\s*$",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"^\W*((i'?m|i am) (really |so |very )?sorry\b|sorry,|(i'?m|i am) (unable|not able)\b"
    r"|i (can'?t|cannot|must decline)\b|as an ai\b|(unfortunately|apologies),? (but )?i\b|i apologi[sz]e)",
    re.IGNORECASE,
)
# Of a text inside an answer only what says that the model does not do its work: "I'm sorry for your loss" is a caption.
_WORK = (
    r"(help|assist|provide|identify|comply|generate|create|describe|answer|fulfil|process|write|view|analy[sz]e|continue|"
    r"do (this|that))"
)
_REFUSAL_OF_A_FIELD = re.compile(
    rf"^\W*((((i'?m|i am) (really |so |very )?sorry|sorry|unfortunately|apologies|i apologi[sz]e)[,.]? (but )?)?"
    rf"(i|we) (can'?t|cannot|can not|won'?t|will not|could not|couldn'?t|must decline( to)?|"
    rf"(am|'?m|are) (unable|not able|not allowed) to) (\w+ )?{_WORK}\b"
    r"|as an ai( language)?( model| assistant)?\b|lo siento,? (pero )?no puedo\b|(je suis )?désolée?,? (mais )?je ne "
    r"(peux|puis)\b|(es )?tut mir leid,? (aber )?ich kann\b|mi dispiace,? (ma )?non posso\b"
    r"|desculpe,? (mas )?não posso\b"
    r"|(к сожалению|извините),? (но )?я не могу\b|(很?抱歉|对不起)[，,]?\s*(但)?我(无法|不能)"
    r"|申し訳(ありません|ございません)が|죄송하지만)",
    re.IGNORECASE,
)
_ADDRESS = re.compile(
    r"\b[a-z][a-z0-9+.-]{1,10}://\S|\bwww\.\w|\bdata:image/|[\w.+-]+@[\w-]+\.[a-z]{2,}", re.IGNORECASE
)

# So often a piece of at most LONGEST_PIECE characters must follow itself, over so many characters.
LONGEST_PIECE, FEWEST_TIMES, FEWEST_CHARACTERS = 40, 10, 60
_REPEATED = re.compile(rf"(.{{1,{LONGEST_PIECE}}}?)\1{{{FEWEST_TIMES - 1},}}", re.DOTALL)
# Longer pieces are seen by how well the text is compressed; the densest prose keeps more than a quarter.
FEWEST_BYTES, MOST_COMPRESSED = 600, 0.12
_LOOKED_AT = 20_000  # characters


def is_refusal(text: str) -> bool:
    """Whether an answer begins like a refusal.

    >>> is_refusal("I'm sorry, but I can't help with that."), is_refusal('{"images": []}')
    (True, False)
    """
    return bool(_REFUSAL.match(text.replace("’", "'")))


def defect_of(text: str) -> tuple[str, str] | None:
    """Why a text cannot be one of a sample: a reason and what shows it; None if it can, or if nobody can tell.

    >>> defect_of("..."), defect_of("N/A"), defect_of("no answer"), defect_of("5")
    (('placeholder', '...'), ('placeholder', 'N/A'), None, None)
    >>> defect_of("Réponse : un chat"), defect_of("see https://a.example/x")[0], defect_of("ha " * 500)[0]
    (('leaked_label', 'Réponse : un chat'), 'address', 'repetition')
    """
    for reason, is_one in _CHECKS:
        if is_one(text):
            return reason, text.strip()[:80]
    return None


def _is_placeholder(text: str) -> bool:
    return _is_blank(text) or bool(_PLACEHOLDER.match(text) or _SLOT.match(text))


def _is_blank(text: str) -> bool:
    signs = "".join(unicodedata.normalize("NFKC", text).split())
    signs = "".join(sign for sign in signs if sign not in _QUOTES)
    return signs in ("", ".") or (len(signs) > 1 and (set(signs) <= _DOTS or set(signs) <= _LINES))


def _is_refusal_of_a_field(text: str) -> bool:
    return bool(_REFUSAL_OF_A_FIELD.match(text.replace("’", "'")))


def _is_endless(text: str) -> bool:
    text = text[:_LOOKED_AT]
    if any(len(match[0]) >= FEWEST_CHARACTERS for match in _REPEATED.finditer(text)):
        return True
    data = text.encode(errors="replace")
    return len(data) >= FEWEST_BYTES and len(zlib.compress(data, 9)) < MOST_COMPRESSED * len(data)


_CHECKS = (
    ("placeholder", _is_placeholder),
    ("leaked_label", lambda text: leaked_label(text) is not None),
    ("refusal", _is_refusal_of_a_field),
    ("address", lambda text: bool(_ADDRESS.search(text))),
    ("repetition", _is_endless),
)
