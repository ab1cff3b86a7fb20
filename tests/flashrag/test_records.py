"""Reading files of records: each form and packing, and every file that cannot be read."""

import codecs
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flashrag.errors import UserError
from flashrag.records import ENDINGS, Record, read_records, record_file_stem

RECORDS = [{"id": 1, "answer": "Zürich"}, {"id": 2, "answer": ["a\u2028b", None]}]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKINGS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def contents(path: Path) -> list[Any]:
    return [record.content for record in read_records(path)]


def test_every_ending_has_a_test_here():
    assert set(ENDINGS) == {form + packing for form in (".jsonl", ".json") for packing in PACKINGS} | {".parquet"}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    ("form", "content"),
    [
        (".jsonl", LINES),
        (".jsonl", codecs.BOM_UTF8 + LINES),
        (".jsonl", LINES.replace(b"\n", b"\r\n")),
        (".jsonl", LINES.replace(b"\n", b"\n \n")),
        (".jsonl", LINES.removesuffix(b"\n")),
        (".json", json.dumps(RECORDS).encode()),
        (".json", codecs.BOM_UTF8 + json.dumps(RECORDS, indent=4).replace("\n", "\r\n").encode()),
        (".json", json.dumps({"Domain": "Web", "Data": RECORDS}).encode()),
        (".json", codecs.BOM_UTF8 + LINES),
    ],
)
def test_a_file_is_read_in_every_form_and_packing(tmp_path: Path, form: str, content: bytes, packing: str):
    path = write(tmp_path, f"x{form}{packing}", PACKINGS[packing](content))
    assert contents(path) == RECORDS


def test_a_record_is_named_by_its_place(tmp_path: Path):
    lines = write(tmp_path, "x.jsonl", b'\n{"a": 1}\n')
    assert list(read_records(lines)) == [Record("line 2", {"a": 1})]
    assert list(read_records(write(tmp_path, "x.json", b'[5, {"a": 1}]'))) == [
        Record("record 1", 5),
        Record("record 2", {"a": 1}),
    ]
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "x.parquet")
    assert list(read_records(tmp_path / "x.parquet")) == [Record("row 1", {"a": 1}), Record("row 2", {"a": 2})]


def test_only_the_named_columns_of_a_table_are_read(tmp_path: Path):
    pq.write_table(pa.table({"Question": ["Who?"], "context": ["long"]}), tmp_path / "x.parquet")
    (record,) = read_records(tmp_path / "x.parquet", {"question"})
    assert record.content == {"Question": "Who?"}
    (record,) = read_records(tmp_path / "x.parquet", {"id"})  # none is there: all of them, so that they can be named
    assert record.content.keys() == {"Question", "context"}


def test_a_bad_line_does_not_hide_the_next_one(tmp_path: Path):
    path = write(tmp_path, "x.jsonl", b'{oops\n"\xff"\n' + b"[" * 100_000 + b'\n{"a": 1}\n')
    *bad, good = read_records(path)
    assert good == Record("line 4", {"a": 1})
    assert [record.place for record in bad] == ["line 1", "line 2", "line 3"]
    assert all(record.content is None and (record.fault or "").startswith("is not valid JSON (") for record in bad)
    assert "utf-8" in str(bad[1].fault)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"question,answer\n", r"x\.csv ends with '\.csv'; give a \.jsonl, \.json or \.parquet file"),
        ("x.parquet.gz", b"", r"x\.parquet\.gz ends with '\.gz'"),
        ("x.json", b"[{]", r"x\.json is not valid JSON"),
        ("x.json", b"\xff\xfe", r"x\.json is not valid JSON \('utf-8'"),
        ("x.json", b"[" * 100_000, r"x\.json is not valid JSON \(maximum recursion"),
        ("x.json", b"", r"x\.json is not valid JSON"),
        ("x.json", b'{"question": "Who?"}', r"x\.json holds a dict, expected a list of records, or one a line"),
        ("x.json", b'{"data": "none"}', r"x\.json holds a str"),
        ("x.parquet", b"not parquet", r"x\.parquet is not a parquet file"),
        ("x.jsonl.gz", LINES, r"x\.jsonl\.gz cannot be read \(Not a gzipped file"),
        ("x.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], r"x\.jsonl\.gz cannot be read \(Compressed file ended"),
        ("x.jsonl.xz", LINES, r"x\.jsonl\.xz cannot be read \(Input format not supported"),
        ("x.json.xz", lzma.compress(b"[]")[:-9], r"x\.json\.xz cannot be read \(Compressed file ended"),
        ("x.jsonl.zst", LINES, r"x\.jsonl\.zst cannot be read \(ZSTD"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str):
    path = write(tmp_path, name, content)
    with pytest.raises(UserError, match=message):
        contents(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    for path in (tmp_path, tmp_path / "nowhere.json"):
        with pytest.raises(UserError, match=r"is not a file; give a \.jsonl, \.json or \.parquet file"):
            contents(path)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("qa/dev.jsonl", "dev"),
        ("NQ-open.dev.jsonl.xz", "NQ-open.dev"),
        ("train.parquet", "train"),
        ("hotpotqa", None),
        ("x.parquet.gz", None),
        ("x.csv", None),
    ],
)
def test_the_stem_of_a_file(name: str, stem: str | None):
    assert record_file_stem(name) == stem


def test_pyarrow_is_not_imported_for_json():
    code = "import sys, flashrag.dataset; print(sorted({'pyarrow', 'torch', 'numpy', 'pandas'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
