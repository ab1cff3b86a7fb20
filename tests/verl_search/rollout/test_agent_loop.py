"""What the agent loop hands to verl: ids, mask, log-probabilities, versions; and what it asks the engine for."""

import asyncio
import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pytest
from fastapi import FastAPI
from ray.exceptions import RayTaskError
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import DictConfigWrap

from flashrag.client import RetrievalClient, SearchControl, controlled
from flashrag.client.reply import Retryable
from flashrag.document import Document, Hit, Passage
from flashrag.episode import (
    EndReason,
    Episode,
    EpisodeCodec,
    Failure,
    InvariantViolation,
    Segment,
    Source,
    ToolCall,
    Trajectory,
)
from flashrag.episode.tool import SEARCHES_LEFT
from flashrag.errors import ReSearchError, SearchError, ToolError
from flashrag.reward import JudgeError, RewardError
from flashrag.tools import PythonSandbox
from tests.verl_search.composing import composed
from tests.verl_search.rewarding import rewarded_trajectory
from verl_search.rollout import agent_loop
from verl_search.rollout.agent_loop import SearchAgentLoop, _Engine, agent_loop_output, check_sampled_ids, fingerprint
from verl_search.rollout.trajectories import read_trajectories
from verl_search.trainer.stopping import StopTraining

# prompt: 1 2 | sampled: 10 11 | spliced: 20 21 22 | sampled: 12
EPISODE = Episode(
    prompt_ids=(1, 2),
    segments=[
        Segment(Source.MODEL, "<search> q </search>", (10, 11), (-0.1, -0.2)),
        Segment(Source.RESULT, " <result>\nd\n</result>", (20, 21, 22)),
        Segment(Source.MODEL, "done", (12,), (-0.3,)),
    ],
    calls=[ToolCall("q", (Passage("d1", "text", 0.5),), 0.25)],
    end_reason=EndReason.EOS,
)


def output_of(episode: Episode) -> Any:
    return agent_loop_output(episode, rewarded_trajectory(episode, "gold"), {"min_global_steps": 3})


def test_ids_mask_and_log_probabilities_follow_provenance() -> None:
    output = output_of(EPISODE)
    assert output.prompt_ids == [1, 2]
    assert output.response_ids == [10, 11, 20, 21, 22, 12]
    assert output.response_mask == [1, 1, 0, 0, 0, 1]
    assert output.response_logprobs == [-0.1, -0.2, 0.0, 0.0, 0.0, -0.3]
    assert output.extra_fields["min_global_steps"] == 3
    assert output.extra_fields["trained_fingerprint"] == fingerprint([10, 11, 12])
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


def test_results_are_trained_on_only_when_asked_for() -> None:
    output = agent_loop_output(EPISODE, rewarded_trajectory(EPISODE, "gold"), {}, mask_results=False)
    assert output.response_mask == [1, 1, 1, 1, 1, 1]
    assert output.extra_fields["trained_fingerprint"] == fingerprint([10, 11, 20, 21, 22, 12])
    failed = Episode((1, 2), [EPISODE.segments[0]], [], EndReason.SEARCH_FAILED)
    assert agent_loop_output(failed, rewarded_trajectory(failed, "gold"), {}, mask_results=False).response_mask == [
        0,
        0,
    ]


def test_an_episode_without_a_token_is_one_token_without_loss() -> None:
    output = output_of(Episode((1, 2), [], [], EndReason.DEADLINE))
    assert (output.response_ids, output.response_mask, output.response_logprobs) == ([2], [0], [0.0])
    rollout = output.extra_fields["search_rollout"]
    assert (rollout["sampled_tokens"], rollout["spliced_tokens"], rollout["end_reason"]) == (0.0, 0.0, "deadline")
    assert output.extra_fields["response_fingerprint"] == fingerprint([2])
    assert output.extra_fields["trained_fingerprint"] == fingerprint([])


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
    codec = EpisodeCodec(AutoTokenizer.from_pretrained(BASE_MODEL), {9, 7})
    engine = _Engine("vllm", manager, {"temperature": 1.0, "logprobs": True}, codec, priority=0)

    async def two_turns() -> None:
        await engine.generate([1, 2], 50)
        await engine.generate([1, 2, 1, 20], 40)

    asyncio.run(two_turns())
    first, second = manager.requests
    assert first["request_id"] == second["request_id"]
    assert (first["sampling_params"]["max_tokens"], second["sampling_params"]["max_tokens"]) == (50, 40)
    assert first["sampling_params"]["stop"] == ["</search>"]
    assert first["sampling_params"]["stop_token_ids"] == [7, 9]
    assert first["sampling_params"]["temperature"] == 1.0
    assert engine.sampled_ids == [1, 2]
    assert engine.extra_fields == {"min_global_steps": 1, "max_global_steps": 3}


BASE_MODEL = str(Path(__file__).parents[3] / "training" / "demo" / "base_model")
THINK_AND_SEARCH = " <think> I need to search for Hawks. </think> <search> Hawks </search>"
ANSWER = r" <think> I know. </think> <answer> The final answer is \[ \boxed{ Wildford } \] </answer><|endoftext|>"
ROW = {
    "raw_prompt": [{"role": "user", "content": "In which city was the band Hawks formed?"}],
    "reward_model": {"ground_truth": ["Wildford"]},
    "extra_info": {"id": "dev_0"},
    "index": 0,
    "data_source": "1hop",
    "global_steps": 3,
    "split": "train",
    "uid": "u7",
    "session_id": 1,
}


class ScriptedServerManager:
    """Samples these texts, one a turn, with -0.5 as log-probability of each token."""

    def __init__(self, tokenizer: Any, *texts: str) -> None:
        self.turns = [tokenizer.encode(text) for text in texts]
        self.prompts: list[list[int]] = []
        self.sampling_params: list[dict[str, Any]] = []

    async def generate(self, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any) -> Any:
        ids = self.turns[len(self.prompts)]
        self.prompts.append(prompt_ids)
        self.sampling_params.append(sampling_params)
        return SimpleNamespace(
            token_ids=ids, log_probs=[-0.5] * len(ids), stop_reason="completed", extra_fields={"min_global_steps": 2}
        )


PYTHON_TOOL = ("search.python_tool=true", "search.prompt_template_name=qa_python_template")


def make_loop(folder: Path, *texts: str, overrides: Sequence[str] = ()) -> SearchAgentLoop:
    """A loop of the demo's config on a scripted engine; its searches find one document. Call within an event loop."""
    given = ["search.url=http://127.0.0.1:1", f"actor_rollout_ref.model.path='{BASE_MODEL}'"]
    config = composed("demo", *given, f"search.trajectory_dir='{folder}'", *overrides)
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    loop = SearchAgentLoop(
        trainer_config=DictConfigWrap(config),
        server_manager=ScriptedServerManager(tokenizer, *texts),
        tokenizer=tokenizer,
        processor=None,
        dataset_cls=None,
        data_config=DictConfigWrap(config.data),
        hf_model_type="qwen2",
    )
    loop.client = SimpleNamespace(search_scored=find_hawks)
    return loop


def change(loop: SearchAgentLoop, **parts: Any) -> None:
    """Exchange parts of what the loop shares with the other episodes, for this loop alone."""
    loop.shared = dataclasses.replace(loop.shared, **parts)


async def find_hawks(query: str) -> list[Hit]:
    assert query == "Hawks"
    return [Hit(Document("204", '"Hawks"\nThe home of Hawks is Wildford.'), 0.5)]


def test_an_episode_becomes_what_verl_trains_on_and_a_kept_trajectory(tmp_path: Path) -> None:
    async def run() -> tuple[Any, SearchAgentLoop]:
        loop = make_loop(tmp_path, THINK_AND_SEARCH, ANSWER)
        return await loop.run({"temperature": 1.0, "logprobs": True}, **ROW), loop

    output, loop = asyncio.run(run())
    tokenizer, server = loop.tokenizer, loop.server_manager
    result = ' <result>\n"Hawks"\nThe home of Hawks is Wildford.\n</result>'
    sampled, spliced, answer = server.turns[0], tokenizer.encode(result), server.turns[1]
    assert tokenizer.decode(output.prompt_ids).endswith("User: In which city was the band Hawks formed? Assistant:")
    assert output.response_ids == sampled + spliced + answer
    assert output.response_mask == [1] * len(sampled) + [0] * len(spliced) + [1] * len(answer)
    assert output.response_logprobs == [-0.5] * len(sampled) + [0.0] * len(spliced) + [-0.5] * len(answer)
    assert server.prompts[1] == output.prompt_ids + sampled + spliced
    assert output.reward_score == 1.0
    (kept,) = read_trajectories(tmp_path, "train", step=3)
    assert (kept.group_id, kept.session, kept.weights_steps) == ("u7", 1, (2, None))
    assert (kept.question_id, kept.answer, kept.reward, kept.dialect) == ("dev_0", "Wildford", 1.0, "research")
    assert [passage.id for passage in kept.calls[0].passages] == ["204"]


def test_an_episode_in_search_r1_s_tags_ends_with_its_answer(tmp_path: Path) -> None:
    turns = ("<think> ? </think>\n<search> Hawks </search>", "<think> ! </think>\n<answer> Wildford </answer>")
    rule = ("search.prompt_template_name=search_r1", "search.reward_rule=structured_answer")

    async def run() -> tuple[Any, SearchAgentLoop]:
        loop = make_loop(tmp_path, *turns, overrides=rule)
        return await loop.run({"temperature": 1.0, "logprobs": True}, **ROW), loop

    output, loop = asyncio.run(run())
    tokenizer, server = loop.tokenizer, loop.server_manager
    result = '\n\n<information>Doc 1(Title: "Hawks") The home of Hawks is Wildford.</information>\n\n'
    assert tokenizer.decode(output.prompt_ids).endswith("Question: In which city was the band Hawks formed?\n")
    assert server.sampling_params[0]["stop"] == ["</search>", "</answer>"]
    assert output.response_ids == server.turns[0] + tokenizer.encode(result) + server.turns[1]
    assert sum(output.response_mask) == len(server.turns[0] + server.turns[1])
    (kept,) = read_trajectories(tmp_path, "train", step=3)
    assert (kept.dialect, kept.end_reason, kept.answer, kept.reward) == ("search-r1", "answered", "Wildford", 1.0)


@pytest.mark.parametrize(
    ("ground_truth", "gold_answers"),
    [
        ("Wildford", ("Wildford",)),  # verl's documented shape
        ({"target": ["Hawks", "Wildford"]}, ("Hawks", "Wildford")),  # Search-R1's
        ({"target": np.array(["Wildford"], dtype=object)}, ("Wildford",)),
        (np.array(["Wildford"], dtype=object), ("Wildford",)),
        ([["Hawks"], ["Wildford"]], ("Hawks", "Wildford")),
    ],
    ids=str,
)
def test_every_shape_of_ground_truth_is_rewarded_as_the_evaluation_reads_it(
    ground_truth: Any, gold_answers: tuple[str, ...], tmp_path: Path
) -> None:
    async def run() -> Any:
        loop = make_loop(tmp_path, THINK_AND_SEARCH, ANSWER)
        row = {**ROW, "reward_model": {"style": "rule", "ground_truth": ground_truth}}
        return await loop.run({"temperature": 1.0, "logprobs": True}, **row)

    assert asyncio.run(run()).reward_score == 1.0
    (kept,) = read_trajectories(tmp_path, "train", step=3)
    assert (kept.gold_answers, kept.reward) == (gold_answers, 1.0)


async def run_under(control: str, folder: Path, *overrides: str) -> tuple[Any, Trajectory]:
    """An episode with the client that a worker makes for this control."""
    loop = make_loop(folder, THINK_AND_SEARCH, ANSWER, overrides=[f"search.control={control}", *overrides])
    loop.client = loop.shared.client
    output = await loop.run({"temperature": 1.0, "logprobs": True}, **ROW)
    (kept,) = read_trajectories(folder, "train", step=3)
    return output, kept


@pytest.mark.parametrize(
    ("control", "text", "calls"),
    [
        ("empty", "No results found.", ["Hawks"]),
        ("forbidden", "The limit of searches is reached. No further search is possible.", []),
    ],
)
def test_an_episode_of_a_control_without_passages(control: str, text: str, calls: list[str], tmp_path: Path) -> None:
    """No server is there, and none is asked."""
    output, kept = asyncio.run(run_under(control, tmp_path))
    assert kept.segments[1].text == f" <result>\n{text}\n</result>"
    assert [call.query for call in kept.calls] == calls
    assert output.reward_score == 1.0
    assert output.extra_fields["search_rollout"]["searches"] == len(calls)


def test_an_episode_finds_the_passages_of_another_training_question(
    tmp_path: Path, serve: Callable[[Any], str]
) -> None:
    questions = [f"Where was band {number} formed?" for number in range(20)]
    rows = {
        "question": questions,
        "data_source": "1hop",
        "reward_model": [{"style": "rule", "ground_truth": ["Wildford"]}] * 20,
        "extra_info": [{"id": str(number)} for number in range(20)],
    }
    pandas.DataFrame(rows).to_parquet(tmp_path / "train.parquet")
    app = FastAPI()

    @app.post("/search")
    def search(request: dict[str, Any]) -> list[Any]:
        return [[{"id": "1", "contents": request["query"]}], [1.0]]

    given = [f"search.url={serve(app)}", f"data.train_files='{tmp_path / 'train.parquet'}'"]
    first, second = (asyncio.run(run_under("random", tmp_path / name, *given))[1] for name in "ab")
    assert first.calls[0].query == "Hawks"
    assert first.calls[0].passages[0].contents in questions
    assert first.calls[0].passages == second.calls[0].passages


def test_each_episode_under_stale_results_has_its_own_queries(tmp_path: Path) -> None:
    async def find(query: str) -> list[Hit]:
        return [Hit(Document("1", f"found for {query}"), 1.0)]

    async def run() -> None:
        shared = controlled(
            SimpleNamespace(search_scored=find), SearchControl.STALE, seed=0, delay_s=1.0, questions=list
        )
        for _ in range(2):
            loop = make_loop(tmp_path, THINK_AND_SEARCH, " <search> Hulls </search>", ANSWER)
            loop.client = shared  # as the episodes of a worker share it
            await loop.run({"temperature": 1.0, "logprobs": True}, **ROW)

    asyncio.run(run())
    episodes = list(read_trajectories(tmp_path, "train", step=3))
    assert len(episodes) == 2
    for kept in episodes:
        assert [segment.text for segment in kept.segments[1::2]] == [
            " <result>\nNo results found.\n</result>",
            " <result>\nfound for Hawks\n</result>",
        ]
        assert [(call.query, [p.contents for p in call.passages]) for call in kept.calls] == [
            ("Hawks", []),
            ("Hulls", ["found for Hawks"]),
        ]


def test_a_forced_search_is_in_the_response_and_not_trained_on(tmp_path: Path) -> None:
    async def find(query: str) -> list[Hit]:
        return [Hit(Document("1", f"found for {query}"), 1.0)]

    async def run() -> tuple[Any, Any]:
        loop = make_loop(tmp_path, ANSWER)
        client = SimpleNamespace(search_scored=find)
        loop.client = controlled(client, SearchControl.FORCED, seed=0, delay_s=1.0, questions=list)
        return await loop.run({"temperature": 1.0, "logprobs": True}, **ROW), loop.server_manager

    output, server = asyncio.run(run())
    (kept,) = read_trajectories(tmp_path, "train", step=3)
    forced, result, answer = kept.segments
    encode = AutoTokenizer.from_pretrained(BASE_MODEL).encode
    assert list(forced.token_ids) == encode(" <search> In which city was the band Hawks formed? </search>")
    assert (forced.source, result.source, list(answer.token_ids)) == ("forced", "result", server.turns[0])
    spliced = [*forced.token_ids, *result.token_ids]
    assert output.response_ids == [*spliced, *server.turns[0]]
    assert output.response_mask == [0] * len(spliced) + [1] * len(server.turns[0])
    assert output.response_logprobs == [-0.5 * trained for trained in output.response_mask]
    assert server.prompts == [[*output.prompt_ids, *spliced]]
    assert output.extra_fields["trained_fingerprint"] == fingerprint(server.turns[0])
    measures = output.extra_fields["search_rollout"]
    assert (measures["searches"], measures["spliced_tokens"]) == (1.0, float(len(spliced)))
    assert kept.reward == 1.0


def test_a_told_budget_is_not_trained_on(tmp_path: Path) -> None:
    async def run() -> tuple[Any, Any]:
        loop = make_loop(tmp_path, THINK_AND_SEARCH, ANSWER, overrides=["search.tell_budget=true"])
        output = await loop.run({"temperature": 1.0, "logprobs": True}, **ROW)
        return output, loop.server_manager

    output, server = asyncio.run(run())
    (kept,) = read_trajectories(tmp_path, "train", step=3)
    told = f"\n\n{SEARCHES_LEFT.format(left=3)}\n</result>"  # of the demo's four
    assert kept.segments[1].text.endswith(told)
    first, spliced, last = (len(segment.token_ids) for segment in kept.segments)
    assert output.response_mask == [1] * first + [0] * spliced + [1] * last
    assert (first, last) == (len(server.turns[0]), len(server.turns[1]))


def test_a_row_has_the_id_of_its_data_set_or_its_number(tmp_path: Path) -> None:
    async def run() -> None:
        for columns in ({"extra_info": {"id": 5}}, {"extra_info": {}}, {"extra_info": {"index": 7}, "id": "train_7"}):
            loop = make_loop(tmp_path, THINK_AND_SEARCH, ANSWER)
            await loop.run({"temperature": 1.0, "logprobs": True}, **{**ROW, "index": 7, **columns})

    asyncio.run(run())
    kept = {trajectory.question_id for trajectory in read_trajectories(tmp_path, "train", step=3)}
    assert kept == {"5", "7", "train_7"}


def test_a_deadline_before_the_first_token_leaves_what_the_trainer_reads(tmp_path: Path) -> None:
    async def run() -> Any:
        loop = make_loop(tmp_path)
        change(loop, limits=dataclasses.replace(loop.shared.limits, episode_timeout_s=0.05))
        loop.server_manager.generate = lambda **_: asyncio.sleep(60)
        return await loop.run({"temperature": 1.0, "logprobs": True}, **ROW)

    output = asyncio.run(run())
    assert output.extra_fields["search_rollout"]["end_reason"] == "deadline"
    # Step 3 samples with what step 2 has trained.
    assert (output.extra_fields["min_global_steps"], output.extra_fields["max_global_steps"]) == (2, 2)
    (kept,) = read_trajectories(tmp_path, "train", step=3)
    assert (kept.end_reason, kept.segments) == ("deadline", ())


@pytest.fixture
def stop_reasons(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Why rollouts asked the trainer to stop."""
    reasons: list[str] = []

    async def request_stop(reason: str) -> None:
        reasons.append(reason)

    monkeypatch.setattr(agent_loop, "request_stop", request_stop)
    return reasons


def test_a_violated_invariant_stops_the_run_and_leaves_the_trajectory_in_a_file(
    tmp_path: Path, stop_reasons: list[str]
) -> None:
    async def run() -> None:
        loop = make_loop(tmp_path, THINK_AND_SEARCH, ANSWER)
        loop.shared.codec.encode_text = lambda text: [loop.tokenizer.eos_token_id, len(text)]  # type: ignore[method-assign]
        await loop.run({"temperature": 1.0, "logprobs": True}, **ROW)

    with pytest.raises(ReSearchError, match=r"not token-exact .*control tokens \[0\]"):
        asyncio.run(run())
    (file,) = tmp_path.glob("violations/*.json")
    (reason,) = stop_reasons
    assert reason.startswith("a rollout failed: ReSearchError: an episode is not token-exact")
    assert str(file) in reason
    written = Trajectory.from_json(file.read_bytes())
    assert written.question == ROW["raw_prompt"][0]["content"]
    assert written.segments[1].source == "result"
    assert not list(tmp_path.glob("train/*"))


def test_a_reward_of_terms_is_kept_and_logged_apart(tmp_path: Path) -> None:
    async def run() -> Any:
        terms = "search.reward={em: 1.0, retrieval_hit: 0.25, searches: -0.5}"
        loop = make_loop(tmp_path, THINK_AND_SEARCH, ANSWER, overrides=[terms])
        return await loop.run({"temperature": 1.0, "logprobs": True}, **ROW)

    output = asyncio.run(run())
    assert output.reward_score == 1.0 + 0.25 - 0.5  # one search, which found Wildford
    (kept,) = read_trajectories(tmp_path, "train", step=3)
    assert (kept.reward, kept.reward_reason) == (0.75, "em +1, retrieval_hit +0.25, searches -0.5: 'Wildford'")
    terms = {"reward_em": 1.0, "reward_retrieval_hit": 0.25, "reward_searches": -0.5}
    assert kept.metrics == {"em": 1.0, "f1": 1.0, "acc": 1.0, **terms}
    for logged in ("reward_extra_info", "search_rollout"):
        assert output.extra_fields[logged].items() >= terms.items()


def test_a_reward_of_the_users_own_sees_the_trajectory_of_training(tmp_path: Path) -> None:
    (tmp_path / "my_reward.py").write_text(
        "def late(trajectory, gold_answers):\n"
        "    return trajectory.step / 10, f'{trajectory.split} {gold_answers} {trajectory.metrics[\"f1\"]}'\n"
    )

    async def run() -> Any:
        own = f"search.reward='{tmp_path}/my_reward.py:late'"
        loop = make_loop(tmp_path, THINK_AND_SEARCH, ANSWER, overrides=[own])
        return await loop.run({"temperature": 1.0, "logprobs": True}, **ROW)

    assert asyncio.run(run()).reward_score == 0.3
    (kept,) = read_trajectories(tmp_path, "train", step=3)
    assert (kept.reward, kept.reward_reason) == (0.3, "train ('Wildford',) 1.0")


def test_a_judge_is_asked_once_for_an_answer_and_stops_the_run_if_it_is_gone(
    tmp_path: Path, stop_reasons: list[str], serve: Callable[[Any], str]
) -> None:
    asked: list[Any] = []
    app = FastAPI()

    @app.post("/chat/completions")
    def chat(request: dict[str, Any]) -> Any:
        asked.append(request)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "correct"}}
        return {"id": "1", "object": "chat.completion", "created": 1, "model": "gpt", "choices": [choice]}

    def run(url: str, answer: str) -> Any:
        async def episode() -> Any:
            judge = f"search.judge={{model: gpt, max_retries: 0, url: '{url}'}}"
            given = [judge, "search.reward={judge: 2.0}", f"trainer.default_local_dir='{tmp_path}'"]
            loop = make_loop(tmp_path, THINK_AND_SEARCH, answer, overrides=given)
            return await loop.run({"temperature": 1.0, "logprobs": True}, **ROW)

        return asyncio.run(episode())

    url = serve(app)
    outputs = [run(url, ANSWER), run(url, ANSWER)]  # two processes of a run, one after the other
    assert [output.reward_score for output in outputs] == [2.0, 2.0]
    assert len(asked) == 1
    assert outputs[1].extra_fields["search_rollout"].items() >= {"llm_judge": 1.0, "reward_judge": 2.0}.items()
    with pytest.raises(JudgeError):
        run("http://127.0.0.1:1", ANSWER.replace("Wildford", "Hawks"))
    (reason,) = stop_reasons
    assert reason.startswith("a rollout failed: JudgeError: http://127.0.0.1:1/chat/completions: Connection error")
    errors = [t.error.type for t in read_trajectories(tmp_path, "train", step=3) if t.error]
    assert errors == ["JudgeError"]


def test_a_reward_that_fails_stops_the_run_and_leaves_the_trajectory(tmp_path: Path, stop_reasons: list[str]) -> None:
    (tmp_path / "broken.py").write_text("def reward(trajectory, gold_answers):\n    return 1 / 0, ''\n")

    async def run() -> None:
        own = f"search.reward='{tmp_path}/broken.py:reward'"
        loop = make_loop(tmp_path, THINK_AND_SEARCH, ANSWER, overrides=[own])
        await loop.run({"temperature": 1.0, "logprobs": True}, **ROW)

    with pytest.raises(RewardError):
        asyncio.run(run())
    told = f"{tmp_path}/broken.py, line 2: ZeroDivisionError: division by zero (reward, question 'dev_0')"
    assert stop_reasons == [f"a rollout failed: RewardError: {told}"]
    (kept,) = read_trajectories(tmp_path, "train", step=3)
    assert (kept.answer, kept.reward, kept.error) == ("Wildford", None, Failure("RewardError", told))


def test_a_replica_that_died_stops_the_run(tmp_path: Path, stop_reasons: list[str]) -> None:
    async def run() -> None:
        loop = make_loop(tmp_path)
        loop.server_manager.generate = dead
        await loop.run({"temperature": 1.0, "logprobs": True}, **ROW)

    async def dead(**_: Any) -> None:
        # What `ray.get` raises for an exception of the other side: both a RayTaskError and the exception itself.
        cause = EngineDeadError("the engine\nis gone")
        raise RayTaskError("generate", "traceback", cause).as_instanceof_cause()

    with pytest.raises(EngineDeadError):
        asyncio.run(run())
    assert stop_reasons == ["a rollout replica failed: EngineDeadError: the engine is gone"]


class EngineDeadError(Exception):
    """As vLLM's."""


def test_an_outage_that_lasts_too_long_stops_the_run_in_its_own_words(tmp_path: Path, stop_reasons: list[str]) -> None:
    async def run() -> None:
        loop = make_loop(tmp_path, THINK_AND_SEARCH)
        loop.client = RetrievalClient(loop.shared.settings.url, top_n=1, max_attempts=1)  # nobody is there
        loop.shared.outage.max_outage_s = 0.0
        await loop.run({"temperature": 1.0, "logprobs": True}, **ROW)

    with pytest.raises(StopTraining):
        asyncio.run(run())
    (reason,) = stop_reasons
    assert reason.startswith(
        "no retrieval server was healthy for 0 s (search.max_outage_s): no retrieval server answers"
    )


def test_an_instruct_model_is_asked_in_its_own_chat_template(tmp_path: Path) -> None:
    async def run() -> Any:
        loop = make_loop(tmp_path, THINK_AND_SEARCH, ANSWER)
        change(loop, settings=loop.shared.settings.model_copy(update={"apply_chat": True}))
        loop.tokenizer.chat_template = (
            "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}"
        )
        return await loop.run({"temperature": 1.0, "logprobs": True}, **ROW), loop.tokenizer

    output, tokenizer = asyncio.run(run())
    prompt = tokenizer.decode(output.prompt_ids)
    assert prompt.startswith("[system] ")
    assert "<search>" in prompt  # the instructions
    assert prompt.endswith("[user] In which city was the band Hawks formed?\n[assistant]")
    assert output.reward_score == 1.0


def test_an_episode_is_no_reason_to_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        make_loop(tmp_path)
        caplog.clear()  # a process may say once what its first episode lets it find
        make_loop(tmp_path)

    asyncio.run(run())
    assert not caplog.records


def test_a_base_model_without_chat_tokens_is_enough(tmp_path: Path) -> None:
    # verl's own loops refuse a Qwen2 tokenizer without <|im_end|>; a search episode has no use for it.
    async def codec_of_loop() -> Any:
        return make_loop(tmp_path).shared.codec

    assert asyncio.run(codec_of_loop()).eos_token_ids == {0}


def test_episodes_leave_no_cycles_behind(tmp_path: Path) -> None:
    """Full collections are rare in a worker (flashrag/system/garbage.py)."""

    async def unreachable_after(episodes: int) -> int:
        loop = make_loop(tmp_path, *[THINK_AND_SEARCH, ANSWER] * (1 + episodes))
        await loop.run({"temperature": 1.0, "logprobs": True}, **ROW)
        gc.collect()
        gc.disable()
        try:
            for _ in range(episodes):
                await loop.run({"temperature": 1.0, "logprobs": True}, **ROW)
            return gc.collect()
        finally:
            gc.enable()

    assert asyncio.run(unreachable_after(episodes=50)) < 50


THINK_AND_RUN = " <think> I need to calculate. </think> <python> print(6 * 7) </python>"


def test_code_is_run_and_its_output_is_a_result_like_any_other(tmp_path: Path) -> None:
    async def run() -> tuple[Any, SearchAgentLoop]:
        loop = make_loop(tmp_path, THINK_AND_RUN, ANSWER, overrides=PYTHON_TOOL)
        return await loop.run({"temperature": 1.0, "logprobs": True}, **ROW), loop

    output, loop = asyncio.run(run())
    sampled, answer = loop.server_manager.turns
    spliced = loop.tokenizer.encode(" <result>\n42\n</result>")
    assert output.response_ids == sampled + spliced + answer
    assert output.response_mask == [1] * len(sampled) + [0] * len(spliced) + [1] * len(answer)
    assert output.reward_score == 1.0
    rollout = output.extra_fields["search_rollout"]
    assert (rollout["searches"], rollout["tool_calls"]) == (0.0, 1.0)
    (kept,) = read_trajectories(tmp_path, "train", step=3)
    assert (kept.calls[0].tool, kept.calls[0].query) == ("python", "print(6 * 7)")


def test_each_turn_of_each_episode_has_a_seed_of_its_own(tmp_path: Path) -> None:
    async def seeds(session: int, *overrides: str) -> list[int | None]:
        loop = make_loop(tmp_path, THINK_AND_SEARCH, ANSWER, overrides=overrides)
        await loop.run({"temperature": 1.0, "logprobs": True}, **{**ROW, "session_id": session})
        return [params.get("seed") for params in loop.server_manager.sampling_params]

    assert asyncio.run(seeds(1, "search.seed=null")) == [None, None]
    first = asyncio.run(seeds(1, "search.seed=5"))
    assert asyncio.run(seeds(1, "search.seed=5")) == first
    others = [asyncio.run(seeds(2, "search.seed=5")), asyncio.run(seeds(1, "search.seed=6"))]
    assert len({*first, *others[0], *others[1]}) == 6


def test_a_sandbox_that_fails_is_a_failed_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> Any:
        loop = make_loop(tmp_path, THINK_AND_RUN, ANSWER, overrides=PYTHON_TOOL)
        monkeypatch.setattr(PythonSandbox, "_start", no_sandbox)
        return await loop.run({"temperature": 1.0, "logprobs": True}, **ROW)

    async def no_sandbox(_: PythonSandbox) -> None:
        raise ToolError("no namespaces are left")

    output = asyncio.run(run())
    assert output.extra_fields["search_rollout"]["end_reason"] == "search_failed"
    assert set(output.response_mask) == {0}


def test_a_search_has_all_the_attempts_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 60 s for each attempt, as in research.yaml: eight that hang take eight minutes, and nothing ends them."""
    passed_s, clock = 0.0, time.monotonic

    async def hang(*_: Any) -> None:
        nonlocal passed_s
        passed_s += 60.0
        raise Retryable("did not answer within 60 s", retry_after_s=0.0)

    async def search() -> None:
        loop = make_loop(tmp_path, overrides=["search.timeout_s=60", "search.max_attempts=8"])
        await loop.shared.client.search_scored("Hawks")

    monkeypatch.setattr(RetrievalClient, "_ask_one", hang)
    monkeypatch.setattr("flashrag.client.client._wait_s", lambda _: 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + passed_s)
    with pytest.raises(SearchError, match="8 attempts"):
        asyncio.run(search())
    assert passed_s == 8 * 60.0
