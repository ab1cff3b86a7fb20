"""The memory on paper: of each part by hand, and of whole runs against what was worked out for Qwen2.5 before."""

from dataclasses import replace

import pytest

from flashrag.generator import ModelFacts
from tests.verl_search.composing import composed
from verl_search.preflight.memory import Memory, lacking_bytes, training_memory, what_fits

ACTOR, ROLLOUT, REF, MODEL = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "ref", "model"))
GB = 10**9
PARAMETERS_7B = 7_615_616_512
ONE_GPU = ["trainer.n_gpus_per_node=1", f"{ROLLOUT}.tensor_model_parallel_size=1"]


def qwen(layers: int, hidden: int, inner: int, heads: int, kv_heads: int, parameters: int) -> ModelFacts:
    """Qwen2.5, whose smaller models tie both ends and have a vocabulary of 151,936."""
    large = parameters > 7 * GB
    vocabulary = 152_064 if large else 151_936
    language = {
        **{"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner, "vocab_size": vocabulary},
        **{"num_attention_heads": heads, "num_key_value_heads": kv_heads, "tie_word_embeddings": not large},
    }
    return ModelFacts("Qwen2ForCausalLM", 32_768, heads, vocabulary, parameters, vocabulary * hidden, 0, language)


# The config.json of each, and the parameters of its safetensors headers.
QWEN = {
    "0.5B": qwen(24, 896, 4864, 14, 2, 494_032_768),
    "1.5B": qwen(28, 1536, 8960, 12, 2, 1_543_714_304),
    "3B": qwen(36, 2048, 11_008, 16, 2, 3_085_938_688),
    "7B": qwen(28, 3584, 18_944, 28, 4, PARAMETERS_7B),
}
# 2 layers of 4 numbers, a feed-forward layer of 8, 10 words, 1,000 parameters; keys and values of 1 head of 2 numbers.
TINY = ModelFacts("A", 64, 2, 10, 1000, 40, 0, {
    "num_hidden_layers": 2, "hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 2,
    "num_key_value_heads": 1, "tie_word_embeddings": True,
})  # fmt: skip


def memory(name: str, gpus: int, gpu_gb: int, *overrides: str, flash_attn: bool = True) -> Memory:
    config = composed("research", f"trainer.n_gpus_per_node={gpus}", *overrides)
    found = training_memory(QWEN[name], config, gpu_gb * GB, flash_attn)
    assert found
    return found


def gigabytes(*parts: int) -> float:
    return round(sum(parts) / GB, 1)


# The published run: 7.6 billion parameters of 4 + 4 + 8 bytes over the GPUs, without gradients in rollouts.
@pytest.mark.parametrize(
    ("gpus", "states", "resident"),
    [
        (8, 15.2, 59.4),  # 7.6 x 16 / 8; 7.6 x 12 / 8 and the engine's 0.6 x 80 = 48
        (4, 30.5, 70.8),
        (2, 60.9, 93.7),
    ],
)
def test_the_weights_of_a_7b_model(gpus: int, states: float, resident: float) -> None:
    found = memory("7B", gpus, 80)
    assert gigabytes(*(found.update[name] for name in ("weights", "gradients", "optimizer"))) == states
    assert gigabytes(*(found.rollout[name] for name in ("weights", "optimizer", "engine"))) == resident


def test_the_update_of_a_7b_model_with_and_without_fused_kernels() -> None:
    """Worked out before: about 60 and 38 GB at 17,408 tokens."""
    assert sum(memory("7B", 8, 80).update.values()) == pytest.approx(60 * GB, rel=0.1)
    assert sum(memory("7B", 8, 80, flash_attn=False).update.values()) == pytest.approx(38 * GB, rel=0.1)
    fused = memory("7B", 8, 80, f"{MODEL}.use_fused_kernels=true")
    assert fused == memory("7B", 8, 80, flash_attn=False)
    assert memory("7B", 8, 80).update["logits"] == 17_408 * 152_064 * 8
    assert fused.update["logits"] == 512 * 3 * 152_064 * 8


def test_each_part_of_an_update_by_hand() -> None:
    settings = ["data.max_prompt_length=10", "data.max_response_length=20", f"{ACTOR}.ppo_max_token_len_per_gpu=50"]
    config = composed("research", *settings)
    config.trainer.n_gpus_per_node = 2
    found = training_memory(TINY, config, 1000, flash_attn=True)
    assert found
    fixed = 2 * 2**30
    assert found.update == {
        "weights": 500 * 4,
        "gradients": 500 * 4,
        "optimizer": 500 * 8,
        # Both ends are one matrix of 10 x 4; two layers hold the other 960 parameters; with gradients, in bfloat16.
        "gathered layers": (40 + 960) * 2 * 2,
        # The inputs of 2 layers, and one layer of 10 x 4 + 4 x 8 numbers with gradients, for 50 tokens in bfloat16.
        "activations": 2 * 50 * 4 * 2 + 2 * 50 * 72 * 2,
        "logits": 50 * 10 * 8,
        "CUDA": fixed,
    }
    assert found.rollout == {"weights": 2000, "optimizer": 4000, "engine": 600, "CUDA": fixed}
    assert found.host == {"loading": 2 * 4000, "reference": 4000}  # tied ends: each of 2 processes loads it whole
    config.actor_rollout_ref.model.enable_gradient_checkpointing = False
    kept = training_memory(TINY, config, 1000, flash_attn=True)
    assert kept and kept.update["activations"] == 3 * 50 * 72 * 2


@pytest.mark.parametrize(
    ("overrides", "rollout", "update", "host"),
    [
        ([f"{ACTOR}.fsdp_config.optimizer_offload=true"], ["weights"], 16, {"offloaded": 8}),
        ([f"{ACTOR}.fsdp_config.param_offload=true"], ["optimizer"], 16, {"offloaded": 4}),
        ([f"{ACTOR}.fsdp_config.offload_policy=true"], [], 0, {"offloaded": 16}),
        ([f"{MODEL}.lora_rank=8"], ["weights", "optimizer"], 4, {"reference": 0}),
        ([f"{ACTOR}.use_kl_loss=false"], ["weights", "optimizer"], 16, {"reference": 0}),
        # Over 4 GPUs, twice on 8.
        ([f"{ACTOR}.fsdp_config.fsdp_size=4"], ["weights", "optimizer"], 32, {"reference": 8}),
    ],
)
def test_what_is_offloaded_lies_in_the_machine(
    overrides: list[str], rollout: list[str], update: int, host: dict[str, int]
) -> None:
    """Bytes of a parameter: 4 of weights, 4 of gradients, 8 of the optimizer; those of an update over 8 GPUs."""
    found = training_memory(QWEN["7B"], composed("research", *overrides), 80 * GB)
    assert found
    states = sum(size for name, size in found.update.items() if name in ("weights", "gradients", "optimizer"))
    assert round(states * 8 / PARAMETERS_7B, 3) == update
    assert [name for name in found.rollout if name in ("weights", "optimizer")] == rollout
    assert {name: round(found.host.get(name, 0) / PARAMETERS_7B, 3) for name in host} == host


def test_a_critic_is_a_second_model() -> None:
    """Over 8 GPUs 4 bytes of weights and 8 of the optimizer; its gradients are gone while the actor is updated."""
    share = PARAMETERS_7B // 8
    without, by_ppo = (memory("7B", 8, 80, *given) for given in ([], ["algorithm.adv_estimator=gae"]))
    critic = {"critic's weights": share * 4, "critic's optimizer": share * 8}
    assert by_ppo.rollout == {**without.rollout, **critic}
    assert by_ppo.update == {**without.update, **critic}
    away = ["critic.fsdp.param_offload=true", "critic.fsdp.optimizer_offload=true"]
    offloaded = memory("7B", 8, 80, "algorithm.adv_estimator=gae", *away)
    assert (offloaded.rollout, offloaded.update) == (without.rollout, without.update)
    assert offloaded.host == {**without.host, "offloaded": 8 * share * 12}
    on_a_cpu = training_memory(QWEN["0.5B"], composed("cpu", "algorithm.adv_estimator=gae"))
    assert on_a_cpu and on_a_cpu.host["critic: weights, gradients, optimizer"] == 494_032_768 * 16


def test_the_engine_s_cache() -> None:
    """Of 48 GB: 15.2 of weights over 2 GPUs, 2 GiB beside; a token has 2 x 28 layers x 4 heads x 128 x 2 bytes, too."""
    parameters, a_token = PARAMETERS_7B, 2 * 28 * 4 * 128 * 2 // 2
    assert memory("7B", 8, 80).cache_tokens == (48 * GB - parameters - 2 * 2**30) // a_token
    # 8 GPUs share 4 heads of keys and values, so each has one.
    wide = memory("7B", 8, 80, f"{ROLLOUT}.tensor_model_parallel_size=8")
    assert wide.cache_tokens == (48 * GB - parameters * 2 // 8 - 2 * 2**30) // (2 * 28 * 128 * 2)
    assert memory("7B", 8, 20).cache_tokens == (12 * GB - parameters - 2 * 2**30) // a_token
    unknown = training_memory(replace(QWEN["7B"], language={}), composed("research"), 80 * GB)
    assert unknown and unknown.cache_tokens is None


def test_without_a_gpu_all_of_it_lies_in_the_machine() -> None:
    facts = ModelFacts("Qwen2ForCausalLM", 1024, 4, 1000, 1_000_000, 64 * 2**20, 4_000_000)
    found = training_memory(facts, composed("demo"))
    assert found == Memory({}, {}, {
        "actor: weights, gradients, optimizer": 16_000_000,
        "engines: weights and cache": 4_000_000 + 2**30,
        "activations and logits of a micro-batch": 8192 * 1000 * 8,
        "processes": 11 * 2**29,
        "reference: weights": 4_000_000,
    }, None)  # fmt: skip
    # In bfloat16: 24 layers and one of gradients, 896 wide and 4864 in between; in 24 layers the scores of 14 heads to
    # a sequence of 30 tokens; 151,936 logits and their gradients.
    sizes = ["data.max_prompt_length=10", "data.max_response_length=20", f"{ACTOR}.ppo_max_token_len_per_gpu=1000"]
    found = training_memory(QWEN["0.5B"], composed("cpu", *sizes))
    assert found and found.host["activations and logits of a micro-batch"] == 1000 * 2 * (
        25 * (10 * 896 + 4 * 4864) + 24 * 14 * 30 + 2 * 151_936
    )
    # In float32 no scores; with checkpointing those of one layer.
    found = training_memory(QWEN["0.5B"], composed("cpu", *sizes, f"{ROLLOUT}.dtype=float32"))
    assert found and found.host["activations and logits of a micro-batch"] == 1000 * 4 * (
        25 * (10 * 896 + 4 * 4864) + 2 * 151_936
    )
    found = training_memory(QWEN["0.5B"], composed("cpu", *sizes, f"{MODEL}.enable_gradient_checkpointing=true"))
    assert found and found.host["activations and logits of a micro-batch"] == 1000 * 2 * (
        24 * 896 + 2 * (10 * 896 + 4 * 4864) + 14 * 30 + 2 * 151_936
    )
    assert training_memory(replace(facts, parameters=None), composed("demo")) is None


@pytest.mark.parametrize(
    ("name", "gpus", "gpu_gb", "fitting"),
    [
        ("7B", 8, 80, ""),
        ("7B", 4, 80, ""),
        ("1.5B", 1, 80, ""),
        ("0.5B", 1, 24, ""),
        # 37.0 + 2.1 in rollouts leave 36.9 of 76 usable: 0.45 of 80.
        ("3B", 1, 80, f"{ROLLOUT}.gpu_memory_utilization=0.45"),
        # With fused kernels and one sequence at a time 2 GPUs still take 76.8 of 76 usable in updates.
        ("7B", 1, 80, "4 such GPUs"),
        # The same: 46.3 of 45.6.
        ("7B", 4, 48, "8 such GPUs"),
        # 30.9 in updates with one sequence at a time; 17.0 and 2.1 in rollouts leave 0.5 of 46.
        ("1.5B", 1, 40, f"{ROLLOUT}.gpu_memory_utilization=0.4"),
        ("3B", 1, 64, f"{ACTOR}.ppo_max_token_len_per_gpu=8704 {ROLLOUT}.gpu_memory_utilization=0.3"),
        # One process' gathered layers and activations alone are more than such a GPU has, however many there are.
        ("7B", 1, 12, None),
    ],
)  # fmt: skip
def test_what_would_fit_is_told(name: str, gpus: int, gpu_gb: int, fitting: str | None) -> None:
    parallel = [] if gpus > 1 else [f"{ROLLOUT}.tensor_model_parallel_size=1"]
    config = composed("research", f"trainer.n_gpus_per_node={gpus}", *parallel)
    lacking = lacking_bytes(QWEN[name], config, gpu_gb * GB, flash_attn=False)
    assert (lacking == 0) is (fitting == "")
    if lacking:
        assert what_fits(QWEN[name], config, gpu_gb * GB, flash_attn=False) == fitting
    assert config.trainer.n_gpus_per_node == gpus, "it is tried on a copy"


def test_fused_kernels_are_the_first_to_be_asked_for() -> None:
    """7B on 4 GPUs of 72 GB: 71.3 in updates, of which the kernels save 19.3."""
    config = composed("research", "trainer.n_gpus_per_node=4")
    fitting = what_fits(QWEN["7B"], config, 72 * GB, flash_attn=True)
    assert fitting == f"{MODEL}.use_fused_kernels=true"


def test_a_cache_that_holds_no_episode_lacks_memory() -> None:
    config = composed("research", *ONE_GPU, f"{ROLLOUT}.gpu_memory_utilization=0.2")
    assert lacking_bytes(QWEN["0.5B"], config, 16 * GB, flash_attn=False) > 0  # 3.2 GB: 1.0 of weights and 2 GiB beside
