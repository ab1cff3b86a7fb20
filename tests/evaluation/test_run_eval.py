"""run_eval.py from its command line: refused input, and whole runs on a model whose every token is known."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from evaluation.run.folder import CONFIG_FILE, read_items
from evaluation.run_eval import main
from flashrag.episode import prompt_token_ids, steps
from flashrag.episode.tool import SEARCH_LIMIT_REACHED, SEARCHES_LEFT
from flashrag.pipeline import METHODS
from flashrag.prompts import choose_prompt

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "evaluation" / "eval_config.yaml"
PUBLISHED = ["--config_path", str(CONFIG), "--method_name", "research", "--split", "dev", "--dataset_name", "kings"]


def flags(**values: Any) -> list[str]:
    pairs = [(f"--{name}", value if isinstance(value, str) else json.dumps(value)) for name, value in values.items()]
    return [*PUBLISHED, *(part for pair in pairs for part in pair)]


@pytest.fixture
def options(data_dir: Path, tmp_path: Path, small_servers: Any) -> dict[str, Any]:
    """Flags of a run that works; a test breaks one."""
    return {
        "data_dir": str(data_dir),
        "save_dir": str(tmp_path / "out"),
        "save_note": "run",
        "generator_max_input_len": 4096,
        **small_servers.flags,
    }


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"data_dir": "/nowhere"}, "data_dir=/nowhere is not a folder"),
        ({"split": "test"}, "holds the splits: dev"),
        ({"dataset_name": "queens"}, "data_dir holds: kings"),
        ({"apply_caht": True}, "unknown flag '--apply_caht'; did you mean '--apply_chat'?"),
        ({"apply_chat": "perhaps"}, "apply_chat: 'perhaps' was given"),
        ({"apply_chat": True}, "apply_chat=true, but the tokenizer has no chat template"),
        ({"method_name": "iterretge"}, "method_name: 'iterretge' was given"),
        ({"metrics": "em,rouge"}, "'rouge' is not a metric; choose from em, f1, acc"),
        ({"metric_setting": {"tokenizer_name": "gpt-4"}}, "unknown key 'metric_setting.tokenizer_name'"),
        ({"reward": "my_reward.py"}, "reward: 'my_reward.py' was given; expected FILE:FUNCTION, such as my_reward"),
        ({"reward": {"search": -0.1}}, "'search' is not a term; did you mean 'searches'?"),
        ({"reward": "/nowhere/my_reward.py:reward"}, "the reward's file /nowhere/my_reward.py does not exist"),
        ({"generation_params": {"temp": 1}}, "unknown key 'generation_params.temp'; did you mean 'temperature'?"),
        ({"generation_params": {"heat": 1}}, "unknown key 'generation_params.heat'; known keys: do_sample"),
        ({"concurrency": 0}, "concurrency: 0 was given"),
        ({"num_samples": 0}, "num_samples: 0 was given"),
        ({"num_samples": 4}, "num_samples=4, but generation_params.temperature is 0, which gives the same answer each"),
        ({"num_samples": 4, "generation_params": {"temperature": 1, "seed": 3}}, "seed=3 gives the same answer each t"),
        ({"num_samples": 4, "method_name": "random"}, "num_samples=4, but random always gives the same answer"),
        ({"retrieval_topk": "many"}, "retrieval_topk: 'many' was given"),
        ({"search_control": "emtpy"}, "search_control: 'emtpy' was given"),
        ({"search_control": "random"}, "which has 3 different ones; give at least 20"),
        ({"search_control_delay_s": 0}, "search_control_delay_s: 0 was given"),
        ({"prompt_template_name": "qa"}, "choose one of: qa_python_template, qa_template"),
        ({"save_note": "../elsewhere"}, "save_note: '../elsewhere' was given"),
        ({"remote_retriever_url": "http://127.0.0.1:1"}, "at remote_retriever_url=http://127.0.0.1:1"),
        ({"remote_retriever_url": "nothing"}, "remote_retriever_url='nothing' is not an http address"),
        ({"sgl_remote_url": "http://127.0.0.1:1"}, "no model server answers at sgl_remote_url=http://127.0.0.1:1"),
        ({"generator_model": "/nowhere"}, "generator_model=/nowhere does not exist"),
        ({"generator_model": str(ROOT)}, "holds no tokenizer"),
        ({"generator_max_input_len": 8192}, "takes 4096 tokens"),
        ({"use_remote_retriever": False}, "retrieval_method is not set"),
        ({"config_path": "/nowhere.yaml"}, "config file not found: /nowhere.yaml"),
    ],
)  # fmt: skip
def test_unusable_input_is_one_line_and_exit_code_2(
    broken: dict[str, Any], message: str, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    assert main(flags(**{**options, **broken})) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert main([*flags(**{**options, **broken}), "--check"]) == 2
    captured = capsys.readouterr()
    assert message in captured.out + captured.err
    assert not Path(options["save_dir"]).exists()


def test_an_unknown_key_in_the_file_is_refused(
    tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.read_text() + "\nretrieval_top: 3\n")
    assert main(flags(**{**options, "config_path": str(path)})) == 2
    assert "unknown key 'retrieval_top'; did you mean 'retrieval_topk'?" in capsys.readouterr().err


def test_missing_flags_are_named(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "--config_path" in capsys.readouterr().err
    assert main(["--config_path", str(CONFIG), "--method_name", "research", "--dataset_name", "kings"]) == 2
    assert "split is not set" in capsys.readouterr().err
    assert main([*PUBLISHED, "stray"]) == 2
    assert "unexpected argument 'stray'" in capsys.readouterr().err


def test_bad_input_is_refused_before_anything_heavy_is_imported():
    program = (
        "import sys, runpy\n"
        "for name in ['torch', 'transformers', 'faiss', 'openai', 'vllm', 'sentence_transformers']:\n"
        "    sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", program, "evaluation/run_eval.py", *PUBLISHED, "--data_dir", "/nowhere"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for message in ("data_dir=/nowhere is not a folder", "generator_model=/path/to/the/served/model does not exist"):
        assert message in done.stderr
    assert time.perf_counter() - started < 30


@pytest.fixture(
    params=["small_servers", pytest.param("real_servers", marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def servers(request: pytest.FixtureRequest) -> Any:
    """In this process; or rag_serving, and a checkpoint that the run merges and has vLLM serve: the same figures."""
    return request.getfixturevalue(request.param)


def test_a_whole_run_gives_the_figures_worked_out_by_hand(
    servers: Any, options: dict[str, Any], tokenizer: Any, capsys: pytest.CaptureFixture[str]
):
    for key in ("sgl_remote_url", "remote_retriever_url", "generator_model"):
        del options[key]
    metrics = "em,f1,acc,precision,recall,retrieval_recall,support_coverage,yes_no_acc"
    price = {"prompt_usd_per_million": 1.0, "completion_usd_per_million": 100.0}
    more = {"retrieval_topk": 1, "metrics": metrics, "metric_setting": {"price": price}}
    command = flags(**options, **servers.flags, **more)
    assert main(command) == 0
    folder = run_folder(options)
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "environment.json", "prompt.yaml", "items.jsonl", "summary.json"),
        *("metric_score.txt", "intermediate_data.json", "preflight.jsonl"),
    }
    warned = [json.loads(line)["message"] for line in (folder / "preflight.jsonl").read_text().splitlines()]
    assert [message.partition(",")[0] for message in warned] == [
        "metrics has yes_no_acc",
        "metric_setting.retrieval_recall_topk=5",
    ]

    # Every answer is "Wu": right for a, wrong for b, and one of two words of c's second answer: P 1/1, R 1/2, F1 2/3.
    # Its one search brings passage 7 each time, which holds a's "wu", not b's "Tang", and c's "King Wu".
    summary = read_json(folder / "summary.json")
    means = {name: figures and figures["mean"] for name, figures in summary["metrics"].items()}
    assert means == {
        "em": pytest.approx(1 / 3),
        "f1": pytest.approx((1 + 2 / 3) / 3),
        "acc": pytest.approx(1 / 3),
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx((1 + 1 / 2) / 3),
        "retrieval_recall_top5": pytest.approx(2 / 3),
        "support_coverage": 0.5,  # a alone names its support, two titles: one was found
        "yes_no_acc": None,
    }
    assert {hops: (row["metrics"]["em"]["mean"], row["n"]) for hops, row in summary["by_hops"].items()} == {
        "1": (1.0, 1),
        "2": (0.0, 2),
    }
    assert summary["metrics"]["em"]["low"] <= 1 / 3 <= summary["metrics"]["em"]["high"]
    assert {key: summary[key] for key in ("method", "dataset", "split", "n", "n_failed", "n_missing")} == {
        "method": "research", "dataset": "kings", "split": "dev", "n": 3, "n_failed": 0, "n_missing": 0,
    }  # fmt: skip
    assert (summary["served_model"], summary["end_reasons"], summary["format_rate"]) == (
        servers.served_model, {"eos": 3}, 1.0,
    )  # fmt: skip

    first, *_ = read_items(folder)
    assert (first.question_id, first.answer, first.end_reason, first.format_valid) == ("a", "Wu", "eos", True)
    assert [(step.kind, step.text) for step in steps(first) if step.kind in ("think", "query")] == [
        ("think", "t"),
        ("query", "Zhou"),
    ]
    (call,) = first.calls
    assert [passage.id for passage in call.passages] == ["7"]
    assert (first.metrics["em"], first.error, first.attempt) == (1.0, None, 1)

    # Two calls: the prompt, then the prompt with the first turn and the result; six tokens sampled in each.
    prompt = len(prompt_token_ids(tokenizer, "Who was the first king of Zhou?"))
    passage = '"King Wu of Zhou"\nKing Wu was the first king of the Zhou dynasty. < |endoftext|> < /result>'
    spliced = len(tokenizer.encode(f" <result>\n{passage}\n</result>", add_special_tokens=False))
    usage = {key: value for key, value in asdict(first.usage).items() if key != "latency_s"}
    assert usage == {"prompt_tokens": 2 * prompt + 6 + spliced, "completion_tokens": 12, "result_tokens": spliced,
                     "generator_calls": 2, "searches": 1}  # fmt: skip
    assert summary["usage"]["searches"] == 1.0
    mean_prompt = sum(trajectory.usage.prompt_tokens for trajectory in read_items(folder)) / 3
    assert summary["usage"]["cost_usd"] == pytest.approx((mean_prompt * 1.0 + 12 * 100.0) / 1e6)
    printed = capsys.readouterr().out
    assert "1-hop" in printed
    assert "written to" in printed
    assert main(command) == 0  # nothing is left to ask: no model is served
    assert "the run is complete" in capsys.readouterr().out


def test_the_reward_of_training_is_a_score(options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Every answer is "Wu", after one search and 12 tokens; the search finds the answers of a and c."""
    assert main(flags(**options, reward={"em": 1.0, "retrieval_hit": 0.3, "length": -0.5}, metrics="f1")) == 0
    folder = run_folder(options)
    means = {name: figures["mean"] for name, figures in read_json(folder / "summary.json")["metrics"].items()}
    assert means == pytest.approx(
        {
            "f1": (1 + 2 / 3) / 3,
            "reward_em": 1 / 3,
            "reward_retrieval_hit": 0.2,
            "reward_length": -0.006,
            "reward": 1 / 3 + 0.2 - 0.006,
        }
    )
    first, *_ = read_items(folder)
    assert first.reward == pytest.approx(1.3 - 0.006)
    assert first.reward_reason == "em +1, retrieval_hit +0.3, length -0.006: 'Wu'"

    # Another reward is another score: nothing is asked again. A mistake in it costs no answer.
    own = tmp_path / "my_reward.py"
    own.write_text("def reward(t, gold):\n    assert t.answer != 'Wu' or 'f1' in t.metrics\n    return 2, gold[0]\n")
    assert main(flags(**options, reward=f"{own}:reward", metrics="f1")) == 0
    summary = read_json(folder / "summary.json")["metrics"]
    assert {name: figures["mean"] for name, figures in summary.items()} == {"f1": means["f1"], "reward": 2.0}
    assert [(t.reward, t.reward_reason) for t in read_items(folder)] == [(2.0, "wu"), (2.0, "Tang"), (2.0, "Nobody")]
    capsys.readouterr()
    assert main(flags(**options, reward=f"{own}:reward", metrics="em")) == 2
    assert capsys.readouterr().err == (f"error: {own}, line 2: AssertionError (reward, question 'a')\n")
    assert [t.reward for t in read_items(folder)] == [2.0, 2.0, 2.0]
    assert main(flags(**options, metrics="em")) == 0
    assert [(t.reward, t.metrics) for t in read_items(folder)] == [(None, {"em": em}) for em in (1.0, 0.0, 0.0)]


def test_a_control_shows_that_the_model_only_remembers(options: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    """Without search the model of these tests answers "Wu", too."""
    runs = {}
    for control in ("none", "empty", "forbidden"):
        assert main(flags(**{**options, "save_note": control}, search_control=control)) == 0
        runs[control] = Path(options["save_dir"]) / f"kings_dev_research_{control}"
        summary, config = (
            read_json(runs[control] / "summary.json"),
            yaml.safe_load((runs[control] / CONFIG_FILE).read_text()),
        )
        assert summary["search_control"] == config["search_control"] == control
    printed = capsys.readouterr()
    assert "research on kings dev under search_control=empty" in printed.out
    assert "warning: search_control=forbidden: this run is a control" in printed.err
    empty, forbidden = next(read_items(runs["empty"])), next(read_items(runs["forbidden"]))
    assert (empty.answer, empty.usage.searches, empty.calls[0].query) == ("Wu", 1, "Zhou")
    assert empty.segments[1].text == " <result>\nNo results found.\n</result>"
    assert (forbidden.answer, forbidden.usage.searches, forbidden.calls) == ("Wu", 0, ())
    assert SEARCH_LIMIT_REACHED in forbidden.segments[1].text

    out = Path(options["save_dir"]) / "report"
    assert main(["report", *map(str, runs.values()), "--out", str(out)]) == 0
    figures = read_json(out / "search_or_memory.json")
    # "Wu" is right for a alone. Passage 7 holds the answers of a and c, and no question holds its own.
    third = {"n": 3, "em": pytest.approx(1 / 3)}
    found, not_found = {"n": 2, "em": 0.5}, {"n": 1, "em": 0.0}
    assert figures["runs"] == {
        "kings_dev_research_none": {
            "search_control": "none",
            "n": 3,
            "by_searches": {"1": third},
            "by_passages": {"answer_found": found, "answer_not_found": not_found},
        },
        "kings_dev_research_empty": {
            "search_control": "empty", "n": 3,
            "by_searches": {"1": third}, "by_passages": {"answer_not_found": third},
        },
        "kings_dev_research_forbidden": {
            "search_control": "forbidden", "n": 3,
            "by_searches": {"0": third}, "by_passages": {"answer_not_found": third},
        },
    }  # fmt: skip
    same = {"n": 3, "right_in_both": 1, "right_in_run_only": 0, "right_in_control_only": 0, "right_in_neither": 2}
    assert figures["pairs"] == [
        {"run": "kings_dev_research_none", "control_run": f"kings_dev_research_{control}", **same, "mcnemar_p": 1.0}
        for control in ("empty", "forbidden")
    ]
    markdown = (out / "report.md").read_text()
    assert "| kings_dev_research_none | kings_dev_research_empty | 3 | 1 | 0 | 0 | 2 | 1.000 |" in markdown
    assert "| research (control empty, empty) | 33.33" in markdown
    assert "Search or memory" in (out / "report.html").read_text()


def test_a_budget_is_told_in_the_words_of_training(options: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    assert main(flags(**{**options, "save_note": "told"}, tell_budget="true", max_searches=3)) == 0
    folder = Path(options["save_dir"]) / "kings_dev_research_told"
    first = next(read_items(folder))
    assert first.segments[1].text.endswith(f"\n\n{SEARCHES_LEFT.format(left=2)}\n</result>")
    assert read_json(folder / "summary.json")["tell_budget"] is True
    assert "research on kings dev with tell_budget=true" in capsys.readouterr().out


def test_a_forced_search_is_kept_apart_from_what_the_model_wrote(options: dict[str, Any]):
    assert main(flags(**{**options, "save_note": "forced"}, search_control="forced")) == 0
    first = next(read_items(Path(options["save_dir"]) / "kings_dev_research_forced"))
    assert [segment.source for segment in first.segments][:2] == ["forced", "result"]
    assert first.segments[0].text == f" <search> {first.question} </search>"
    assert first.calls[0].query == first.question
    assert first.usage.searches == len(first.calls)


@pytest.fixture
def sampled(tokenizer: Any, serve: Callable[[Any], str], options: dict[str, Any]) -> dict[str, Any]:
    """The flags of a run of zero-shot with four answers to each question: two right ones to a, one to c."""
    replies = iter(["Wu", "Tang", " wu", "Zhou", "Wu", "Wu", "Wu", "", "Nobody", "Wu", "", ""])
    app = FastAPI()
    app.get("/v1/models")(lambda: {"object": "list", "data": [{"id": "zhou", "max_model_len": 4096}]})

    @app.post("/v1/completions")
    def completions(request: dict[str, Any]) -> Any:
        text = "x" if request["max_tokens"] == 1 else next(replies)  # the preflight asks for a token
        choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
        choice["token_ids"] = tokenizer.encode(text, add_special_tokens=False)
        return {"id": "1", "object": "text_completion", "created": 1, "model": "zhou", "choices": [choice]}

    given = {"method_name": "zero-shot", "concurrency": 1, "num_samples": 4, "metrics": "em,f1"}
    given["generation_params"] = {"temperature": 1.0}
    return {**options, **given, "sgl_remote_url": serve(app)}


def test_several_answers_to_a_question(sampled: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    assert main([*flags(**sampled), "--check"]) == 0
    assert "all 3, 4 answers to each" in (checked := capsys.readouterr().out)
    assert "new: 12 answers" in checked
    assert main(flags(**sampled)) == 0
    folder = Path(sampled["save_dir"]) / "kings_dev_zero-shot_run"
    items = list(read_items(folder))
    assert [(item.question_id, item.session) for item in items] == [(name, n) for name in "abc" for n in range(4)]
    summary = read_json(folder / "summary.json")
    # Right: 2, 0 and 1 of 4. pass@2 of them: 1 - 1/6, 0, 1 - 3/6. The most votes: wu 2 of 4; wu, wrong; a tie of two.
    means = {name: figure["mean"] for name, figure in summary["samples"].items()}
    assert means == {
        "avg@4": pytest.approx(1 / 4),
        "pass@1": pytest.approx(1 / 4),
        "pass@2": pytest.approx((5 / 6 + 0 + 1 / 2) / 3),
        "pass@4": pytest.approx(2 / 3),
        "maj@4": pytest.approx((1 + 0 + 1 / 2) / 3),
    }
    assert summary["metrics"]["em"] == summary["samples"]["avg@4"]
    assert (summary["n"], summary["num_samples"], summary["metrics"]["em"]["n"]) == (3, 4, 3)
    assert "maj@4                   0.5000" in capsys.readouterr().out
    assert main(flags(**sampled)) == 0  # the server has no more replies
    assert "the run is complete" in capsys.readouterr().out
    out = folder.parent / "report"
    assert main(["report", str(folder), "--out", str(out)]) == 0
    assert "| run | questions | answers | avg@4 | pass@1 | pass@2 | pass@4 | maj@4 |" in (out / "report.md").read_text()
    assert "pass@4" in (out / "report.html").read_text()


def test_a_run_of_before_there_were_several_answers_goes_on(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    assert main(flags(**options)) == 0
    folder = run_folder(options)
    config = yaml.safe_load((folder / CONFIG_FILE).read_text())
    for key in ("num_samples", "prompt_file"):
        del config[key]
    (folder / CONFIG_FILE).write_text(yaml.safe_dump(config))
    lines = (folder / "items.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "items.jsonl").write_bytes(lines[0])
    capsys.readouterr()
    assert main(flags(**options)) == 0
    assert "3 questions of kings_dev, 1 of them already answered" in capsys.readouterr().out
    assert main([*flags(**options, num_samples=2), "--generation_params.temperature", "1"]) == 2
    assert "num_samples was 1, is 2" in capsys.readouterr().err


def test_a_run_under_another_control_is_another_run(options: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    assert main(flags(**options)) == 0
    assert main(flags(**options, search_control="forbidden")) == 2
    assert "max_searches was 16, is 0, search_control was 'none', is 'forbidden'" in capsys.readouterr().err


def test_a_random_control_gives_the_passages_of_other_questions(
    options: dict[str, Any], tmp_path: Path, serve: Callable[[Any], str]
):
    texts = [f"Who was king number {number}?" for number in range(20)]
    asked, path, app = [], tmp_path / "many.jsonl", FastAPI()
    path.write_text("".join(json.dumps({"question": text, "golden_answers": ["Wu"]}) + "\n" for text in texts))
    app.get("/health")(lambda: {"status": "healthy"})

    @app.post("/search")
    def search(request: dict[str, Any]) -> list[Any]:
        asked.append(request["query"])
        return [[{"id": "1", "contents": f"About: {request['query']}"}], [1.0]]

    options |= {"dataset_name": str(path), "remote_retriever_url": serve(app), "metrics": "em", "method_name": "naive"}
    found = []
    for note in ("once", "again"):
        assert main(flags(**{**options, "save_note": note}, search_control="random", max_response_tokens=4)) == 0
        items = list(read_items(Path(options["save_dir"]) / f"many_naive_{note}"))
        assert [(item.question, item.calls[0].query) for item in items] == [(text, text) for text in texts]
        found.append([item.calls[0].passages[0].contents.removeprefix("About: ") for item in items])
    assert found[0] == found[1]
    assert all(drawn != text for drawn, text in zip(found[0], texts, strict=True))
    assert set(found[0]) <= set(texts)


def test_flashrags_files_say_the_same(options: dict[str, Any]):
    assert main(flags(**options, metrics="em,f1")) == 0
    folder = run_folder(options)
    assert (folder / "metric_score.txt").read_text() == f"em: {1 / 3}\nf1: {(1 + 2 / 3) / 3}\n"
    items = read_json(folder / "intermediate_data.json")
    assert [(item["id"], item["output"]["pred"]) for item in items] == [("a", "Wu"), ("b", "Wu"), ("c", "Wu")]
    assert items[0]["output"]["metric_score"] == {"em": 1.0, "f1": 1.0}
    assert [document["id"] for document in items[0]["output"]["retrieval_result"]] == ["7", "8"]


def test_a_run_folder_repeats_the_run_and_holds_no_secret(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-this-test")
    assert main(flags(**options)) == 0
    folder = run_folder(options)
    environment = read_json(folder / "environment.json")
    assert environment["packages"]["openai"]
    assert len(environment["git"]["revision"]) == 40
    assert len(environment["sessions"]) == 1
    assert choose_prompt("qa_template", folder / "prompt.yaml").template == choose_prompt("qa_template").template
    assert environment["prompt"] == read_json(folder / "summary.json")["prompt"]
    assert environment["prompt"]["name"] == "built-in qa_template"
    texts = [path.read_text() for path in folder.rglob("*") if path.is_file()]
    assert not any("sk-secret-of-this-test" in text for text in texts)


def test_a_run_can_search_a_local_index(options: dict[str, Any], corpus: dict[str, str], tmp_path: Path):
    path = tmp_path / "local.yaml"
    config = yaml.safe_load(CONFIG.read_text())
    del config["remote_retriever_url"], options["remote_retriever_url"]
    path.write_text(yaml.safe_dump({**config, "use_remote_retriever": False, **corpus}))
    assert main(flags(**options, config_path=str(path), retrieval_topk=1)) == 0
    found = [call.passages for trajectory in read_items(run_folder(options)) for call in trajectory.calls]
    assert [[passage.id for passage in passages] for passages in found] == [["7"]] * 3
    assert all(isinstance(passage.score, float) for passages in found for passage in passages)
    assert read_config(options)["index_path"] == corpus["index_path"]


def test_the_written_config_runs_the_same_again(options: dict[str, Any], tmp_path: Path):
    assert main(flags(**options, max_searches=3, generation_params={"temperature": 0.5})) == 0
    values = read_config(options)
    assert values["max_searches"] == 3
    assert values["generation_params"]["temperature"] == 0.5
    written = run_folder(options) / "config.yaml"
    assert main(["--config_path", str(written), "--save_dir", str(tmp_path / "again")]) == 0
    again = read_config({"save_dir": tmp_path / "again"})
    assert {**again, "save_dir": None} == {**values, "save_dir": None}


def test_fewer_questions_from_a_file_of_ones_own_with_less_saved(options: dict[str, Any], data_dir: Path):
    options |= {"save_metric_score": False, "save_intermediate_data": False, "test_sample_num": 2, "metrics": "em"}
    options["dataset_name"] = str(data_dir / "kings" / "dev.jsonl")
    assert main(flags(**options)) == 0
    folder = Path(options["save_dir"]) / "dev_research_run"
    assert not {"metric_score.txt", "intermediate_data.json"} & {path.name for path in folder.iterdir()}
    assert [trajectory.question_id for trajectory in read_items(folder)] == ["a", "b"]


def test_a_budget_that_ends_early_is_no_failure_of_the_run(options: dict[str, Any]):
    assert main(flags(**options, max_response_tokens=3)) == 0
    summary = read_json(run_folder(options) / "summary.json")
    assert (summary["metrics"]["em"]["mean"], summary["n_failed"], summary["end_reasons"]) == (0.0, 0, {"length": 3})
    assert summary["format_rate"] == 0.0


def test_when_every_question_fails_the_run_says_so(
    options: dict[str, Any], serve: Callable[[Any], str], capsys: pytest.CaptureFixture[str]
):
    # A server that is healthy and busy: whether it will answer is only known later, so that the run starts.
    app = FastAPI()
    app.get("/health")(lambda: {"status": "healthy"})
    app.post("/search")(lambda: JSONResponse({"detail": "busy"}, 429))
    options["remote_retriever_url"] = serve(app)
    assert main(flags(**options, retriever_deadline_s=0.5)) == 1
    printed = capsys.readouterr().err
    assert "warning: a search was not answered within 5 s" in printed
    assert "3 of 3 questions failed and count as wrong; the first, a: SearchError" in printed
    summary = read_json(run_folder(options) / "summary.json")
    assert (summary["metrics"]["em"]["mean"], summary["n_failed"], summary["n"]) == (0.0, 3, 3)
    assert summary["failures"] == {"SearchError": 3}


@pytest.mark.parametrize("method", [name for name, spec in METHODS.items() if name != "research"])
def test_every_method_runs_over_the_same_servers(method: str, options: dict[str, Any]):
    """Mechanics alone: the model of these tests knows one trick."""
    options["method_name"] = method
    assert main(flags(**options, max_response_tokens=64)) in (0, 1)
    summary = read_json(Path(options["save_dir"]) / f"kings_dev_{method}_run" / "summary.json")
    assert (summary["n"], summary["n_missing"], summary["method"]) == (3, 0, method)


def run_folder(options: Mapping[str, Any]) -> Path:
    return Path(options["save_dir"]) / "kings_dev_research_run"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_config(options: Mapping[str, Any]) -> Any:
    return yaml.safe_load((run_folder(options) / "config.yaml").read_text())
