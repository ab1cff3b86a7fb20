import pytest

from flashrag.document import Document


@pytest.mark.parametrize(
    ("contents", "title", "text"),
    [
        ('"Zhou dynasty"\nIt lasted.\n\nLong.', "Zhou dynasty", "It lasted.\n\nLong."),
        ("Dynasty\nno quotes", "Dynasty", "no quotes"),
        ('""Ulysses" (novel)"\ntext', '"Ulysses" (novel)', "text"),
        ('"only a title"', "only a title", ""),
        ('"', '"', ""),
        ('""\ntext', "", "text"),
        ("", "", ""),
        ("one\u2028line", "one\u2028line", ""),  # only \n ends the title
    ],
)
def test_title_and_text(contents, title, text):
    document = Document(id="1", contents=contents)
    assert (document.title, document.text) == (title, text)
