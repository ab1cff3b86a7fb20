"""A micro-batch in one row, in which the beginning that all its sequences share is computed once.

The prompts of search episodes begin with the same instructions, and those of a group are wholly the same. The row is
that common prefix, then the rest of each sequence; each rest attends to the prefix and to itself. Only the positions
before a trained token get logits, because the loss asks for no others. The results are those of the padded batch, up to
rounding; tests/verl_search/platform/test_shared_prefix.py holds log-probabilities and gradients against it.

transformers' attention `sdpa` is replaced by one that knows such rows and leaves all others to the original.
Does not cover: models whose attention looks at a window, or bounds its scores (`PLAIN_ATTENTION`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

ATTENTION = "sdpa"
# A mask of four dimensions is passed on as it is; `attend` does not look at it.
NO_MASK = torch.empty(1, 1, 1, 1)
# Rests that differ more in length are attended to apart: each is padded to the longest of its block.
SIMILAR = 0.75
# The model types whose attention is causal and nothing more; one that is not named here runs padded.
PLAIN_ATTENTION = frozenset({"llama", "qwen2", "qwen3"})


def has_plain_attention(model_config: Mapping[str, Any]) -> bool:
    """Whether the attention of a model, by its config.json, is causal and nothing more."""
    windowed: Any = model_config.get("use_sliding_window") or "sliding_attention" in (
        model_config.get("layer_types") or ()
    )
    return model_config.get("model_type") in PLAIN_ATTENTION and not windowed


@dataclass(frozen=True, eq=False)
class RestBlock:
    """Rests of similar lengths: of each the places in the row, (rests, tokens of the longest).

    `is_token` says which of them are no padding. `visible` says for the tokens of a rest which ones of prefix and rest
    they attend to, (tokens of the longest, those and the prefix).
    """

    places: torch.Tensor
    is_token: torch.Tensor
    visible: torch.Tensor

    @classmethod
    def of(cls, rests: Sequence[torch.Tensor], prefix: int) -> "RestBlock":
        lengths = torch.tensor([len(rest) for rest in rests])
        longest = int(lengths.max())
        return cls(
            places=pad_sequence(list(rests), batch_first=True),
            is_token=torch.arange(longest)[None] < lengths[:, None],
            # The padding of a rest stands after its tokens, so that causality hides it.
            visible=torch.ones(longest, prefix + longest, dtype=torch.bool).tril(prefix),
        )


@dataclass(frozen=True, eq=False)
class PackedRow:
    """The layout of one micro-batch: the common prefix, then the rests from the longest to the shortest.

    `input_ids` and `position_ids` have the shape (1, tokens of the row). `blocks` are the rests, in the same order.
    `predicting` are the places in the row, and `flat` those in the sequences one after the other, of the positions
    before a trained token; `labels` are these tokens.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    prefix: int
    blocks: Sequence[RestBlock]
    predicting: torch.Tensor
    flat: torch.Tensor
    labels: torch.Tensor
    offsets: torch.Tensor

    @classmethod
    def of(cls, input_ids: torch.Tensor, loss_mask: torch.Tensor) -> "PackedRow":
        """Pack a jagged batch. A mask that is shorter than its sequence is that of the sequence's end."""
        starts = input_ids.offsets().tolist()
        batch = sorted(
            zip(input_ids.unbind(), loss_mask.unbind(), starts[:-1], strict=True), key=lambda one: -len(one[0])
        )
        prefix = common_prefix([ids for ids, _, _ in batch])
        rests, predicting, flat, labels = [], [], [], []
        row_end = prefix
        for ids, mask, flat_start in batch:
            rest = torch.arange(row_end, row_end + len(ids) - prefix)
            place = torch.cat([torch.arange(prefix), rest])
            trained = torch.arange(len(ids) - len(mask), len(ids))[mask.bool()]
            rests.append(rest)
            predicting.append(place[trained - 1])
            flat.append(trained - 1 + flat_start)
            labels.append(ids[trained])
            row_end += len(rest)
        return cls(
            input_ids=torch.cat([batch[0][0][:prefix], *(ids[prefix:] for ids, _, _ in batch)])[None],
            position_ids=torch.cat([torch.arange(prefix), *(prefix + torch.arange(len(rest)) for rest in rests)])[None],
            prefix=prefix,
            blocks=[RestBlock.of(similar, prefix) for similar in blocks_of_similar_lengths(rests)],
            predicting=torch.cat(predicting),
            flat=torch.cat(flat),
            labels=torch.cat(labels),
            offsets=input_ids.offsets(),
        )

    def jagged(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the predicting positions as a jagged batch of all positions, 0 at the others."""
        spread = values.new_zeros(int(self.offsets[-1])).index_copy(0, self.flat, values)
        return torch.nested.nested_tensor_from_jagged(spread, self.offsets)


def common_prefix(sequences: Sequence[torch.Tensor]) -> int:
    """How many tokens all sequences begin with; of each sequence at least one token is left over."""
    shortest = min(map(len, sequences)) - 1
    beginnings = torch.stack([ids[:shortest] for ids in sequences])
    return int((beginnings == beginnings[0]).all(0).cumprod(0).sum())


def blocks_of_similar_lengths(rests: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Rests, which come from the longest to the shortest, in blocks; none is shorter than SIMILAR of its longest."""
    blocks: list[list[torch.Tensor]] = []
    for rest in rests:
        if blocks and len(rest) >= SIMILAR * len(blocks[-1][0]):
            blocks[-1].append(rest)
        else:
            blocks.append([rest])
    return blocks


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_row: PackedRow | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' interface of an attention: (1, heads, tokens, size) each, to (1, tokens, heads, size)."""
    if packed_row is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    groups: Any = module.num_key_value_groups
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    prefix, parts = packed_row.prefix, []
    if prefix:
        shared = (states[:, :, :prefix] for states in (query, key, value))
        parts.append(scaled_dot_product_attention(*shared, dropout_p=dropout, scale=scaling, is_causal=True)[0])
    for block in packed_row.blocks:
        own = [states[0][:, block.places].transpose(0, 1) for states in (query, key, value)]
        keys, values = (
            torch.cat([states[:, :, :prefix].expand(len(rest), -1, -1, -1), rest], dim=2)
            for states, rest in zip((key, value), own[1:], strict=True)
        )
        found = scaled_dot_product_attention(own[0], keys, values, block.visible, dropout_p=dropout, scale=scaling)
        parts.append(found.transpose(0, 1)[:, block.is_token])
    return torch.cat(parts, dim=1).transpose(0, 1)[None].contiguous(), None


AttentionInterface.register(ATTENTION, attend)
