"""What `run_eval.py --check` prints: the run as it would be, with the numbers that people ask for in an issue."""

import json
import shlex

from evaluation.preflight.facts import EvalFacts
from evaluation.preflight.rules import record_bytes
from evaluation.preflight.servers import ServedModel
from evaluation.scores.scoring import METRICS
from flashrag.episode import prompt_rule
from flashrag.pipeline import METHODS
from flashrag.pipeline.active_pipeline import EpisodePipeline
from flashrag.preflight import Plan, checked_command, free_bytes, gib
from flashrag.retriever import RETRIEVER_PLAN

MOST_SHOWN = 6000  # characters of a prompt
LOCAL_ENTRIES = ("passages", "index", "encoder", "memory")  # of a local retriever
NOT_ASKED = "not asked"


def _used(facts: EvalFacts) -> str:
    settings, count, held = facts.settings, len(facts.questions), len(facts.question_file.questions)
    how = f"drawn with seed {settings.seed}" if settings.random_sample else "the first ones"
    samples = f", {settings.num_samples} answers to each" if settings.num_samples > 1 else ""
    return (f"all {count}" if count == held else f"{count} of {held} (test_sample_num, {how})") + samples


def _method(facts: EvalFacts) -> str:
    spec = METHODS[facts.settings.method_name]
    return f"{spec.name}: {spec.description} ({spec.citation})"


def _prompt_name(facts: EvalFacts) -> str:
    return "none" if facts.prompt is None else str(facts.prompt.record(facts.settings.asks_in_chat))


def _prompt_rule(facts: EvalFacts) -> str:
    return NOT_ASKED if facts.tokenizer is None else prompt_rule(facts.tokenizer, facts.settings.apply_chat)


def _budgets(facts: EvalFacts) -> str:
    s = facts.settings
    return (
        f"prompt and response {s.generator_max_input_len} tokens, response {s.max_response_tokens}, one result "
        f"{s.max_result_tokens}, {s.max_searches} searches of {s.retrieval_topk} passages"
        f"{', told in each result' if s.tell_budget else ''}"
    )


def _metrics(facts: EvalFacts) -> str:
    applies = {name: f"{name} ({count} of {len(facts.questions)})" for name, count in facts.applicable.items()}
    return ", ".join(applies.get(name, name) for name in METRICS if name in facts.settings.metrics)


def _tokens(facts: EvalFacts) -> str:
    request = facts.first_request
    if request is None:
        return "none: no model is asked"
    without = "" if issubclass(facts.method, EpisodePipeline) else ", without passages"
    return "the server counts them" if facts.tokenizer is None else f"{len(request.prompt)}{without}"


def _prompt(facts: EvalFacts) -> str:
    request = facts.first_request
    if request is None:
        return "none"
    if facts.tokenizer is None:
        text = "\n".join(f"{message['role']}: {message['content']}" for message in request.prompt)
    else:
        text = facts.tokenizer.decode(request.prompt)
    shown = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}… ({len(text)} characters)"
    return "".join(f"\n    {line}" for line in shown.splitlines())


def _model(facts: EvalFacts) -> str:
    if planned := facts.export or facts.model_server:
        return f"{facts.settings.generator_model}, {gib(planned.weight_bytes)} of weights"
    served = facts.served_model
    return NOT_ASKED if served is None else f"{facts.settings.sgl_remote_url}: {_described(served)}"


def _described(served: ServedModel) -> str:
    loaded = f" (loaded from {served.root})" if served.root and served.root != served.name else ""
    version = f", version {served.version}" if served.version else ""
    return f"{served.name}{loaded}, {served.limits.max_tokens or 'unknown'} tokens{version}"


def _serving(facts: EvalFacts) -> str:
    """The command that will serve the model; its port is chosen when it starts."""
    if facts.export is not None:
        checkpoint = facts.export.checkpoint
        return f"once the weights of {checkpoint.world_size} ranks in {checkpoint.actor} are merged"
    return shlex.join(facts.model_server.command) if facts.model_server else "is served already"


def _tokenizer(facts: EvalFacts) -> str:
    if facts.tokenizer is None:
        return "the server's" if facts.needs_model else NOT_ASKED
    if (served := facts.served_model) is None:
        return facts.model_folder
    return f"{facts.model_folder} ({'compared with' if served.sample_ids else 'cannot be compared with'} the server's)"


def _token_ids(facts: EvalFacts) -> str:
    reply = facts.reply
    return NOT_ASKED if reply is None else reply.problem or reply.token_ids or "the method needs none"


def _retrieval(facts: EvalFacts) -> str:
    if servers := facts.retrieval_servers:
        known = ("retrieval_method", "documents", "retrievers")
        told = {url: {key: health[key] for key in known if key in health} for url, health in servers.healthy.items()}
        limit = f"; at most {servers.max_top_n} passages a search" if servers.max_top_n else ""
        return "; ".join(f"{url} {json.dumps(said)}" for url, said in told.items()) + limit
    if (local := facts.local_retriever) is None:
        return NOT_ASKED
    return "; ".join(f"{name}: {entry(local)}" for name, entry in RETRIEVER_PLAN.items() if name in LOCAL_ENTRIES)


def _judge(facts: EvalFacts) -> str:
    judge, reply = facts.settings.metric_setting.judge, facts.judge_reply
    if judge is None or reply is None:
        return "none"
    return f"{judge.model} at {judge.url}: {reply.problem or f'answers {reply.status}'}"


def _state(facts: EvalFacts) -> str:
    total, left = facts.folder.n_answers, len(facts.pending)
    if not left:
        return "complete: only the scores would be computed again"
    what = "questions" if facts.settings.num_samples == 1 else "answers"
    return f"new: {left} {what}" if left == total else f"continues: {total - left} of {total} answered, {left} left"


def _disk(facts: EvalFacts) -> str:
    return f"at most {gib(record_bytes(facts))} of {gib(free_bytes(facts.settings.run_folder))} free"


def _command(facts: EvalFacts) -> str:
    return checked_command("python evaluation/run_eval.py", facts.command_line.arguments)


def _versions(facts: EvalFacts) -> str:
    environment = facts.environment
    git = environment["git"]
    revision = f"; revision {git['revision'][:12]}{', changed' if git['dirty'] else ''}" if git else ""
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    return f"python {environment['python']}, {packages}{revision}"


PLAN: Plan[EvalFacts] = {
    "questions": {
        "data set": lambda facts: facts.settings.dataset_label,
        "file": lambda facts: str(facts.question_file.path),
        "read": lambda facts: str(facts.question_file),
        "used": _used,
    },
    "method": {
        "name": _method,
        "prompt": _prompt_name,
        "prompt rule": _prompt_rule,
        "budgets": _budgets,
        "sampling": lambda facts: facts.settings.generation_params.model_dump_json(exclude_none=True),
        "metrics": _metrics,
    },
    "first prompt": {"tokens": _tokens, "text": _prompt},
    "servers": {
        "model": _model,
        "serving": _serving,
        "tokenizer": _tokenizer,
        "token ids": _token_ids,
        "retrieval": _retrieval,
        "judge": _judge,
        "in flight": lambda facts: f"{facts.settings.concurrency} questions at once",
    },
    "run": {
        "folder": lambda facts: str(facts.settings.run_folder.absolute()),
        "state": _state,
        "disk": _disk,
        "command": _command,
        "versions": _versions,
        "machine": lambda facts: f"{facts.machine.cores} cores, {gib(facts.machine.memory_bytes)} of memory",
    },
}
