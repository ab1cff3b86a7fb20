"""Attention and kernels with and without flash-attn, in every config that trains, and what verl makes of them."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from tests.verl_search.composing import composed
from verl_search.composition import CONFIG_DIR
from verl_search.main_ppo import complete, validate
from verl_search.platform import kernels
from verl_search.platform.kernels import Kernels, chosen_kernels, complete_kernels

PACKAGE = Path(kernels.__file__).parents[1]
MODEL = "actor_rollout_ref.model"
FLASH = Kernels("flash_attention_2", False)
GIVEN = {"attn_implementation": f"{MODEL}.override_config.attn_implementation", "fused": f"{MODEL}.use_fused_kernels"}


@pytest.mark.parametrize(
    ("overrides", "with_flash_attn", "without"),
    [
        ([], FLASH, Kernels("sdpa", True)),
        ([f"{GIVEN['attn_implementation']}=sdpa"], Kernels("sdpa", False), Kernels("sdpa", True)),
        ([f"{GIVEN['attn_implementation']}=eager"], Kernels("eager", False), Kernels("eager", True)),
        ([f"{GIVEN['fused']}=true"], Kernels("flash_attention_2", True), Kernels("sdpa", True)),
        ([f"{GIVEN['fused']}=false"], FLASH, Kernels("sdpa", False)),
    ],
)
def test_a_null_stands_for_what_works(overrides: list[str], with_flash_attn: Kernels, without: Kernels) -> None:
    model = composed("research", *overrides).actor_rollout_ref.model
    assert (chosen_kernels(model, True), chosen_kernels(model, False)) == (with_flash_attn, without)


@pytest.mark.parametrize("name", ["cpu", "demo"])
def test_a_cpu_has_neither(name: str) -> None:
    model = composed(name).actor_rollout_ref.model
    assert chosen_kernels(model, True) == chosen_kernels(model, False) == Kernels("sdpa", False)


@pytest.mark.filterwarnings("ignore:Disabled critic")
@pytest.mark.parametrize("works", [True, False])
def test_the_completed_config_holds_them_and_verl_takes_it(
    works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    # None makes Python refuse the import, as a build for another torch does.
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn") if works else None)
    config = composed("research", f"{MODEL}.path={tmp_path}")
    complete(config)
    validate(config)
    model = config.actor_rollout_ref.model
    chosen = Kernels(model.override_config.attn_implementation, model.use_fused_kernels)
    assert chosen == (FLASH if works else Kernels("sdpa", True))
    assert config.actor_rollout_ref.actor.use_fused_kernels is chosen.fused, "verl's own keys follow"


def test_the_warm_start_has_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    for name, fused in (("warm_start", True), ("warm_start_cpu", False)):
        model = composed(name).model
        complete_kernels(model)
        assert (model.override_config.attn_implementation, model.use_fused_kernels) == ("sdpa", fused)


def test_the_packed_attention_of_the_cpu_is_not_there_on_gpus() -> None:
    """Importing shared_prefix.py replaces transformers' sdpa: only the CPU's engine does so, which its configs name."""
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"^\s*(from|import) .*shared_prefix", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert importers == {"platform/engine.py"}
    named = {path.stem for path in CONFIG_DIR.glob("*.yaml") if "platform.engine" in path.read_text(encoding="utf-8")}
    assert named == {"cpu", "warm_start_cpu"}
    on_gpus = composed("research").actor_rollout_ref.model
    assert on_gpus.external_lib == "verl_search.platform.fused_head"
    assert "research" in yaml.safe_load((CONFIG_DIR / "cpu.yaml").read_text(encoding="utf-8"))["defaults"]


def test_even_there_it_leaves_rows_that_are_not_packed_to_the_original() -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from verl_search.platform.shared_prefix import attend

    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, 2  # type: ignore[assignment]
    query, key, value = (torch.randn(1, heads, 5, 8) for heads in (4, 2, 2))
    for mask in (None, torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()):
        ours, original = (run(module, query, key, value, mask)[0] for run in (attend, sdpa_attention_forward))
        assert torch.equal(ours, original)
