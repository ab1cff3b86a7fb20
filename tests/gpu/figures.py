"""What the smoke on a GPU measures, the flags of its training runs, and its models (tests: test_figures.py).

python tests/gpu/figures.py FOLDER BASE_MODEL SHAPE DEVICE      makes a model
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Figure -> the metric of a training step that holds it.
METRICS = {
    "probability_difference_mean": "training/rollout_probs_diff_mean",
    "probability_difference_max": "training/rollout_probs_diff_max",
    "weight_sync_s": "timing_s/update_weights",
    "rollout_s": "timing_s/gen",
    "update_s": "timing_s/update_actor",
    "tokens_per_s": "perf/throughput",
    "peak_memory_gb": "actor/perf/max_memory_allocated_gb",
}
# In bfloat16 the probabilities of actor and engine differ by about 1e-2.
SAME_PROBABILITIES = 2e-2
VALUES = (
    *("--config_name", "research", "--n_gpus_per_node", "1", "--train_batch_size", "16", "--ppo_mini_batch_size", "16"),
    *("--max_prompt_length", "300", "--max_response_length", "500", "--test_freq", "-1", "--total_epochs", "1"),
    *("trainer.val_before_train=false", "trainer.logger=[console,file]", "data.dataloader_num_workers=0"),
    *("search.top_n=2", "search.max_result_tokens=200", "search.max_searches=3", "search.max_attempts=3"),
    "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
    "actor_rollout_ref.rollout.gpu_memory_utilization=0.3",
)
# As Qwen2.5's config.json has them; of the 28 layers of 7B two, so that training in float32 fits one GPU.
SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": {
        "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "7B": {
        "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 2,
        "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
}  # fmt: skip


def training_flags(model: Path, url: str, data: Path, save_path: Path, *more: object) -> list[str]:
    """The flags of a small training run on one GPU."""
    needed = {
        "actor_model_path": model,
        "search_url": url,
        "train_data_path": data / "train.parquet",
        "dev_data_path": data / "test.parquet",
        "save_path": save_path,
    }
    return [*(word for name, value in needed.items() for word in (f"--{name}", str(value))), *VALUES, *map(str, more)]


def run_figures(metrics: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """The figures of a run's last step, whose engines are warm."""
    last = metrics[max(metrics)]
    found = {name: float(last[metric]) for name, metric in METRICS.items()}
    assert all(math.isfinite(value) for value in found.values()), found
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def widened_tokenizer(tokenizer: Mapping[str, Any], size: int) -> dict[str, Any]:
    """A tokenizer.json whose vocabulary has `size` tokens: a random model samples any of them."""
    vocabulary = dict(tokenizer["model"]["vocab"])
    taken = {*vocabulary.values(), *(token["id"] for token in tokenizer["added_tokens"])}
    vocabulary |= {f"x{number}": number for number in range(size) if number not in taken}
    return {**tokenizer, "model": {**tokenizer["model"], "vocab": vocabulary}}


def make_random_model(folder: Path, base_model: Path, shape: Mapping[str, Any], device: str) -> None:
    """Random weights in bfloat16, made on `device`, and the tokenizer of `base_model` with as many tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    AutoTokenizer.from_pretrained(base_model).save_pretrained(folder)
    path = folder / "tokenizer.json"
    widened = widened_tokenizer(json.loads(path.read_text(encoding="utf-8")), shape["vocab_size"])
    path.write_text(json.dumps(widened), encoding="utf-8")
    base = Qwen2Config.from_pretrained(base_model)
    ends = {name: getattr(base, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = Qwen2Config(**shape, **ends, max_position_embeddings=2048)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


if __name__ == "__main__":
    folder, base_model, shape, device = sys.argv[1:]
    make_random_model(Path(folder), Path(base_model), SHAPES[shape], device)
