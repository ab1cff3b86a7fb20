"""What there is to know before an evaluation starts. Nothing is started, written or loaded on a GPU."""

import resource
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from evaluation.command_line import CommandLine, load_settings
from evaluation.preflight.request import FoundPassage, Recorder, Request, first_request, too_long
from evaluation.preflight.servers import (
    Reply,
    ServedModel,
    ask_for_a_token,
    ask_model_server,
)
from evaluation.run.auto_serve import check_auto_serve, is_model, server_options, source_folder
from evaluation.run.folder import NOT_ASKED, RunFolder
from evaluation.scores.scoring import RECALL, score_trajectory
from evaluation.settings import EvalSettings
from flashrag.client import ANY_QUERY, RetrievalServers, SearchControl, ask_servers, controlled
from flashrag.dataset import Question, find_split, sample_questions
from flashrag.errors import ReSearchError, UserError
from flashrag.generator import eos_token_ids, load_tokenizer
from flashrag.generator.model_folder import KEY as MODEL_KEY
from flashrag.generator.settings import Framework
from flashrag.pipeline import METHODS, BasicPipeline, OraclePassagesPipeline
from flashrag.pipeline.bounds import supporting_passages
from flashrag.pipeline.trace import failed_trajectory
from flashrag.preflight import MachineFacts, fact
from flashrag.prompts import ChosenPrompt
from flashrag.questions import QuestionFile
from flashrag.retriever import RetrieverFacts, RetrieverSettings
from flashrag.reward import JudgeReply, ask_judge
from flashrag.system.machine import describe_environment
from flashrag.system.model_server import ModelServerFacts
from verl_search.trainer.export import ExportFacts, find_checkpoint

REPOSITORY = Path(__file__).resolve().parents[2]
# Their versions are recorded with each session of a run.
PACKAGES = ("flashrag", "httpx", "openai", "pydantic", "scipy", "tokenizers", "transformers", "vllm", "sglang")
RETRIEVER_KEY = "remote_retriever_url"
PARTIAL_METRICS = ("yes_no_acc", RECALL, "support_coverage")  # they do not apply to every question
MOST_LONG_TRIED = 200  # a prompt takes a millisecond


class EvalFacts(MachineFacts):
    def __init__(self, command_line: CommandLine) -> None:
        self.command_line = command_line

    def gather(self) -> None:
        """Ask the servers and load the tokenizer side by side; rules tell what failed."""
        slow = ("tokenizer", "served_model", "retrieval_servers", "judge_reply") if self.is_known_to_ask else ()
        with ThreadPoolExecutor() as pool:
            for name in slow:
                pool.submit(getattr, self, name)

    @fact
    def open_files(self) -> int:
        """How many files and connections this process may have open."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    @fact
    def environment(self) -> dict[str, Any]:
        return describe_environment(REPOSITORY, PACKAGES)

    @fact
    def settings(self) -> EvalSettings:
        return check_auto_serve(self.command_line) if self.command_line.auto_serve else load_settings(self.command_line)

    @property
    def method(self) -> type[BasicPipeline]:
        return METHODS[self.settings.method_name].pipeline

    @fact
    def prompt(self) -> ChosenPrompt | None:
        """The method's prompt, None if it asks no model."""
        return self.method.chosen_prompt(self.settings)

    @fact
    def question_file(self) -> QuestionFile:
        return QuestionFile.read(find_split(self.settings, self.settings.split))

    @fact
    def questions(self) -> list[Question]:
        """Those that the run asks."""
        return sample_questions(self.settings, self.question_file.questions)

    @fact
    def applicable(self) -> Counter[str]:
        """To how many questions each of `PARTIAL_METRICS` applies; raises `UserError` for unreadable metadata."""
        names = [name for name in PARTIAL_METRICS if name in self.settings.metrics]
        counts = Counter(dict.fromkeys(names, 0))
        for question in self.questions:
            try:
                if self.method is OraclePassagesPipeline:
                    supporting_passages(question.metadata)
                unanswered = failed_trajectory(question, NOT_ASKED)
                scores = score_trajectory(unanswered, names, self.settings.metric_setting)
            except (TypeError, ValueError, LookupError, AttributeError) as error:
                raise UserError(
                    f"{self.question_file.path}: the metadata of question {question.id!r} cannot be read "
                    f"({type(error).__name__}: {error}); expected supporting_facts, paragraphs and context as in "
                    "HotpotQA or MuSiQue: correct it, or remove it"
                ) from error
            counts.update(name for name, score in zip(names, scores.values(), strict=True) if score is not None)
        return counts

    @fact
    def folder(self) -> RunFolder:
        return RunFolder(self.settings, self.questions)

    @fact
    def pending(self) -> list[Question]:
        return self.folder.pending(retry_failed=self.command_line.resume)

    @property
    def is_known_to_ask(self) -> bool:
        """Whether questions are left to ask; also where the run's folder cannot tell."""
        try:
            self.settings  # noqa: B018 (without settings there is nobody to ask)
        except UserError:
            return False
        try:
            return bool(self.pending)
        except UserError:
            return True

    @property
    def needs_model(self) -> bool:
        return self.is_known_to_ask and self.method.needs_generator

    @property
    def needs_search(self) -> bool:
        return self.is_known_to_ask and self.method.needs_retriever

    @fact
    def model_folder(self) -> str:
        """The folder of the tokenizer; its name on a hub, if it is none."""
        checkpoint = self.command_line.auto_serve
        return str(source_folder(checkpoint)) if checkpoint else self.settings.generator_model

    @property
    def trained_folder(self) -> Path:
        """Where the model's trainer noted its prompt, if the model was trained here."""
        path = self.command_line.auto_serve
        return Path(self.model_folder) if path is None or is_model(path) else find_checkpoint(path).actor.parent

    @fact
    def tokenizer(self) -> Any:
        """None where the server makes the tokens, and where no model is asked."""
        if self.settings.framework is Framework.OPENAI_CHAT or not self.needs_model:
            return None
        return load_tokenizer(self.model_folder, "--auto_serve" if self.command_line.auto_serve else MODEL_KEY)

    @fact
    def eos_ids(self) -> Sequence[int]:
        return eos_token_ids(self.tokenizer, self.model_folder) if self.tokenizer is not None else ()

    @fact
    def pipeline(self) -> BasicPipeline:
        """The method with stand-ins for retriever and generator; raises `UserError` for what it refuses."""
        assert self.applicable is not None, "the metadata can be read"
        generator = Recorder(self.tokenizer, self.eos_ids) if self.method.needs_generator else None
        control = self.settings.search_control
        if control in (SearchControl.RANDOM, SearchControl.DELAYED):  # a passage is found all the same
            control = SearchControl.NONE
        found = controlled(FoundPassage(), control, seed=0, delay_s=0.0, questions=list)
        pipeline = self.method(self.settings, found, generator)
        pipeline.prepare(self.questions)
        return pipeline

    @fact
    def first_request(self) -> Request | None:
        """The first request of the run, None if it sends none; raises `UserError` if it cannot be made."""
        if not self.needs_model:
            return None
        pipeline, failed = self.pipeline, None
        for question in self.questions[:MOST_LONG_TRIED]:
            try:
                return first_request(pipeline, question)
            except ReSearchError as error:
                failed = failed or f"question {question.id!r} cannot be asked: {error}"
        raise UserError(failed or "there is no question")

    @fact
    def too_long(self) -> list[Question]:
        """Questions whose prompts leave no room for a response, as far as the longest `MOST_LONG_TRIED` tell."""
        request = self.first_request
        if request is None or self.tokenizer is None:
            return []
        limit = self.settings.generator_max_input_len
        # A text has no more tokens than bytes, so that all but the longest questions need not be tried.
        room = limit - len(request.prompt) - limit // 4
        longest = sorted(self.questions, key=lambda question: -len(question.question.encode()))
        return too_long(self.pipeline, [q for q in longest[:MOST_LONG_TRIED] if len(q.question.encode()) > room])

    @fact
    def served_model(self) -> ServedModel | None:
        return ask_model_server(self.settings) if self.needs_model and not self.command_line.auto_serve else None

    @fact
    def reply(self) -> Reply | None:
        """The model's reply to the first request; None if nobody is asked."""
        served, request = self.served_model, self.first_request
        if served is None or request is None:
            return None
        return ask_for_a_token(self.settings, served, self.tokenizer, self.eos_ids, request)

    @fact
    def retrieval_servers(self) -> RetrievalServers | None:
        if not (self.needs_search and self.settings.use_remote_retriever):
            return None
        try:
            query = self.questions[0].question
        except UserError:
            query = ANY_QUERY
        assert self.settings.remote_retriever_url is not None, "checked by EvalSettings"
        return ask_servers(self.settings.remote_retriever_url, query, self.settings.retrieval_topk, RETRIEVER_KEY)

    @fact
    def local_retriever(self) -> RetrieverFacts | None:
        settings = self.settings
        if settings.use_remote_retriever or not self.needs_search:
            return None
        return RetrieverFacts(lambda: RetrieverSettings(**settings.retriever, retrieval_topk=settings.retrieval_topk))

    @fact
    def export(self) -> ExportFacts | None:
        """The checkpoint that --auto_serve merges before it serves the model."""
        path = self.command_line.auto_serve
        if path is None or self.model_folder == self.settings.generator_model:
            return None
        return ExportFacts(path, Path(self.settings.generator_model))

    @fact
    def model_server(self) -> ModelServerFacts | None:
        """The server that --auto_serve starts on a folder that is there already."""
        if self.command_line.auto_serve is None or self.export is not None:
            return None
        return ModelServerFacts(server_options(Path(self.model_folder), self.settings, self.command_line))

    @fact
    def judge_reply(self) -> JudgeReply | None:
        judge = self.settings.metric_setting.judge
        return ask_judge(judge) if judge is not None else None
