import os

import pytest

from flashrag.corpus import open_corpus
from flashrag.errors import UserError
from flashrag.preflight import Severity
from flashrag.retriever.index_card import IndexCard
from flashrag.retriever.preflight import UnreadCorpus, cache_bytes, describe, look_at_corpus, unread

CARD = IndexCard(retrieval_method="e5", count=1234, corpus_sha256="ab" * 32, corpus="c.jsonl")


def test_a_small_corpus_is_read_whole_and_leaves_nothing(files, tmp_path, monkeypatch):
    before = files.listed()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    corpus = look_at_corpus("corpus_path", files.corpus)
    assert len(corpus) == 6
    assert corpus[5].id == "5"
    assert describe(corpus) == f"6 in {files.corpus}"
    assert files.listed() == before
    assert list(tmp_path.iterdir()) == [files.folder]
    assert [*unread("corpus_path", corpus, "later")] == []


def test_of_a_large_one_the_beginning_is_read(files, large):
    large()
    corpus = look_at_corpus("corpus_path", files.corpus)
    assert isinstance(corpus, UnreadCorpus)
    assert len(corpus) == 6, "all of its lines have the same length"
    assert describe(corpus) == f"about 6 in {files.corpus}"
    assert len(known := look_at_corpus("corpus_path", files.corpus, CARD)) == 1234
    assert describe(known) == f"1,234 in {files.corpus}"
    (finding,) = unread("corpus_path", corpus, "when the retriever is loaded")
    assert finding.severity is Severity.NOTE
    assert finding.message.endswith("is looked at in its first 2 lines; all are read when the retriever is loaded")
    lines = files.corpus.read_text().splitlines(keepends=True)
    files.corpus.write_text("".join([lines[0], "no json\n", *lines[2:]]))
    with pytest.raises(UserError, match="line 2"):
        look_at_corpus("corpus_path", files.corpus)


def test_what_is_no_readable_file_is_named(files, monkeypatch):
    with pytest.raises(UserError, match="corpus_path: no file at"):
        look_at_corpus("corpus_path", files.folder / "none")
    with pytest.raises(UserError, match=r"corpus_path: .* is a folder, expected a file"):
        look_at_corpus("corpus_path", files.folder)
    (files.folder / "empty").write_text("")
    with pytest.raises(UserError, match="empty is empty; give another file"):
        look_at_corpus("corpus_path", files.folder / "empty")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="must not be read by you"):
        look_at_corpus("corpus_path", files.corpus)


def test_the_copy_takes_disk_once(files):
    assert cache_bytes(look_at_corpus("corpus_path", files.corpus), files.folder) == files.corpus.stat().st_size
    corpus = open_corpus(files.corpus, files.folder)
    assert cache_bytes(corpus, files.folder) == 0
