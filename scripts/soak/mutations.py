"""One change to the good inputs of a command, drawn at random: a flag, a row, a setting, a file or the environment.

Each mutation changes the case in place and says what it did; it raises `NothingToChange` where the case has nothing of
its kind. Files are hard links to the good ones, so a changed file is written anew.
"""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas
import yaml

TEXTS = (
    *(
        "",
        " ",
        "null",
        "true",
        "0",
        "-1",
        "1.5",
        "1e999",
        "nan",
        "9" * 30,
        "[]",
        "{}",
        "[1, 2]",
        "{a: 1}",
        "'",
        '"',
        "`",
    ),
    *(
        "${x}",
        "???",
        "a=b",
        "a,b",
        "~",
        "/",
        "..",
        "/dev/null",
        "no such",
        "ü ½ 模型",
        "\u202e",
        "x" * 5000,
        "\udcff",
        "\\",
        "%s",
    ),
    *("http://127.0.0.1:1", "http://203.0.113.7:9/search", "ftp://x", "localhost:8000", "https://[::1", "--", "@"),
)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        10**30,
        float("nan"),
        "",
        " ",
        "x",
        "\u0000",
        "null",
        [],
        {},
        [None],
        [[]],
        [""],
        [1],
    ),
    *({"target": ["a"]}, {"target": None}, [{"role": "user", "content": "Who?"}], [{"role": "system"}], "x" * 5000),
)
ENVIRONMENT = {
    "http_proxy": ("http://127.0.0.1:1", "nonsense", "socks5://127.0.0.1:1"),
    "ALL_PROXY": ("socks5://127.0.0.1:1", "ftp://x", "http://user:p@ss@127.0.0.1:1"),
    "HOME": ("/nonexistent", "/dev/null", ""),
    "TMPDIR": ("/nonexistent", "/tmp/" + "t" * 90),
    "LC_ALL": ("C", "POSIX", "nonsense"),
    "PYTHONIOENCODING": ("ascii", "latin-1"),
    "RAY_ADDRESS": ("127.0.0.1:1", "auto", "nonsense"),
    "RAY_AUTH_MODE": ("token", "nonsense"),
    "WANDB_API_KEY": ("x", " ", "ü"),
    "WANDB_BASE_URL": ("http://127.0.0.1:1", "nonsense"),
    "RESEARCH_SERVER_TOKEN": ("secret", "ü", " "),
    "OPENAI_API_KEY": ("x", "ü"),
    "HF_ENDPOINT": ("http://127.0.0.1:1", "nonsense"),
    "OMP_NUM_THREADS": ("0", "many"),
    "CUDA_VISIBLE_DEVICES": ("7", "-1"),
}


class NothingToChange(Exception):
    """The case has nothing that this mutation could change."""


@dataclass
class Case:
    """A command with its inputs in `folder`, which is its working directory."""

    command: str
    folder: Path
    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def files(self, *patterns: str) -> list[Path]:
        """The files that the arguments name, or that lie in the folders that they name."""
        named = [self.folder / word for word in self.argv if word and "\0" not in word]
        named = [path for path in named if len(str(path)) < 255 and path.exists()]
        inside = [
            inner for path in named for inner in ([path] if path.is_file() else path.rglob("*")) if inner.is_file()
        ]
        return sorted(path for path in inside if any(path.match(pattern) for pattern in patterns))


def fresh(path: Path) -> Path:
    """The path of a file to be written anew: the good one, which it links to, stays."""
    path.unlink()
    return path


def _pick(rng: random.Random, found: list[Any]) -> Any:
    if not found:
        raise NothingToChange
    return rng.choice(found)


def flag_value(case: Case, rng: random.Random) -> str:
    places = [at for at, word in enumerate(case.argv) if at and not word.startswith("--")]
    place, value = _pick(rng, places), rng.choice(TEXTS)
    case.argv[place] = value
    return f"argument {place} is {value[:40]!r}"


def flag_lost(case: Case, rng: random.Random) -> str:
    place = _pick(rng, [at for at, word in enumerate(case.argv) if word != "--check"])
    return f"argument {case.argv.pop(place)!r} is gone"


def flag_misspelt(case: Case, rng: random.Random) -> str:
    place = _pick(rng, [at for at, word in enumerate(case.argv) if word.startswith("--") and word != "--check"])
    at = rng.randrange(2, len(case.argv[place]))
    case.argv[place] = case.argv[place][:at] + case.argv[place][at + 1 :]
    return f"a flag is {case.argv[place]!r}"


def setting(case: Case, rng: random.Random) -> str:
    """A trailing key=value of training, or a key of a YAML file."""
    if case.command == "training":
        from verl_search.composition import shipped_settings

        key, value = rng.choice(sorted(shipped_settings("cpu"))), rng.choice(TEXTS)
        case.argv.insert(-1, f"{key}={value}")
        return f"{key}={value[:40]!r}"
    path = _pick(rng, case.files("*.yaml"))
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    key = rng.choice(sorted(settings))
    new_key, value = rng.choice((key, key, key, key[:-1])), rng.choice(VALUES)
    settings.pop(key)
    settings[new_key] = value
    fresh(path).write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return f"{path.name}: {new_key} is {str(value)[:40]!r}"


def model_setting(case: Case, rng: random.Random) -> str:
    path = _pick(rng, case.files("config.json", "tokenizer_config.json", "generation_config.json"))
    settings = json.loads(path.read_text(encoding="utf-8"))
    key, value = rng.choice(sorted(settings)), rng.choice(VALUES)
    settings[key] = value
    fresh(path).write_text(json.dumps(settings))
    return f"{path.name}: {key} is {str(value)[:40]!r}"


def row(case: Case, rng: random.Random) -> str:
    """A field of one row of a data file: another value, another name, or none."""
    path = _pick(rng, case.files("*.jsonl", "hotpot.json", "*.parquet"))
    lines = path.suffix == ".jsonl"
    if path.suffix == ".parquet":
        rows = pandas.read_parquet(path).to_dict("records")
    else:
        text = path.read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    number = rng.randrange(len(rows))
    name, value = rng.choice(sorted(map(str, rows[number]))), rng.choice(VALUES)
    kind = rng.choice(("value", "value", "name", "gone"))
    old = rows[number].pop(name)
    if kind != "gone":
        rows[number][name if kind == "value" else f"{name}_"] = value if kind == "value" else old
    if path.suffix == ".parquet":
        try:
            pandas.DataFrame(rows).to_parquet(fresh(path))
        except (ValueError, TypeError, OverflowError, NotImplementedError) as error:  # a column of two kinds
            raise NothingToChange from error
    else:
        fresh(path).write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return f"{path.name} row {number + 1}: {name}, {kind} {str(value)[:40]!r}"


def file(case: Case, rng: random.Random) -> str:
    """A file is damaged, gone, or something else."""
    path = _pick(rng, case.files("*"))
    content = path.read_bytes()
    kind = rng.choice(sorted({*DAMAGED, *REPLACED}))
    if kind in DAMAGED:
        fresh(path).write_bytes(DAMAGED[kind](content, rng))
    else:
        REPLACED[kind](fresh(path))
    return f"{path.name} is {kind}"


DAMAGED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "empty": lambda _content, _rng: b"",
    "cut": lambda content, rng: content[: rng.randrange(len(content) + 1)],
    "random bytes": lambda _content, rng: rng.randbytes(rng.randrange(1, 2000)),
    "with a BOM": lambda content, _rng: b"\xef\xbb\xbf" + content,
    "with CRLF": lambda content, _rng: content.replace(b"\n", b"\r\n"),
    "compressed": lambda content, _rng: gzip.compress(content, mtime=0),
    "twice": lambda content, _rng: content + content,
}
REPLACED: dict[str, Callable[[Path], object]] = {
    "gone": lambda _path: None,
    "a folder": lambda path: path.mkdir(),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


def environment(case: Case, rng: random.Random) -> str:
    name = rng.choice(sorted(ENVIRONMENT))
    case.environment[name] = rng.choice(ENVIRONMENT[name])
    return f"{name}={case.environment[name]}"


MUTATIONS = (flag_value, flag_lost, flag_misspelt, setting, setting, model_setting, row, row, file, environment)
