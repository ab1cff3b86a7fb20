import copy
import pickle
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from flashrag.config import Config, read_yaml_mapping, validated
from flashrag.errors import UserError


class Small(BaseModel):
    model_config = ConfigDict(extra="forbid")
    retrieval_topk: int = Field(5, ge=1)
    index_path: str
    kind: Literal["a", "b"] = "a"


def test_a_dict_lies_over_the_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("retrieval_topk: 5\nindex_path: a.index\n")
    config = Config(path, {"retrieval_topk": 3})
    assert dict(config) == {"retrieval_topk": 3, "index_path": "a.index"}
    assert config.retrieval_topk == config["retrieval_topk"] == 3


def test_a_missing_item_is_none_and_a_missing_attribute_raises():
    config = Config(config_dict={"a": 1})
    assert config["b"] is None
    assert "b" not in config
    assert (config.get("a", 7), config.get("b", 7)) == (1, 7)
    with pytest.raises(AttributeError, match="'b' is not set"):
        _ = config.b


def test_copies_and_pickles():
    config = Config(config_dict={"a": 1})
    assert copy.deepcopy(config).a == pickle.loads(pickle.dumps(config)).a == 1


def test_repr_shows_no_values():
    assert "secret" not in repr(Config(config_dict={"api_key": "secret"}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not valid YAML"),
        (b"a: 1\nb: 2\na: 3\n", "not valid YAML: the key 'a' stands twice"),
        (b"a: {b: 1, b: 2}\n", "the key 'b' stands twice"),
        (b"- 1\n- 2\n", "holds list"),
        (b"1: 2\n", "text keys"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_yaml_mapping(path)
    assert "bad.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="not found"):
        read_yaml_mapping(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml_mapping(tmp_path)


def test_an_empty_file_is_an_empty_mapping(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert read_yaml_mapping(path) == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"index_path": "x", "retrieval_topkk": 1}, "unknown key 'retrieval_topkk'; did you mean 'retrieval_topk'"),
        ({}, "index_path is not set"),
        ({"index_path": "x", "retrieval_topk": 0}, "retrieval_topk: 0 was given"),
        ({"index_path": "x", "retrieval_topk": "many"}, "retrieval_topk: 'many' was given"),
        ({"index_path": "x", "kind": "c"}, "kind: 'c' was given"),
    ],
)
def test_validation_names_source_key_and_value(values, message):
    with pytest.raises(UserError, match=message) as caught:
        validated(Small, values, "some.yaml")
    assert str(caught.value).startswith("some.yaml: ")


class Nested(BaseModel):
    model_config = ConfigDict(extra="forbid")
    retriever: Small | None = None


def test_a_slip_in_a_nested_key_is_told_with_its_path():
    with pytest.raises(UserError, match=r"unknown key 'retriever\.index_pat'; did you mean 'index_path'\?"):
        validated(Nested, {"retriever": {"index_path": "x", "index_pat": "y"}}, "some.yaml")
    with pytest.raises(UserError, match=r"unknown key 'retriever\.zzzzz'; known keys: index_path, kind"):
        validated(Nested, {"retriever": {"index_path": "x", "zzzzz": "y"}}, "some.yaml")


def test_config_is_light():
    # In a process of its own: the test session has imported everything by now.
    import subprocess
    import sys

    check = (
        "import sys, flashrag.config, flashrag.document, flashrag.utils, flashrag.retriever; "
        "sys.exit(' '.join({'torch', 'faiss', 'transformers', 'bm25s'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
