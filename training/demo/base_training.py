"""Pretraining of the demo's base model: a tiny Qwen2, a short curriculum, loss on what the model would sample.

Two phases. First perfect transcripts without the prompt's instructions, where names weigh more than tags: the model
learns to copy. Then the imperfect mixture, mostly after the full prompt, unweighted: it learns the habits that
reinforcement learning is to change. Deterministic for a given recipe, seed and number of threads.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from flashrag.prompts import render_prompt
from training.demo.base_init import plant_copying
from training.demo.base_transcripts import Transcript, draw_transcripts
from training.demo.tokenizer import MODEL_MAX_LENGTH, single_token_names, train_tokenizer

NOT_LEARNT = -100


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the product."""

    seed: int = 0
    threads: int = 1
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    batch_size: int = 32
    perfect_steps: int = 600
    imperfect_steps: int = 150
    peak_lr: float = 2e-3
    imperfect_lr_scale: float = 0.3
    name_weight: float = 4.0
    full_prompt_share: float = 0.75
    tokenizer_transcripts: int = 4000


@dataclass(frozen=True)
class Progress:
    """What a step reports; `name_accuracy` is over the name tokens that are learnt."""

    phase: str
    step: int
    steps: int
    loss: float
    name_accuracy: float
    seconds: float


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """An untrained model with the copying prior of `base_init`."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=3 * recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=MODEL_MAX_LENGTH,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config).float()
    plant_copying(model, torch.Generator().manual_seed(recipe.seed))
    return model


def encode_transcript(
    tokenizer: PreTrainedTokenizerFast, transcript: Transcript, full_prompt: bool
) -> tuple[list[int], list[int]]:
    """Token ids and labels; each segment is encoded on its own, as the rollout does, and EOS is learnt at the end."""
    prompt = render_prompt(transcript.question)
    if not full_prompt:
        prompt = prompt[prompt.rindex("User: ") :]
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    labels = [NOT_LEARNT] * len(ids)
    for segment in transcript.segments:
        piece = tokenizer.encode(segment.text, add_special_tokens=False)
        ids += piece
        labels += piece if segment.learnt else [NOT_LEARNT] * len(piece)
    return [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]


def make_batch(
    tokenizer: PreTrainedTokenizerFast, transcripts: Sequence[Transcript], full_prompt: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, padded on the right (causal attention never looks at the padding)."""
    encoded = [encode_transcript(tokenizer, transcript, full_prompt) for transcript in transcripts]
    longest = max(len(ids) for ids, _ in encoded)
    padded_ids = [ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids, _ in encoded]
    padded_labels = [labels + [NOT_LEARNT] * (longest - len(labels)) for _, labels in encoded]
    return torch.tensor(padded_ids), torch.tensor(padded_labels)


def learning_rate(peak: float, step: int, steps: int) -> float:
    """Warm-up over 50 steps (a third of a very short phase), then a cosine down to a tenth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return peak * min(1.0, (step + 1) / min(50, math.ceil(steps / 3))) * (0.1 + 0.9 * cosine)


def pretrain(
    recipe: Recipe, report: Callable[[Progress], None] = lambda _: None
) -> tuple[PreTrainedTokenizerFast, Qwen2ForCausalLM]:
    """Run the recipe; `report` is called after every step."""
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed + 1)
    tokenizer = train_tokenizer(recipe.seed, recipe.tokenizer_transcripts)
    model = make_model(recipe, tokenizer)
    is_name = torch.zeros(len(tokenizer), dtype=torch.bool)
    is_name[list(single_token_names(tokenizer).values())] = True
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak_lr, weight_decay=0.01, betas=(0.9, 0.98))
    started = time.monotonic()
    phases = (
        ("copying", recipe.perfect_steps, recipe.peak_lr),
        ("habits", recipe.imperfect_steps, recipe.peak_lr * recipe.imperfect_lr_scale),
    )
    for phase, steps, peak in phases:
        perfect = phase == "copying"
        name_weight = recipe.name_weight if perfect else 1.0
        for step in range(steps):
            full_prompt = not perfect and rng.random() < recipe.full_prompt_share
            batch = make_batch(tokenizer, draw_transcripts(rng, recipe.batch_size, perfect), full_prompt)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(peak, step, steps)
            loss, name_accuracy = train_step(model, optimizer, *batch, is_name, name_weight)
            report(Progress(phase, step + 1, steps, loss, name_accuracy, time.monotonic() - started))
    return tokenizer, model.eval()


def train_step(
    model: Qwen2ForCausalLM,
    optimizer: torch.optim.Optimizer,
    ids: torch.Tensor,
    labels: torch.Tensor,
    is_name: torch.Tensor,
    name_weight: float,
) -> tuple[float, float]:
    """One update on a batch; returns the loss and the share of learnt name tokens that are the most likely one."""
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    learnt = targets != NOT_LEARNT
    targets = targets[learnt]
    logits = model.lm_head(hidden[learnt])
    names = is_name[targets]
    weights = 1 + (name_weight - 1) * names.float()
    loss = (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    right = logits.argmax(-1)[names] == targets[names]
    return loss.item(), right.float().mean().item() if len(right) else 0.0
