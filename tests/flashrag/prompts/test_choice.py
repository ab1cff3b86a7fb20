"""The prompt of a file: read in one way, refused with the reason, told apart by its words."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flashrag.errors import UserError
from flashrag.prompts import PROMPTS, PromptTemplate, choose_prompt, read_record, write_record
from flashrag.prompts.template import escaped, placeholders


def write(path: Path, **parts: object) -> Path:
    path.write_text(yaml.safe_dump(parts, allow_unicode=True), encoding="utf-8")
    return path


def test_a_file_takes_the_place_of_our_words(tmp_path: Path):
    parts = {"system": "Sei kurz. \\boxed{{so}}", "user": "Frage: {question}", "text": "{system} F: {question} A:"}
    path = write(tmp_path / "mine.yaml", **parts)
    prompt = choose_prompt("qa_template", path)
    filled = prompt.template.fill(question="Wer {x}?")
    assert filled.text == "Sei kurz. \\boxed{so} F: Wer {x}? A:"
    assert filled.messages == [
        {"role": "system", "content": "Sei kurz. \\boxed{so}"},
        {"role": "user", "content": "Frage: Wer {x}?"},
    ]
    assert prompt.record(apply_chat=True)[:2] == (str(path), True)


def test_without_text_a_base_model_continues_the_same_parts(tmp_path: Path):
    path = write(tmp_path / "mine.yaml", system="S", user="{question}", cue=" >")
    assert choose_prompt("qa_template", str(path)).template.fill(question="Q").text == "S\n\nQ >"


@pytest.mark.parametrize(
    ("own", "parts", "message"),
    [
        ("qa_template", {}, "it has neither user nor text; give user"),
        ("qa_template", {"system": "S"}, "it has neither user nor text"),
        ("qa_template", {"user": "Answer."}, "system and user lacks {question}: it takes the place of qa_template"),
        ("qa_template", {"user": "{question}", "text": "Answer."}, "text lacks {question}"),
        ("qa_template", {"user": "{qestion}"}, "{qestion} stands for nothing; did you mean 'question'?"),
        ("qa_template", {"user": "{question!r}"}, "{question!r} stands for nothing; did you mean 'question'"),
        ("qa_template", {"user": "{question:>9}"}, "{question:>9} stands for nothing"),
        ("qa_template", {"user": "{question.text}"}, "{question.text} stands for nothing"),
        ("qa_template", {"user": "{question} \\boxed{}"}, "{} stands for nothing"),
        ("qa_template", {"user": "{question} \\boxed{answer here}"}, "braces of the text are doubled: {{ }}"),
        ("qa_template", {"user": "{question} }"}, "Single '}' encountered in format string; braces of the t"),
        ("qa_template", {"user": "{question} {passages}"}, "{passages} has no value here: it takes the place of"),
        ("qa_template", {"user": "{question}", "cue": "{query}"}, "{query} has no value here"),
        ("qa_template", {"user": "{question}", "passage": "{text}"}, "{text} stands for nothing; known here: number"),
        ("qa_template", {"user": 5}, "user: 5 was given; Input should be a valid string"),
        ("qa_template", {"users": "{question}"}, "unknown key 'users'; did you mean 'user'?"),
        ("qa_template", {"user": "{question}", "with_passages": {"user": "{question}"}}, "which has no second prompt"),
        ("with_passages", {"user": "{question}"}, "lacks {passages}: it takes the place of with_passages"),
        ("reasoning", {"user": "{question}"}, "which has a second prompt, with_passages; add it"),
        ("reasoning", {"user": "{question}", "with_passages": {"user": "{question}"}}, "with_passages: system and us"),
        ("search_o1", {"user": "{question}", "with_passages": {"user": "{query}"}}, "lacks {passages}"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(own: str, parts: dict[str, object], message: str, tmp_path: Path):
    path = write(tmp_path / "mine.yaml", **parts)
    with pytest.raises(UserError) as refused:
        choose_prompt(own, path)
    assert str(refused.value).startswith(f"prompt_file={path}: ")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"user: '\xff {question}'\n", "cannot be read: 'utf-8' codec can't decode byte 0xff"),
        (b"user: [\n", "is not valid YAML"),
        (b"just words about {question}\n", "holds str; expected `key: value` lines"),
    ],
)
def test_what_is_no_prompt_file_is_refused(content: bytes, message: str, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        choose_prompt("qa_template", path)


def test_a_byte_order_mark_is_no_word(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("\ufeffuser: '{question}'\r\n", encoding="utf-8")
    assert choose_prompt("qa_template", path).template.fill(question="Q").text == "Q"


def test_a_name_stands_for_a_fetched_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("data", "prompts")
    folder.mkdir(parents=True)
    write(folder / "search-r1.yaml", user="Ask {question}")
    assert choose_prompt("search_r1", "search-r1").file == folder / "search-r1.yaml"
    with pytest.raises(UserError) as refused:
        choose_prompt("search_r1", "search-r2")
    assert str(refused.value) == (
        "prompt_file=search-r2: data/prompts/search-r2.yaml does not exist; did you mean 'search-r1'?; python "
        "scripts/download_data.py prompts fetches the published ones, and without prompt_file our own words are used"
    )


def test_a_text_for_base_models_is_no_chat(tmp_path: Path):
    prompt = choose_prompt("qa_template", write(tmp_path / "mine.yaml", text="Q: {question} A:")).template
    assert prompt.fill(question="Q").text == "Q: Q A:"
    with pytest.raises(UserError, match="no user part, which a chat needs"):
        prompt.fill(question="Q").messages  # noqa: B018


def test_equal_words_have_equal_hashes_wherever_they_stand(tmp_path: Path):
    own = choose_prompt("qa_template")
    spelled_out = write(tmp_path / "whole.yaml", text=own.template.base_text)
    same = choose_prompt("qa_template", spelled_out)
    assert same.record(apply_chat=False).sha256 == own.record(apply_chat=False).sha256
    other = {own.record(apply_chat=True).sha256, choose_prompt("qa_python_template").record(apply_chat=False).sha256}
    assert len({own.record(apply_chat=False).sha256, *other}) == 3


def test_the_format_of_passages_counts_only_where_there_are_some(tmp_path: Path):
    def sha256(own: str, **parts: object) -> str:
        return choose_prompt(own, write(tmp_path / "p.yaml", **parts)).record(apply_chat=True).sha256

    assert sha256("qa_template", user="{question}") == sha256("qa_template", user="{question}", separator=" ")
    passages = "{passages} {question}"
    assert sha256("with_passages", user=passages) != sha256("with_passages", user=passages, separator=" ")


def test_every_own_prompt_fits_in_its_own_place(tmp_path: Path):
    for name, template in PROMPTS.items():
        path = write(tmp_path / f"{name}.yaml", **template.model_dump(exclude_defaults=True))
        again = choose_prompt(name, path)
        assert again.template == template
        assert again.record(apply_chat=True).sha256 == choose_prompt(name).record(apply_chat=True).sha256


def test_a_model_keeps_the_record_of_its_prompt(tmp_path: Path):
    record = choose_prompt("qa_template").record(apply_chat=False)
    assert read_record(tmp_path) is None
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    (tmp_path / "trained_prompt.json").write_text("{", encoding="utf-8")
    assert read_record(tmp_path) is None


@given(st.text())
def test_any_text_can_stand_in_a_template_with_its_braces_doubled(text: str):
    template = PromptTemplate(user=escaped(text) + "{question}")
    assert template.fill(question="{passages}").messages == [{"role": "user", "content": text + "{passages}"}]
    assert placeholders(template.user) == ["question"]


@given(st.text(alphabet="{}ax!:.", max_size=12))
def test_braces_are_refused_or_filled_never_lost(text: str):
    try:
        names = placeholders(text)
    except ValueError:
        return
    if not names:
        assert escaped(text.format()) == text
