"""What the agent loop hands to verl: ids, mask, log-probabilities, versions; and what it asks the engine for."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import DictConfigWrap

from flashrag.episode import EndReason, Episode, InvariantViolation, SearchRecord, Segment, Source
from verl_search.agent_loop import SearchAgentLoop, _Engine, agent_loop_output, check_sampled_ids, fingerprint
from verl_search.reward import episode_reward
from verl_search.training_config import compose_config

NO_FILES = ["data.train_files=none", "data.val_files=none", "trainer.default_local_dir=none"]

# prompt: 1 2 | sampled: 10 11 | spliced: 20 21 22 | sampled: 12
EPISODE = Episode(
    prompt_ids=(1, 2),
    segments=[
        Segment(Source.MODEL, "<search> q </search>", (10, 11), (-0.1, -0.2)),
        Segment(Source.RESULT, " <result>\nd\n</result>", (20, 21, 22)),
        Segment(Source.MODEL, "done", (12,), (-0.3,)),
    ],
    searches=[SearchRecord("q", ("d1",), 0.25)],
    ended_by=EndReason.EOS,
)


def output_of(episode: Episode) -> Any:
    return agent_loop_output(episode, episode_reward(episode, ["gold"]), {"min_global_steps": 3})


def test_ids_mask_and_log_probabilities_follow_provenance() -> None:
    output = output_of(EPISODE)
    assert output.prompt_ids == [1, 2]
    assert output.response_ids == [10, 11, 20, 21, 22, 12]
    assert output.response_mask == [1, 1, 0, 0, 0, 1]
    assert output.response_logprobs == [-0.1, -0.2, 0.0, 0.0, 0.0, -0.3]
    assert output.extra_fields["min_global_steps"] == 3
    assert output.extra_fields["sampled_fingerprint"] == fingerprint([10, 11, 12])
    rollout = output.extra_fields["search_rollout"]
    assert (rollout["searches"], rollout["sampled_tokens"], rollout["spliced_tokens"]) == (1.0, 3.0, 3.0)
    assert rollout["search_s"] == 0.25


def test_an_episode_whose_search_failed_carries_no_loss() -> None:
    failed = Episode((1, 2), [EPISODE.segments[0]], [], EndReason.SEARCH_FAILED)
    output = output_of(failed)
    assert output.response_ids == [10, 11]
    assert output.response_mask == [0, 0]
    assert output.reward_score == 0.0
    assert output.extra_fields["search_rollout"]["search_failed"] == 1.0


def test_ids_that_were_not_sampled_are_noticed() -> None:
    check_sampled_ids(EPISODE, [10, 11, 12])
    with pytest.raises(InvariantViolation, match="2 sampled ids differ from the 3 to train on"):
        check_sampled_ids(EPISODE, [10, 11])


class FakeServerManager:
    """Answers each turn with the next token and the weight versions of that turn."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    async def generate(self, **request: Any) -> Any:
        self.requests.append(request)
        turn = len(self.requests)
        fields = {"min_global_steps": turn, "max_global_steps": turn + 1}
        return SimpleNamespace(token_ids=[turn], log_probs=[-1.0], stop_reason="completed", extra_fields=fields)


def test_turns_share_a_server_and_carry_the_range_of_weight_versions() -> None:
    manager = FakeServerManager()
    engine = _Engine(manager, {"temperature": 1.0, "logprobs": True}, priority=0)

    async def two_turns() -> None:
        await engine.generate([1, 2], 50)
        await engine.generate([1, 2, 1, 20], 40)

    asyncio.run(two_turns())
    first, second = manager.requests
    assert first["request_id"] == second["request_id"]
    assert (first["sampling_params"]["max_tokens"], second["sampling_params"]["max_tokens"]) == (50, 40)
    assert first["sampling_params"]["stop"] == ["</search>"]
    assert first["sampling_params"]["temperature"] == 1.0
    assert engine.sampled_ids == [1, 2]
    assert engine.extra_fields == {"min_global_steps": 1, "max_global_steps": 3}


def test_a_base_model_without_chat_tokens_is_enough() -> None:
    # verl's own loops refuse a Qwen2 tokenizer without <|im_end|>; a search episode has no use for it.
    base_model = str(Path(__file__).parents[2] / "training" / "demo" / "base_model")
    config = compose_config(
        "demo", ["search.url=http://127.0.0.1:1", f"actor_rollout_ref.model.path={base_model}", *NO_FILES]
    )

    async def make_loop() -> SearchAgentLoop:
        return SearchAgentLoop(
            trainer_config=DictConfigWrap(config),
            server_manager=FakeServerManager(),
            tokenizer=AutoTokenizer.from_pretrained(base_model),
            processor=None,
            dataset_cls=None,
            data_config=DictConfigWrap(config.data),
            hf_model_type="qwen2",
        )

    loop = asyncio.run(make_loop())
    assert loop.codec.eos_token_ids == {0}
    assert loop.limits.max_response_tokens == config.data.max_response_length
