"""The demo base model's tokenizer: a small byte-level BPE trained on its own transcripts.

Like Qwen2's it splits on letters, digits and punctuation and falls back to bytes, so any text survives a round trip
(unlike Qwen2's it does not normalise to NFC, which would change some). Every name of the pool, preceded by a space,
is one token: copying a name is copying a token. There is no chat template.
"""

import random
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from flashrag.prompts import render_prompt
from training.demo.base_names import ALL_NAMES
from training.demo.base_transcripts import draw_transcript

END_OF_TEXT = "<|endoftext|>"
MODEL_MAX_LENGTH = 2048
VOCABULARY_SIZE = 3072
TRAINING_TRANSCRIPTS = 4000
NAME_REPEATS = 20

# Contractions, words with one leading character, single digits, punctuation, line ends, spaces: Qwen2's pattern.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def training_texts(rng: random.Random, transcripts: int) -> Iterator[str]:
    """Whole transcripts with their prompt, and every name often enough to become one token."""
    for number in range(transcripts):
        transcript = draw_transcript(rng, perfect=number % 2 == 0)
        # The prompt's words are the same every time: now and then is enough to make each of them one token.
        prompt = render_prompt(transcript.question) if number % 20 == 0 else f"User: {transcript.question} Assistant:"
        yield prompt + transcript.response
    for _ in range(NAME_REPEATS):
        yield "".join(f" {name}" for name in ALL_NAMES)


def train_tokenizer(seed: int, transcripts: int = TRAINING_TRANSCRIPTS) -> PreTrainedTokenizerFast:
    """The tokenizer of this seed."""
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
    tokenizer.train_from_iterator(training_texts(random.Random(seed), transcripts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def single_token_names(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The names of the pool that are one token when a space precedes them, with that token's id."""
    encoded = {name: tokenizer.encode(f" {name}", add_special_tokens=False) for name in ALL_NAMES}
    return {name: ids[0] for name, ids in encoded.items() if len(ids) == 1}
