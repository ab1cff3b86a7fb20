"""run_eval.py from its command line: what is refused, and whole runs on a model whose every token is known."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation.run_eval import main
from flashrag.prompt_ids import prompt_token_ids

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "evaluation" / "eval_config.yaml"
PUBLISHED = ["--config_path", str(CONFIG), "--method_name", "research", "--split", "dev", "--dataset_name", "kings"]


def flags(**values: Any) -> list[str]:
    pairs = [(f"--{name}", value if isinstance(value, str) else json.dumps(value)) for name, value in values.items()]
    return [*PUBLISHED, *(part for pair in pairs for part in pair)]


@pytest.fixture
def options(data_dir: Path, model_folder: Path, tmp_path: Path, small_servers: Any) -> dict[str, Any]:
    """Flags of a run that works; a test breaks one."""
    return {
        "data_dir": str(data_dir),
        "save_dir": str(tmp_path / "out"),
        "save_note": "run",
        "sgl_remote_url": small_servers.model,
        "remote_retriever_url": small_servers.retrieval,
        "generator_model": str(model_folder),
        "generator_max_input_len": 4096,
    }


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"data_dir": "/nowhere"}, "data_dir=/nowhere is no folder"),
        ({"split": "test"}, "holds the splits: dev"),
        ({"dataset_name": "queens"}, "data_dir holds: kings"),
        ({"apply_caht": True}, "unknown flag '--apply_caht'; did you mean '--apply_chat'?"),
        ({"apply_chat": "perhaps"}, "apply_chat: 'perhaps' was given"),
        ({"apply_chat": True}, "apply_chat=true, but the tokenizer has no chat template"),
        ({"method_name": "flare"}, "method_name: 'flare' was given"),
        ({"metrics": "em,rouge"}, "'rouge' is no metric here; choose from em, f1, acc"),
        ({"generation_params": {"temp": 1}}, "unknown key 'generation_params.temp'"),
        ({"concurrency": 0}, "concurrency: 0 was given"),
        ({"retrieval_topk": "many"}, "retrieval_topk: 'many' was given"),
        ({"prompt_template_name": "qa"}, "choose one of: qa_template"),
        ({"save_note": "../elsewhere"}, "save_note: '../elsewhere' was given"),
        ({"remote_retriever_url": "http://127.0.0.1:1"}, "at remote_retriever_url=http://127.0.0.1:1"),
        ({"remote_retriever_url": "nothing"}, "remote_retriever_url='nothing' is no http address"),
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
    assert not Path(options["save_dir"]).exists()


def test_an_unknown_key_in_the_file_is_refused(
    tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.read_text() + "\nretrieval_top: 3\n")
    assert main(flags(**{**options, "config_path": str(path)})) == 2
    assert "unknown key 'retrieval_top'; did you mean 'retrieval_topk'?" in capsys.readouterr().err


def test_missing_flags_are_told(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "--config_path" in capsys.readouterr().err
    assert main(["--config_path", str(CONFIG), "--method_name", "research", "--dataset_name", "kings"]) == 2
    assert "split is not set" in capsys.readouterr().err
    assert main([*PUBLISHED, "stray"]) == 2
    assert "unexpected argument 'stray'" in capsys.readouterr().err


def test_bad_input_is_told_before_anything_heavy_is_imported():
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
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert time.perf_counter() - started < 30


@pytest.fixture(
    params=["small_servers", pytest.param("real_servers", marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def servers(request: pytest.FixtureRequest) -> Any:
    """In this process, or vLLM and rag_serving as processes: the same figures are expected of both."""
    return request.getfixturevalue(request.param)


def test_a_whole_run_gives_the_figures_worked_out_by_hand(
    servers: Any, options: dict[str, Any], tokenizer: Any, capsys: pytest.CaptureFixture[str]
):
    addresses = {"sgl_remote_url": servers.model, "remote_retriever_url": servers.retrieval}
    assert main(flags(**{**options, **addresses}, retrieval_topk=1)) == 0
    folder = Path(options["save_dir"]) / "kings_run"
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "metrics.json", "predictions.jsonl"]

    # Every answer is "Wu": right for a, wrong for b, and one of two words of c's second answer: P 1/1, R 1/2, F1 2/3.
    metrics = json.loads((folder / "metrics.json").read_text())
    shared = {"searches": 1.0, "format_rate": 1.0, "n_failed": 0}
    assert metrics["by_hops"] == {
        "1": {"em": 1.0, "f1": 1.0, "acc": 1.0, **shared, "n_questions": 1},
        "2": {"em": 0.0, "f1": pytest.approx(1 / 3), "acc": 0.0, **shared, "n_questions": 2},
    }
    assert metrics["em"] == pytest.approx(1 / 3)
    assert metrics["f1"] == pytest.approx((1 + 2 / 3) / 3)
    assert metrics["n_questions"] == 3
    assert metrics["token_ids"] == "server"
    assert metrics["served_model"] == "zhou"

    first, *_ = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    sampled = [token_id for turn in (turns()[0], turns()[1]) for token_id in tokenizer.convert_tokens_to_ids(turn)]
    passage = '"King Wu of Zhou"\nKing Wu was the first king of the Zhou dynasty. < |endoftext|> < /result>'
    result = tokenizer.encode(f" <result>\n{passage}\n</result>", add_special_tokens=False)
    assert first["response_ids"] == [*sampled[:6], *result, *sampled[6:]]
    assert first["loss_mask"] == [*[1] * 6, *[0] * len(result), *[1] * 6]
    assert (first["id"], first["prediction"], first["ended_by"], first["format_fault"]) == ("a", "Wu", "eos", None)
    assert [(search["query"], search["document_ids"]) for search in first["searches"]] == [("Zhou", ["7"])]
    assert first["prompt_tokens"] == len(prompt_token_ids(tokenizer, "Who was the first king of Zhou?"))
    assert first["response_tokens"] == len(first["response_ids"])
    assert first["sampled_tokens"] == 12
    assert "1-hop" in capsys.readouterr().out


def turns() -> tuple[list[str], list[str]]:
    """What the model samples before and after the result (tests/evaluation/conftest.py)."""
    before = ["<think>", "t", "</think>", "<search>", "Zhou", "</search>\n\n"]
    return before, ["<answer>", "\\boxed{", "Wu", "}", "</answer>", "<|endoftext|>"]


def test_a_run_can_search_a_local_index(options: dict[str, Any], corpus: dict[str, str]):
    del options["remote_retriever_url"]
    assert main(flags(**options, **corpus, use_remote_retriever=False, retrieval_topk=1)) == 0
    lines = (Path(options["save_dir"]) / "kings_run" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["searches"][0]["document_ids"] for line in lines] == [["7"]] * 3
    config = yaml.safe_load((Path(options["save_dir"]) / "kings_run" / "config.yaml").read_text())
    assert config["index_path"] == corpus["index_path"]


def test_the_written_config_runs_the_same_again(options: dict[str, Any], tmp_path: Path):
    assert main(flags(**options, max_searches=3, generation_params={"temperature": 0.5})) == 0
    written = Path(options["save_dir"]) / "kings_run" / "config.yaml"
    values = yaml.safe_load(written.read_text())
    assert values["max_searches"] == 3
    assert values["generation_params"]["temperature"] == 0.5
    assert main(["--config_path", str(written), "--save_dir", str(tmp_path / "again")]) == 0
    again = yaml.safe_load((tmp_path / "again" / "kings_run" / "config.yaml").read_text())
    assert {**again, "save_dir": None} == {**values, "save_dir": None}


def test_an_earlier_run_is_not_overwritten(options: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    assert main(flags(**options)) == 0
    before = (Path(options["save_dir"]) / "kings_run" / "predictions.jsonl").read_bytes()
    assert main(flags(**options)) == 2
    assert "exists already; give another save_note" in capsys.readouterr().err
    assert (Path(options["save_dir"]) / "kings_run" / "predictions.jsonl").read_bytes() == before


def test_less_can_be_saved_and_fewer_questions_asked(options: dict[str, Any]):
    options |= {"save_metric_score": False, "save_intermediate_data": False, "test_sample_num": 2, "metrics": "em"}
    assert main(flags(**options)) == 0
    folder = Path(options["save_dir"]) / "kings_run"
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "predictions.jsonl"]
    records = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == ["a", "b"]
    assert not {"text", "response_ids", "loss_mask"} & set(records[0])


def test_a_budget_that_ends_early_is_no_failure_of_the_run(options: dict[str, Any]):
    assert main(flags(**options, max_response_tokens=3)) == 0
    metrics = json.loads((Path(options["save_dir"]) / "kings_run" / "metrics.json").read_text())
    assert (metrics["em"], metrics["format_rate"], metrics["n_failed"], metrics["searches"]) == (0.0, 0.0, 0, 0.0)


def test_when_every_question_fails_the_run_says_so(options: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    # A prompt of more than a thousand tokens does not fit: no question can be answered.
    assert main(flags(**{**options, "generator_max_input_len": 100})) == 1
    assert "3 of 3 questions failed and count as wrong; the first, a: PromptTooLong" in capsys.readouterr().err
    metrics = json.loads((Path(options["save_dir"]) / "kings_run" / "metrics.json").read_text())
    assert (metrics["em"], metrics["n_failed"], metrics["n_questions"]) == (0.0, 3, 3)


def test_an_interrupted_run_leaves_no_folder(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    async def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("evaluation.run_eval.run_pipeline", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(flags(**options))
    assert list(Path(options["save_dir"]).iterdir()) == []
