"""What may import what: no cycles, one direction, rooms that are entered by their doors, public paths that stay.

Read from the source of every module that is no test, so nothing has to be imported to be judged.
"""

import ast
import importlib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOTS = {
    "flashrag": REPOSITORY / "flashrag" / "flashrag",
    "verl_search": REPOSITORY / "verl" / "verl_search",
    **{name: REPOSITORY / name for name in ("rag_serving", "training", "evaluation", "scripts")},
}
# What the modules of a package may import of ours, beside their own package.
MAY_IMPORT = {
    "flashrag": set(),
    "verl_search": {"flashrag"},
    "rag_serving": {"flashrag", "verl_search"},
    "training": {"flashrag", "verl_search"},
    "evaluation": {"flashrag", "verl_search"},
    "scripts": {"flashrag", "verl_search", "rag_serving", "evaluation"},
}
PUBLIC = [
    "flashrag.config.Config",
    *(f"flashrag.utils.get_{name}" for name in ("retriever", "generator", "dataset")),
    *(f"flashrag.pipeline.{name}Pipeline" for name in ("ReSearch", "Sequential", "Iterative", "FLARE")),
    "flashrag.episode.Episode",
    "flashrag.client.RetrievalClient",
    "flashrag.retriever.Retriever",
    "flashrag.dataset.Question",
    "flashrag.corpus.Corpus",
    "flashrag.document.Document",
    "flashrag.errors.UserError",
    "flashrag.metrics.score_answer",
    "flashrag.retriever.index_builder.main",
    "flashrag.retriever.index_shards.main",
    pytest.param("rag_serving.ray_app.app", marks=pytest.mark.slow),  # Ray Serve takes its time
]


class Import(NamedTuple):
    """One imported name: `from target import name`, or `import target` where the name is None."""

    module: str
    line: int
    target: str
    name: str | None
    at_import: bool  # run when the module is imported: not within a function, not for the type checker alone

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}" + (f".{self.name}" if self.name else "")


@cache
def sources() -> dict[str, Path]:
    """Every module by its name; a package by the name of its folder."""
    found = {}
    for package, root in ROOTS.items():
        for path in root.rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(sources()[module].read_text(encoding="utf-8"))


@cache
def imports() -> list[Import]:
    """Every import of a module of ours."""
    return [found for module in sources() for found in _imports(module, tree(module), at_import=True)]


def _imports(module: str, node: ast.AST, at_import: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            named = [(alias.name, None) for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{module}:{child.lineno} imports relatively"
            named = [(child.module or "", alias.name) for alias in child.names]
        else:
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_for_types(child)
            yield from _imports(module, child, at_import and not later)
            continue
        for target, name in named:
            if target.partition(".")[0] in ROOTS:
                yield Import(module, child.lineno, target, name, at_import)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported_module(found: Import) -> str:
    """The module that an import names: `from package import module` names the module."""
    inner = f"{found.target}.{found.name}"
    return inner if inner in sources() else found.target


def room(module: str) -> str:
    """The folder that a module lies in."""
    return module if sources()[module].name == "__init__.py" else module.rpartition(".")[0]


def lies_in(module: str, inside: str) -> bool:
    """Whether a module lies in a room, or in a room within it."""
    return f"{room(module)}.".startswith(f"{inside}.")


@cache
def doors() -> dict[str, set[str]]:
    """The names that a room offers to others, of the rooms that have such a list."""
    found = {}
    for module, path in sources().items():
        for node in tree(module).body if path.name == "__init__.py" else []:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found[module] = set(ast.literal_eval(node.value))
    return found


def test_every_import_of_ours_names_a_module_that_is_there() -> None:
    assert [str(found) for found in imports() if imported_module(found) not in sources()] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in sources()}
    for found in imports():
        if found.at_import:
            target = imported_module(found)
            parts = target.split(".")
            # A module runs after the packages around it, which for its own packages is true already.
            around = {".".join(parts[:depth]) for depth in range(1, len(parts))}
            own = {found.module, *(found.module[: -len(tail)] for tail in _tails(found.module))}
            graph[found.module] |= ({target} | around) & sources().keys() - own | {target}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def _tails(module: str) -> Iterator[str]:
    parts = module.split(".")
    yield from ("." + ".".join(parts[depth:]) for depth in range(1, len(parts)))


def test_packages_depend_on_each_other_in_one_direction() -> None:
    breaches = []
    for found in imports():
        own, other = found.module.partition(".")[0], found.target.partition(".")[0]
        if other not in {own, *MAY_IMPORT[own]}:
            breaches.append(str(found))
    assert breaches == []


def test_private_names_stay_in_their_room() -> None:
    crossing = [
        str(found)
        for found in imports()
        if not lies_in(found.module, room(imported_module(found)))
        and any(part.startswith("_") for part in (*found.target.split("."), found.name or ""))
    ]
    assert crossing == []


def test_a_room_is_entered_by_its_door() -> None:
    around = [
        str(found)
        for found in imports()
        for inside in [room(imported_module(found))]
        if found.name in doors().get(inside, ()) and found.target != inside and not lies_in(found.module, inside)
    ]
    assert around == []


def test_the_retrieval_room_brings_no_client_of_servers_with_it() -> None:
    """Every search process and every build of an index imports it; aiohttp and httpx would be a third of that."""
    reached: set[str] = set()
    waiting = ["flashrag.retriever"]
    while waiting:
        if (module := waiting.pop()) not in reached:
            reached.add(module)
            waiting += [imported_module(found) for found in imports() if found.module == module and found.at_import]
    assert "flashrag.retriever.loading" in reached
    heavy = ("flashrag.client", "flashrag.generator", "flashrag.system.network")
    assert [module for module in sorted(reached) if module.startswith(heavy)] == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", PUBLIC)
def test_a_public_path_can_be_imported(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(module), name).__name__ == name or name == "app"


def test_no_folder_of_ours_has_a_name_that_tools_pass_over(pytestconfig: pytest.Config) -> None:
    """git's ignored names hide a folder from the linter and from a wheel, pytest's from the tests."""
    folders = {path.parent for root in (*ROOTS.values(), REPOSITORY / "tests") for path in root.rglob("*.py")}
    names = {part for folder in folders for part in folder.relative_to(REPOSITORY).parts} - {"__pycache__"}
    ignored = [
        line.rstrip("/") for line in (REPOSITORY / ".gitignore").read_text().splitlines() if not line.startswith("/")
    ]
    patterns = [*ignored, *pytestconfig.getini("norecursedirs")]
    assert [name for name in sorted(names) if any(fnmatch(name, pattern) for pattern in patterns)] == []
