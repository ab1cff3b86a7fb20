"""The form of the pages' blocks, and how they are read."""

import re

import pytest

from flashrag.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USER_ERROR
from tests.docs.pages import LANGUAGES, REASONS, ROOT, Block, blocks, pages, statements, without_comment
from verl_search.trainer.stopping import EXIT_STOPPED

PROGRAM = re.compile(r" {4,}(bash|python3?|scripts/|serve|ray|curl)\b")


@pytest.mark.parametrize("block", blocks(), ids=str)
def test_a_block_names_its_language_and_a_known_reason(block: Block) -> None:
    assert block.language in LANGUAGES
    assert block.not_run is None or block.not_run in REASONS


@pytest.mark.parametrize("page", pages())
def test_a_mark_stands_on_the_line_before_its_block(page: str) -> None:
    marks = re.findall(r"^<!-- not run here.*$", pages()[page], re.MULTILINE)
    assert len(marks) == len([block for block in blocks() if block.page == page and block.not_run])


@pytest.mark.parametrize("page", pages())
def test_commands_stand_in_fenced_blocks(page: str) -> None:
    outside = re.sub(r"^```.*?^```$", "", pages()[page], flags=re.MULTILINE | re.DOTALL)
    assert [line for line in outside.splitlines() if PROGRAM.match(line)] == []


@pytest.mark.parametrize("page", pages())
def test_links_lead_to_files(page: str) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", pages()[page])
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


def test_continued_lines_loops_and_printed_output_are_read_as_a_shell_reads_them() -> None:
    text = """\
python a.py --b 1 \\
    --c "x # y"     # a comment
# printed
for one in a b; do
    python d.py $one
done
"""
    assert list(statements(Block("page.md", 10, "bash", text))) == [
        (10, 'python a.py --b 1 --c "x # y"', ("printed",)),
        (13, "for one in a b; do\npython d.py $one\ndone", ()),
    ]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("curl -d '#1' host/a#b   # the rest", "curl -d '#1' host/a#b"),
        ("# only a comment", ""),
        ("   ", ""),
        ('echo "a # b" \\', 'echo "a # b" \\'),
    ],
)
def test_a_comment_begins_at_a_word_of_its_own(line: str, text: str) -> None:
    assert without_comment(line) == text


def test_the_exit_codes_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", page, flags=re.MULTILINE)]
    assert listed == [0, EXIT_FAILED, EXIT_USER_ERROR, EXIT_STOPPED, EXIT_INTERRUPTED]
