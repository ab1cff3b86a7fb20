"""A micro-batch in one row, in which tokens that several sequences begin with are computed once.

The prompts of search episodes begin with the same instructions, those of a group are wholly the same, and often its
episodes ask the same query and read the same result. The row is the tree of all beginnings, a segment after the other;
a segment attends to those that it follows and to itself. Only the positions before a trained token get logits, because
the loss asks for no others. The results are those of the padded batch, up to rounding;
tests/verl_search/platform/test_shared_prefix.py holds log-probabilities and gradients against it.

transformers' attention `sdpa` is replaced by one that knows such rows and leaves all others to the original.
Does not cover: models whose attention looks at a window, or bounds its scores (`PLAIN_ATTENTION`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise, takewhile
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

ATTENTION = "sdpa"
# A mask of four dimensions is passed on as it is; `attend` does not look at it.
NO_MASK = torch.empty(1, 1, 1, 1)
# Up to so many tokens of a segment its scores are written out in bfloat16, which takes half the time of the flash
# kernel, whose products are MKL's, on a processor without AMX. The memory grows with the square of the tokens.
WRITTEN_OUT = 1024
# The model types whose attention is causal and nothing more; one that is not named here runs padded.
PLAIN_ATTENTION = frozenset({"llama", "qwen2", "qwen3"})


def has_plain_attention(model_config: Mapping[str, Any]) -> bool:
    """Whether the attention of a model, by its config.json, is causal and nothing more."""
    windowed: Any = model_config.get("use_sliding_window") or "sliding_attention" in (
        model_config.get("layer_types") or ()
    )
    return model_config.get("model_type") in PLAIN_ATTENTION and not windowed


@dataclass(frozen=True, eq=False)
class Segment:
    """Tokens of the row that follow each other in one sequence or in several.

    `before` are the numbers of the segments that it follows, from the first of the sequence. `visible` says which of
    their tokens and of its own each token attends to; None, where there are none before, for its own up to itself.
    """

    length: int
    before: Sequence[int]
    visible: torch.Tensor | None

    @cached_property
    def hidden(self) -> torch.Tensor:
        """What is added to the scores, -inf where a token is not visible; every layer takes it."""
        assert self.visible is not None, "there are segments before"
        return torch.zeros_like(self.visible, dtype=torch.bfloat16).masked_fill(~self.visible, -torch.inf)


class Tree:
    """The tree of the beginnings of sequences, as segments, and the places of each sequence's tokens in the row."""

    def __init__(self, sequences: Sequence[list[int]]) -> None:
        self.sequences = sequences
        self.segments: list[Segment] = []
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.places: list[list[int]] = [[] for _ in sequences]
        self._grow(in_order(sequences), 0, ())

    def _grow(self, members: Sequence[int], depth: int, before: Sequence[int]) -> None:
        """Add what follows `depth` tokens that the members share; members are in the order of their tokens."""
        end = alike(self.sequences[members[0]], self.sequences[members[-1]])
        if end > depth:
            places = range(len(self.ids), len(self.ids) + end - depth)
            visible = torch.ones(end - depth, end, dtype=torch.bool).tril(depth) if before else None
            before = (*before, len(self.segments))
            self.segments.append(Segment(end - depth, before[:-1], visible))
            self.ids += self.sequences[members[0]][depth:end]
            self.positions += range(depth, end)
            for member in members:
                self.places[member] += places
        longer = [member for member in members if len(self.sequences[member]) > end]
        for _, branch in groupby(longer, lambda member: self.sequences[member][end]):
            self._grow(list(branch), end, before)


@dataclass(frozen=True, eq=False)
class PackedRow:
    """The layout of one micro-batch.

    `input_ids` and `position_ids` have the shape (1, tokens of the row): those of the segments, in their order.
    `predicting` are the places in the row, and `flat` those in the sequences one after the other, of the positions
    before a trained token; `labels` are these tokens.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segments: Sequence[Segment]
    predicting: torch.Tensor
    flat: torch.Tensor
    labels: torch.Tensor
    offsets: torch.Tensor

    @classmethod
    def of(cls, input_ids: torch.Tensor, loss_mask: torch.Tensor) -> "PackedRow":
        """Pack a jagged batch. A mask that is shorter than its sequence is that of the sequence's end."""
        sequences = list(input_ids.unbind())
        tree = Tree([ids.tolist() for ids in sequences])
        predicting, flat, labels, flat_start = [], [], [], 0
        for ids, mask, places in zip(sequences, loss_mask.unbind(), tree.places, strict=True):
            trained = torch.arange(len(ids) - len(mask), len(ids))[mask.bool()]
            predicting.append(torch.tensor(places)[trained - 1])
            flat.append(trained - 1 + flat_start)
            labels.append(ids[trained])
            flat_start += len(ids)
        return cls(
            input_ids=torch.tensor([tree.ids]),
            position_ids=torch.tensor([tree.positions]),
            segments=tree.segments,
            predicting=torch.cat(predicting),
            flat=torch.cat(flat),
            labels=torch.cat(labels),
            offsets=input_ids.offsets(),
        )

    def jagged(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the predicting positions as a jagged batch of all positions, 0 at the others."""
        spread = values.new_zeros(int(self.offsets[-1])).index_copy(0, self.flat, values)
        return torch.nested.nested_tensor_from_jagged(spread, self.offsets)


def in_order(sequences: Sequence[list[int]]) -> list[int]:
    """The numbers of the sequences, so that those that begin alike stand together."""
    return sorted(range(len(sequences)), key=lambda number: sequences[number])


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with.

    >>> alike([1, 2, 3], [1, 2, 4, 5])
    2
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def neighbours(sequences: Sequence[list[int]], most_tokens: int) -> list[list[int]]:
    """The numbers of the sequences in micro-batches of at most `most_tokens` packed tokens, or of one sequence.

    Those that begin alike stand together.
    """
    order = in_order(sequences)
    batches, packed = [order[:1]], len(sequences[order[0]])
    for before, number in pairwise(order):
        new = len(sequences[number]) - alike(sequences[before], sequences[number])
        if packed + new <= most_tokens:
            batches[-1].append(number)
            packed += new
        else:
            batches.append([number])
            packed = len(sequences[number])
    return batches


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
    lengths = [segment.length for segment in packed_row.segments]
    queries, keys, values = (
        states.split(lengths, dim=2) for states in (query, repeat_kv(key, groups), repeat_kv(value, groups))
    )
    found = []
    for number, segment in enumerate(packed_row.segments):
        seen = [*segment.before, number]
        own_keys, own_values = (torch.cat([states[i] for i in seen], dim=2) for states in (keys, values))
        own = (queries[number], own_keys, own_values)
        if segment.visible is None:
            found.append(scaled_dot_product_attention(*own, dropout_p=dropout, scale=scaling, is_causal=True))
        elif query.dtype == torch.bfloat16 and segment.length <= WRITTEN_OUT and not dropout:
            found.append(written_out(*own, segment.hidden, scaling or query.shape[-1] ** -0.5))
        else:
            found.append(scaled_dot_product_attention(*own, segment.visible, dropout, scale=scaling))
    return torch.cat(found, dim=2).transpose(1, 2).contiguous(), None


def written_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attention whose scores are kept, of a batch of one in bfloat16."""
    scores = torch.baddbmm(hidden, query.squeeze(0), key.squeeze(0).transpose(1, 2), alpha=scaling)
    return scores.softmax(-1).bmm(value.squeeze(0)).unsqueeze(0)


AttentionInterface.register(ATTENTION, attend)
