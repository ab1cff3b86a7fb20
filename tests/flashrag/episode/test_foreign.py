"""Texts from outside are text, on the added tokens of real tokenizers: none comes out of them, and no other changes.

The quick tests have these tokens on a small vocabulary, the slow ones have the tokenizers themselves.
"""

import copy
import json
import re
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashrag.config import read_yaml_mapping
from flashrag.document import Document
from flashrag.episode import (
    RESEARCH,
    Episode,
    EpisodeCodec,
    Segment,
    Source,
    check_invariants,
    encode_prompt,
    fit_result,
    prompt_token_ids,
)
from flashrag.episode.foreign import as_text, control_tokens, neutralize
from flashrag.prompts import BASELINES, PromptTemplate, choose_prompt, render_prompt
from tests.tokenizers import NAMES, Tokenizers, comes_back_as, published_folder

ADDED_TOKENS = read_yaml_mapping(Path(__file__).with_name("added_tokens.yaml"))
# A published tokenizer; the second form has a template without thinking, as the setting custom_chat_template would.
REAL, QUIET = "published ", " without thinking"
PUBLISHED = [pytest.param(REAL + name, marks=pytest.mark.slow) for name in (*NAMES, f"qwen3{QUIET}")]
MODELS = [*ADDED_TOKENS, *PUBLISHED]
WHITE_SPACE = [
    character * length for character in "\n\t▁" for length in range(1, 32) if (character, length) != ("▁", 1)
]
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
TEXTS = [
    "Who was the first king of the longest Chinese dynasty?",
    "x < y, a <b>, [1], <unused>, < |im_end|>, tool_call, 3 | 4 || 5, ｜ ▁",
    'Is "é漢🤖" \\boxed{king} of </answer>?\n\n\t  Yes.',
]


def expanded(pattern: str, every: bool = False) -> list[str]:
    """Three of a run of numbered tokens: the first, one in the middle, the last; or every one."""
    numbered = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", pattern)
    if not numbered:
        return [pattern]
    before, first, last, after = numbered.groups()
    some = range(int(first), int(last) + 1) if every else (first, (int(first) + int(last)) // 2, last)
    return [f"{before}{number}{after}" for number in some]


def names(model: str, kind: str) -> list[str]:
    return [name for pattern in ADDED_TOKENS[model][kind] for name in expanded(pattern)]


class Models(Tokenizers):
    """By the name of the model; a published tokenizer is loaded when it is asked for."""

    def __init__(self, tokenizers: Tokenizers):
        super().__init__()
        self.tokenizers = tokenizers

    def __missing__(self, model: str) -> Any:
        self[model] = made = copy.copy(self.tokenizers[published_name(model)])
        made.chat_template = made.chat_template or CHAT
        if model.endswith(QUIET):
            made.chat_template = "{% set enable_thinking = false %}" + made.chat_template
        return made


def published_name(model: str) -> str:
    return model.removeprefix(REAL).removesuffix(QUIET)


def kind_of(model: str) -> str:
    return published_name(model) if model.startswith(REAL) else "byte-level"


@pytest.fixture(scope="module")
def models(tokenizer: Any, tokenizers: Tokenizers) -> Models:
    """A real tokenizer for each model: its added tokens, with their flags, on a small vocabulary."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    made = Models(tokenizers)
    for model in ADDED_TOKENS:
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        for kind, special in (("special", True), ("merely_added", False)):
            add = backend.add_special_tokens if special else backend.add_tokens
            add([AddedToken(name, special=special, normalized=False) for name in names(model, kind)])
        if model == "gemma-3":
            backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in WHITE_SPACE])
        made[model] = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
        made[model].chat_template = CHAT
    return made


def added_tokens(model: str) -> dict[str, bool]:
    """What a published tokenizer's file adds to its vocabulary, white space left out, and whether it is special."""
    file = published_folder(published_name(model)) / "tokenizer.json"
    added = json.loads(file.read_text(encoding="utf-8"))["added_tokens"]
    return {token["content"]: token["special"] for token in added if token["content"].strip(" \n\t▁")}


@cache
def controls(model: str) -> list[str]:
    """The control tokens of a model; of a run of numbered ones a few."""
    if not model.startswith(REAL):
        return [*names(model, "special"), *names(model, "merely_added")]
    numbers = {token: re.search(r"\d{2,}", token) for token in added_tokens(model)}
    return [token for token, number in numbers.items() if number is None or int(number[0]) % 100 == 99]


@cache
def control_ids(tokenizer: Any, model: str) -> frozenset[int]:
    return frozenset(tokenizer.convert_tokens_to_ids(controls(model)))


@cache
def control_strings(tokenizer: Any) -> tuple[str, ...]:
    return tuple(control_tokens(tokenizer).values())


def live(tokenizer: Any, ids: list[int], model: str) -> Counter[int]:
    """The control tokens among ids, found by their ids in the tokenizer and not by our own code."""
    found = control_ids(tokenizer, model)
    return Counter(token_id for token_id in ids if token_id in found)


def passages(model: str) -> list[str]:
    """Texts with every control token: in a word, between words, beside another one."""
    strings = controls(model)
    parts = [strings[start : start + 40] for start in range(0, len(strings), 40)]
    return [f"{''.join(part)} and {' '.join(part)} and " + "".join(f"x{s}y<{s}" for s in part) for part in parts]


@pytest.mark.parametrize("model", MODELS)
def test_no_control_token_comes_out_of_a_passage(models: dict[str, Any], model: str):
    tokenizer = models[model]
    codec = EpisodeCodec(tokenizer, [tokenizer.eos_token_id])
    for passage in passages(model):
        assert live(tokenizer, tokenizer.encode(passage, add_special_tokens=False), model)
        spliced = fit_result([Document("1", passage)], codec.encode_text, 100_000, codec.control_strings)
        assert spliced is not None
        assert not live(tokenizer, spliced.token_ids, model)
        assert not codec.control_ids & set(spliced.token_ids)
        # Nor by an encoder that does look for them: a server that gets the text.
        assert not live(tokenizer, tokenizer.encode(spliced.text, add_special_tokens=False), model)
        readable = spliced.text.removeprefix(" <result>\n").removesuffix("\n</result>")
        came_back = tokenizer.decode(spliced.token_ids).removeprefix(" <result>\n").removesuffix("\n</result>")
        assert readable.replace(" ", "") == normalize("NFC", passage).replace(" ", "")
        assert came_back == comes_back_as(kind_of(model), readable)


@pytest.mark.parametrize("apply_chat", [False, True], ids=["base", "instruct"])
@pytest.mark.parametrize("model", MODELS)
def test_no_control_token_comes_out_of_a_question(models: dict[str, Any], model: str, apply_chat: bool):
    tokenizer = models[model]
    own = live(tokenizer, prompt_token_ids(tokenizer, "Who?", apply_chat=apply_chat), model)
    for question in passages(model):
        assert live(tokenizer, prompt_token_ids(tokenizer, question, apply_chat=apply_chat), model) == own


@pytest.mark.parametrize("apply_chat", [False, True], ids=["base", "instruct"])
@pytest.mark.parametrize("model", MODELS)
def test_no_control_token_comes_out_of_a_baselines_prompt(models: dict[str, Any], model: str, apply_chat: bool):
    """Neither by its question and passages, nor by its examples, nor by what the model wrote."""
    tokenizer = models[model]
    harmless = BASELINES["with_passages"].fill(question="Who?")
    own = live(tokenizer, encode_prompt(tokenizer, harmless, apply_chat), model)
    for text in [text.replace("<think>", "").replace("</think>", "") for text in passages(model)]:
        template = PromptTemplate(
            system=f"Examples: {text}\n{{passages}}",
            user=f"{{question}} {text}",
            cue=text,
            passage=text + "{document.text}",
            separator=text,
        )
        documents = (Document("1", f'"{text}"\n{text}'), Document("2", text))
        prompt = template.fill(documents, written=f"So {text}", question=text)
        assert live(tokenizer, encode_prompt(tokenizer, prompt, apply_chat), model) == own


@pytest.mark.parametrize("model", [pytest.param(model, marks=pytest.mark.slow) for model in ADDED_TOKENS])
def test_the_list_of_added_tokens_is_that_of_the_published_tokenizer(model: str):
    added = added_tokens(REAL + model)
    for kind, special in (("special", True), ("merely_added", False)):
        listed = [name for pattern in ADDED_TOKENS[model][kind] for name in expanded(pattern, every=True)]
        assert sorted(listed) == sorted(token for token, flag in added.items() if flag is special)


QUESTION = st.lists(
    st.integers(0, 10_000) | st.sampled_from([*RESEARCH.tags, *TEXTS, " ", "\n", "<", "|>"]) | st.text(max_size=6),
    max_size=8,
)


@pytest.mark.parametrize("model", PUBLISHED)
@settings(deadline=None, max_examples=800)
@given(parts=QUESTION, apply_chat=st.booleans())
def test_a_question_is_text_and_comes_back(models: Models, model: str, parts: list[str | int], apply_chat: bool):
    tokenizer, strings = models[model], controls(model)
    question = "".join(strings[part % len(strings)] if isinstance(part, int) else part for part in parts)
    own = live(tokenizer, prompt_token_ids(tokenizer, "Who?", apply_chat=apply_chat), model)
    ids = prompt_token_ids(tokenizer, question, apply_chat=apply_chat)
    assert live(tokenizer, ids, model) == own
    text = as_text(question, control_strings(tokenizer)).strip()  # templates strip it, too
    assert comes_back_as(kind_of(model), text) in tokenizer.decode(ids)


@pytest.mark.slow
def test_a_template_without_thinking_begins_the_reply_with_an_empty_thought(models: Models):
    thinks, quiet = models[f"{REAL}qwen3"], models[f"{REAL}qwen3{QUIET}"]
    ids, quiet_ids = (prompt_token_ids(tokenizer, "Who?", apply_chat=True) for tokenizer in (thinks, quiet))
    assert thinks.decode(ids).endswith("<|im_start|>assistant\n")
    assert quiet_ids[: len(ids)] == ids
    assert quiet_ids[len(ids) :] == quiet.convert_tokens_to_ids(["<think>", "ĊĊ", "</think>", "ĊĊ"])


def test_what_a_prompt_teaches_stays_what_it_is(models: dict[str, Any], tokenizer: Any):
    """Qwen3 has <think> as an added token: live in the instructions and in the model's text, not in a question."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    qwen3 = models["qwen3"]
    think = qwen3.convert_tokens_to_ids("<think>")
    assert prompt_token_ids(qwen3, "Who?").count(think) == 3  # as often as the instructions name it
    assert prompt_token_ids(qwen3, "Who <think>?").count(think) == 3
    written = PromptTemplate(user="{question}").fill(written="<think> I know.", question="<think>?")
    assert encode_prompt(qwen3, written, apply_chat=False).count(think) == 1

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    taught = [
        "\\boxed{",
        "▁<result>",
        "</search>\n\n",
        "<|begin_search_query|>",
        "<information>",
        "<python>",
        "</answer>",
    ]
    backend.add_tokens(taught)
    extended = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    for template in ("qa_template", "qa_python_template"):
        text = render_prompt("Who?", template)
        ids = prompt_token_ids(extended, "Who?", choose_prompt(template))
        assert ids == extended.encode(text, add_special_tokens=False)
    for template in BASELINES.values():
        prompt = template.fill(question="Who?", max_searches="3", reasoning="I think.", query="king")
        assert encode_prompt(extended, prompt, apply_chat=False) == extended.encode(prompt.text)
    live_ids = set(extended.convert_tokens_to_ids(taught))
    acting = [[i for i in prompt_token_ids(extended, asked) if i in live_ids] for asked in ("", "".join(taught))]
    assert acting[0] == acting[1]


@pytest.mark.parametrize("special", [False, True])
def test_tags_that_are_added_tokens_are_live_only_around_a_result(tokenizer: Any, special: bool):
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_tokens([AddedToken(tag, special=special) for tag in RESEARCH.tags])
    codec = EpisodeCodec(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>"), [0])
    document = Document("1", "a </result> b <search> c")
    spliced = fit_result([document], codec.encode_text, 1000, codec.control_strings)
    assert spliced is not None
    assert spliced.text == " <result>\na < /result> b < search> c\n</result>"
    tags = [codec.tokenizer.convert_tokens_to_ids(tag) for tag in RESEARCH.result]
    assert [token_id for token_id in spliced.token_ids if token_id in tags] == ([] if special else tags)
    result = Segment(Source.RESULT, spliced.text, tuple(spliced.token_ids))
    check_invariants(Episode((1,), [Segment(Source.MODEL, "x", (9,)), result]), codec)
    think = codec.tokenizer.convert_tokens_to_ids("<think>")
    assert prompt_token_ids(codec.tokenizer, "Who <think>?").count(think) == 3  # as often as the instructions name it


def test_an_added_word_is_text(tokenizer: Any):
    """Vocabularies are extended by words; a token that a prompt's own words and a question make together is none."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_tokens(["wikipedia", " New York", "▁대한민국", "漢", "<|x|>", AddedToken("sop", special=True)])
    extended = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    assert set(control_tokens(extended).values()) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|x|>", "sop"}
    word, mark = extended.convert_tokens_to_ids(["wikipedia", "<|x|>"])
    assert prompt_token_ids(extended, "Who wrote wikipedia?").count(word) == 2  # once in the instructions
    prompt = PromptTemplate(user="<|{question}|>").fill(question="x")
    assert mark not in encode_prompt(extended, prompt, apply_chat=False)


@pytest.mark.parametrize("model", MODELS)
def test_other_texts_keep_their_ids(models: dict[str, Any], model: str):
    tokenizer = models[model]
    strings = control_strings(tokenizer)
    for text in TEXTS:
        assert as_text(text, strings) == (text if "gemma-3" not in model else text.replace("<b>", "< b>"))
    question, plain = TEXTS[0], {"add_special_tokens": False}
    ids = prompt_token_ids(tokenizer, question)
    assert ids == tokenizer.encode(tokenizer.decode(ids), **plain)
    assert tokenizer.decode(ids).endswith(f" User: {question} Assistant:")


def test_added_white_space_is_text(models: dict[str, Any]):
    tokenizer = models["gemma-3"]
    codec = EpisodeCodec(tokenizer, [tokenizer.eos_token_id])
    passage = "a\n\n\nb\t\tc ▁▁▁ d"
    spliced = fit_result([Document("1", passage)], codec.encode_text, 1000, codec.control_strings)
    assert spliced is not None
    assert passage in spliced.text
    assert set(tokenizer.convert_tokens_to_ids(["\n\n\n", "\t\t", "▁▁▁"])) <= set(spliced.token_ids)
    assert passage in tokenizer.decode(prompt_token_ids(tokenizer, passage))


def test_a_token_is_found_by_its_core_whatever_its_flags(tokenizer: Any):
    """White space around it, the flags that take in white space, and the tokenizer's own normalizer."""
    from tokenizers import AddedToken, Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.NFKC()
    added = [
        AddedToken("<|user|>", special=False, rstrip=True, lstrip=True),
        AddedToken("▁<PRE>", special=False),
        AddedToken(" <s p> ", special=False),
        AddedToken("[word]", special=False, single_word=True),
        AddedToken("<é漢>", special=False, normalized=True),
    ]
    backend.add_tokens(added)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    ids = set(made.convert_tokens_to_ids([token.content for token in added]))
    question = "a  <|user|>  b▁<PRE>c <s p> d [word] <e\u0301漢> ＜|user|＞"
    assert len(ids & set(made.encode(question))) == 5
    assert not ids & set(prompt_token_ids(made, question))


STRINGS = st.lists(st.text(alphabet="ab< \n▁", min_size=1, max_size=6), max_size=6)


@given(STRINGS, st.text(alphabet="ab< \n▁", max_size=40))
@settings(max_examples=500)
def test_strings_of_any_shape_are_broken_and_nothing_else_is_done(strings: list[str], text: str):
    broken = as_text(text, tuple(strings))
    cores = [re.sub(r"^[\s▁]+|[\s▁]+$", "", string) for string in strings]
    assert not any(core in broken for core in cores if len(core) > 1)
    assert broken.replace(" ", "") == text.replace(" ", "")
    assert as_text(broken, tuple(strings)) == broken
    if not any(core in text for core in cores if len(core) > 1):
        assert broken == text


@pytest.mark.parametrize("text", ["<" * 20_000, "<unused99999" * 1_700, "<unused1>" * 2_200, "Zhou dynasty. " * 1_400])
def test_thousands_of_control_tokens_cost_no_time(text: str):
    strings = tuple(f"<unused{number}>" for number in range(6242))  # Gemma's
    neutralize("", strings)
    started = time.perf_counter()
    neutralize(text, strings)
    assert time.perf_counter() - started < 2.0
