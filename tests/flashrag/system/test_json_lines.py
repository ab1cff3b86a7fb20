"""The log of a run: nothing whole is ever lost, whatever the file ends with."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrag.errors import UserError
from flashrag.system.json_lines import KeyedLog, encode_line


def test_the_last_record_of_a_key_counts(tmp_path: Path):
    log = KeyedLog(tmp_path / "items.jsonl")
    assert (len(log), list(log.read(["a"])), log.path.exists()) == (0, [], False)
    for record in ({"id": "a", "n": 1}, {"id": "b", "n": 2}, {"id": "a", "n": 3}):
        log.append(record)
    for seen in (log, KeyedLog(log.path)):
        assert [record["n"] for record in seen.read(["b", "missing", "a"])] == [2, 3]
        assert ("a" in seen, "missing" in seen, len(seen)) == (True, False, 2)
    assert len(log.path.read_bytes().splitlines()) == 3


RECORDS = st.lists(
    st.fixed_dictionaries({"id": st.sampled_from("abc"), "text": st.text(max_size=20)}), min_size=1, max_size=5
)


@given(RECORDS, st.data())
def test_a_kill_at_any_byte_loses_the_torn_line_alone(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, str]], data: st.DataObject
):
    path = tmp_path_factory.mktemp("log") / "items.jsonl"
    lines = [encode_line(record) for record in records]
    whole = b"".join(lines)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    survivors = [record for index, record in enumerate(records) if sum(map(len, lines[: index + 1])) <= cut]
    log = KeyedLog(path)
    expected = {record["id"]: record for record in survivors}
    assert {record["id"]: record for record in log.read("abc")} == expected
    log.append({"id": "d", "text": "after"})
    again = {record["id"]: record for record in KeyedLog(path).read("abcd")}
    assert again == {**expected, "d": {"id": "d", "text": "after"}}


def test_damage_in_the_middle_is_told_and_not_cut_off(tmp_path: Path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"id": "a"}\n{"id": \n{"id": "b"}\n')
    with pytest.raises(UserError, match=r"items\.jsonl line 2 is damaged; remove that line"):
        KeyedLog(path)
    assert path.read_text().count("\n") == 3


def test_rewriting_is_whole_or_not_at_all(tmp_path: Path):
    log = KeyedLog(tmp_path / "items.jsonl")
    log.append({"id": "a", "n": 1})
    log.append({"id": "a", "n": 2})
    with pytest.raises(TypeError):
        log.rewrite([{"id": "a", "n": object()}])
    assert [record["n"] for record in log.read(["a"])] == [2]
    log.rewrite({**record, "n": record["n"] + 1} for record in log.read(["a"]))
    assert log.path.read_text() == '{"id": "a", "n": 3}\n'
    log.append({"id": "b", "n": 9})
    assert [record["n"] for record in KeyedLog(log.path).read(["a", "b"])] == [3, 9]
    assert [path.name for path in tmp_path.iterdir()] == ["items.jsonl"]


def test_half_a_character_does_not_spoil_the_file(tmp_path: Path):
    log = KeyedLog(tmp_path / "items.jsonl")
    log.append({"id": "a", "text": "a\ud800b\u2028c"})
    assert json.loads(log.path.read_text("utf-8"))["text"] == "a?b\u2028c"
