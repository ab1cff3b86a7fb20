"""The contract with verl, torch and vLLM: one test per name that this project builds on.

When one fails after an upgrade: read what the name became, adapt verl_search/platform/upstream.py (and only that
module, unless a base class changed), and update the pinned versions.
"""

import importlib.metadata

import pytest

from verl_search.platform.upstream import (
    REQUIRED_CPU_NAMES,
    REQUIRED_NAMES,
    RequiredName,
    UpstreamMoved,
    alias_vllm_distribution,
    check_contract,
    find,
)


@pytest.mark.parametrize("required", [*REQUIRED_NAMES, *REQUIRED_CPU_NAMES], ids=lambda r: f"{r.module}.{r.name}")
def test_upstream_has(required: RequiredName) -> None:
    assert find(required) is not None


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
