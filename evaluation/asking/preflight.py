"""The preflight of ask.py: the evaluation's facts and rules about model, method and search, for one question."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping

from evaluation.asking.options import CONFIG, AskOptions
from evaluation.command_line import load_settings
from evaluation.preflight import PLAN as EVALUATION_PLAN
from evaluation.preflight import RULES as EVALUATION_RULES
from evaluation.preflight import EvalFacts
from evaluation.preflight.servers import api_key
from evaluation.run.auto_serve import check_auto_serve, served_tokens
from evaluation.settings import EvalSettings
from flashrag.client import ANY_QUERY, RetrievalServers
from flashrag.config import read_yaml_mapping, validated
from flashrag.dataset import Question
from flashrag.errors import UserError
from flashrag.generator.server import find_served_card, server_limits
from flashrag.pipeline import METHODS, BasicPipeline
from flashrag.preflight import MACHINE_RULES, Finding, Plan, Rule, checked_command, fact, output_folder
from flashrag.preflight.plan import Entry
from flashrag.retriever import RetrieverFacts, RetrieverSettings
from flashrag.system.local_server import check_port, http_url

RECORD_BYTES = 2**20  # of a trajectory: a long one
SHARED_RULES = tuple(
    f"evaluation.{name}"
    for name in ("settings", "tokenizer", "method", "prompt", "control", "budget", "retrieval", "model", "auto_serve")
)


class AskFacts(EvalFacts):
    def __init__(self, options: AskOptions) -> None:
        super().__init__(options.command_line)
        self.options = options

    @fact
    def settings(self) -> EvalSettings:
        """The model is the server's, and the context no longer than the server's, where nobody says otherwise."""
        line = self.command_line
        settings = load_settings(line) if line.auto_serve is None else check_auto_serve(line)
        if METHODS[settings.method_name].pipeline.prepare is not BasicPipeline.prepare:
            raise UserError(f"method_name={settings.method_name} needs a set of questions; give e.g. research")
        if line.auto_serve is not None:
            return self._within(settings, served_tokens(line.auto_serve))
        card = find_served_card(
            settings.model_copy(update={"generator_max_input_len": 1}), api_key("OPENAI_API_KEY") or "EMPTY"
        )
        if line.config_path == CONFIG and "generator_model" not in line.overrides:
            settings = settings.model_copy(update={"generator_model": str(card.get("root") or card["id"])})
        return self._within(settings, server_limits(card, settings.generator_model).max_tokens)

    def _within(self, settings: EvalSettings, tokens: object) -> EvalSettings:
        is_set = "generator_max_input_len" in self.command_line.overrides
        if is_set or not isinstance(tokens, int) or tokens >= settings.generator_max_input_len:
            return settings
        return settings.model_copy(update={"generator_max_input_len": tokens})

    @fact
    def texts(self) -> list[str] | None:
        """The questions of the command line or the pipe; None if a person is asked for them, here or in the page."""
        if self.options.page is not None or (self.options.question is None and sys.stdin.isatty()):
            return None
        given = sys.stdin if self.options.question is None else [self.options.question]
        return [checked(text) for line in given if (text := line.strip())] or [checked("")]

    @fact
    def questions(self) -> list[Question]:
        """The first question, or one that stands for it."""
        try:
            text = (self.texts or [ANY_QUERY])[0]
        except UserError:
            text = ANY_QUERY
        return [question_of(text)]

    @property
    def judge_reply(self) -> None:
        """A configuration may name a judge; nothing is judged here."""

    @property
    def pending(self) -> list[Question]:
        return self.questions

    @property
    def applicable(self) -> Counter[str]:
        return Counter()

    @fact
    def retrieval_servers(self) -> RetrievalServers | None:
        return None if self.options.search_config is not None else super().retrieval_servers

    @fact
    def local_retriever(self) -> RetrieverFacts | None:
        """Of this process, or of the server that is started."""
        path = self.options.search_config
        if path is None or not self.needs_search:
            return super().local_retriever
        return RetrieverFacts(lambda: validated(RetrieverSettings, read_yaml_mapping(path), str(path)))


def question_of(text: str, name: str = "1") -> Question:
    return Question(name, text, ())


def checked(question: str) -> str:
    """The question; raises `UserError` for a blank one, and for a text that no tokenizer takes."""
    if not question:
        raise UserError('no question was given; expected e.g. "Who wrote Faust?"')
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the question {question!r} holds half a character or odd bytes; give it in UTF-8") from error
    return question


def question_is_there(facts: AskFacts) -> None:
    facts.texts  # noqa: B018 (raises)


def folder_can_be_used(facts: AskFacts) -> Iterator[Finding]:
    yield from output_folder("save_dir", facts.settings.save_dir, RECORD_BYTES, "trajectories")


def page_can_be_shown(facts: AskFacts) -> None:
    if facts.options.page is not None:
        check_port(facts.options.host, facts.options.page)


RULES: Mapping[str, Rule[AskFacts]] = {
    "ask.question": question_is_there,
    **{name: EVALUATION_RULES[name] for name in SHARED_RULES},
    "ask.folder": folder_can_be_used,
    "ask.page": page_can_be_shown,
    **MACHINE_RULES,
}


def _question(facts: AskFacts) -> str:
    if facts.texts is None:
        return "asked for in the page" if facts.options.page is not None else "asked for"
    return "; ".join(facts.texts)


def _page(facts: AskFacts) -> str:
    port = facts.options.page
    return "none" if port is None else http_url(facts.options.host, port) if port else f"{facts.options.host}, any port"


def _without(title: str, *names: str) -> dict[str, Entry[EvalFacts]]:
    return {name: entry for name, entry in EVALUATION_PLAN[title].items() if name not in names}


PLAN: Plan[AskFacts] = {
    "question": {"text": _question, "page": _page},
    "method": _without("method", "metrics"),
    "first prompt": EVALUATION_PLAN["first prompt"],
    "servers": _without("servers", "judge", "in flight"),
    "run": {
        "kept in": lambda facts: str(facts.settings.save_dir.absolute()),
        "command": lambda facts: checked_command("python evaluation/ask.py", facts.command_line.arguments),
        **{name: EVALUATION_PLAN["run"][name] for name in ("versions", "machine")},
    },
}
