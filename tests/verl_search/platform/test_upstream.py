"""The contract with upstream: our source uses no other name than the listed ones, and uses them as they are.

When one of these fails after an upgrade: read what the name became, adapt verl_search/platform/upstream.py or
upstream.yaml and the caller, and update the pinned versions.
"""

import ast
import importlib
import importlib.metadata
import inspect
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import verl_search
from verl_search.platform.upstream import (
    RequiredName,
    UpstreamMoved,
    alias_vllm_distribution,
    check_contract,
    find,
    required_names,
)

SOURCE = Path(verl_search.__file__).parent
CONDITIONS = ("always", "vllm", "cpu", "warm_start")
LISTED = tuple(required for condition in CONDITIONS for required in required_names(condition))
UPSTREAM = ("verl", "vllm", "transfer_queue", "torch.distributed")
# What our classes get from upstream as attributes, and call.
GIVEN = {
    "self.server_manager": "verl.workers.rollout.llm_server.LLMServerClient",
    "self.llm_server_manager": "verl.workers.rollout.llm_server.LLMServerManager",
}


@pytest.fixture(autouse=True)
def environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """verl's SFT trainer sets these when it is imported."""
    for name in ("NCCL_DEBUG", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, "false"))


def is_upstream(path: str) -> bool:
    return any(path == root or path.startswith(f"{root}.") for root in UPSTREAM)


def is_listed(path: str) -> bool:
    """Whether a dotted path, or something of it, is in the contract."""
    return any(f"{required.module}.{required.name}.".startswith(f"{path}.") for required in LISTED)


def is_module(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError:
        return False


def resolve(path: str) -> Any:
    """The object at a dotted path."""
    parts = path.split(".")
    depth = next(depth for depth in range(len(parts), 0, -1) if is_module(".".join(parts[:depth])))
    found: Any = importlib.import_module(".".join(parts[:depth]))
    for part in parts[depth:]:
        found = getattr(found, part)
    return found


class Source(NamedTuple):
    """One of our modules, and the upstream path of each name that it imports."""

    name: str
    tree: ast.Module
    paths: dict[str, str]

    def path_of(self, node: ast.expr) -> str | None:
        """The upstream path of an expression: an imported name, an attribute of one, or what upstream gave us."""
        written = ast.unparse(node)
        root, _, rest = written.partition(".")
        if root in self.paths and written.replace(".", "").isidentifier():
            path = f"{self.paths[root]}.{rest}".rstrip(".")
            return path if is_upstream(path) else None
        owner, _, method = written.rpartition(".")
        return f"{GIVEN[owner]}.{method}" if owner in GIVEN else None


@cache
def sources() -> list[Source]:
    found = []
    for file in SOURCE.rglob("*.py"):
        tree, paths = ast.parse(file.read_text(encoding="utf-8")), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                paths |= {alias.asname or alias.name.split(".")[0]: alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                paths |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        found.append(Source(str(file.relative_to(SOURCE)), tree, paths))
    return found


class Override(NamedTuple):
    """One of our classes that has a base of upstream's."""

    where: str
    own: type
    base: type
    base_path: str
    tree: ast.ClassDef


@cache
def overrides() -> list[Override]:
    found = []
    for source in sources():
        for node in source.tree.body:
            for base_path in map(source.path_of, node.bases) if isinstance(node, ast.ClassDef) else ():
                if base_path is not None:
                    module = ".".join(("verl_search", *Path(source.name).with_suffix("").parts))
                    own = getattr(importlib.import_module(module), node.name)
                    found.append(Override(f"{source.name}: {node.name}", own, resolve(base_path), base_path, node))
    return found


@pytest.mark.parametrize("required", LISTED, ids=lambda required: f"{required.module}.{required.name}")
def test_upstream_has(required: RequiredName) -> None:
    find(required)  # raises UpstreamMoved


def test_every_condition_has_names() -> None:
    assert all(required_names(condition) for condition in CONDITIONS)
    assert required_names("sglang") == ()


def test_every_upstream_name_that_is_used_is_listed() -> None:
    missing = []
    for source in sources():
        for name, path in source.paths.items():
            if is_upstream(path) and "." in path and not is_module(path) and not is_listed(path):
                missing.append(f"{source.name}: {path} as {name}")
        for node in ast.walk(source.tree):
            path = source.path_of(node) if isinstance(node, ast.Attribute) else None
            if path is not None and not is_module(path) and not _is_used_of_a_listed_name(path):
                missing.append(f"{source.name}: {path}")
    assert missing == []


def _is_used_of_a_listed_name(path: str) -> bool:
    """A name in the contract, or an attribute of one."""
    return is_listed(path) or any(path.startswith(f"{required.module}.{required.name}.") for required in LISTED)


def test_every_override_and_every_inherited_attribute_is_listed() -> None:
    missing = []
    for override in overrides():
        methods = {node.name for node in override.tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        taken = {name for name in methods if hasattr(override.base, name) and not name.startswith("__")}
        # Python itself refuses an instance that lacks an abstract method.
        taken -= getattr(override.base, "__abstractmethods__", frozenset())
        selves = [node for node in ast.walk(override.tree) if _is_of_self(node)]
        made = [node for node in override.tree.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
        own = {n.attr for part in made for n in ast.walk(part) if _is_of_self(n) and isinstance(n.ctx, ast.Store)}
        taken |= {node.attr for node in selves if node.attr not in methods | own}
        missing += [f"{override.where}.{name}" for name in taken if not is_listed(f"{override.base_path}.{name}")]
    assert missing == []


def _is_of_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()")


def test_overrides_take_what_upstream_gives_them() -> None:
    for override in overrides():
        for name, method in vars(override.own).items():
            upstream = getattr(override.base, name, None)
            if not inspect.isfunction(method) or not inspect.isfunction(upstream) or name == "__init__":
                continue
            ours, theirs = inspect.signature(method).parameters, inspect.signature(upstream).parameters
            takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in ours.values())
            given = {key for key, parameter in theirs.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD}
            lacking = set() if takes_any else given - ours.keys()
            variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            needed = {key for key, p in ours.items() if p.default is p.empty and p.kind not in variable}
            assert not lacking, f"{override.where}.{name} does not take {lacking}"
            assert needed <= theirs.keys(), f"{override.where}.{name}: upstream does not give {needed - theirs.keys()}"


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call of something of upstream's: where, the path of what is called, the call."""
    for source in sources():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and (path := source.path_of(node.func)):
                yield f"{source.name}:{node.lineno}", path, node
    for override in overrides():
        for node in ast.walk(override.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("super()."):
                yield override.where, f"{override.base_path}.{ast.unparse(node.func).removeprefix('super().')}", node


def test_calls_name_parameters_that_exist() -> None:
    checked = 0
    for where, path, call in calls():
        called = resolve(path)
        signature = inspect.signature(called)
        given = [keyword.arg for keyword in call.keywords if keyword.arg is not None]
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
            continue
        unknown = set(given) - signature.parameters.keys()
        assert not unknown, f"{where} calls {path} with {unknown}; it takes {list(signature.parameters)}"
        checked += len(given)
    assert checked > 15


def test_only_this_module_patches_upstream() -> None:
    patched = []
    for source in sources():
        for node in ast.walk(source.tree):
            targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
            targets += [node.target] if isinstance(node, ast.AugAssign) else []
            targets += [node.args[0]] if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr" else []
            for target in targets:
                inner = target.value if isinstance(target, ast.Subscript | ast.Attribute) else target
                if not isinstance(target, ast.Name) and source.path_of(inner):
                    patched.append(source.name)
    assert set(patched) == {"platform/upstream.py"}


@pytest.mark.parametrize("name", ["AgentLoopBase.no_such_method", "NoSuchClass"])
def test_a_moved_name_is_reported_as_that(name: str) -> None:
    gone = RequiredName("verl.experimental.agent_loop.agent_loop", name, "base of the search agent loop")
    with pytest.raises(UpstreamMoved, match=rf"{name} is gone .* base of the search agent loop.*setup\.sh"):
        check_contract((gone,))


def test_a_moved_module_is_reported_as_that() -> None:
    with pytest.raises(UpstreamMoved, match=r"verl\.moved\.Thing is gone"):
        check_contract((RequiredName("verl.moved", "Thing", "nothing"),))


def test_vllm_is_found_under_its_cpu_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", importlib.metadata.version)
    alias_vllm_distribution()
    assert importlib.metadata.version("vllm").startswith(("0.24.0", "0.28.0"))
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("no-such-distribution")
