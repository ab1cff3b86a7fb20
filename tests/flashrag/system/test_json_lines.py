"""JSON lines on disk: nothing whole is ever lost, whatever a file ends with."""

import gzip
import json
import os
import resource
import signal
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrag.errors import UserError
from flashrag.system.json_lines import GrowingFile, KeyedLog, append_line, cut_torn_tail, encode_object, read_lines

LINES = st.lists(st.text(max_size=60).map(lambda text: encode_object({"text": text})), max_size=5)
NAMES = st.sampled_from(["log.jsonl", "log.jsonl.gz"])


def open_log(path: Path) -> KeyedLog[dict[str, Any]]:
    return KeyedLog(path, itemgetter("id"), encode_object, json.loads)


def test_the_last_record_of_a_key_counts(tmp_path: Path):
    log = open_log(tmp_path / "items.jsonl")
    assert (len(log), list(log.read(["a"])), log.path.exists()) == (0, [], False)
    for record in ({"id": "a", "n": 1}, {"id": "b", "n": 2}, {"id": "a", "n": 3}):
        log.append(record)
    for seen in (log, open_log(log.path)):
        assert [record["n"] for record in seen.read(["b", "missing", "a"])] == [2, 3]
        assert [record["n"] for record in seen.read()] == [3, 2]
        assert ("a" in seen, "missing" in seen, len(seen)) == (True, False, 2)
    assert len(log.path.read_bytes().splitlines()) == 3


@given(LINES, NAMES, st.data())
def test_a_kill_at_any_byte_loses_the_torn_line_alone(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], name: str, data: st.DataObject
):
    path = tmp_path_factory.mktemp("log") / name
    path.touch()
    lengths = [append_line(path, line) for line in lines]
    whole = path.read_bytes()
    assert sum(lengths) == len(whole)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    survivors = [line for index, line in enumerate(lines) if sum(lengths[: index + 1]) <= cut]
    assert list(read_lines(path)) == survivors
    torn = cut != sum(lengths[: len(survivors)])
    assert cut_torn_tail(path) is torn
    append_line(path, b'{"after": 1}')
    assert list(read_lines(path)) == [*survivors, b'{"after": 1}']


def test_a_keyed_log_goes_on_behind_a_torn_line(tmp_path: Path):
    path = tmp_path / "items.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "b", "te')
    log = open_log(path)
    assert list(log.read()) == [{"id": "a"}]
    log.append({"id": "c"})
    assert path.read_bytes() == b'{"id": "a"}\n{"id": "c"}\n'


@pytest.mark.parametrize("damage", ['{"id": \n', '{"name": "a"}\n', "[]\n"])
def test_damage_in_a_keyed_log_is_an_error_and_is_not_cut_off(tmp_path: Path, damage: str):
    path = tmp_path / "items.jsonl"
    path.write_text(f'{{"id": "a"}}\n{damage}{{"id": "b"}}\n')
    with pytest.raises(UserError, match=r"items\.jsonl line 2 cannot be read .*; remove that line"):
        open_log(path)
    assert path.read_text().count("\n") == 3


def test_a_damaged_member_is_named_by_its_place_and_not_cut_off(tmp_path: Path):
    path = tmp_path / "log.jsonl.gz"
    first = append_line(path, b'{"n": 1}')
    append_line(path, b'{"n": 2}')
    content = bytearray(path.read_bytes())
    content[first : first + 2] = b"\0\0"
    path.write_bytes(content)
    assert cut_torn_tail(path) is False
    with pytest.raises(UserError, match=f"damaged after byte {first} "):
        list(read_lines(path))


def test_rewriting_is_whole_or_not_at_all(tmp_path: Path):
    log = open_log(tmp_path / "items.jsonl")
    log.append({"id": "a", "n": 1})
    log.append({"id": "a", "n": 2})
    with pytest.raises(TypeError):
        log.rewrite([{"id": "a", "n": object()}])
    assert [record["n"] for record in log.read(["a"])] == [2]
    log.rewrite({**record, "n": record["n"] + 1} for record in log.read(["a"]))
    assert log.path.read_text() == '{"id": "a", "n": 3}\n'
    log.append({"id": "b", "n": 9})
    assert [record["n"] for record in open_log(log.path).read(["a", "b"])] == [3, 9]
    assert [path.name for path in tmp_path.iterdir()] == ["items.jsonl"]


def test_a_write_that_the_disk_cuts_short_is_taken_back(tmp_path: Path):
    path = tmp_path / "log.jsonl.gz"
    line = os.urandom(1500).hex().encode()
    length = append_line(path, line)
    before = path.read_bytes()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length + 1000, limits[1]))
    try:
        with pytest.raises(OSError, match="1000 of"):
            append_line(path, line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before


def test_any_gzip_reader_reads_a_compressed_log(tmp_path: Path):
    path = tmp_path / "log.jsonl.gz"
    append_line(path, b'{"n": 1}')
    append_line(path, b'{"n": 2}')
    assert gzip.decompress(path.read_bytes()) == b'{"n": 1}\n{"n": 2}\n'


def test_half_a_character_does_not_spoil_a_file(tmp_path: Path):
    log = open_log(tmp_path / "items.jsonl")
    log.append({"id": "a", "text": "a\ud800b\u2028c"})
    assert json.loads(log.path.read_text("utf-8"))["text"] == "a?b\u2028c"


def test_a_growing_file_gives_each_whole_line_once(tmp_path: Path):
    growing = GrowingFile(tmp_path / "metrics.jsonl")
    assert growing.new_lines() == []
    growing.path.write_text('{"step": 1}\n{"step": 2')
    assert growing.new_lines() == ['{"step": 1}']
    with growing.path.open("a") as file:
        file.write('}\n{"step": 3}\n')
    assert growing.new_lines() == ['{"step": 2}', '{"step": 3}']
    assert growing.new_lines() == []
