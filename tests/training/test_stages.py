"""The whole path of a recipe: stages that run once, go on where they were stopped, and search beside a real server."""

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flashrag.errors import UserError
from flashrag.preflight import Severity, examine
from flashrag.system.files import locked
from tests.docs.test_flags import check_flags, module_and_arguments
from tests.test_commands import parser_of
from training import stages
from training.launch import composed, main, parse_flags
from training.recipe import Recipe, read_recipe
from training.stages import RULES, PathFacts, PathOptions, StageFailed, run_stages
from verl_search.preflight.settings_rules import SETTINGS_RULES

WRITE = "python -c 'import sys; open(sys.argv[1], \"a\").write(sys.argv[2])'"
SEARCH = """
import sys, httpx
found = httpx.post(sys.argv[1] + "/search", json={"query": "Ada", "top_n": 1}, trust_env=False)
open(sys.argv[2], "w").write(found.text)
"""
INDEX = (
    "python -m flashrag.retriever.index_builder --retrieval_method bm25 --corpus_path {corpus} --save_dir {output_dir}"
)


def recipe(*stages: tuple[str, str], **more: object) -> Recipe:
    named = [{"name": name, "command": command} for name, command in stages]
    return Recipe.model_validate({"name": "small", "title": "t", "source": ["s"], "stages": named, **more})


def facts(folder: Path, small: Recipe, *given: str, **options: object) -> PathFacts:
    chosen = PathOptions(recipe="small", data_dir=folder / "data", output_dir=folder / "out", **options)
    return PathFacts(small, chosen, given, lambda words: composed(*parse_flags(words))[2])


def test_a_stage_that_is_done_is_not_done_again_and_a_failed_one_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = recipe(
        ("first", WRITE + " {output_dir}/log one"),
        ("second", "python {output_dir}/late.py"),
        ("third", WRITE + " {output_dir}/log three"),
    )
    with pytest.raises(StageFailed, match="the stage 'second' ended with exit code 2") as failed:
        run_stages(facts(tmp_path, small))
    assert failed.value.exit_code == 2
    (tmp_path / "out" / "late.py").write_text("")
    run_stages(facts(tmp_path, small))
    assert (tmp_path / "out" / "log").read_text() == "onethree"
    assert "== 1/3 first: done before" in capfd.readouterr().out
    notes = json.loads((tmp_path / "out" / "stages.json").read_text())
    assert list(notes) == ["first", "second", "third"]
    assert all(note["seconds"] >= 0 for note in notes.values())


def test_only_what_follows_from_a_training_is_done_for_each(tmp_path: Path) -> None:
    small = recipe(
        ("data", WRITE + " {output_dir}/log data"), ("run", WRITE + " {output_dir}/log {seed}: {run_dir} {given}")
    )
    run_stages(facts(tmp_path, small, seed=1))
    run_stages(facts(tmp_path, small, seed=2))
    run_stages(facts(tmp_path, small, seed=2, run="other"))
    assert (tmp_path / "out" / "log").read_text() == "data1:2:2:"
    assert list(json.loads((tmp_path / "out" / "stages.json").read_text())) == [
        "data",
        "run seed1",
        "run seed2",
        "run other",
    ]


def test_the_stages_after_the_last_one_that_is_wanted_wait(tmp_path: Path) -> None:
    small = recipe(("data", WRITE + " {output_dir}/log data"), ("run", WRITE + " {output_dir}/log run"))
    run_stages(facts(tmp_path, small, until="data"))
    assert (tmp_path / "out" / "log").read_text() == "data"
    run_stages(facts(tmp_path, small))
    assert (tmp_path / "out" / "log").read_text() == "datarun"
    (finding,) = examine(RULES, facts(tmp_path, small, until="dat"))
    assert finding.message == "--until dat: expected one of data, run; did you mean 'data'?"


def test_another_command_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    small = recipe(("run", WRITE + " {run_dir}.log x {given}"))
    run_stages(facts(tmp_path, small, "search.top_n=2"))
    assert examine(RULES, facts(tmp_path, small, "search.top_n=2")) == []
    (finding,) = examine(RULES, facts(tmp_path, small, "search.top_n=3"))
    assert finding.severity is Severity.ERROR
    assert "search.top_n=2\n  this one asks for:" in finding.message
    assert "give another --run or --output_dir" in finding.message


@pytest.mark.parametrize("text", ["{", "[]", '{"run": 1}'])
def test_damaged_notes_and_a_run_elsewhere_are_told(text: str, tmp_path: Path) -> None:
    small = recipe(("run", WRITE + " {run_dir} x"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stages.json").write_text(text)
    told = [finding.message for finding in examine(RULES, facts(tmp_path, small, run="../elsewhere"))]
    assert [message.partition(" (")[0].partition(":")[0] for message in told] == [
        "--run ../elsewhere",
        f"{tmp_path}/out/stages.json is damaged",
    ]


def test_a_folder_takes_one_command_at_a_time(tmp_path: Path) -> None:
    small = recipe(("run", WRITE + " {output_dir}/log x"))
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(UserError, match="another command makes its stages; wait for it"):
        run_stages(facts(tmp_path, small))
    run_stages(facts(tmp_path, small))


def test_what_was_begun_goes_on_with_the_same_command_only(tmp_path: Path) -> None:
    small = recipe(("run", "python -c 'exit(1)' {given}"))
    with pytest.raises(StageFailed):
        run_stages(facts(tmp_path, small, "http://me:secret@host/1"))
    assert "secret" not in (tmp_path / "out" / "stages.json").read_text()
    assert examine(RULES, facts(tmp_path, small, "http://me:secret@host/1")) == []
    (finding,) = examine(RULES, facts(tmp_path, small, "http://me:secret@host/2"))
    assert finding.message.endswith("give another --output_dir")


def test_a_stage_that_refused_its_command_takes_another(tmp_path: Path) -> None:
    small = recipe(("data", WRITE + " {output_dir}/log data"), ("run", "python -c 'exit({given})'"))
    with pytest.raises(StageFailed, match="ended with exit code 2"):
        run_stages(facts(tmp_path, small, "2"))
    assert list(facts(tmp_path, small).notes) == ["data"]
    with pytest.raises(StageFailed, match="ended with exit code 1"):
        run_stages(facts(tmp_path, small, "1"))
    assert list(facts(tmp_path, small).notes) == ["data", "run"]


def test_an_interrupted_stage_ends_what_it_started(tmp_path: Path) -> None:
    stage = tmp_path / "stage.py"
    stage.write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "try:\n    open(sys.argv[1] + '/begun', 'w')\n    time.sleep(60)\n"
        "finally:\n    time.sleep(1)\n    open(sys.argv[1] + '/cleaned', 'w')\n"
    )
    small = recipe(("run", f"python {stage} {{output_dir}}"))
    out = tmp_path / "out"

    def interrupt_when_begun() -> None:
        while not (out / "begun").exists():
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), ThreadPoolExecutor(1) as pool:
        pool.submit(interrupt_when_begun)
        run_stages(facts(tmp_path, small))
    assert (out / "cleaned").exists()


@pytest.mark.slow
def test_a_stage_that_searches_has_a_server(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "search.py").write_text(SEARCH)
    (tmp_path / "data" / "second.jsonl").write_text('{"id": "7", "contents": "\\"Ada\\"\\nAda wrote programs."}\n')
    small = recipe(
        ("index", INDEX),
        ("search", "python {output_dir}/../search.py {search_url} {output_dir}/found"),
        inputs={"corpus": ["first.jsonl", "second.jsonl"]},
        server={"retrieval_method": "bm25", "index_path": "{output_dir}/bm25", "corpus_path": "{corpus}"},
    )  # fmt: skip
    run_stages(facts(tmp_path, small))
    assert json.loads((tmp_path / "out" / "found").read_text())[0]["id"] == "7"
    assert "{search_url}" in json.loads((tmp_path / "out" / "stages.json").read_text())["search"]["command"]


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    small = recipe(("index", "python {corpus}"), inputs={"corpus": ["a.jsonl", "b/c.jsonl.xz"]})
    with pytest.raises(UserError, match=r"no file a\.jsonl or b/c\.jsonl\.xz, the corpus of the recipe; scripts/down"):
        facts(tmp_path, small).inputs  # noqa: B018


def data_of(recipe_name: str, folder: Path) -> Path:
    for places in read_recipe(recipe_name).inputs.values():
        path = folder / "data" / places[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return folder / "data"


def test_check_shows_every_stage_of_the_real_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "FOLDER_BYTES", 0)
    data = data_of("smollm2-nq", tmp_path)
    words = ["--recipe", "smollm2-nq", "--data_dir", str(data), "--output_dir", str(tmp_path)]
    assert main([*words, "--check", "--rollout_n", "4", "search.control=empty", "--run", "no passages"]) == 0
    told = capsys.readouterr().out
    assert "0 errors: this would start" in told
    assert f"--save_path '{tmp_path}/no passages'/training" in told
    assert "--rollout_n 4 search.control=empty\n" in told
    assert not (tmp_path / "stages.json").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("search.top_m=3", "unknown setting 'search.top_m'; did you mean 'search.top_n'?"),
        ("--rollout_m=3", "unknown argument '--rollout_m=3'; did you mean '--rollout_n'?"),
        ("--rollout_n=0", "actor_rollout_ref.rollout.n=0: expected a whole number from 1 on"),
        (
            "--save_path=elsewhere",
            "--save_path was given, but the recipe sets it; see --data_dir, --output_dir",
        ),
        ("data.seed=3", "data.seed was given, but the recipe sets it; see --data_dir"),
        ("--run=before", "--run before: expected a name without a /, for a folder of its own in --output_dir"),
    ],
)
def test_a_mistake_in_a_setting_is_found_before_the_first_stage(
    word: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_of("smollm2-nq", tmp_path)
    assert main(["--recipe", "smollm2-nq", "--data_dir", str(data), "--output_dir", str(tmp_path / "out"), word]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_stage_of_the_real_model_is_a_command_that_its_program_takes(tmp_path: Path) -> None:
    data_of("smollm2-nq", tmp_path)
    for command in facts(tmp_path, read_recipe("smollm2-nq")).commands.values():
        text = command.replace("{search_url}", "http://127.0.0.1:1")
        module, arguments = module_and_arguments(text)
        parser_of(module, arguments).parse_known_args(arguments)
        check_flags(text)


def test_with_a_model_the_recipe_is_the_training_alone() -> None:
    needed = {"actor_model_path": "M", "search_url": "http://127.0.0.1:1", "train_data_path": "t.parquet"}
    words = [f"--{name}={value}" for name, value in {**needed, "dev_data_path": "d.parquet", "save_path": "S"}.items()]
    for stack in ("cpu", "research"):
        _, _, config = composed(*parse_flags(["--recipe", "smollm2-nq", "--config_name", stack, *words]))
        assert config.search.recipe == "smollm2-nq"
        assert config.algorithm.filter_groups.enable
        assert config.actor_rollout_ref.rollout.n == 8
        assert examine(SETTINGS_RULES, config) == []
