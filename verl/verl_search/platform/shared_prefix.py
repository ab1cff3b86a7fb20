"""A micro-batch in one row, in which the beginning that all its sequences share is computed once.

The prompts of search episodes begin with the same instructions, and those of a group are wholly the same. The row is
that common prefix, then the rest of each sequence; each rest attends to the prefix and to itself. Only the positions
before a trained token get logits, because the loss asks for no others. The results are those of the padded batch, up to
rounding; tests/verl_search/platform/test_shared_prefix.py holds log-probabilities and gradients against it.

transformers' attention `sdpa` is replaced by one that knows such rows and leaves all others to the original.
Does not cover: models whose attention looks at a window, or bounds its scores (`PLAIN_ATTENTION`).
"""

from collections.abc import Mapping
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
# The model types whose attention is causal and nothing more; one that is not named here runs padded.
PLAIN_ATTENTION = frozenset({"llama", "qwen2", "qwen3"})


def has_plain_attention(model_config: Mapping[str, Any]) -> bool:
    """Whether the attention of a model, by its config.json, is causal and nothing more."""
    windowed: Any = model_config.get("use_sliding_window") or "sliding_attention" in (
        model_config.get("layer_types") or ()
    )
    return model_config.get("model_type") in PLAIN_ATTENTION and not windowed


@dataclass(frozen=True, eq=False)
class PackedRow:
    """The layout of one micro-batch.

    `input_ids` and `position_ids` have the shape (1, tokens of the row). `rests` has a line for each sequence, with the
    places in the row of its tokens after the prefix; `is_rest` says which of them are no padding. `visible` says for
    the tokens of a rest which ones of prefix and rest they attend to.
    `predicting` are the places in the row, and `flat` those in the sequences one after the other, of the positions
    before a trained token; `labels` are these tokens.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    prefix: int
    rests: torch.Tensor
    is_rest: torch.Tensor
    visible: torch.Tensor
    predicting: torch.Tensor
    flat: torch.Tensor
    labels: torch.Tensor
    offsets: torch.Tensor

    @classmethod
    def of(cls, input_ids: torch.Tensor, loss_mask: torch.Tensor) -> "PackedRow":
        """Pack a jagged batch. A mask that is shorter than its sequence is that of the sequence's end."""
        sequences, masks = list(input_ids.unbind()), list(loss_mask.unbind())
        prefix = common_prefix(sequences)
        places, rests, predicting, flat, labels = [], [], [], [], []
        row_end, flat_start = prefix, 0
        for ids, mask in zip(sequences, masks, strict=True):
            rest = torch.arange(row_end, row_end + len(ids) - prefix)
            place = torch.cat([torch.arange(prefix), rest])
            trained = torch.arange(len(ids) - len(mask), len(ids))[mask.bool()]
            places.append(place)
            rests.append(rest)
            predicting.append(place[trained - 1])
            flat.append(trained - 1 + flat_start)
            labels.append(ids[trained])
            row_end, flat_start = row_end + len(rest), flat_start + len(ids)
        lengths = torch.tensor([len(rest) for rest in rests])
        longest = int(lengths.max())
        shared = sequences[0][:prefix]
        return cls(
            input_ids=torch.cat([shared, *(ids[prefix:] for ids in sequences)])[None],
            position_ids=torch.cat([torch.arange(prefix), *(prefix + torch.arange(len(rest)) for rest in rests)])[None],
            prefix=prefix,
            rests=pad_sequence(rests, batch_first=True),
            is_rest=torch.arange(longest)[None] < lengths[:, None],
            # The padding of a rest stands after its tokens, so that causality hides it.
            visible=torch.ones(longest, prefix + longest, dtype=torch.bool).tril(prefix),
            predicting=torch.cat(predicting),
            flat=torch.cat(flat),
            labels=torch.cat(labels),
            offsets=input_ids.offsets(),
        )

    def jagged(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the predicting positions as a jagged batch of all positions, 0 at the others."""
        spread = values.new_zeros(int(self.offsets[-1])).index_copy(0, self.flat, values)
        return torch.nested.nested_tensor_from_jagged(spread, self.offsets)


def common_prefix(sequences: list[torch.Tensor]) -> int:
    """How many tokens all sequences begin with; of each sequence at least one token is left over."""
    shortest = min(map(len, sequences)) - 1
    beginnings = torch.stack([ids[:shortest] for ids in sequences])
    return int((beginnings == beginnings[0]).all(0).cumprod(0).sum())


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
    prefix, rests = packed_row.prefix, packed_row.rests
    parts = []
    if prefix:
        shared = (states[:, :, :prefix] for states in (query, key, value))
        parts.append(scaled_dot_product_attention(*shared, dropout_p=dropout, scale=scaling, is_causal=True)[0])
    own = [states[0][:, rests].transpose(0, 1) for states in (query, key, value)]
    keys, values = (
        torch.cat([states[:, :, :prefix].expand(len(rests), -1, -1, -1), rest], dim=2)
        for states, rest in zip((key, value), own[1:], strict=True)
    )
    of_rests = scaled_dot_product_attention(own[0], keys, values, packed_row.visible, dropout_p=dropout, scale=scaling)
    parts.append(of_rests.transpose(0, 1)[:, packed_row.is_rest])
    return torch.cat(parts, dim=1).transpose(0, 1)[None].contiguous(), None


AttentionInterface.register(ATTENTION, attend)
