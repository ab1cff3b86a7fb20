"""Texts from outside are text: no control token comes out of a passage, a question, a tool's output or an example.

A control token is one that a tokenizer finds in a text before it splits the rest: flagged special, or merely added.
Added white space (Gemma has much of it), an added word and an added character are text. The string of a control token
gets a space after its first character: it stays readable but is no longer live.
Does not cover: the control tokens that a prompt needs (prompt_ids.py), the budget of a result (result.py).
"""

import re
import unicodedata
from collections import defaultdict
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from flashrag.episode.dialect import RESEARCH, Dialect

# Unicode's category Cc except tab and line break.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Sentencepiece writes a space as "▁".
_WHITE_SPACE_AROUND = re.compile(r"^[\s▁]+|[\s▁]+$")
_MARKUP = re.compile(r"[^\w\s▁]")


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """The control tokens of a Hugging Face tokenizer by their ids, without white space around them."""
    tokens = {
        token_id: _core(token)
        for token_id, token in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    }
    for token_id, token in tokenizer.added_tokens_decoder.items():
        core = _core(token.content)
        if (core and token.special) or (len(core) > 1 and _MARKUP.search(core)):
            tokens[token_id] = core
    return tokens


def as_text(text: str, strings: tuple[str, ...]) -> str:
    """The text with every one of these strings broken.

    A string of one character cannot be broken; white space around a string does not count.

    >>> as_text("<|im_end|> ends a turn", ("<|im_end|>",))
    '< |im_end|> ends a turn'
    """
    text = _break(text, strings)
    # A tokenizer that folds look-alikes ("＜" to "<") could find one.
    if not text.isascii() and _starts(folded := unicodedata.normalize("NFKC", text), strings):
        text = _break(folded, strings)
    return text


def neutralize(text: str, control_strings: tuple[str, ...] = (), dialect: Dialect = RESEARCH) -> str:
    """A passage without live tags, control tokens, control characters and unpaired surrogates.

    >>> neutralize("a</result>b<|endoftext|>", ("<|endoftext|>",))
    'a< /result>b< |endoftext|>'
    """
    text = text.encode("utf-8", errors="replace").decode("utf-8")
    return as_text(_CONTROL.sub("", text), (*dialect.tags, *control_strings))


def _break(text: str, strings: tuple[str, ...]) -> str:
    # A break can create another of the strings if that one contains a space. Each break makes a gap longer, and no
    # string has a gap longer than itself, so this ends.
    while starts := _starts(text, strings):
        text = " ".join(text[begin:end] for begin, end in pairwise([0, *(start + 1 for start in starts), len(text)]))
    return text


def _starts(text: str, strings: tuple[str, ...]) -> list[int]:
    """Where one of the strings begins, white space around it left out."""
    index = _index(strings)
    candidates = (match.start() for match in index.first.finditer(text))
    return [
        start
        for start in candidates
        if any(text[start : start + length] in index.cores for length in index.lengths.get(text[start : start + 2], ()))
    ]


class _Index(NamedTuple):
    """Strings by their first characters: a search stays quick among thousands (Gemma has 6,300), unlike a regex's."""

    first: re.Pattern[str]
    lengths: dict[str, set[int]]  # by the first two characters
    cores: frozenset[str]


@lru_cache(maxsize=16)
def _index(strings: tuple[str, ...]) -> _Index:
    cores = frozenset(core for core in map(_core, strings) if len(core) > 1)
    lengths = defaultdict[str, set[int]](set)
    for core in cores:
        lengths[core[:2]].add(len(core))
    first = "|".join(sorted(re.escape(start) for start in {core[0] for core in cores}))
    return _Index(re.compile(first or r"(?!)"), dict(lengths), cores)


def _core(string: str) -> str:
    return _WHITE_SPACE_AROUND.sub("", string)
