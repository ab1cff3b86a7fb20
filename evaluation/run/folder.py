"""The folder of a run: its configuration, the trajectory of each answered question, and the scores at the end.

config.yaml             every key with its value; a continuation must have the same values
environment.json        versions, git revision, machine, served model, start and end of each session
prompt.yaml             the words around the questions, as `prompt_file` takes them
items.jsonl             one trajectory per answer to a question, written when it comes; scored and sorted at the end
judge.jsonl             the replies of the judge
summary.json            the scores
metric_score.txt, intermediate_data.json    FlashRAG's files, if the configuration enables them
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import to_jsonable_python

from evaluation.scores.scoring import MISSING
from evaluation.settings import MAY_CHANGE, EvalSettings
from flashrag.config import read_yaml_mapping
from flashrag.dataset import Question
from flashrag.episode import Failure, Trajectory
from flashrag.errors import UserError, without_passwords
from flashrag.pipeline.trace import failed_trajectory
from flashrag.prompts import ChosenPrompt, PromptRecord
from flashrag.system.files import locked, staged, write_text
from flashrag.system.json_lines import KeyedLog

ITEMS = "items.jsonl"
CONFIG_FILE, SUMMARY_FILE = "config.yaml", "summary.json"
SUMMARY_KEYS = ("method", "dataset", "metrics", "usage", "n", "n_failed")
ENVIRONMENT = ("served_model", "questions_sha256", "sessions")  # keys of environment.json beside the machine's
PROMPT_FILE = "prompt.yaml"
NOT_ASKED = Failure(MISSING, "the run ended before this question was answered")
Score = Callable[[Trajectory], Trajectory]


class RunFolder:
    """One run on disk. Opening it changes nothing; write only inside `working`."""

    def __init__(self, settings: EvalSettings, questions: Sequence[Question]) -> None:
        self.settings = settings
        self.questions = questions
        self.path = settings.run_folder
        self._environment = self._check_earlier_run()
        self.items = items_log(self.path)

    def _check_earlier_run(self) -> dict[str, Any]:
        """environment.json of the earlier sessions, {} if there were none; raises `UserError` for a different run."""
        config_path, environment_path = self.path / CONFIG_FILE, self.path / "environment.json"
        if not config_path.exists():
            if self.path.is_dir() and any(not child.name.startswith(".") for child in self.path.iterdir()):
                raise UserError(f"{self.path} holds files, but no run; remove it, or use another save_note")
            return {}
        now, earlier = self._config(), read_yaml_mapping(config_path)
        # A key that is younger than the run had the value that is its default now.
        earlier = {**{key: _default(key) for key in now}, **earlier}
        differing = [key for key in sorted({*now, *earlier} - MAY_CHANGE) if now.get(key) != earlier.get(key)]
        if differing:
            changes = ", ".join(f"{key} was {earlier.get(key)!r}, is {now.get(key)!r}" for key in differing)
            raise UserError(
                f"{self.path} holds a run with another configuration: {changes}; use the same values to continue it, "
                "or another save_note for a new run"
            )
        environment = read_json(environment_path, ENVIRONMENT) if environment_path.exists() else {}
        if environment and environment["questions_sha256"] != self._fingerprint():
            raise UserError(
                f"{self.path} holds a run over other questions: those of {self.settings.dataset_label} have changed "
                "since; use another save_note for a new run"
            )
        return environment

    def _config(self) -> dict[str, Any]:
        return json.loads(without_passwords(json.dumps(self.settings.as_config())))

    def check_served_model(self, name: str | None) -> None:
        """Raise `UserError` if an earlier session of the run asked another model."""
        if self._environment and self._environment["served_model"] != name:
            raise UserError(
                f"{self.path} was begun with the served model {self._environment['served_model']!r}, the server now "
                f"has {name!r}; serve the same model, or use another save_note for a new run"
            )

    def check_precision(self, precision: str | None) -> None:
        """Raise `UserError` if an earlier session of the run served the model in another one, where both are known."""
        earlier = self._environment.get("precision")
        if earlier and precision and earlier != precision:
            raise UserError(
                f"{self.path} was begun with a model in {earlier}, it would now be served in {precision}; give --dtype "
                f"{earlier}, or another save_note for a new run"
            )

    def check_prompt(self, record: PromptRecord | None) -> None:
        """Raise `UserError` if an earlier session of the run asked with other words; old ones do not say."""
        earlier = self._environment.get("prompt")
        if earlier and record and earlier["sha256"] != record.sha256:
            raise UserError(
                f"{self.path} was begun with the prompt {PromptRecord(**earlier)}, the words are now {record}; "
                "use the same ones, or another save_note for a new run"
            )

    @property
    def has_unrecorded_prompt(self) -> bool:
        """Whether it was begun before runs recorded their prompt."""
        return bool(self._environment) and "prompt" not in self._environment

    def _fingerprint(self) -> str:
        content = [[question.id, question.question, question.golden_answers] for question in self.questions]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def n_answers(self) -> int:
        """The number of answers that the run wants."""
        return len(self.questions) * self.settings.num_samples

    def _samples(self, question_id: str) -> list[str]:
        """The keys of the answers to a question."""
        return [item_key(question_id, sample) for sample in range(self.settings.num_samples)]

    def pending(self, retry_failed: bool) -> list[Question]:
        """The questions without an answer, and, with `retry_failed`, those that failed; once for each answer."""
        failed = {_key_of(t) for t in self.trajectories() if t.failed} if retry_failed else ()
        return [
            question
            for question in self.questions
            for key in self._samples(question.id)
            if key not in self.items or key in failed
        ]

    def trajectories(self) -> Iterator[Trajectory]:
        """The trajectories of the questions asked so far, in the order of the questions."""
        return self.items.read(key for question in self.questions for key in self._samples(question.id))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Lock the folder for writing; raises `UserError` if another process holds the lock."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"save_dir={self.settings.save_dir}: {self.path} cannot be created ({error})") from error
        with self._locked():
            yield

    def check_free(self) -> None:
        """Raise `UserError` if another process is working on the run."""
        if self.path.is_dir():
            with self._locked():
                pass

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with locked(self.path):
                yield
        except BlockingIOError as error:
            raise UserError(f"{self.path}: another process is working on this run; wait for it, or stop it") from error

    def start_session(
        self,
        environment: Mapping[str, Any],
        served_model: str | None,
        prompt: ChosenPrompt | None,
        precision: str | None = None,
    ) -> None:
        """Write configuration, environment and prompt; raises `UserError` for another model or prompt than before.

        `precision` is the model's, where this command serves it.
        """
        record = prompt.record(self.settings.asks_in_chat) if prompt else None
        self.check_served_model(served_model)
        self.check_precision(precision)
        self.check_prompt(record)
        earlier = self._environment
        sessions = [self._closed(session) for session in earlier.get("sessions", [])]
        session: dict[str, Any] = {"started_at": time.time(), "ended_at": None}
        first = {key: earlier[key] for key in environment if key in earlier} or dict(environment)
        if first != environment:
            session["environment"] = dict(environment)
        self._environment = {
            **first,
            "served_model": served_model,
            "precision": precision or earlier.get("precision"),
            "prompt": record._asdict() if record else None,
            "questions_sha256": self._fingerprint(),
            "sessions": [*sessions, session],
        }
        write_text(self.path / CONFIG_FILE, yaml.safe_dump(self._config(), sort_keys=False, allow_unicode=True))
        write_json(self.path / "environment.json", self._environment)
        if prompt is not None:
            words = prompt.template.model_dump(exclude_none=True)
            write_text(self.path / PROMPT_FILE, yaml.safe_dump(words, sort_keys=False, allow_unicode=True))

    def _closed(self, session: Mapping[str, Any]) -> dict[str, Any]:
        """The session with its end; the end of a killed session is the time of its last saved answer."""
        ended_at = session["ended_at"]
        if ended_at is None:
            written = self.items.path.stat().st_mtime if self.items.path.exists() else session["started_at"]
            ended_at = max(written, session["started_at"])
        return {**session, "ended_at": ended_at}

    def end_session(self, token_ids: str | None) -> None:
        """Record the end of the session, and the origin of the token ids of its responses."""
        self._environment["sessions"][-1] |= {"ended_at": time.time(), "token_ids": token_ids}
        write_json(self.path / "environment.json", self._environment)

    def add(self, trajectory: Trajectory) -> None:
        """Save a trajectory in the place of an answer that is missing, or else of one that failed."""
        keys = self._samples(trajectory.question_id)
        failed = (_key_of(t) for t in self.items.read(keys) if t.failed)
        key = next((key for key in keys if key not in self.items), None) or next(failed, keys[0])
        earlier, several = next(self.items.read([key]), None), len(keys) > 1
        attempt, session = earlier.attempt + 1 if earlier else 1, keys.index(key) if several else None
        self.items.append(replace(trajectory, attempt=attempt, session=session))

    def finish(self, score: Score, summarize: Callable[[Iterable[Trajectory]], dict[str, Any]]) -> dict[str, Any]:
        """Score and sort the trajectories, and write the summary over all questions, including missing ones."""
        self.items.rewrite(map(score, self.trajectories()))
        summary = {
            "method": self.settings.method_name,
            "dataset": self.settings.dataset_title,
            "split": self.settings.split,
            "save_note": self.settings.save_note,
            "search_control": self.settings.search_control,
            "tell_budget": self.settings.tell_budget,
            "num_samples": self.settings.num_samples,
            **summarize(self._all_trajectories(score)),
            "wall_s": round(sum(s["ended_at"] - s["started_at"] for s in self._environment["sessions"]), 3),
            "served_model": self._environment["served_model"],
            "prompt": self._environment.get("prompt"),
            "token_ids": self._environment["sessions"][-1].get("token_ids"),
        }
        self._write_flashrags_files(summary)
        write_json(self.path / SUMMARY_FILE, summary)
        return summary

    def _all_trajectories(self, score: Score) -> Iterator[Trajectory]:
        for question in self.questions:
            for key in self._samples(question.id):
                if key in self.items:
                    yield from self.items.read([key])
                else:
                    yield score(failed_trajectory(question, NOT_ASKED, attempt=0))

    def _write_flashrags_files(self, summary: Mapping[str, Any]) -> None:
        if self.settings.save_metric_score:
            lines = [f"{name}: {figures['mean']}\n" for name, figures in summary["metrics"].items() if figures]
            write_text(self.path / "metric_score.txt", "".join(lines))
        if self.settings.save_intermediate_data:
            with staged(self.path / "intermediate_data.json") as path, path.open("w", encoding="utf-8") as file:
                for index, trajectory in enumerate(self.trajectories()):
                    file.write(("[\n" if index == 0 else ",\n") + json.dumps(_flashrag_item(trajectory)))
                file.write("\n]\n" if len(self.items) else "[]\n")


def _flashrag_item(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory in the format of FlashRAG's intermediate data."""
    found = [passage for call in trajectory.calls for passage in call.passages]
    return {
        "id": trajectory.question_id,
        "question": trajectory.question,
        "golden_answers": trajectory.gold_answers,
        "output": {
            "pred": trajectory.answer,
            "retrieval_result": [{"id": passage.id, "contents": passage.contents} for passage in found],
            "metric_score": trajectory.metrics,
        },
    }


def item_key(question_id: str, sample: int) -> str:
    """The key of an answer to a question; the first one's is the question's."""
    return f"{question_id}\0{sample}" if sample else question_id


def _key_of(trajectory: Trajectory) -> str:
    return item_key(trajectory.question_id, trajectory.session or 0)


def _default(key: str) -> Any:
    field = EvalSettings.model_fields.get(key)
    return None if field is None or field.is_required() else to_jsonable_python(field.default)


def items_log(run: Path) -> KeyedLog[Trajectory]:
    """The trajectories of a run's folder by question and sample; the last attempt counts."""
    return KeyedLog(run / ITEMS, _key_of, Trajectory.to_json, Trajectory.from_json)


def read_items(run: Path) -> Iterator[Trajectory]:
    """The trajectories of a run's folder, one per answer."""
    return items_log(run).read()


def read_json(path: Path, keys: Collection[str] = ()) -> dict[str, Any]:
    """The JSON object in a file of a run; raises `UserError` where there is none, or where it lacks one of the keys."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); repeat the run's command, or give another folder") from error
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        expected = f"an object with {', '.join(keys)}" if keys else "an object"
        raise UserError(f"{path} is not what a run writes there (expected {expected}); give the folder of a run")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
