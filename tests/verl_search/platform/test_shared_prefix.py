"""A packed micro-batch against each of its sequences alone: the same log-probabilities, entropies and gradients."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config
from verl.utils import tensordict_utils as tu

from verl_search.platform import shared_prefix
from verl_search.platform.engine import NOT_PACKED, CPUEngineWithLMHead, CPUEngineWithValueHead, split_alike
from verl_search.platform.shared_prefix import PackedRow, Tree, has_plain_attention, neighbours

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def model_of(kind: str) -> torch.nn.Module:
    torch.manual_seed(1)
    config = CONFIGS[kind](**SIZES, tie_word_embeddings=kind == "llama")
    return AutoModelForCausalLM.from_config(config, attn_implementation=shared_prefix.ATTENTION).float()


# Instructions, question, response with its mask. A group of two with one question, another question, a lone token.
INSTRUCTIONS = list(range(10, 30))
BATCHES = {
    "a group and another question": [
        ([*INSTRUCTIONS, 31, 32], [40, 41, 42, 43, 44], [1, 1, 0, 0, 1]),
        ([*INSTRUCTIONS, 31, 32], [50, 41, 52], [1, 1, 1]),
        ([*INSTRUCTIONS, 33], [60, 61, 62, 63, 64, 65, 66], [1, 0, 0, 0, 0, 1, 1]),
    ],
    "the whole prompt shared, and the first tokens of the response": [
        (INSTRUCTIONS, [40, 41, 42], [1, 1, 1]),
        (INSTRUCTIONS, [40, 41, 43, 44], [1, 1, 1, 0]),
    ],
    "a shared query and its result, a sequence twice, and one that ends where another goes on": [
        (INSTRUCTIONS, [40, 41, 42, 43, 50, 51], [1, 1, 0, 0, 1, 1]),
        (INSTRUCTIONS, [40, 41, 42, 43, 50, 52, 53], [1, 1, 0, 0, 1, 1, 1]),
        (INSTRUCTIONS, [60, 61], [1, 1]),
        (INSTRUCTIONS, [40, 41, 42, 43, 50, 51], [1, 1, 0, 0, 1, 1]),
        (INSTRUCTIONS, [60, 61, 62], [1, 1, 1]),
    ],
    "one sequence": [(INSTRUCTIONS, [40, 41], [1, 1])],
    "nothing shared": [([5, 6], [7, 8, 9], [1, 1, 0]), ([6, 5], [9], [1])],
    "one sequence without loss": [([5, 6], [7, 8], [0, 0]), ([5, 7], [9], [1])],
}


def micro_batch(batch: list[Any], whole_mask: bool, temperature: Any = 1.0) -> Any:
    masks = [torch.tensor([0] * len(prompt) * whole_mask + mask) for prompt, _, mask in batch]
    ids = [torch.tensor(prompt + response) for prompt, response, _ in batch]
    jagged = {
        name: torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        for name, rows in (("input_ids", ids), ("loss_mask", masks))
    }
    if isinstance(temperature, torch.Tensor):
        return tu.get_tensordict({**jagged, "temperature": temperature}, {"calculate_entropy": True})
    return tu.get_tensordict(jagged, {"calculate_entropy": True, "temperature": temperature})


def packed(model: torch.nn.Module, data: Any) -> dict[str, torch.Tensor]:
    engine: Any = object.__new__(CPUEngineWithLMHead)
    engine.model_config = SimpleNamespace(hf_config=model.config)
    inputs, arguments = engine.prepare_model_inputs(data)
    return engine.prepare_model_outputs(model(**inputs, use_cache=False), arguments, data, None)


def alone(
    model: torch.nn.Module, batch: list[Any], temperature: float = 1.0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probabilities and entropies of the trained tokens of each sequence, which runs by itself."""
    found = []
    for prompt, response, mask in batch:
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / temperature
        every = logits.log_softmax(-1)
        trained = torch.tensor(mask, dtype=torch.bool)
        chosen = every.gather(-1, torch.tensor(response)[:, None])[:, 0]
        found.append((chosen[trained], -(every.exp() * every).sum(-1)[trained]))
    return found


def of_trained(jagged: torch.Tensor, batch: list[Any]) -> list[torch.Tensor]:
    rows = zip(jagged.unbind(), batch, strict=True)
    return [row[len(prompt) - 1 : -1][torch.tensor(mask, dtype=torch.bool)] for row, (prompt, _, mask) in rows]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("whole_mask", [False, True])
def test_log_probabilities_entropies_and_gradients_are_those_of_each_sequence(
    kind: str, name: str, whole_mask: bool
) -> None:
    model, batch = model_of(kind), BATCHES[name]
    found = packed(model, micro_batch(batch, whole_mask))
    expected = alone(model, batch)
    for ours, entropy, (log_probs, entropies) in zip(
        of_trained(found["log_probs"], batch), of_trained(found["entropy"], batch), expected, strict=True
    ):
        torch.testing.assert_close(ours, log_probs, rtol=0, atol=1e-5)
        torch.testing.assert_close(entropy, entropies, rtol=0, atol=1e-5)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    weighted = [ours * torch.arange(1, len(ours) + 1) for ours in of_trained(found["log_probs"], batch)]
    ours = gradient(torch.cat(weighted).sum())
    theirs = gradient(torch.cat([one * torch.arange(1, len(one) + 1) for one, _ in alone(model, batch)]).sum())
    assert theirs.abs().max() > 1.0
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_logits_that_are_padded_are_float32_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def upstream(_: Any, output: Any, *__: Any) -> torch.dtype:
        return output.logits.dtype

    for engine in (CPUEngineWithLMHead, CPUEngineWithValueHead):
        monkeypatch.setattr(engine.__mro__[1], "prepare_model_outputs", upstream)
        output = SimpleNamespace(logits=torch.zeros(1, 2, 3, dtype=torch.bfloat16))
        assert engine.prepare_model_outputs(object.__new__(engine), output, {}, None, None) is torch.float32


def test_every_process_has_as_many_micro_batches_as_the_one_with_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    def most(count: torch.Tensor, op: Any, group: str) -> None:
        assert (op, group) == (torch.distributed.ReduceOp.MAX, "processes")
        count.fill_(4)

    monkeypatch.setattr(torch.distributed, "all_reduce", most)
    assert split_alike([[0, 1, 2, 3, 4], [5]], "processes") == [[5], [0, 1], [2], [3, 4]]


def test_sequences_of_a_group_come_into_one_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through upstream's loop over the micro-batches, which gives the results in the order of the batch."""
    model, batch = model_of("llama"), BATCHES["a group and another question"]
    engine: Any = object.__new__(CPUEngineWithLMHead)
    engine.model_config = SimpleNamespace(hf_config=model.config)
    engine.ulysses_sequence_parallel_size = 1
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: None)
    for name, value in {"group": None, "size": 1}.items():
        monkeypatch.setattr(engine, f"get_data_parallel_{name}", lambda value=value: value)
    seen = []

    def forward_step(micro_batch: Any, **_: Any) -> tuple[None, dict[str, Any]]:
        seen.append([len(ids) for ids in micro_batch["input_ids"].unbind()])
        inputs, arguments = engine.prepare_model_inputs(micro_batch)
        output = model(**inputs, use_cache=False)
        return None, {"model_output": engine.prepare_model_outputs(output, arguments, micro_batch, None)}

    monkeypatch.setattr(engine, "forward_step", forward_step)
    data = micro_batch([batch[0], batch[2], batch[1]], True)
    tu.assign_non_tensor(data, use_dynamic_bsz=True, max_token_len_per_gpu=30)
    found = engine.forward_backward_batch(data, None, forward_only=True)["model_output"]["log_probs"]
    # 22 tokens of the question, 5 and 3 of its two responses are 30; the other question has 28.
    assert seen == [[27, 25], [28]]
    ours = of_trained(found, [batch[0], batch[2], batch[1]])
    for log_probs, (expected, _) in zip(ours, alone(model, [batch[0], batch[2], batch[1]]), strict=True):
        torch.testing.assert_close(log_probs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("key", [None, *NOT_PACKED])
def test_what_needs_other_outputs_is_padded(key: str | None) -> None:
    engine: Any = object.__new__(CPUEngineWithLMHead)
    engine.model_config = SimpleNamespace(hf_config=model_of("llama").config)
    data = tu.get_tensordict({"input_ids": torch.zeros(1, 2)}, {} if key is None else {key: True})
    assert engine._packs(data) is (key is None)


@pytest.mark.parametrize("kind", CONFIGS)
def test_bfloat16_stays_near_float32(kind: str) -> None:
    """Log-probabilities of some -4.6 within 0.1, and gradients that point the same way."""
    model, batch = model_of(kind), BATCHES["a group and another question"]
    found = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            log_probs = packed(model, micro_batch(batch, False))["log_probs"]
        assert log_probs.dtype == torch.float32, "a sum of rounded log-probabilities has no digits left"
        log_probs = torch.cat(of_trained(log_probs, batch))
        log_probs.sum().backward()
        found.append((log_probs.detach(), torch.cat([each.grad.flatten() for each in model.parameters()])))
    (exact, gradient), (rounded, its_gradient) = found
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.1)
    assert not torch.equal(rounded, exact)
    assert torch.cosine_similarity(gradient, its_gradient, dim=0) > 0.99


def test_a_temperature_of_the_batch_or_of_each_sequence() -> None:
    model, batch = model_of("llama"), BATCHES["a group and another question"]
    for temperature, of_each in (
        (0.5, [0.5, 0.5, 0.5]),
        (torch.tensor([0.5, 0.5, 0.5]), [0.5, 0.5, 0.5]),
        (torch.tensor([0.5, 1.0, 2.0]), [0.5, 1.0, 2.0]),
    ):
        data = micro_batch(batch, False, temperature)
        for number, ours in enumerate(of_trained(packed(model, data)["log_probs"], batch)):
            expected, _ = alone(model, batch, of_each[number])[number]
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_the_row_holds_each_beginning_once_and_logits_are_asked_for_where_a_token_is_trained() -> None:
    data = micro_batch(BATCHES["a group and another question"], False)
    row = PackedRow.of(data["input_ids"], data["loss_mask"])
    # 20 instructions, the group's question of 2, its responses of 5 and 3, and the other question with its response, 8.
    assert [(segment.length, segment.before) for segment in row.segments] == [
        (20, ()),
        (2, (0,)),
        (5, (0, 1)),
        (3, (0, 1)),
        (8, (0,)),
    ]
    ids = [*INSTRUCTIONS, 31, 32, 40, 41, 42, 43, 44, 50, 41, 52, 33, 60, 61, 62, 63, 64, 65, 66]
    assert row.input_ids.tolist() == [ids]
    assert row.position_ids[0].tolist() == [*range(27), *range(22, 25), *range(20, 28)]
    assert [None if one.visible is None else one.visible.sum(1).tolist() for one in row.segments] == [
        None,
        [21, 22],
        [23, 24, 25, 26, 27],
        [23, 24, 25],
        [21, 22, 23, 24, 25, 26, 27, 28],
    ]
    # The first sequence trains its response's tokens 0, 1 and 4, which the places 21, 22 and 25 predict; the place 21
    # predicts the second one's first token too.
    assert row.predicting.tolist() == [21, 22, 25, 21, 27, 28, 30, 35, 36]
    assert row.flat.tolist() == [21, 22, 25, 27 + 21, 27 + 22, 27 + 23, 52 + 20, 52 + 25, 52 + 26]
    assert row.labels.tolist() == [40, 41, 44, 50, 41, 52, 60, 65, 66]


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=6))
def test_each_sequence_is_found_in_the_tree_and_no_beginning_twice(sequences: list[list[int]]) -> None:
    tree = Tree(sequences)
    assert [[tree.ids[place] for place in places] for places in tree.places] == sequences
    assert [[tree.positions[place] for place in places] for places in tree.places] == [
        [*range(len(sequence))] for sequence in sequences
    ]
    beginnings = {tuple(sequence[: end + 1]) for sequence in sequences for end in range(len(sequence))}
    assert len(tree.ids) == sum(segment.length for segment in tree.segments) == len(beginnings)


@settings(max_examples=60, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=6), st.integers(1, 20))
def test_micro_batches_hold_each_sequence_once_and_no_more_tokens_than_asked(
    sequences: list[list[int]], most_tokens: int
) -> None:
    batches = neighbours(sequences, most_tokens)
    assert sorted(number for batch in batches for number in batch) == [*range(len(sequences))]
    for batch in batches:
        assert len(batch) == 1 or len(Tree([sequences[number] for number in batch]).ids) <= most_tokens


def test_sequences_that_begin_alike_stand_together() -> None:
    assert neighbours([[1, 2, 3], [4, 5], [1, 2, 6], [4, 7]], 4) == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        ({"model_type": "llama"}, True),
        ({"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 4096}, True),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4096}, False),
        ({"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]}, False),
        ({"model_type": "gemma3_text"}, False),
        ({}, False),
    ],
)
def test_models_whose_attention_is_causal_and_nothing_more(config: dict[str, Any], plain: bool) -> None:
    assert has_plain_attention(config) is plain
