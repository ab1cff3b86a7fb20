"""Each rule over facts that are made up, but for the settings, the questions and the tokenizer."""

import copy
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.command_line import parse_command_line
from evaluation.preflight import RULES, EvalFacts
from evaluation.preflight.request import FOUND
from evaluation.preflight.servers import SAMPLE, Reply, ServedModel
from flashrag.client import RetrievalServers
from flashrag.generator.server import ServerLimits
from flashrag.preflight import MACHINE_RULES, Severity, examine
from flashrag.prompts import choose_prompt, write_record
from flashrag.reward import JudgeReply
from flashrag.system.files import locked

ROOT = Path(__file__).resolve().parents[3]
HEALTHY = RetrievalServers({"http://r": {"documents": 44}}, [], 1000, None, False)
JUDGE = {"metrics": "em,llm_judge", "metric_setting": '{judge: {model: gpt, url: "http://j"}}'}
Findings = list[tuple[Severity, str, str]]


@pytest.fixture
def facts_of(data_dir: Path, model_folder: Path, tmp_path: Path) -> Callable[..., EvalFacts]:
    """The facts of a run that nothing is wrong with; a test changes keys of the configuration, or facts."""

    def build(keys: dict[str, Any] | None = None, *flags: str, **facts: Any) -> EvalFacts:
        given = {
            "method_name": "research",
            "dataset_name": "kings",
            "split": "dev",
            "data_dir": data_dir,
            "save_dir": tmp_path / "out",
            "generator_model": model_folder,
            **(keys or {}),
        }
        words = [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
        config = ["--config_path", str(ROOT / "evaluation" / "eval_config.yaml")]
        built = EvalFacts(parse_command_line([*config, *words, *flags]))
        built.served_model = ServedModel("zhou", ServerLimits(8192), None, None, None)
        built.reply = Reply(token_ids="server")
        built.retrieval_servers = HEALTHY
        for name, value in facts.items():
            setattr(built, name, value)
        return built

    return build


def found(facts: EvalFacts) -> Findings:
    own = {name: rule for name, rule in RULES.items() if name not in MACHINE_RULES}
    return [(finding.severity, finding.rule, finding.message) for finding in examine(own, facts)]


def check_one(findings: Findings, severity: str, rule: str, words: str) -> None:
    ((found_severity, found_rule, message),) = findings
    assert (found_severity, found_rule) == (severity, f"evaluation.{rule}")
    assert words in message


def test_nothing_is_said_about_a_good_run(facts_of: Callable[..., EvalFacts]):
    assert found(facts_of()) == []


@pytest.mark.parametrize(
    ("keys", "severity", "rule", "words"),
    [
        ({"split": "dv"}, "error", "questions", "holds the splits: dev; did you mean 'dev'?"),
        ({"dataset_name": "king"}, "error", "questions", "data_dir holds: kings; did you mean 'kings'?"),
        ({"save_dir": "~/runs"}, "error", "folder", "~ is no home folder here; write the whole path"),
        ({"save_note": "ü" * 120}, "error", "folder", "the run's folder has 259 bytes; expected at most 255"),
        ({"data_dir": "/" + "n" * 300}, "error", "questions", "File name too long"),
        ({"save_dir": "/proc/none"}, "error", "folder", "save_dir=/proc/none/kings_dev_research"),
        ({"generator_max_input_len": 100}, "error", "budget", "question 'a' cannot be asked: the prompt has"),
        ({"generator_max_input_len": 1000}, "warning", "budget", "generator_max_input_len=1000 leaves"),
        ({"max_result_tokens": 8192}, "warning", "budget", "one result of a search may take all"),
        ({"apply_chat": "true"}, "error", "method", "the tokenizer has no chat template"),
        ({"python_tool": "true"}, "warning", "method", "prompt_template_name is qa_template"),
        ({"prompt_template_name": "qa_python_template"}, "warning", "method", "python_tool is false"),
        ({"python_tool": "true", "method_name": "naive"}, "warning", "method", "naive uses no tools"),
        ({"prompt_file": "none.yaml"}, "error", "method", "prompt_file=none.yaml: none.yaml does not exist"),
        ({"prompt_file": "p.yaml", "method_name": "random"}, "warning", "prompt", "random asks no model; leave it out"),
        ({"method_name": "oracle-passages"}, "warning", "method", "2 of 3 questions name no supporting passage"),
        ({"search_control": "empty"}, "warning", "control", "search_control=empty: this run is a control"),
        ({"search_control": "forbidden"}, "warning", "control", "search_control=forbidden: this run is a control"),
        ({"search_control": "empty", "method_name": "zero-shot"}, "error", "control", "zero-shot has no searches to c"),
        ({"search_control": "empty", "method_name": "random"}, "error", "control", "random has no searches to control"),
        ({"search_control": "forbidden", "method_name": "naive"}, "error", "control", "naive always searches"),
        ({"search_control": "stale"}, "warning", "control", "search_control=stale: this run is a control"),
        ({"search_control": "stale", "method_name": "naive"}, "error", "control", "naive searches once; use search_co"),
        ({"search_control": "stale", "max_searches": 1}, "error", "control", "max_searches=1 allows at most one sea"),
        ({"search_control": "stale", "method_name": "iterretgen", "iter_num": 1}, "error", "control", "iter_num=1 all"),
        ({"search_control": "stale", "method_name": "self-ask", "max_iterations": 1}, "error", "control", "_iterat"),
        ({"search_control": "stale", "method_name": "self-ask"}, "warning", "control", "stale: this run is a control"),
        ({"search_control": "forced"}, "warning", "control", "search_control=forced: this run is a control"),
        ({"search_control": "forced", "method_name": "naive"}, "error", "control", "always searches; leave the contr"),
        ({"search_control": "forced", "max_searches": 0}, "error", "control", "max_searches=0 allows no search; raise"),
        ({"tell_budget": "true", "method_name": "naive"}, "error", "control", "naive does not decide when to search"),
        ({"tell_budget": "true", "max_searches": 0}, "error", "control", "no search is allowed, so no result tells it"),
        ({"metrics": "em,yes_no_acc"}, "warning", "metrics", "yes_no_acc, which applies to none of the 3 questions"),
        ({"metrics": "retrieval_recall", "method_name": "zero-shot"}, "warning", "metrics", "zero-shot finds no pass"),
        ({"metrics": "retrieval_recall", "retrieval_topk": 3}, "warning", "metrics", "retrieval_recall_top5 and sees"),
        ({"retrieval_topk": 1001}, "error", "retrieval", "gives at most 1000 passages"),
        ({"retrieval_topk": 50}, "warning", "retrieval", "http://r holds 44 passages, fewer than retrieval_topk=50"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_keys_that_do_not_fit(keys, severity, rule, words, facts_of: Callable[..., EvalFacts]):
    findings = found(facts_of(keys))
    if keys.get("generator_max_input_len") == 1000:  # both rules of the budget apply
        findings = findings[:1]
    check_one(findings, severity, rule, words)


def test_a_reward_is_tried_with_the_scores_and_fields_of_an_evaluation(
    facts_of: Callable[..., EvalFacts], tmp_path: Path
):
    own = tmp_path / "my_reward.py"
    own.write_text("def reward(t, gold):\n    return t.metrics['em'] + t.metrics['retrieval_recall_top5'], ''\n")
    assert found(facts_of({"reward": f"{own}:reward", "metrics": "em,retrieval_recall"})) == []
    findings = found(facts_of({"reward": f"{own}:reward", "metrics": "em"}))
    check_one(findings, "error", "reward", "line 2: KeyError: 'retrieval_recall_top5' (reward, question 'a'): tried on")
    training = tmp_path / "of_training.py"
    training.write_text("def reward(t, gold):\n    return t.step / 10, ''\n")
    findings = found(facts_of({"reward": f"{training}:reward"}))
    check_one(findings, "error", "reward", "line 2: TypeError: unsupported operand")


def test_a_control_of_searches_that_no_method_makes(facts_of: Callable[..., EvalFacts]):
    findings = found(facts_of({"search_control": "delayed", "method_name": "oracle-passages"}))
    assert [rule for _, rule, _ in findings] == ["evaluation.control", "evaluation.method"]
    assert "oracle-passages has no searches to control" in findings[0][2]


def test_passages_of_other_questions_need_other_questions(facts_of: Callable[..., EvalFacts]):
    findings = found(facts_of({"search_control": "random"}))
    check_one(findings, "error", "control", "which has 3 different ones; give at least 20")


def test_forbidden_searches_would_forbid_code_too(facts_of: Callable[..., EvalFacts]):
    keys = {"search_control": "forbidden", "python_tool": "true", "prompt_template_name": "qa_python_template"}
    check_one(found(facts_of(keys)), "error", "control", "forbids the calls of all tools; set python_tool: false")


def test_the_first_prompt_of_a_control_without_passages_has_none(facts_of: Callable[..., EvalFacts], tokenizer: Any):
    prompts = []
    for control in ("none", "empty", "stale"):
        facts = facts_of({"method_name": "iterretgen", "search_control": control})
        prompts.append(tokenizer.decode(facts.first_request.prompt))
    assert [FOUND in prompt for prompt in prompts] == [True, False, False]


def test_the_first_request_after_a_forced_search_has_its_result(facts_of: Callable[..., EvalFacts], tokenizer: Any):
    plain, forced = (facts_of({"search_control": control}).first_request.prompt for control in ("none", "forced"))
    assert forced[: len(plain)] == plain
    question = facts_of().questions[0].question
    spliced = f' <search> {question} </search> <result>\n"{question}"\n{FOUND}\n</result>'
    assert tokenizer.decode(forced[len(plain) :]) == spliced


def test_instructions_in_the_user_message_are_told(facts_of: Callable[..., EvalFacts], tokenizer: Any):
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"
    own = copy.deepcopy(tokenizer)
    own.chat_template = refuses
    findings = found(facts_of({"apply_chat": "true"}, tokenizer=own))
    check_one(findings, "note", "method", "the chat template refuses a system message, so the instructions begin")


@pytest.mark.parametrize(
    ("facts", "severity", "rule", "words"),
    [
        ({"open_files": 32}, "warning", "concurrency", "may need 70 open connections, and this shell allows 32"),
        (
            {"retrieval_servers": HEALTHY._replace(problems=["no retrieval server answers at b"])},
            "warning", "retrieval", "answers at b; the other servers are used until it answers",
        ),
        (
            {"retrieval_servers": HEALTHY._replace(problem="answered 404", is_final=True)},
            "error", "retrieval", "was refused: answered 404; give the address of a ReSearch retrieval server",
        ),
        (
            {"retrieval_servers": HEALTHY._replace(problem="answered 429")},
            "warning", "retrieval", "a search was not answered within 5 s: answered 429",
        ),
        ({"reply": Reply("400: no such token", is_final=True)}, "error", "model", "refuses the first request of"),
        ({"reply": Reply("timed out")}, "warning", "model", "did not answer a request for one token: timed out"),
        ({"reply": Reply(token_ids="re-tokenised")}, "warning", "model", "returns no token ids"),
        (
            {"served_model": ServedModel("zhou", ServerLimits(8192), None, None, [1, 2, 3])},
            "error", "model", "or other ones; give the folder of the served model",
        ),
        (
            {"served_model": ServedModel("zhou", ServerLimits(8192), "/models/shang", None, None)},
            "warning", "model", "the server says that it loaded /models/shang",
        ),
        (
            {"served_model": ServedModel("zhou", ServerLimits(8192), "n" * 300, None, None)},
            "warning", "model", "the server says that it loaded nnn",
        ),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_facts_that_do_not_fit(facts, severity, rule, words, facts_of: Callable[..., EvalFacts]):
    check_one(found(facts_of(**facts)), severity, rule, words)


def test_each_answer_in_flight_may_need_connections(facts_of: Callable[..., EvalFacts]):
    facts = facts_of({"num_samples": 4, "generation_params": "{temperature: 1}"}, open_files=80)
    check_one(found(facts), "warning", "concurrency", "concurrency=12 may need 88 open connections")


@pytest.mark.parametrize("more", [[], [0]], ids=["the same", "with a BOS first"])
def test_the_served_model_s_tokenizer_is_the_given_one(more: list[int], facts_of: Callable[..., EvalFacts]):
    facts = facts_of()
    ids = facts.tokenizer.encode(SAMPLE, add_special_tokens=False)
    facts.served_model = ServedModel(
        "zhou", ServerLimits(8192), str(facts.settings.generator_model), None, [*more, *ids]
    )
    assert found(facts) == []


def test_a_seed_that_the_server_ignores_is_told(facts_of: Callable[..., EvalFacts]):
    sglang = ServedModel("zhou", ServerLimits(8192), None, None, None, ignores_seed=True)
    sampled, greedy = "{temperature: 1.0, seed: 7}", "{temperature: 0, seed: 7}"
    facts = facts_of({"generation_params": sampled}, served_model=sglang)
    check_one(found(facts), "warning", "model", "generation_params.seed=7, but SGLang, which serves the model at ")
    assert found(facts_of({"generation_params": greedy}, served_model=sglang)) == []
    assert found(facts_of({"generation_params": sampled})) == []


def test_flare_needs_log_probabilities(facts_of: Callable[..., EvalFacts]):
    facts = facts_of({"method_name": "flare"}, reply=Reply())
    check_one(found(facts), "error", "model", "flare needs the log-probabilities")
    assert found(facts_of({"method_name": "flare"}, reply=Reply(has_log_probs=True))) == []


@pytest.mark.parametrize(
    ("reply", "severity", "words"),
    [
        (
            JudgeReply(None, "ConnectError refused", ()),
            "warning",
            "metric_setting.judge.url=http://j does not answer (ConnectError refused)",
        ),
        (JudgeReply(401, None, ()), "error", "answered 401; put its key into JUDGE_API_KEY or OPENAI_API_KEY"),
        (JudgeReply(200, None, ("other",)), "warning", "model='gpt' is not among the models of http://j: other"),
    ],
)
def test_the_judge(reply, severity, words, facts_of: Callable[..., EvalFacts]):
    check_one(found(facts_of(JUDGE, judge_reply=reply)), severity, "judge", words)
    assert found(facts_of(JUDGE, judge_reply=JudgeReply(404, None, ()))) == []


def test_openai_as_the_judge_needs_a_key(facts_of: Callable[..., EvalFacts], monkeypatch: pytest.MonkeyPatch):
    for name in ("JUDGE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    facts = facts_of({"metrics": "llm_judge", "metric_setting": "{judge: {model: gpt}}"})
    check_one(found(facts), "error", "judge", "https://api.openai.com/v1 needs a key; put it into JUDGE_API_KEY")


def test_the_questions(facts_of: Callable[..., EvalFacts], tmp_path: Path):
    rows = [{"id": n, "question": "Who  IS it?" if n else "who is it?", "answer": "Wu"} for n in range(3)]
    rows += [{"id": "x", "question": "Where?", "answer": "Hao", "answerable": False}]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (_, _, repeated), (severity, _, left_out) = found(facts_of({"dataset_name": path}))
    assert f"{path}: 2 of 3 questions have the text of an earlier one" in repeated
    assert (severity, left_out) == ("note", f"{path}: left out 1 unanswerable questions (4 records in all)")
    path.write_text(json.dumps({**rows[0], "metadata": {"supporting_facts": [1]}}))
    for method in ("research", "oracle-passages"):
        findings = found(facts_of({"dataset_name": path, "method_name": method}))
        check_one(findings, "error", "method", "the metadata of question '0' cannot be read")


def test_one_question_that_is_too_long_is_counted(facts_of: Callable[..., EvalFacts], tmp_path: Path):
    rows = [{"question": "Who is it?", "answer": "Wu"}, {"question": "why " * 3000, "answer": "Wu"}]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_one(
        found(facts_of({"dataset_name": path})), "warning", "budget", "1 of 2 questions have prompts that leave no"
    )


def test_a_folder_that_another_process_works_on(facts_of: Callable[..., EvalFacts], tmp_path: Path):
    folder = tmp_path / "out" / "kings_dev_research"
    folder.mkdir(parents=True)
    with locked(folder):
        check_one(found(facts_of()), "error", "folder", "another process is working on this run")
    assert found(facts_of()) == []


def test_a_disk_that_is_too_small(facts_of: Callable[..., EvalFacts], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flashrag.preflight.machine.free_bytes", lambda _: 1000)
    check_one(found(facts_of()), "error", "folder", "0 MiB are free, but the records of 3 questions need")


@pytest.mark.parametrize("name", ["config.yaml", "environment.json"])
def test_a_damaged_run_is_told(name: str, facts_of: Callable[..., EvalFacts], tmp_path: Path):
    folder = tmp_path / "out" / "kings_dev_research"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(facts_of().settings.as_config()))
    (folder / name).write_text("[")
    check_one(found(facts_of()), "error", "folder", f"{name} is")


def test_a_local_index_is_looked_at(facts_of: Callable[..., EvalFacts], corpus: dict[str, str], tmp_path: Path):
    local = {"use_remote_retriever": "false", "remote_retriever_url": "null", **corpus}
    facts = facts_of(local, retrieval_servers=None)
    assert found(facts) == []
    for key, words in (("corpus_path", "corpus_path: no file at"), ("index_path", "index_path: nothing at")):
        ((severity, rule, message), *_) = found(facts_of({**local, key: tmp_path / "none"}, retrieval_servers=None))
        assert (severity, rule.partition(".")[0], words in message) == ("error", "retriever", True)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A sharded checkpoint of the demo's model, which takes 2,048 tokens; its weights are made up."""
    actor = tmp_path / "my rün" / "global_step_5" / "actor"
    base_model = ROOT / "training" / "demo" / "base_model"
    shutil.copytree(base_model, actor / "huggingface", ignore=shutil.ignore_patterns("*.safetensors"))
    (actor / "fsdp_config.json").write_text(json.dumps({"world_size": 1}))
    with zipfile.ZipFile(actor / "model_world_size_1_rank_0.pt", "w") as file:  # as torch's format is one
        file.writestr("weights", bytes(1000))
    return actor


def test_a_checkpoint_is_looked_at_before_it_is_served(facts_of: Callable[..., EvalFacts], checkpoint: Path):
    keys: dict[str, Any] = {"generator_model": None}
    facts = facts_of(keys, "--auto_serve", str(checkpoint.parent))
    check_one(found(facts), "error", "auto_serve", "the model takes 2048 tokens; lower generator_max_input")
    keys |= {"generator_max_input_len": 2048, "max_response_tokens": 1024, "max_result_tokens": 500}
    facts = facts_of(keys, "--auto_serve", str(checkpoint.parent))
    assert found(facts) == []
    assert facts.model_folder == str(checkpoint / "huggingface")
    (checkpoint / "model_world_size_1_rank_0.pt").write_bytes(b"cut")
    ((_, rule, message),) = found(facts_of(keys, "--auto_serve", str(checkpoint.parent)))
    assert (rule, "is cut short" in message) == ("export.shards", True)
    (checkpoint / "fsdp_config.json").unlink()
    findings = found(facts_of(keys, "--auto_serve", str(checkpoint.parent)))
    check_one(findings, "error", "settings", "holds no checkpoint")


def test_several_errors_come_at_once(facts_of: Callable[..., EvalFacts]):
    keys = {"split": "dv", "generator_model": "/nowhere", "retrieval_topk": 1001}
    rules = [rule for severity, rule, _ in found(facts_of(keys)) if severity == "error"]
    assert rules == ["evaluation.questions", "evaluation.tokenizer", "evaluation.retrieval"]


def test_another_prompt_than_the_model_was_trained_with_is_told(
    facts_of: Callable[..., EvalFacts], model_folder: Path, tmp_path: Path
):
    own = shutil.copytree(model_folder, tmp_path / "own")
    write_record(own, choose_prompt("qa_template").record(apply_chat=False))
    keys = {"generator_model": own}
    assert found(facts_of(keys)) == []
    assert found(facts_of({**keys, "method_name": "naive"})) == [], "a baseline has its own prompt"
    (tmp_path / "mine.yaml").write_text("user: '<search> <answer> {question}'\n")
    findings = found(facts_of({**keys, "prompt_file": tmp_path / "mine.yaml"}))
    check_one(findings, "warning", "prompt", f"{own}: the model was trained with the prompt built-in qa_template (as")
    assert f"and is asked with {tmp_path}/mine.yaml (as plain text, sha256 " in findings[0][2]

    checkpoint = tmp_path / "run" / "global_step_5"
    shutil.copytree(own, checkpoint / "actor" / "huggingface")
    (checkpoint / "actor" / "fsdp_config.json").write_text('{"world_size": 1}')
    (checkpoint / "actor" / "model_world_size_1_rank_0.pt").write_bytes(b"")
    (checkpoint / "actor" / "huggingface" / "config.json").write_text("{}")
    write_record(checkpoint, choose_prompt("search_r1").record(apply_chat=False))
    facts = facts_of({"generator_model": None, "save_dir": tmp_path}, "--auto_serve", str(checkpoint))
    told = [message for _, rule, message in found(facts) if rule == "evaluation.prompt"]
    assert [message.partition(" (")[0] for message in told] == [
        f"{checkpoint}: the model was trained with the prompt built-in search_r1"
    ]


def test_a_run_is_not_continued_with_other_words(facts_of: Callable[..., EvalFacts], tmp_path: Path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("user: '<search> <answer> {question}'\n")
    facts = facts_of({"prompt_file": mine})
    with facts.folder.working():
        facts.folder.start_session({}, "zhou", facts.prompt)
    assert found(facts_of({"prompt_file": mine})) == []
    mine.write_text("# a comment\nuser: '<search> <answer> {question}'\n")
    assert found(facts_of({"prompt_file": mine})) == [], "the words are the same"
    mine.write_text("user: '<search> <answer> Please: {question}'\n")
    check_one(found(facts_of({"prompt_file": mine})), "error", "same_prompt", "another save_note for a new run")

    environment = json.loads((facts.folder.path / "environment.json").read_text())
    del environment["prompt"]  # as a run of before prompts were recorded
    (facts.folder.path / "environment.json").write_text(json.dumps(environment))
    assert found(facts_of({"prompt_file": mine})) == []

    naive = facts_of({"method_name": "naive"})
    with naive.folder.working():
        naive.folder.start_session({}, "zhou", naive.prompt)
    (naive.folder.path / "environment.json").write_text(json.dumps(environment))
    check_one(found(facts_of({"method_name": "naive"})), "warning", "same_prompt", "may have been asked for in other")
