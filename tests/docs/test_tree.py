"""The tree in README.md: what it names is there, and it leaves out no room."""

import re

import pytest

from tests.docs.pages import ROOT, blocks

(TREE,) = [block.text for block in blocks() if block.page == "README.md" and block.language == "text"]
ROOMS_OF = ("flashrag/flashrag", "verl/verl_search")
_NAME = re.compile(r"(?<![\w/])[\w./]+(?:/|\.(?:py|yaml|sh))(?![\w/])")


def entries() -> list[tuple[list[str], list[str]]]:
    """For each entry the folders that it is about and the names in its text; a room's folders are in its package."""
    found: list[tuple[list[str], list[str]]] = []
    package = ""
    for line in TREE.splitlines():
        indent = len(line) - len(line.lstrip())
        head, _, text = line.strip().partition("  ")
        if indent > 2:  # the text of the entry above goes on
            found[-1][1].extend(_NAME.findall(line))
            continue
        folders = re.findall(r"\S+/(?=\s|$)", line) if indent else [head]
        if indent:
            folders = [f"{package}{folder}" for folder in folders if line.index(folder) < 22]
        else:
            package = head
        found.append((folders, [name for name in _NAME.findall(text) if f"{package}{name}" not in folders]))
    return found


@pytest.mark.parametrize(("folders", "names"), entries(), ids=lambda value: " ".join(value))
def test_what_the_tree_names_is_there(folders: list[str], names: list[str]) -> None:
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []
    assert [name for name in names if not any((ROOT / folder / name).exists() for folder in folders)] == []


@pytest.mark.parametrize("package", ROOMS_OF)
def test_no_room_is_left_out(package: str) -> None:
    named = {folder.rstrip("/") for folders, _ in entries() for folder in folders}
    rooms = {f"{package}/{path.parent.name}" for path in (ROOT / package).glob("*/__init__.py")}
    assert rooms - named == set()
