"""The folder of a run: what was asked for, what came of each question so far, and the figures at the end.

config.yaml             every key with its value; a continuation must ask for the same
environment.json        versions, git revision, machine, served model, and when the run was worked on
prompts/                a copy of the source of flashrag.prompts: the texts around the questions
items.jsonl             a line a question, written as it is answered; in the end scored and in the questions' order
judge.jsonl             what the judge replied
summary.json            the figures
metric_score.txt, intermediate_data.json    FlashRAG's files, where the configuration asks for them
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

import flashrag.prompts
from evaluation.run.records import is_failed, missing_record
from evaluation.settings import MAY_CHANGE, EvalSettings
from flashrag.dataset import Question
from flashrag.errors import UserError
from flashrag.system.files import locked, staged
from flashrag.system.json_lines import KeyedLog

PROMPTS = Path(flashrag.prompts.__file__).parent
_USER_IN_URL = re.compile(r"(?<=//)[^/@\s]*@")


class RunFolder:
    """One run on disk. Opening it changes nothing; `working` is the only way to write."""

    def __init__(self, settings: EvalSettings, questions: Sequence[Question]) -> None:
        self.settings = settings
        self.questions = questions
        self.path = settings.run_folder
        self._environment = self._check_earlier_run()
        self.items = KeyedLog(self.path / "items.jsonl")
        self.attempts: dict[str, int] = {}
        self.failed_ids: set[str] = set()
        for record in self.records():
            self._count(record)

    def _check_earlier_run(self) -> dict[str, Any]:
        """What is known of an earlier session, {} where there was none; refuses to continue a different run."""
        config_path, environment_path = self.path / "config.yaml", self.path / "environment.json"
        if not config_path.exists():
            if self.path.is_dir() and any(not child.name.startswith(".") for child in self.path.iterdir()):
                raise UserError(f"{self.path} holds files, but no run; remove it, or give another save_note")
            return {}
        now, earlier = self._config(), yaml.safe_load(config_path.read_text(encoding="utf-8"))
        differing = [key for key in sorted({*now, *earlier} - MAY_CHANGE) if now.get(key) != earlier.get(key)]
        if differing:
            changes = ", ".join(f"{key} was {earlier.get(key)!r}, is {now.get(key)!r}" for key in differing)
            raise UserError(
                f"{self.path} holds a run with another configuration: {changes}; give the same again to continue it, "
                "or another save_note for a new run"
            )
        environment = json.loads(environment_path.read_text(encoding="utf-8")) if environment_path.exists() else {}
        if environment and environment["questions_sha256"] != self._fingerprint():
            raise UserError(
                f"{self.path} holds a run over other questions: those of {self.settings.dataset_label} have changed "
                "since; give another save_note for a new run"
            )
        return environment

    def _config(self) -> dict[str, Any]:
        text = json.dumps(self.settings.as_config())
        return json.loads(_USER_IN_URL.sub("", text))  # a password in an address stays out

    def _fingerprint(self) -> str:
        content = [[question.id, question.question, question.golden_answers] for question in self.questions]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def pending(self, retry_failed: bool) -> list[Question]:
        """The questions to ask: those never answered, and those that failed where these are retried."""
        return [
            question
            for question in self.questions
            if question.id not in self.items or (retry_failed and question.id in self.failed_ids)
        ]

    def records(self) -> Iterator[dict[str, Any]]:
        """What is known of each question, in their order; those not asked yet are left out."""
        return self.items.read(question.id for question in self.questions)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the folder while it is written to; raises `UserError` where another process does."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"save_dir={self.settings.save_dir}: {self.path} cannot be made ({error})") from error
        try:
            with locked(self.path):
                yield
        except BlockingIOError as error:
            raise UserError(f"{self.path}: another process is at work on this run; wait for it, or stop it") from error

    def start_session(self, environment: Mapping[str, Any], served_model: str | None) -> None:
        """Write what is known before the first answer."""
        earlier = self._environment
        if earlier and earlier["served_model"] != served_model:
            raise UserError(
                f"{self.path} was begun with the served model {earlier['served_model']!r}, the server now has "
                f"{served_model!r}; serve the same, or give another save_note for a new run"
            )
        sessions = [self._closed(session) for session in earlier.get("sessions", [])]
        session: dict[str, Any] = {"started_at": time.time(), "ended_at": None}
        first = {key: earlier[key] for key in environment if key in earlier} or dict(environment)
        if first != environment:
            session["environment"] = dict(environment)
        self._environment = {
            **first,
            "served_model": served_model,
            "questions_sha256": self._fingerprint(),
            "sessions": [*sessions, session],
        }
        write_text(self.path / "config.yaml", yaml.safe_dump(self._config(), sort_keys=False, allow_unicode=True))
        write_json(self.path / "environment.json", self._environment)
        with staged(self.path / "prompts") as folder:
            shutil.copytree(PROMPTS, folder, ignore=shutil.ignore_patterns("__pycache__"))

    def _closed(self, session: Mapping[str, Any]) -> dict[str, Any]:
        """A session that was killed ended when it last wrote an answer."""
        ended_at = session["ended_at"]
        if ended_at is None:
            written = self.items.path.stat().st_mtime if self.items.path.exists() else session["started_at"]
            ended_at = max(written, session["started_at"])
        return {**session, "ended_at": ended_at}

    def end_session(self, token_ids: str | None) -> None:
        """Note when the work ended, and where the ids of the responses came from."""
        self._environment["sessions"][-1] |= {"ended_at": time.time(), "token_ids": token_ids}
        write_json(self.path / "environment.json", self._environment)

    def add(self, record: Mapping[str, Any]) -> None:
        self.items.append(record)
        self._count(record)

    def _count(self, record: Mapping[str, Any]) -> None:
        self.attempts[record["id"]] = record["attempt"]
        (self.failed_ids.add if is_failed(record) else self.failed_ids.discard)(record["id"])

    def finish(
        self,
        score: Callable[[Mapping[str, Any]], dict[str, float | None]],
        summarize: Callable[[Iterable[Mapping[str, Any]]], dict[str, Any]],
    ) -> dict[str, Any]:
        """Score every record, put them in order, and write the figures over all questions, missing ones included."""
        self.items.rewrite({**record, "metrics": score(record)} for record in self.records())
        summary = {
            "method": self.settings.method_name,
            "dataset": self.settings.dataset_title,
            "split": self.settings.split,
            "save_note": self.settings.save_note,
            **summarize(self._all_records(score)),
            "wall_s": round(sum(s["ended_at"] - s["started_at"] for s in self._environment["sessions"]), 3),
            "served_model": self._environment["served_model"],
            "token_ids": self._environment["sessions"][-1].get("token_ids"),
        }
        self._write_flashrags_files(summary)
        write_json(self.path / "summary.json", summary)
        return summary

    def _all_records(
        self, score: Callable[[Mapping[str, Any]], dict[str, float | None]]
    ) -> Iterator[Mapping[str, Any]]:
        for question in self.questions:
            if question.id in self.items:
                yield from self.items.read([question.id])
            else:
                record = missing_record(question)
                yield {**record, "metrics": score(record)}

    def _write_flashrags_files(self, summary: Mapping[str, Any]) -> None:
        if self.settings.save_metric_score:
            lines = [f"{name}: {figures['mean']}\n" for name, figures in summary["metrics"].items() if figures]
            write_text(self.path / "metric_score.txt", "".join(lines))
        if self.settings.save_intermediate_data:
            with staged(self.path / "intermediate_data.json") as path, path.open("w", encoding="utf-8") as file:
                for index, record in enumerate(self.records()):
                    file.write(("[\n" if index == 0 else ",\n") + json.dumps(_flashrag_item(record)))
                file.write("\n]\n" if len(self.items) else "[]\n")


def _flashrag_item(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record in the shape of FlashRAG's intermediate data."""
    found = [passage for step in record["steps"] for passage in step["passages"]]
    return {
        "id": record["id"],
        "question": record["question"],
        "golden_answers": record["golden_answers"],
        "output": {
            "pred": record["prediction"],
            "retrieval_result": [{"id": passage["id"], "contents": passage["contents"]} for passage in found],
            "metric_score": record["metrics"],
        },
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    with staged(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="replace")
