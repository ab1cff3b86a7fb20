"""SearchAgentLoop: runs one search episode per trajectory on verl's rollout servers.

A thin caller of `flashrag.rollout.run_episode`: it lends the engine and the retrieval client, and hands verl the ids,
the loss mask, the log-probabilities and the reward. Named in config/agent_loop.yaml, read by every agent-loop worker.
"""

import hashlib
from array import array
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from flashrag.client import RetrievalClient
from flashrag.dialect import Dialect
from flashrag.episode import (
    EndReason,
    Episode,
    EpisodeCodec,
    Generation,
    InvariantViolation,
)
from flashrag.errors import ReSearchError
from flashrag.generator.tokenizer import eos_token_ids
from flashrag.prompt_ids import prompt_token_ids
from flashrag.rollout import run_episode
from flashrag.tools.python import python_tool
from flashrag.tools.sandbox import PythonSandbox, check_sandbox
from flashrag.tools.tool import Tool, ToolResult
from verl_search.outage import EpisodeClock, Outage
from verl_search.reward import Reward, episode_reward
from verl_search.rollout_metrics import rollout_measures, training_measures
from verl_search.sampling import ABORTED, search_sampling_params, seeded
from verl_search.settings import SearchSettings
from verl_search.stopping import request_stop
from verl_search.trajectories import TrajectoryRecord, as_json, write_violation
from verl_search.trajectory_files import Retention, TrajectoryWriter


@lru_cache(maxsize=1)
def _shared_client(url: str, top_n: int, timeout_s: float, max_attempts: int) -> RetrievalClient:
    """One connection pool per worker process: its agent loops share an event loop."""
    return RetrievalClient(url, top_n=top_n, timeout_s=timeout_s, max_attempts=max_attempts)


@lru_cache(maxsize=1)
def _shared_outage(url: str, max_outage_s: float) -> Outage:
    """One per worker process: all its episodes wait for the same servers."""
    return Outage(url, max_outage_s, request_stop)


@lru_cache(maxsize=1)
def _shared_codec(tokenizer: Any, model_path: str, dialect: Dialect) -> EpisodeCodec:
    """One per worker process, not per trajectory: what ends a sequence may have to be asked of a model hub."""
    return EpisodeCodec(tokenizer, eos_token_ids(tokenizer, model_path), dialect)


@lru_cache(maxsize=1)
def _shared_python_tool() -> Tool:
    """One per worker process, which runs as many programs at a time as its machine has cores; checked where it runs."""
    check_sandbox()
    return python_tool(PythonSandbox())


@lru_cache(maxsize=1)
def _shared_writer(directory: Path, keep_every: int, keep_last: int) -> TrajectoryWriter:
    """One per worker process, which then has one file a step."""
    return TrajectoryWriter(directory, Retention(keep_every, keep_last))


def fingerprint(token_ids: Sequence[int]) -> str:
    """A digest of token ids, to recognise them at the other end of the data path."""
    return hashlib.sha256(array("q", token_ids).tobytes()).hexdigest()


class SearchAgentLoop(AgentLoopBase):
    """One trajectory: prompt, then model and result segments in turn, on the rollout servers."""

    def __init__(self, *args: Any, **kwargs: Any):
        # Upstream builds a chat-turn tokenizer for the model family, which wants that family's chat tokens. An episode
        # has no chat turns, and a base model's tokenizer need not have them: None takes upstream's plain builder.
        super().__init__(*args, **{**kwargs, "hf_model_type": None})
        self.settings = SearchSettings.from_config(self.config.search)
        self.limits = self.settings.limits(self.rollout_config.response_length)
        self.codec = _shared_codec(self.tokenizer, self.config.actor_rollout_ref.model.path, self.settings.dialect())
        self.tools = (_shared_python_tool(),) if self.settings.python_tool else ()
        self.client = _shared_client(
            self.settings.url, self.settings.top_n, self.settings.timeout_s, self.settings.max_attempts
        )
        self.outage = _shared_outage(self.settings.url, self.settings.max_outage_s)
        self.writer = _shared_writer(
            self.settings.trajectory_path(), self.settings.trajectory_keep_every, self.settings.trajectory_keep_last
        )

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **row: Any) -> AgentLoopOutput:
        """Run one episode for a dataset row; `row` carries the columns of `QuestionDataset` and verl's bookkeeping."""
        question = row["raw_prompt"][-1]["content"]
        question_id = str(row["extra_info"].get("id", row["index"]))
        prompt_ids = prompt_token_ids(
            self.tokenizer, question, self.settings.prompt_template_name, self.settings.apply_chat
        )
        seed = None
        if self.settings.seed is not None:
            seed = (self.settings.seed, row["split"], int(row["global_steps"]), question_id, int(row["session_id"]))
        engine = _Engine(
            self.rollout_config.name, self.server_manager, sampling_params, self.codec, int(priority), seed
        )
        try:
            clock = EpisodeClock()
            search = partial(self._search, clock=clock)
            episode = await run_episode(
                prompt_ids, engine.generate, search, self.codec, self.limits, tools=self.tools, clock=clock
            )
            check_sampled_ids(episode, engine.sampled_ids)
        except InvariantViolation as violation:
            path = write_violation(self.settings.trajectory_path(), question, violation)
            raise ReSearchError(f"an episode is not token-exact ({violation}); its trajectory: {path}") from violation
        gold_answers = list(row["reward_model"]["ground_truth"])
        reward = episode_reward(episode, gold_answers, self.settings.answer_metric, self.settings.reward_rule)
        record = TrajectoryRecord(
            question_id=question_id,
            data_source=str(row["data_source"]),
            question=question,
            gold_answers=gold_answers,
            step=int(row["global_steps"]),
            split=row["split"],
            group_id=str(row["uid"]),
            session=int(row["session_id"]),
            weights_steps=(engine.extra_fields.get("min_global_steps"), engine.extra_fields.get("max_global_steps")),
            episode=episode,
            reward=reward,
        )
        await self.writer.write(record.split, record.step, lambda: as_json(record))
        # An episode that a deadline cut off before its first token has nothing from the engine.
        weights_step = record.step - 1
        unsampled = {"min_global_steps": weights_step, "max_global_steps": weights_step}
        extra_fields = {**unsampled, **engine.extra_fields}
        return agent_loop_output(episode, reward, extra_fields, mask_results=self.settings.mask_results)

    async def _search(self, query: str, clock: EpisodeClock) -> ToolResult:
        return ToolResult.ranked(await self.outage.wait_out(lambda: self.client.search_scored(query), clock))


class _Engine:
    """The rollout servers as the episode's `generate`, remembering every id that they returned."""

    def __init__(
        self,
        name: str,
        server_manager: Any,
        sampling_params: dict[str, Any],
        codec: EpisodeCodec,
        priority: int,
        seed: tuple[object, ...] | None = None,
    ):
        self.name, self.server_manager, self.seed = name, server_manager, seed
        self.sampling_params = search_sampling_params(name, sampling_params, codec)
        self.priority = priority
        # One id for the whole episode keeps its turns on one server, where their prefix is cached.
        self.request_id = uuid4().hex
        self.sampled_ids: list[int] = []
        self.extra_fields: dict[str, Any] = {}

    async def generate(self, token_ids: list[int], max_tokens: int) -> Generation:
        output = await self.server_manager.generate(
            request_id=self.request_id,
            prompt_ids=token_ids,
            sampling_params={**self.sampling_params, **self._seed(), "max_tokens": max_tokens},
            priority=self.priority,
        )
        self.sampled_ids += output.token_ids
        # The trainer reads the range of weight versions: the first turn's minimum, the last turn's maximum.
        first_version = self.extra_fields.get("min_global_steps", output.extra_fields.get("min_global_steps"))
        self.extra_fields.update(output.extra_fields, min_global_steps=first_version)
        return Generation(output.token_ids, output.log_probs or None, aborted=output.stop_reason in ABORTED)

    def _seed(self) -> dict[str, int]:
        # Another for each turn: with one seed for all, they would draw the same numbers.
        return {} if self.seed is None else seeded(self.name, *self.seed, len(self.sampled_ids))


def check_sampled_ids(episode: Episode, sampled_ids: Sequence[int]) -> None:
    """Raise `InvariantViolation` unless the episode's loss tokens are exactly what the engine sampled."""
    trained = [i for i, trains in zip(episode.response_ids, episode.loss_mask, strict=True) if trains]
    if trained != list(sampled_ids):
        raise InvariantViolation(f"{len(sampled_ids)} sampled ids differ from the {len(trained)} to train on", episode)


def agent_loop_output(
    episode: Episode, reward: Reward, extra_fields: dict[str, Any], *, mask_results: bool = True
) -> AgentLoopOutput:
    """What verl trains on. A failed search is nobody's mistake: its episode carries no loss."""
    failed = episode.ended_by is EndReason.SEARCH_FAILED
    loss_mask = episode.loss_mask if mask_results else [1] * len(episode.loss_mask)
    loss_mask = [0] * len(loss_mask) if failed else loss_mask
    trained_ids = [i for i, trains in zip(episode.response_ids, loss_mask, strict=True) if trains]
    response_ids, log_probs = episode.response_ids, episode.log_probs
    if not response_ids:  # cut off before its first token: upstream's batches have no place for an empty response
        response_ids, loss_mask, log_probs = [episode.prompt_ids[-1]], [0], [0.0]
    rollout = rollout_measures(episode, reward)
    return AgentLoopOutput(
        prompt_ids=list(episode.prompt_ids),
        response_ids=response_ids,
        response_mask=loss_mask,
        response_logprobs=log_probs or None,
        reward_score=reward.value,
        num_turns=1 + len(episode.segments),
        metrics=AgentLoopMetrics(generate_sequences=episode.generate_s, tool_calls=rollout["search_s"]),
        extra_fields={
            **extra_fields,
            "turn_scores": [],
            "tool_rewards": [],
            # Upstream averages this for validation; the sampler averages "search_rollout" for training.
            "reward_extra_info": rollout,
            "search_rollout": {**rollout, **training_measures(episode, reward)},
            "trained_fingerprint": fingerprint(trained_ids),
            "response_fingerprint": fingerprint(response_ids),
        },
    )
