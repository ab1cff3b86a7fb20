"""Pretraining of the demo's base model: its tokenizer, a tiny Qwen2, and a short curriculum over transcripts.

The curriculum has two phases. First perfect transcripts without the prompt's instructions, where names weigh more than
tags: the model learns to copy. Then the imperfect mixture, mostly after the full prompt, unweighted: it learns the
habits that reinforcement learning is to change. The loss covers what the model would sample, and nothing else.
Deterministic for a given recipe, seed and number of threads.

A transformer of this size needs far more than ten CPU minutes to discover copying ("induction") by itself, so
`plant_copying` puts the two parts of it into the initial weights, and pretraining only refines them:

- layer 0, head 0 attends to the previous token and writes what it finds into a part of the residual stream that the
  token embeddings leave almost empty;
- head 0 of every later layer looks for positions whose previous token is the current one, and every head starts as a
  copy (its output projection is the transpose of its value projection).

Nothing in it knows a tag, a name, a question or a fact. The idea is that of induction heads (Olsson et al. 2022,
arXiv 2209.11895).
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from flashrag.prompts import render_prompt
from training.demo.base_names import ALL_NAMES
from training.demo.base_transcripts import Transcript, draw_transcript

END_OF_TEXT = "<|endoftext|>"
MODEL_MAX_LENGTH = 2048
VOCABULARY_SIZE = 3072
# Contractions, words with one leading character, single digits, punctuation, line ends, spaces: Qwen2's pattern.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NOT_LEARNT = -100

EMBEDDING_STD = 0.12
PREVIOUS_TOKEN_SHARPNESS = 8.0
MATCH_GAIN = 1.5
COPY_GAIN = 0.3


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


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A small byte-level BPE, in which every name of the pool is one token after a space: copying it copies a token.

    Like Qwen2's it splits on letters, digits and punctuation and falls back to bytes, so any text survives a round
    trip (unlike Qwen2's it does not normalise to NFC, which would change some). There is no chat template.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(recipe), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def _tokenizer_texts(recipe: Recipe) -> Iterator[str]:
    """Transcripts with their prompts, and every name often enough to become one token."""
    rng = random.Random(recipe.seed)
    for number in range(recipe.tokenizer_transcripts):
        transcript = draw_transcript(rng, perfect=number % 2 == 0)
        # The prompt's words are the same every time: now and then is enough to make each of them one token.
        prompt = render_prompt(transcript.question) if number % 20 == 0 else f"User: {transcript.question} Assistant:"
        yield prompt + transcript.response
    yield from ["".join(f" {name}" for name in ALL_NAMES)] * 20


def single_token_names(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The names of the pool that are one token when a space precedes them, with that token's id."""
    encoded = {name: tokenizer.encode(f" {name}", add_special_tokens=False) for name in ALL_NAMES}
    return {name: ids[0] for name, ids in encoded.items() if len(ids) == 1}


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """An untrained model that can copy."""
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


@torch.no_grad()
def plant_copying(model: Qwen2ForCausalLM, generator: torch.Generator) -> None:
    """Overwrite embeddings and attention weights of `model` in place, as the module's text says."""
    config = model.config
    hidden, head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
    free = hidden - head_dim  # the last head_dim dimensions carry the previous token
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, EMBEDDING_STD, generator=generator)
    embedding[:, free:] *= 0.1
    basis, _ = torch.linalg.qr(torch.randn(free, head_dim, generator=generator))
    read_token = torch.cat([basis.T, torch.zeros(head_dim, head_dim)], dim=1)
    read_previous = torch.cat([torch.zeros(head_dim, free), torch.eye(head_dim)], dim=1)
    head_0 = slice(0, head_dim)
    for number, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        rotation, _ = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator))
        attention.v_proj.weight.copy_(rotation * math.sqrt(COPY_GAIN))
        attention.o_proj.weight.copy_(rotation.T * math.sqrt(COPY_GAIN))
        attention.v_proj.bias.zero_()
        if number == 0:
            # A constant query and key, whose rotary product peaks at distance one.
            angles = config.rope_parameters["rope_theta"] ** (-torch.arange(0, head_dim, 2).float() / head_dim)
            flat = torch.cat([torch.ones(head_dim // 2), torch.zeros(head_dim // 2)])
            attention.q_proj.weight[head_0] = 0
            attention.k_proj.weight[head_0] = 0
            attention.k_proj.bias[head_0] = PREVIOUS_TOKEN_SHARPNESS * flat
            attention.q_proj.bias[head_0] = PREVIOUS_TOKEN_SHARPNESS * torch.cat([angles.cos(), -angles.sin()])
            attention.v_proj.weight[head_0] = read_token
            attention.o_proj.weight[:, head_0] = read_previous.T * 0.5
        else:
            attention.q_proj.weight[head_0] = read_token * MATCH_GAIN
            attention.k_proj.weight[head_0] = read_previous * MATCH_GAIN


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
    ids, labels = ([torch.tensor(row) for row in rows] for rows in zip(*encoded, strict=True))
    return pad_sequence(ids, True, tokenizer.pad_token_id), pad_sequence(labels, True, NOT_LEARNT)


def learning_rate(peak: float, step: int, steps: int) -> float:
    """Warm-up over 50 steps (a third of a very short phase), then a cosine down to a tenth."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return peak * min(1.0, (step + 1) / min(50, math.ceil(steps / 3))) * (0.1 + 0.9 * cosine)


def pretrain(recipe: Recipe) -> tuple[PreTrainedTokenizerFast, Qwen2ForCausalLM]:
    """Run the recipe; its progress goes to stderr."""
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed + 1)
    tokenizer = train_tokenizer(recipe)
    model = make_model(recipe, tokenizer)
    token_weights = torch.ones(len(tokenizer))
    name_weights = token_weights.clone()
    name_weights[list(single_token_names(tokenizer).values())] = recipe.name_weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak_lr, weight_decay=0.01, betas=(0.9, 0.98))
    phases = (
        ("copying", recipe.perfect_steps, recipe.peak_lr, name_weights),
        ("habits", recipe.imperfect_steps, recipe.peak_lr * recipe.imperfect_lr_scale, token_weights),
    )
    for phase, steps, peak, weights in phases:
        perfect = phase == "copying"
        for step in (progress := tqdm(range(steps), phase)):
            full_prompt = not perfect and rng.random() < recipe.full_prompt_share
            transcripts = [draw_transcript(rng, perfect) for _ in range(recipe.batch_size)]
            ids, labels = make_batch(tokenizer, transcripts, full_prompt)
            optimizer.param_groups[0]["lr"] = learning_rate(peak, step, steps)
            loss = batch_loss(model, ids, labels, weights)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress.set_postfix(loss=loss.item())
    return tokenizer, model.eval()


def batch_loss(
    model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor, token_weights: torch.Tensor
) -> torch.Tensor:
    """The mean loss over the learnt tokens, each weighted as `token_weights` says for its id."""
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    learnt = targets != NOT_LEARNT
    return F.cross_entropy(model.lm_head(hidden[learnt]), targets[learnt], token_weights)
