"""How fast weights are updated on a CPU: verl's engine as we run it, against a bare PyTorch loop and the padded engine.

    python scripts/bench/training.py --model_path models/smollm2

Each way updates the model on the same trajectories with the same loss, the mean over the trained tokens, and must find
the same value of it, in the same precision. `step` is what a training step computes besides its rollouts, with
`algorithm.rollout_correction.bypass_mode=true`: the update by the CPU engine with packed micro-batches
(verl_search/platform/shared_prefix.py). `padded` is the same engine without them, which is upstream's. `bare_loop` is
the best loop without verl: transformers' model, micro-batches of similar lengths, logits where a token is trained,
AdamW, autocast. One JSON line comes last.
"""

import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a script: imports start at the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from flashrag.episode import prompt_token_ids
from flashrag.errors import exit_on_user_error
from flashrag.generator import check_model_folder, load_tokenizer
from flashrag.system.arguments import flag, in_range, parse_options
from flashrag.system.local_server import LOOPBACK, free_port
from scripts.bench.report import paired_rounds, print_report, ratios
from verl_search.composition import compose_config, quoted, usual_precision
from verl_search.platform import upstream

TARGETS = {"step_over_bare_loop": ">= 0.80"}
MICRO_BATCH_TOKENS = 4096
LEARNING_RATE = 1e-5
SEED = 0  # of the tokens
SAME_LOSS = {"float32": 1e-3, "bfloat16": 2e-2}


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Measure how many trained tokens per second an update of the weights takes."""

    model_path: Path = flag("the model: a Hugging Face folder, of which Llama, Qwen2 and Qwen3 are packed")
    questions: int = flag("questions in a step", 4, type=in_range(int, 1))
    group: int = flag("trajectories of each", 8, type=in_range(int, 1))
    sampled_tokens: int = flag("sampled tokens of a trajectory", 80, type=in_range(int, 2))
    result_tokens: int = flag("tokens of its one result", 160, type=in_range(int, 1))
    rounds: int = flag("number of rounds; figures are medians over them", 3, type=in_range(int, 1))
    threads: int = flag("of PyTorch", len(os.sched_getaffinity(0)), type=in_range(int, 1))
    precision: str = flag("of all ways", usual_precision(), choices=tuple(SAME_LOSS))


@dataclass(frozen=True, slots=True)
class TrainedIds:
    """The ids of one trajectory, and 1 for each of them that is trained."""

    ids: torch.Tensor
    mask: torch.Tensor


def write_sequences(options: TrainingOptions) -> list[TrainedIds]:
    """Prompts by the template, then random tokens: a call, a result, an answer, each a fifth longer or shorter."""
    tokenizer = load_tokenizer(str(options.model_path), "--model_path")
    draws = random.Random(SEED)

    def some(count: int) -> list[int]:
        return [draws.randrange(100, len(tokenizer)) for _ in range(round(count * draws.uniform(0.8, 1.2)))]

    found = []
    for number in range(options.questions):
        prompt = prompt_token_ids(
            tokenizer, f"Who wrote the book number {number} of the {draws.randrange(100)}th shelf?"
        )
        for _ in range(options.group):
            parts = [some(options.sampled_tokens // 2), some(options.result_tokens), some(options.sampled_tokens // 2)]
            mask = [0] * len(prompt) + [number % 2 ^ 1 for number, part in enumerate(parts) for _ in part]
            found.append(TrainedIds(torch.tensor([*prompt, *chain.from_iterable(parts)]), torch.tensor(mask)))
    return found


def engine_update(options: TrainingOptions) -> Callable[[bool, Sequence[TrainedIds]], float]:
    """verl's training worker, as the warm start runs it: a function of whether sequences are packed, and of these."""
    upstream.check_plugin_loaded()  # imports verl, which takes half a minute
    from verl.utils import tensordict_utils as tu
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.engine_workers import TrainingWorker, TrainingWorkerConfig
    from verl.workers.utils.losses import sft_loss

    from verl_search.platform.engine import CPUEngineWithLMHead

    class PaddedEngine(CPUEngineWithLMHead):
        """The engine as upstream has it."""

        def _packs(self, micro_batch: Any) -> bool:
            del micro_batch
            return False

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR=LOOPBACK, MASTER_PORT=str(free_port()))
    chosen = {"model.path": str(options.model_path), "engine.mixed_precision.param_dtype": options.precision}
    config = compose_config("warm_start_cpu", [f"{key}={quoted(value)}" for key, value in chosen.items()])
    config.optim.update(lr=LEARNING_RATE, lr_scheduler_type="constant", total_training_steps=1000)
    parts = {
        f"{name}_config": omega_conf_to_dataclass(config[part])
        for name, part in (
            ("model", "model"),
            ("engine", "engine"),
            ("optimizer", "optim"),
            ("checkpoint", "checkpoint"),
        )
    }
    worker = TrainingWorker(config=TrainingWorkerConfig(model_type="language_model", profiler_config=None, **parts))
    worker.set_loss_fn(partial(sft_loss, config=None))
    worker.reset()
    settings = {
        "use_remove_padding": False,
        "use_dynamic_bsz": True,
        "max_token_len_per_gpu": MICRO_BATCH_TOKENS,
        "temperature": 1.0,
        "pad_mode": "no_padding",
        "pad_token_id": 0,
        "update_lr_scheduler": False,
    }

    def update(packed: bool, sequences: Sequence[TrainedIds]) -> float:
        worker.engine.__class__ = CPUEngineWithLMHead if packed else PaddedEngine
        jagged = partial(torch.nested.as_nested_tensor, layout=torch.jagged)
        data = tu.get_tensordict(
            {
                "input_ids": jagged([one.ids for one in sequences]),
                "position_ids": jagged([torch.arange(len(one.ids)) for one in sequences]),
                "loss_mask": jagged([one.mask for one in sequences]),
            },
            {**settings, "global_batch_size": len(sequences)},
        )
        tu.assign_non_tensor(data, global_token_num=[len(one.ids) for one in sequences])
        return float(tu.get(worker.train_batch(data=data), "metrics")["loss"])

    return update


def bare_update(options: TrainingOptions) -> Callable[[Sequence[TrainedIds]], float]:
    """A loop without verl."""
    model = AutoModelForCausalLM.from_pretrained(options.model_path, dtype=torch.float32, attn_implementation="sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)

    def update(sequences: Sequence[TrainedIds]) -> float:
        trained = sum(int(one.mask.sum()) for one in sequences)
        total = 0.0
        for batch in micro_batches(sequences):
            ids = pad_sequence([one.ids for one in batch], batch_first=True)
            mask = pad_sequence([one.mask for one in batch], batch_first=True).bool()
            there = torch.arange(ids.shape[1])[None] < torch.tensor([[len(one.ids)] for one in batch])
            with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
                hidden = model.model(input_ids=ids, attention_mask=there.long(), use_cache=False).last_hidden_state
                logits = model.lm_head(hidden[:, :-1][mask[:, 1:]])
            loss = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][mask[:, 1:]], reduction="sum") / trained
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return update


def micro_batches(sequences: Sequence[TrainedIds]) -> list[list[TrainedIds]]:
    """Sequences of similar lengths together, with at most MICRO_BATCH_TOKENS in each batch, its padding counted."""
    batches: list[list[TrainedIds]] = []
    for one in sorted(sequences, key=lambda one: -len(one.ids)):
        if batches and len(batches[-1][0].ids) * (len(batches[-1]) + 1) <= MICRO_BATCH_TOKENS:
            batches[-1].append(one)
        else:
            batches.append([one])
    return batches


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    options = parse_options(TrainingOptions, "python scripts/bench/training.py", argv)
    check_model_folder(options.model_path, "--model_path")
    torch.set_num_threads(options.threads)
    sequences = write_sequences(options)
    engine, bare = engine_update(options), bare_update(options)
    updates: dict[str, Callable[[Sequence[TrainedIds]], float]] = {
        "step": partial(engine, True),
        "padded": partial(engine, False),
        "bare_loop": bare,
    }
    first = {way: update(sequences) for way, update in updates.items() if way != "padded"}
    assert abs(first["step"] - first["bare_loop"]) < SAME_LOSS[options.precision], (
        f"the ways do not compute the same loss: {first}"
    )
    trained = sum(int(one.mask.sum()) for one in sequences)

    def trained_per_s(update: Callable[[Sequence[TrainedIds]], float]) -> Callable[[Sequence[TrainedIds]], float]:
        def measure(work: Sequence[TrainedIds]) -> float:
            started = time.perf_counter()
            update(work)
            return trained / (time.perf_counter() - started)

        return measure

    ways = {way: trained_per_s(update) for way, update in updates.items()}
    per_s = paired_rounds("updates", [sequences] * options.rounds, ways)
    figures: dict[str, Any] = ratios(per_s, ("step", "bare_loop"), ("step", "padded"))
    lengths = {"trained_tokens": trained, "tokens": sum(len(one.ids) for one in sequences)}
    print_report(
        {**figures, **lengths}, TARGETS, **{f"{way}_trained_tokens_per_s": rates for way, rates in per_s.items()}
    )


if __name__ == "__main__":
    sys.exit(main())
