"""What must hold before an evaluation starts, by the id of the rule. An error ends the command; a warning is kept."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from evaluation.preflight.facts import RETRIEVER_KEY, EvalFacts
from evaluation.preflight.servers import SAMPLE, ServedModel
from evaluation.run.auto_serve import served_precision, served_tokens, server_options
from evaluation.scores.scoring import RECALL, score_trajectory
from flashrag.client import SearchControl, different_questions, server_findings
from flashrag.episode import RESEARCH, prompt_note
from flashrag.errors import UserError
from flashrag.metrics import supporting_titles
from flashrag.pipeline import IterativePipeline, OraclePassagesPipeline, ReSearchPipeline, SequentialPipeline
from flashrag.pipeline.active_pipeline import EpisodePipeline
from flashrag.pipeline.bounds import supporting_passages
from flashrag.pipeline.trace import asked
from flashrag.preflight import (
    MACHINE_RULES,
    Finding,
    Rule,
    error,
    examine,
    gathered,
    note,
    output_folder,
    prompt_findings,
    question_findings,
    warning,
)
from flashrag.prompts import PYTHON_TEMPLATE, RESEARCH_TEMPLATES
from flashrag.retriever import RETRIEVER_RULES
from flashrag.reward import MADE_UP, judge_findings, try_reward
from flashrag.system.engine import chosen_engine
from flashrag.system.model_server import RULES as SERVER_RULES
from verl_search.trainer.export import RULES as EXPORT_RULES

MAX_NAME_BYTES = 255  # of a file or folder, Linux's limit
# Bytes of a record's parts: the question with its metadata, a token's text and id, a passage. COPIES: items.jsonl, the
# same while it is sorted, and intermediate_data.json.
QUESTION_BYTES, TOKEN_BYTES, PASSAGE_BYTES, COPIES = 2000, 12, 1000, 3
USUAL_SHARE = 10  # a record is rarely longer than a tenth of the longest


def record_bytes(facts: EvalFacts) -> int:
    """The most that the records of the pending questions take on the disk."""
    settings = facts.settings
    passages = settings.max_searches * settings.retrieval_topk if facts.method.needs_retriever else 0
    tokens = settings.max_response_tokens if facts.method.needs_generator else 0
    return len(facts.pending) * (QUESTION_BYTES + tokens * TOKEN_BYTES + passages * PASSAGE_BYTES) * COPIES


def questions_are_read(facts: EvalFacts) -> Iterator[Finding]:
    yield from question_findings(facts.question_file, facts.questions)


def folder_can_be_used(facts: EvalFacts) -> Iterator[Finding]:
    folder = facts.settings.run_folder
    if (length := len(os.fsencode(folder.name))) > MAX_NAME_BYTES:
        yield error(
            f"the name of the run's folder has {length} bytes; expected at most {MAX_NAME_BYTES}: shorten save_note, "
            "or the file's name in dataset_name"
        )
        return
    facts.folder.check_free()
    yield from output_folder("save_dir", folder)
    most = record_bytes(facts)
    yield from output_folder("save_dir", folder, most // USUAL_SHARE, f"the records of {len(facts.pending)} questions")


def method_takes_the_settings(facts: EvalFacts) -> Iterator[Finding]:
    settings, method = facts.settings, facts.method
    if settings.python_tool and method is not ReSearchPipeline:
        yield warning(f"python_tool is true, but {settings.method_name} uses no tools; only research does")
    elif settings.python_tool != (settings.prompt_template_name == PYTHON_TEMPLATE) and method is ReSearchPipeline:
        yield warning(
            f"python_tool is {str(settings.python_tool).lower()}, but prompt_template_name is "
            f"{settings.prompt_template_name}: {PYTHON_TEMPLATE} is the template that tells the model of the tool; set "
            "both or neither, as in training"
        )
    if method is OraclePassagesPipeline and facts.applicable is not None:  # the metadata can be read
        used = facts.questions
        without = sum(not (supporting_passages(q.metadata) or supporting_titles(q.metadata)) for q in used)
        if without:
            yield warning(
                f"{without} of {len(used)} questions name no supporting passage: oracle-passages cannot answer "
                "them, and they count as failed"
            )
    if not facts.is_known_to_ask:
        return
    assert facts.pipeline
    if facts.tokenizer is not None and (moved := prompt_note(facts.tokenizer, settings.apply_chat)):
        yield note(moved)


def prompt_is_the_model_s(facts: EvalFacts) -> Iterator[Finding]:
    if not facts.is_known_to_ask:
        return
    settings, method, prompt = facts.settings, facts.method, facts.prompt
    if prompt is None:
        if settings.prompt_file is not None:
            yield warning(f"prompt_file={settings.prompt_file}, but {settings.method_name} asks no model; leave it out")
        return
    if issubclass(method, EpisodePipeline):
        remedy = "give the same prompt (prompt_file, prompt_template_name, apply_chat)"
        yield from prompt_findings(prompt, settings.apply_chat, method.dialect, facts.trained_folder, remedy)


def control_fits_the_method(facts: EvalFacts) -> Iterator[Finding]:
    settings, method = facts.settings, facts.method
    control = settings.search_control
    given = f"search_control={control}"
    yield from _budget_is_told(facts)
    if control is SearchControl.NONE:
        return
    if not method.needs_retriever or method is OraclePassagesPipeline:
        instead = "give another method, or search_control=none"
        yield error(f"{given}, but {settings.method_name} has no searches to control; {instead}")
    elif control in (SearchControl.FORBIDDEN, SearchControl.FORCED) and not issubclass(method, EpisodePipeline):
        forced = control is SearchControl.FORCED
        instead = "leave the control out" if forced else "use search_control=empty, or --method_name zero-shot"
        yield error(f"{given}, but {settings.method_name} always searches; {instead}")
    elif control is SearchControl.FORBIDDEN and settings.python_tool:
        yield error(f"{given} forbids the calls of all tools; set python_tool: false")
    elif control is SearchControl.FORCED and settings.max_searches == 0:
        yield error(f"{given}, but max_searches=0 allows no search; raise it")
    elif control is SearchControl.STALE and (limit := _limit_to_one_search(facts)):
        yield error(f"{given} gives a search the passages of an earlier one, but {limit}; use search_control=empty")
    else:
        if control is SearchControl.RANDOM:
            different_questions(question.question for question in facts.questions)
        yield warning(f"search_control={control.warning}")


def _budget_is_told(facts: EvalFacts) -> Iterator[Finding]:
    settings = facts.settings
    if not settings.tell_budget:
        return
    if not issubclass(facts.method, EpisodePipeline):
        yield error(
            f"tell_budget=true, but {settings.method_name} does not decide when to search; set tell_budget: false, or "
            "give research, search-o1 or search-r1"
        )
    elif settings.max_searches == 0:
        yield error("tell_budget=true, but no search is allowed, so no result tells it; set tell_budget: false")


def _limit_to_one_search(facts: EvalFacts) -> str:
    """Why a question has at most one search, "" if it may have more."""
    settings, method = facts.settings, facts.method
    if method is SequentialPipeline:
        return f"{settings.method_name} searches once"
    episode, iterative = issubclass(method, EpisodePipeline), issubclass(method, IterativePipeline)
    key = "max_searches" if episode else "iter_num" if iterative else "max_iterations"
    value = getattr(settings, key)
    return f"{key}={value} allows at most one search" if value < 2 else ""


def prompts_fit(facts: EvalFacts) -> Iterator[Finding]:
    settings, request = facts.settings, facts.first_request
    if request is None or facts.tokenizer is None:
        return
    limit, used = settings.generator_max_input_len, facts.questions
    if long := facts.too_long:
        yield warning(
            f"{len(long)} of {len(used)} questions have prompts that leave no room for a response in "
            f"generator_max_input_len={limit} tokens, the first {long[0].id!r}: they count as failed; raise it, or "
            "shorten the questions"
        )
    if not issubclass(facts.method, EpisodePipeline):
        return
    room = min(settings.max_response_tokens, limit - len(request.prompt))
    if room < settings.max_response_tokens // 4:
        yield warning(
            f"the first prompt has {len(request.prompt)} tokens: generator_max_input_len={limit} leaves {room} of "
            f"max_response_tokens={settings.max_response_tokens}; raise generator_max_input_len"
        )
    if settings.max_result_tokens >= room:
        yield warning(
            f"max_result_tokens={settings.max_result_tokens}: one result of a search may take all {room} tokens of a "
            "response; lower it, or raise max_response_tokens and generator_max_input_len"
        )


def metrics_apply(facts: EvalFacts) -> Iterator[Finding]:
    settings, total = facts.settings, len(facts.questions)
    lacking = {
        "yes_no_acc": "none has yes or no as its answer",
        RECALL: "all have yes or no as their answer",
        "support_coverage": "no metadata names supporting documents (golden_doc_ids, supporting_facts, …)",
    }
    for name, count in facts.applicable.items():
        if not count:
            yield warning(f"metrics has {name}, which applies to none of the {total} questions: {lacking[name]}")
    searches = facts.method.needs_retriever or facts.method is OraclePassagesPipeline
    for name in (RECALL, "support_coverage"):
        if name in settings.metrics and not searches:
            yield warning(f"metrics has {name}, but {settings.method_name} finds no passages: it will be 0")
    k, found = settings.metric_setting.retrieval_recall_topk, settings.retrieval_topk
    if RECALL in settings.metrics and searches and k > found:
        yield warning(
            f"metric_setting.retrieval_recall_topk={k}, but a search finds retrieval_topk={found} passages: the "
            f"metric is named {RECALL}_top{k} and sees {found}"
        )


def reward_works(facts: EvalFacts) -> None:
    settings = facts.settings
    if settings.reward is None:
        return
    try:
        first = facts.questions[0]
    except UserError:
        first = MADE_UP
    try_reward(
        settings.reward,
        first,
        facts.method.dialect if issubclass(facts.method, EpisodePipeline) else RESEARCH,
        lambda each: score_trajectory(each, settings.metrics, settings.metric_setting, verdict=True),
        metadata=asked(first)["metadata"],
    )


def judge_answers(facts: EvalFacts) -> Iterator[Finding]:
    judge = facts.settings.metric_setting.judge
    if judge is not None:
        assert facts.judge_reply is not None, "there is a judge"
        yield from judge_findings("metric_setting.judge", judge, facts.judge_reply, absent=warning)


def connections_suffice(facts: EvalFacts) -> Iterator[Finding]:
    concurrency = min(facts.settings.concurrency, len(facts.questions) * facts.settings.num_samples)
    if (needed := 2 * concurrency + 64) > facts.open_files > 0:
        yield warning(
            f"concurrency={concurrency} may need {needed} open connections, and this shell allows {facts.open_files}: "
            f"lower it, or raise the limit: ulimit -n {needed}"
        )


def retrieval_is_there(facts: EvalFacts) -> Iterator[Finding]:
    if facts.local_retriever is not None:
        yield from examine(RETRIEVER_RULES, facts.local_retriever)
    settings = facts.settings
    if (servers := facts.retrieval_servers) is not None:
        url, topk = settings.remote_retriever_url, settings.retrieval_topk
        yield from server_findings(servers, url, RETRIEVER_KEY, topk, "retrieval_topk")


def model_is_served(facts: EvalFacts) -> Iterator[Finding]:
    served = facts.served_model
    if served is None:
        return
    yield from _same_model(facts, served)
    reply, url = facts.reply, facts.settings.sgl_remote_url
    params = facts.settings.generation_params
    if served.ignores_seed and params.seed is not None and params.temperature > 0:
        yield warning(
            f"generation_params.seed={params.seed}, but SGLang, which serves the model at {url}, samples without it: "
            "a repeated run gets other replies. On GPUs it takes a seed with --enable-deterministic-inference"
        )
    if reply is None:
        return
    if reply.problem and reply.is_final:
        yield error(f"the server at sgl_remote_url={url} refuses the first request of the run: {reply.problem}")
    elif reply.problem:
        yield warning(f"the server at sgl_remote_url={url} did not answer a request for one token: {reply.problem}")
    elif reply.token_ids == "re-tokenised":
        yield warning(
            f"the server at sgl_remote_url={url} returns no token ids: responses are encoded again with the local "
            "tokenizer, which may change a token; vLLM and recent SGLang return them"
        )
    request = facts.first_request
    if request is not None and request.wants_log_probs and not (reply.problem or reply.has_log_probs):
        yield error(
            f"{facts.settings.method_name} needs the log-probabilities of the sampled tokens, and the server at "
            f"sgl_remote_url={url} returned none; use a server that returns them (vLLM, SGLang), or another method"
        )


def _same_model(facts: EvalFacts, served: ServedModel) -> Iterator[Finding]:
    """Findings about `generator_model` beside the model that is served."""
    given, tokenizer = facts.settings.generator_model, facts.tokenizer
    if tokenizer is None:
        return
    if served.sample_ids is not None:
        ours = list(tokenizer.encode(SAMPLE, add_special_tokens=False))
        if ours not in (served.sample_ids, served.sample_ids[1:]):  # a server may put a BOS first
            yield error(
                f"generator_model={given}: its tokenizer makes {len(ours)} tokens of a text of which the served "
                f"model's ({served.root or served.name}) makes {len(served.sample_ids)}, or other ones; give the "
                "folder of the served model"
            )
            return
    if served.root and _differ(Path(given), Path(served.root)):
        yield warning(
            f"generator_model={given}, but the server says that it loaded {served.root}; the run will be recorded "
            "under the former"
        )


def _differ(ours: Path, theirs: Path) -> bool:
    if os.access(ours, os.F_OK) and os.access(theirs, os.F_OK):
        return not ours.samefile(theirs)
    return ours.name != theirs.name  # another machine's folder, or a hub's name


def checkpoint_can_be_served(facts: EvalFacts) -> Iterator[Finding]:
    path, settings = facts.command_line.auto_serve, facts.settings
    if path is None or not facts.is_known_to_ask:
        return
    if facts.export is not None:
        yield from examine(EXPORT_RULES, facts.export)
        chosen_engine(server_options(Path(settings.generator_model), settings, facts.command_line))
    if facts.model_server is not None:
        yield from examine(SERVER_RULES, facts.model_server)
    if (tokens := served_tokens(path)) < settings.generator_max_input_len:
        yield error(
            f"generator_max_input_len={settings.generator_max_input_len}, but the model takes {tokens} "
            "tokens; lower generator_max_input_len, and max_response_tokens with it"
        )


def words_are_the_run_s(facts: EvalFacts) -> Iterator[Finding]:
    if not facts.is_known_to_ask or facts.prompt is None:
        return
    facts.folder.check_prompt(facts.prompt.record(facts.settings.asks_in_chat))
    if facts.folder.has_unrecorded_prompt and facts.prompt.own_name not in RESEARCH_TEMPLATES:
        yield warning(
            f"{facts.folder.path} was begun before runs recorded their prompt: its first answers may have been asked "
            f"for in other words than those of {facts.prompt.name}; use another save_note for a new run"
        )


def model_is_the_run_s(facts: EvalFacts) -> None:
    if served := facts.served_model:
        facts.folder.check_served_model(served.name)
    elif facts.command_line.auto_serve and facts.is_known_to_ask:
        facts.folder.check_served_model(facts.settings.generator_model)
        facts.folder.check_precision(served_precision(facts.settings, facts.command_line))


RULES: Mapping[str, Rule[EvalFacts]] = {
    "evaluation.settings": gathered("settings"),
    "evaluation.questions": questions_are_read,
    "evaluation.folder": folder_can_be_used,
    "evaluation.tokenizer": gathered("eos_ids"),
    "evaluation.method": method_takes_the_settings,
    "evaluation.prompt": prompt_is_the_model_s,
    "evaluation.control": control_fits_the_method,
    "evaluation.budget": prompts_fit,
    "evaluation.metrics": metrics_apply,
    "evaluation.reward": reward_works,
    "evaluation.judge": judge_answers,
    "evaluation.concurrency": connections_suffice,
    "evaluation.retrieval": retrieval_is_there,
    "evaluation.model": model_is_served,
    "evaluation.auto_serve": checkpoint_can_be_served,
    "evaluation.same_prompt": words_are_the_run_s,
    "evaluation.same_model": model_is_the_run_s,
    **MACHINE_RULES,
}
