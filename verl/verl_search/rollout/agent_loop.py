"""SearchAgentLoop: runs one search episode for each trajectory, on verl's rollout servers.

A thin caller of `flashrag.episode.run_episode`: it provides the engine and the retrieval client, and returns the ids,
the loss mask, the log-probabilities and the reward to verl. config/agent_loop.yaml, which every agent-loop worker
reads, names this class.
"""

import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from ray.exceptions import RayError
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from flashrag.client import RetrievalClient, controlled, for_one_question, forced_query
from flashrag.document import Hit
from flashrag.episode import (
    EndReason,
    Episode,
    EpisodeCodec,
    Failure,
    Generation,
    InvariantViolation,
    Limits,
    Tool,
    ToolResult,
    Trajectory,
    prompt_token_ids,
    run_episode,
)
from flashrag.errors import ReSearchError
from flashrag.generator import eos_token_ids
from flashrag.metrics import score_answer
from flashrag.questions import parse_question
from flashrag.reward import JUDGE, Judge, JudgeError, RewardError, RewardFunction, rewarded
from flashrag.system.garbage import shorten_pauses
from flashrag.tools import PythonSandbox, check_sandbox, python_tool
from verl_search.platform.upstream import silence_chat_turn_builders
from verl_search.rollout.measures import rollout_measures, training_measures
from verl_search.rollout.outage import EpisodeClock, Outage
from verl_search.rollout.sampling import ABORTED, search_sampling_params, seeded
from verl_search.rollout.trajectories import Retention, TrajectoryWriter, write_violation
from verl_search.settings import SearchSettings
from verl_search.trainer.stopping import StopTraining, request_stop


class SearchClient(Protocol):
    """The part of `flashrag.client.RetrievalClient` that an episode uses."""

    async def search_scored(self, query: str) -> Sequence[Hit]: ...


@dataclass(frozen=True, eq=False)
class SharedState:
    """The objects that the episodes of one worker process share."""

    settings: SearchSettings
    engine_name: str
    limits: Limits
    codec: EpisodeCodec
    client: SearchClient
    outage: Outage
    tools: tuple[Tool, ...]
    reward_of: RewardFunction
    judge: Judge | None
    writer: TrajectoryWriter

    @classmethod
    def from_config(cls, config: Any, tokenizer: Any) -> "SharedState":
        """The objects for verl's composed training config."""
        settings, model = SearchSettings.from_config(config.search), config.actor_rollout_ref.model.path
        rollout = config.actor_rollout_ref.rollout
        if settings.python_tool:
            check_sandbox()  # on the machine where it will run
        return cls(
            settings,
            engine_name=rollout.name,
            limits=settings.limits(rollout.response_length),
            codec=EpisodeCodec(tokenizer, eos_token_ids(tokenizer, model), settings.dialect()),
            client=controlled(
                RetrievalClient(
                    settings.url,
                    top_n=settings.top_n,
                    timeout_s=settings.timeout_s,
                    deadline_s=math.inf,  # the episode keeps the deadline of a search (Limits)
                    max_attempts=settings.max_attempts,
                ),
                settings.control,
                seed=settings.seed or 0,
                delay_s=settings.control_delay_s,
                questions=partial(_training_questions, config.data),
            ),
            outage=Outage(settings.url, settings.max_outage_s),
            tools=(python_tool(PythonSandbox()),) if settings.python_tool else (),
            reward_of=settings.reward_function(),
            judge=_judge_of(settings, config),
            writer=TrajectoryWriter(
                settings.trajectory_dir, Retention(settings.trajectory_keep_every, settings.trajectory_keep_last)
            ),
        )

    @lru_cache(maxsize=1024)  # noqa: B019  (this object lives as long as its process)
    def prompt_ids(self, question: str) -> list[int]:
        """The ids that every episode of a question starts from; a group shares them."""
        return prompt_token_ids(self.codec.tokenizer, question, self.settings.prompt, self.settings.apply_chat)


def _judge_of(settings: SearchSettings, config: Any) -> Judge | None:
    """The judge, with this process's share of its limits; it knows what earlier processes of the run were told."""
    if settings.judge is None:
        return None
    folder = Path(config.trainer.default_local_dir) / "judge"
    folder.mkdir(parents=True, exist_ok=True)
    workers = config.actor_rollout_ref.rollout.agent.num_workers
    return Judge(settings.judge.share(workers), folder / f"{uuid4().hex[:12]}.jsonl", sorted(folder.glob("*.jsonl")))


_state_of_process: tuple[Any, SharedState] | None = None


def shared_state(config: Any, tokenizer: Any) -> SharedState:
    """The `SharedState` of this process, made once for each config object."""
    global _state_of_process
    if _state_of_process is None or _state_of_process[0] is not config:
        _state_of_process = config, SharedState.from_config(config, tokenizer)
        shorten_pauses()
        silence_chat_turn_builders()
    return _state_of_process[1]


def fingerprint(token_ids: Sequence[int]) -> str:
    """A digest of token ids; the sampler compares it with the ids that arrive for training."""
    return hashlib.sha256(array("q", token_ids).tobytes()).hexdigest()


class SearchAgentLoop(AgentLoopBase):
    """One trajectory: prompt, then model and result segments in turn, on the rollout servers."""

    def __init__(self, *args: Any, client: SearchClient | None = None, **kwargs: Any):
        """`client` asks the retrieval server; None means the client that this process's episodes share."""
        # For a known model family upstream's builder of chat turns requires that family's chat tokens. An episode has
        # no chat turns, and the tokenizer of a base model may lack such tokens. None selects upstream's plain builder.
        super().__init__(*args, **{**kwargs, "hf_model_type": None})
        self.shared = shared_state(self.config, self.tokenizer)
        self.client = client or self.shared.client

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **row: Any) -> AgentLoopOutput:
        """Run one episode for a dataset row; `row` carries the columns of `QuestionDataset` and verl's bookkeeping.

        Any exception stops the run; otherwise the incomplete group would be trained on.
        """
        try:
            return await self._run(sampling_params, int(priority), row)
        except Exception as error:
            await request_stop(what_failed(error))
            raise

    async def _run(self, sampling_params: dict[str, Any], priority: int, row: dict[str, Any]) -> AgentLoopOutput:
        shared, settings = self.shared, self.shared.settings
        asked = _asked(row)
        engine = _Engine(shared.engine_name, self.server_manager, sampling_params, shared.codec, priority)
        if settings.seed is not None:
            engine.seed = (settings.seed, row["split"], asked["step"], asked["question_id"], asked["session"])
        clock = EpisodeClock()
        try:
            episode = await run_episode(
                shared.prompt_ids(asked["question"]),
                engine.generate,
                partial(self._search, client=for_one_question(self.client), clock=clock),
                shared.codec,
                shared.limits,
                tools=shared.tools,
                clock=clock,
                forced_query=forced_query(self.client, asked["question"]),
            )
            check_sampled_ids(episode, engine.sampled_ids)
        except InvariantViolation as violation:
            path = write_violation(settings.trajectory_dir, violation, **asked)
            raise ReSearchError(f"an episode is not token-exact ({violation}); its trajectory: {path}") from violation
        trajectory = Trajectory.of_episode(
            episode,
            metrics=score_answer(episode.answer, asked["gold_answers"])._asdict(),
            weights_steps=(engine.extra_fields.get("min_global_steps"), engine.extra_fields.get("max_global_steps")),
            **asked,
        )
        trajectory = await self._rewarded(trajectory)
        await shared.writer.write(trajectory)
        # The engine returned nothing if a deadline cut the episode off before its first token.
        weights_step = asked["step"] - 1
        unsampled = {"min_global_steps": weights_step, "max_global_steps": weights_step}
        extra_fields = {**unsampled, **engine.extra_fields}
        return agent_loop_output(episode, trajectory, extra_fields, mask_results=settings.mask_results)

    async def _rewarded(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory with its reward; without one it is written too, before the error goes on."""
        try:
            if self.shared.judge is not None:
                verdict = float(await self.shared.judge.verdict(trajectory))
                trajectory = replace(trajectory, metrics={**trajectory.metrics, JUDGE: verdict})
            return rewarded(trajectory, self.shared.reward_of)
        except (JudgeError, RewardError) as error:
            failure = Failure(type(error).__name__, str(error))
            await self.shared.writer.write(replace(trajectory, error=failure))
            raise

    async def _search(self, query: str, client: SearchClient, clock: EpisodeClock) -> ToolResult:
        found = await self.shared.outage.wait_out(lambda: client.search_scored(query), clock)
        return ToolResult.ranked(found)


def _training_questions(data: Any) -> Iterator[str]:
    from verl_search.preflight.facts import read_questions  # imported here: only a control needs it

    for path in [data.train_files] if isinstance(data.train_files, str) else data.train_files:
        yield from (each.question for each in read_questions("data.train_files", Path(path), data.prompt_key))


def _asked(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a trajectory that a dataset row determines."""
    question = parse_question(row, default_id=str(row["index"]), question_key="raw_prompt")
    return {
        "question_id": question.id,
        "question": question.question,
        "gold_answers": question.golden_answers,
        "data_source": str(row["data_source"]),
        "split": row["split"],
        "step": int(row["global_steps"]),
        "group_id": str(row["uid"]),
        "session": int(row["session_id"]),
    }


class _Engine:
    """Provides the episode's `generate` on the rollout servers, and keeps every id that they returned."""

    def __init__(
        self,
        name: str,
        server_manager: Any,
        sampling_params: dict[str, Any],
        codec: EpisodeCodec,
        priority: int,
    ):
        self.name, self.server_manager = name, server_manager
        self.seed: tuple[object, ...] | None = None
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
        # Each turn has its own seed: with the same one, all turns would draw the same numbers.
        return {} if self.seed is None else seeded(self.name, *self.seed, len(self.sampled_ids))


def what_failed(error: Exception) -> str:
    """The reason of a failed rollout, in one line. Ray's errors come from a rollout replica or its death."""
    if isinstance(error, StopTraining):
        return str(error)
    who = "a rollout replica" if isinstance(error, RayError) else "a rollout"
    cause = getattr(error, "cause", None) or error
    return f"{who} failed: {type(cause).__name__}: {' '.join(str(cause).split())}"


def check_sampled_ids(episode: Episode, sampled_ids: Sequence[int]) -> None:
    """Raise `InvariantViolation` unless the episode's loss tokens are exactly the tokens that the engine sampled."""
    trained = [i for i, trains in zip(episode.response_ids, episode.loss_mask, strict=True) if trains]
    if trained != list(sampled_ids):
        raise InvariantViolation(f"{len(sampled_ids)} sampled ids differ from the {len(trained)} to train on", episode)


def agent_loop_output(
    episode: Episode, trajectory: Trajectory, extra_fields: dict[str, Any], *, mask_results: bool = True
) -> AgentLoopOutput:
    """The episode, whose rewarded trajectory is given too, as verl trains on it.

    After a failed search, which is not the model's mistake, it carries no loss.
    """
    failed = episode.end_reason is EndReason.SEARCH_FAILED
    loss_mask = episode.loss_mask if mask_results else [1] * len(episode.loss_mask)
    loss_mask = [0] * len(loss_mask) if failed else loss_mask
    trained_ids = [i for i, trains in zip(episode.response_ids, loss_mask, strict=True) if trains]
    response_ids, log_probs = episode.response_ids, episode.log_probs
    if not response_ids:  # cut off before its first token: upstream's batches cannot hold an empty response
        response_ids, loss_mask, log_probs = [episode.prompt_ids[-1]], [0], [0.0]
    rollout = rollout_measures(trajectory)
    return AgentLoopOutput(
        prompt_ids=list(episode.prompt_ids),
        response_ids=response_ids,
        response_mask=loss_mask,
        response_logprobs=log_probs or None,
        reward_score=trajectory.reward,
        num_turns=1 + len(episode.segments),
        metrics=AgentLoopMetrics(generate_sequences=episode.generate_s, tool_calls=rollout["search_s"]),
        extra_fields={
            **extra_fields,
            "turn_scores": [],
            "tool_rewards": [],
            # Upstream averages this for validation; the sampler averages "search_rollout" for training.
            "reward_extra_info": rollout,
            "search_rollout": {**rollout, **training_measures(trajectory)},
            "trained_fingerprint": fingerprint(trained_ids),
            "response_fingerprint": fingerprint(response_ids),
        },
    )
