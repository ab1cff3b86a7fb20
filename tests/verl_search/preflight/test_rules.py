"""Each rule of a training run, over facts that are given by hand."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest

from flashrag.client import RetrievalServers
from flashrag.errors import UserError
from flashrag.generator import ModelFacts
from flashrag.preflight import Severity, examine
from flashrag.prompts import choose_prompt, write_record
from flashrag.questions import Question
from flashrag.reward import MADE_UP, JudgeReply
from tests.flashrag.preflight.test_machine import GOOD
from tests.verl_search.composing import composed
from verl_search.platform.ray_cluster import Node
from verl_search.preflight import rules, sizes
from verl_search.preflight.facts import Asked, TrainingFacts, fits, question_paths, read_questions
from verl_search.preflight.memory import training_memory
from verl_search.trainer.run_folder import kept_setting

BASE_MODEL = Path(__file__).parents[3] / "training" / "demo" / "base_model"
DISABLED = "trainer.resume_mode=disable"
MODEL = ModelFacts("Qwen2ForCausalLM", 1024, 4, 1000, 1_000_000, 64 * 2**20, 4_000_000)


def asked(count: int, too_long: int = 0, prefix: str = "q") -> Asked:
    return Asked([Question(str(i), f"{prefix}{i}", ("a",)) for i in range(count)], too_long, [1, 2])


def told(
    rule: rules.Rule[TrainingFacts], *overrides: str, config_name: str = "demo", **facts: Any
) -> list[tuple[Severity, str]]:
    """The findings of one rule for the demo's config (batch 8, prompts of 256, responses of 384 tokens), or another."""
    known = TrainingFacts(composed(config_name, "trainer.default_local_dir=/tmp/none", *overrides), config_name)
    given = {"machine": GOOD, "model": MODEL, "train": asked(20), "val": asked(3, prefix="v")}
    given |= {"rewarded_question": (MADE_UP, "nq"), **facts}
    known.__dict__["_gathered"] = given
    return [(finding.severity, finding.message) for finding in examine({"rule": rule}, known)]


def test_fewer_questions_than_a_batch():
    ((severity, message),) = told(rules.training_questions, train=asked(9, too_long=2))[:1]
    assert severity is Severity.ERROR
    assert "data.train_batch_size=8, but only 7 questions of data.train_files can be used" in message


def test_questions_that_do_not_fill_a_batch_are_said_once_an_epoch_is_all():
    assert told(rules.training_questions, "trainer.total_training_steps=2") == [
        (Severity.NOTE, "4 of 20 training questions do not fill a last batch and are not used")
    ]
    assert told(rules.training_questions, "trainer.total_training_steps=3") == [], "the next epoch shuffles"


@pytest.mark.parametrize(
    ("overrides", "too_long", "severity", "words"),
    [
        ([], 3, Severity.ERROR, "no prompt fits data.max_prompt_length=256 tokens; raise it"),
        ([], 1, Severity.WARNING, "1 of 3 questions are left out, because their prompts exceed"),
        (["data.filter_overlong_prompts=false"], 1, Severity.ERROR, "1 of 3 prompts exceed"),
    ],
)
def test_prompts_that_are_too_long(overrides, too_long, severity, words):
    ((found, message),) = told(rules.validation_questions, *overrides, val=asked(3, too_long))
    assert found is severity
    assert words in message


@pytest.mark.parametrize(
    ("template", "severity", "words"),
    [
        (None, Severity.ERROR, "apply_chat=true, but the tokenizer has no chat template"),
        ("{{ raise_exception('roles must alternate') }}", Severity.ERROR, "(TemplateError: roles must alternate)"),
        ("{{ messages[-1].content }}", Severity.NOTE, "the chat template leaves a system message out, so"),
    ],
)
def test_a_chat_template_is_tried_before_anything_starts(template: str | None, severity: Severity, words: str):
    """The model's own, or the one that is given for it."""
    model = [f"actor_rollout_ref.model.path='{BASE_MODEL}'", "search.url=http://127.0.0.1:1"]
    given = [] if template is None else [f'actor_rollout_ref.model.custom_chat_template="{template}"']
    ((found, message),) = told(rules.chat_template_renders, *model, *given, "search.apply_chat=true")
    assert found is severity
    assert words in message
    assert "\n" not in message
    assert told(rules.chat_template_renders, *model, *given, "search.apply_chat=false") == []


def test_a_reward_is_tried_before_anything_starts(tmp_path: Path):
    given = ["search.url=http://127.0.0.1:1", f"search.reward='{tmp_path}/my_reward.py:reward'"]
    (tmp_path / "my_reward.py").write_text("def reward(t, g):\n    return t.calls[0].latency_s, t.data_source\n")
    ((severity, message),) = told(rules.reward_works, *given, rewarded_question=(Question("q7", "Who?", ("a",)), "nq"))
    assert severity is Severity.ERROR
    assert message == (
        f"{tmp_path}/my_reward.py, line 2: IndexError: tuple index out of range (reward, question 'q7'): "
        "tried on a made-up trajectory, a wrong answer without a search"
    )
    row = {"question": "Who?", "data_source": "nq", "reward_model": {"ground_truth": ["a"]}, "extra_info": {"id": "q7"}}
    pandas.DataFrame([row]).to_parquet(tmp_path / "train.parquet")
    table = "{'q7': {'nq': 0.5}}[t.question_id][t.data_source]"
    (tmp_path / "by_id.py").write_text(f"def reward(t, g):\n    return {table}, ''\n")
    by_id = [given[0], f"search.reward='{tmp_path}/by_id.py:reward'", f"data.train_files='{tmp_path}/train.parquet'"]
    known = TrainingFacts(composed("demo", by_id[2]))
    known.__dict__["_gathered"] = {"train": Asked([Question("q7", "Who?", ("a",))], 0, [1])}
    assert told(rules.reward_works, *by_id, rewarded_question=known.rewarded_question) == []
    terms = ["search.url=http://127.0.0.1:1", "search.reward={f1: 1.0, length: -0.1}"]
    assert told(rules.reward_works, *terms) == []
    assert told(rules.reward_works, terms[0], "search.reward_rule=answer") == []
    assert told(rules.reward_works, *terms, "search.reward_rule=answer", "search.answer_metric=f1") == [
        (Severity.ERROR, "search.answer_metric=f1 has no effect beside search.reward; leave it at em"),
        (Severity.ERROR, "search.reward_rule=answer has no effect beside search.reward; leave it at format_and_answer"),
    ]


@pytest.mark.parametrize(
    ("reply", "severity", "words"),
    [
        (
            JudgeReply(None, "ConnectError refused", ()),
            Severity.ERROR,
            "search.judge.url=http://j does not answer (",
        ),
        (
            JudgeReply(403, None, ()),
            Severity.ERROR,
            "search.judge.url=http://j answered 403; put its key into",
        ),
        (JudgeReply(200, None, ("other",)), Severity.WARNING, "search.judge.model='gpt' is not among the models of"),
    ],
)
def test_the_judge_of_a_reward_must_be_there(reply: JudgeReply, severity: Severity, words: str, tmp_path: Path):
    given = ["search.url=http://127.0.0.1:1", "search.reward={judge: 1.0, searches: -0.1}"]
    given += ["search.judge={model: gpt, url: 'http://j'}"]
    ((found, message),) = told(rules.judge_answers, *given, judge_reply=reply)
    assert found is severity
    assert words in message
    assert told(rules.judge_answers, given[0]) == []
    assert told(rules.reward_works, *given) == []
    (tmp_path / "judged.py").write_text("def reward(t, g):\n    return t.metrics['llm_judge'], ''\n")
    assert told(rules.reward_works, given[0], given[2], f"search.reward='{tmp_path}/judged.py:reward'") == []


def test_a_control_is_told():
    url = "search.url=http://127.0.0.1:1"
    assert told(rules.control_is_told, url) == []
    for control in ("empty", "random", "stale", "delayed", "forced", "forbidden"):
        ((severity, message),) = told(rules.control_is_told, url, f"search.control={control}")
        assert severity is Severity.WARNING
        assert message.startswith(f"search.control={control}: this run is a control")


@pytest.mark.parametrize("control", ["none", "empty"])
@pytest.mark.parametrize(
    ("kept", "was"), [("{search: {control: none}}", "none"), ("{search: {control: random}}", "random"), ("{}", "none")]
)
def test_a_run_goes_on_under_the_control_that_it_began_with(control: str, kept: str, was: str, tmp_path: Path):
    given = ["search.url=http://127.0.0.1:1", f"search.control={control}", f"trainer.default_local_dir={tmp_path}"]
    (tmp_path / "hydra" / ".hydra").mkdir(parents=True)
    (tmp_path / "hydra" / ".hydra" / "config.yaml").write_text(kept)

    def refusals() -> list[str]:
        return [message for severity, message in told(rules.control_is_told, *given) if severity is Severity.ERROR]

    assert refusals() == [], "without a checkpoint the run begins anew"
    (tmp_path / "global_step_3").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    expected = [] if control == was else [f"the run in {tmp_path} has search.control={was} and would go on"]
    assert [message.partition(", but ")[2].partition(";")[0] for message in refusals()] == expected


def test_a_run_goes_on_with_its_budget_told_as_it_began(tmp_path: Path):
    (tmp_path / "hydra" / ".hydra").mkdir(parents=True)
    (tmp_path / "hydra" / ".hydra" / "config.yaml").write_text("{search: {control: none}}")  # of before the key
    (tmp_path / "global_step_3").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    given = ["search.url=http://127.0.0.1:1", f"trainer.default_local_dir={tmp_path}"]
    assert told(rules.control_is_told, *given) == []
    ((severity, message),) = told(rules.control_is_told, *given, "search.tell_budget=true")
    assert severity is Severity.ERROR
    assert f"search.tell_budget=true, but the run in {tmp_path} has search.tell_budget=false" in message


def test_passages_of_other_questions_need_other_questions():
    given = ["search.url=http://127.0.0.1:1", "search.control=random"]
    ((severity, message),) = told(rules.control_is_told, *given, train=asked(19))
    assert severity is Severity.ERROR
    assert "which has 19 different ones; give at least 20" in message


def test_only_prompts_that_could_be_too_long_are_encoded():
    encoded: list[str] = []

    def prompt_ids(question: str) -> list[int]:
        encoded.append(question)
        return [0] * (10 + len(question) // 2)

    # 10 tokens of template and 5 bytes fit into 15 for sure; 6 bytes may be 6 tokens, and are 3.
    assert fits(["12345", "123456", "1" * 12, "é" * 3], prompt_ids, 15) == [True, True, False, True]
    assert encoded == ["", "123456", "1" * 12, "é" * 3]
    # "<s>" may become "< s>": 4 tokens of 3 bytes.
    assert fits(["<s>"], lambda question: [0] * (10 + len(question.replace("<s>", "< s>"))), 13) == [False]


def test_validation_on_training_questions():
    ((severity, message),) = told(rules.splits_differ, val=asked(25))
    assert (severity, message[:59]) == (Severity.WARNING, "20 of 25 validation questions are training questions, too: ")
    assert told(rules.splits_differ) == []


def test_prompts_in_the_question_column():
    instructed = asked(
        20, prefix="Here is a question. Think inside <think> and </think> before you answer it, then search. "
    )
    ((severity, message),) = told(rules.questions_are_no_prompts, train=instructed)
    assert severity is Severity.WARNING
    assert "begin with the same 89 characters ('Here is a question. Think" in message
    assert "name the column of the questions (--prompt_key)" in message


def test_a_sequence_must_fit_the_model():
    assert told(rules.sequence_fits_the_model, "data.max_response_length=768") == []  # 256 + 768 = 1024
    ((severity, message),) = told(rules.sequence_fits_the_model, "data.max_response_length=769")
    assert severity is Severity.ERROR
    assert "make 1025 tokens, but the model takes 1024" in message
    assert (
        told(rules.sequence_fits_the_model, "data.max_response_length=9999", model=replace(MODEL, positions=None)) == []
    )


def test_heads_are_split_evenly():
    assert told(rules.heads_divide, "actor_rollout_ref.rollout.tensor_model_parallel_size=2") == []
    ((severity, message),) = told(rules.heads_divide, "actor_rollout_ref.rollout.tensor_model_parallel_size=3")
    assert severity is Severity.ERROR
    assert "does not divide the model's 4 attention heads" in message


def test_the_weights_buffer_grows_with_the_largest_tensor():
    key = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
    ((severity, message),) = told(rules.bucket_is_large_enough, f"{key}=16")  # 64 Mi elements of 4 bytes
    assert severity is Severity.NOTE
    assert message == f"{key}=16 is raised to 256: the model's largest tensor needs it"
    assert told(rules.bucket_is_large_enough, f"{key}=16", model=replace(MODEL, largest_tensor=4 * 2**20)) == []
    assert told(rules.bucket_is_large_enough) == []  # null


@pytest.mark.parametrize(
    ("configured", "largest", "megabytes"),
    [
        ("null", 64 * 2**20, 256),  # 64 Mi elements of 4 bytes
        ("null", 151_936 * 128, 75),  # Qwen2.5's rows: 77,791,232 bytes are 74.2 MiB
        ("null", 1, 1),
        ("null", None, 2048),  # weights whose sizes are unknown: verl's own size
        ("64", 151_936 * 128, 75),
        ("64", 1, 64),
        ("64", None, 64),
    ],
)
def test_the_weights_buffer_holds_the_largest_tensor(configured: str, largest: int | None, megabytes: int):
    key = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
    config = composed("cpu", f"{key}={configured}")
    assert sizes.bucket_megabytes(replace(MODEL, largest_tensor=largest), config) == megabytes
    if largest is None:
        assert sizes.bucket_megabytes(None, config) == megabytes  # a model of the hub


def test_a_critic_takes_the_memory_and_the_disk_of_an_actor():
    with_critic = composed("demo", "algorithm.adv_estimator=gae")
    memory = training_memory(MODEL, with_critic)
    assert memory is not None
    assert memory.host["critic: weights, gradients, optimizer"] == 16_000_000
    # The actor's 16 MB as below, and the critic's weights and optimizer.
    assert sizes.checkpoint_bytes(MODEL, with_critic) == (4 + 8 + 4 + 4 + 8) * 1_000_000


def test_a_run_without_a_critic_does_not_go_on_with_one(tmp_path: Path):
    given = (f"trainer.default_local_dir={tmp_path}", "algorithm.adv_estimator=gae")
    assert told(rules.critic_can_go_on, *given) == [], "the run begins"
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    (tmp_path / "global_step_3" / "actor").mkdir(parents=True)
    ((severity, message),) = told(rules.critic_can_go_on, *given)
    assert severity is Severity.ERROR
    assert f"but {tmp_path}/global_step_3, from which the run would go on, holds no critic" in message
    named = ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/global_step_3")
    assert told(rules.critic_can_go_on, *given, *named) == [(severity, message)]
    assert told(rules.critic_can_go_on, given[0]) == told(rules.critic_can_go_on, *given, DISABLED) == []
    (tmp_path / "global_step_3" / "critic").mkdir()
    assert told(rules.critic_can_go_on, *given) == []


def test_the_disk_on_paper():
    config = composed("demo")
    assert sizes.checkpoint_bytes(MODEL, config) == (4 + 8 + 4) * 1_000_000
    assert sizes.kept_checkpoints(config, 25) == 2  # of 3 that are written: the newest and the best
    config.trainer.max_actor_ckpt_to_keep = None
    assert sizes.kept_checkpoints(config, 25) == 3


def test_unless_told_otherwise_a_run_keeps_two_checkpoints_and_the_best():
    """verl keeps them all: 353 of the published run, 91 GB each."""
    config = composed("research")
    assert sizes.kept_checkpoints(config, 3530) == 3
    assert config.trainer.max_critic_ckpt_to_keep == config.trainer.max_actor_ckpt_to_keep == 2


def test_a_disk_without_room_for_one_checkpoint_is_an_error_and_for_all_of_them_a_warning(tmp_path: Path):
    place, keep = f"trainer.default_local_dir={tmp_path}", "trainer.max_actor_ckpt_to_keep=null"
    huge = replace(MODEL, parameters=2**55)
    ((severity, message),) = told(rules.disk_is_enough, place, model=huge)
    assert severity is Severity.ERROR
    assert "are free, but a checkpoint need" in message
    assert told(rules.disk_is_enough, place) == []
    steps = ["trainer.save_freq=1", "trainer.total_training_steps=100000000", keep]
    ((severity, message),) = told(rules.disk_is_enough, place, *steps)
    assert severity is Severity.WARNING
    assert message.endswith(" on another disk, or keep one: trainer.max_actor_ckpt_to_keep=1")


def test_a_long_temporary_folder_leaves_no_room_for_rays_sockets():
    ((severity, message),) = told(rules.ray_has_room_for_sockets, ray_folder=Path("/" + "t" * 40))
    assert severity is Severity.ERROR
    assert "has a path of 41 bytes; expected at most 39, because Ray makes sockets in it" in message


def test_tokenizer_and_generation_config_that_end_sequences_differently(tmp_path):
    model = shutil.copytree(BASE_MODEL, tmp_path / "model")
    assert told(rules.model_can_be_trained, model_folder=model) == []
    assert told(rules.model_can_be_trained, model_folder=None) == [], "the hub's files are not here"
    (model / "generation_config.json").write_text('{"eos_token_id": 5}')
    ((severity, message),) = told(rules.model_can_be_trained, model_folder=model)
    assert severity is Severity.WARNING
    assert "ends a sequence with '<|endoftext|>' (0), but generation_config.json with 5" in message


def test_a_model_of_another_kind_is_not_trained(tmp_path):
    model = shutil.copytree(BASE_MODEL, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    for changed, words in (
        ({"architectures": ["BertModel"]}, "'BertModel' is none that the installed vLLM can generate with"),
        ({"architectures": None}, "config.json names no architectures"),
        ({"quantization_config": {"quant_method": "gptq"}}, "its weights are quantized (gptq)"),
        ({"vocab_size": 9}, "config.json has vocab_size=9, but the weights have 2345 rows of embeddings"),
    ):
        (model / "config.json").write_text(json.dumps({**config, **changed}))
        ((severity, message),) = told(rules.model_can_be_trained, model_folder=model)
        assert severity is Severity.ERROR
        assert words in message


def test_a_tokenizer_of_a_larger_model_is_refused():
    model = f"actor_rollout_ref.model.path='{BASE_MODEL}'"
    train = asked(20)
    assert told(rules.prompts_are_of_its_tokens, model, train=train) == []
    ((severity, message),) = told(
        rules.prompts_are_of_its_tokens, model, train=replace(train, first_prompt_ids=[1, 1000])
    )
    assert severity is Severity.ERROR
    assert "its tokenizer makes the token 1000 of a prompt, but the model takes tokens below 1000" in message


def test_the_server_must_give_as_many_passages():
    settings = ["search.url=http://127.0.0.1:1", "search.top_n=9"]
    servers = RetrievalServers({"http://127.0.0.1:1": {"documents": 44}}, [], 8, None, False)
    ((severity, message),) = told(rules.servers_answer, *settings, servers=servers)
    assert severity is Severity.ERROR
    assert message.startswith("search.top_n=9, but the retrieval server gives at most 8 passages")
    assert told(rules.servers_answer, *settings, servers=servers._replace(max_top_n=9)) == []


@pytest.mark.parametrize("files", ["[]", "5", "[5]", "{a: 1}"])
def test_files_of_questions_are_named(files):
    with pytest.raises(UserError, match=r"expected a parquet file, or several: data\.train_files=\[a\.parquet"):
        question_paths(composed("demo", f"data.train_files={files}"), "data.train_files")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"extra_info": "q0"}, "row 1: extra_info: 'q0' was given; expected an object, or nothing"),
        ({"data_source": ["nq"]}, r"row 1: data_source: \['nq'\] was given; expected the name of a set of questions"),
        ({"extra_info": None}, ""),
        ({"data_source": None}, ""),
    ],
)
def test_the_other_columns_of_a_row_are_verl_s(tmp_path, changed, words):
    row = {"question": "Who?", "data_source": "nq", "reward_model": {"ground_truth": ["a"]}, "extra_info": {"id": "q"}}
    path = tmp_path / "train.parquet"
    pandas.DataFrame([{**row, **changed}]).to_parquet(path)
    with pytest.raises(UserError, match=words) if words else nullcontext():
        assert len(read_questions("data.train_files", path, "question")) == 1


@pytest.mark.parametrize("note", [b"", b"3.0", b"\xff"])
def test_a_damaged_note_of_the_last_checkpoint_is_told_before_verl_reads_it(tmp_path, note):
    place = f"trainer.default_local_dir='{tmp_path}'"
    (tmp_path / "latest_checkpointed_iteration.txt").write_bytes(b"3\n")
    assert told(rules.last_checkpoint_is_known, place) == []
    (tmp_path / "latest_checkpointed_iteration.txt").write_bytes(note)
    ((severity, message),) = told(rules.last_checkpoint_is_known, place)
    assert severity is Severity.ERROR
    assert "expected the number of a step; write that of the last global_step_N into it" in message
    assert told(rules.last_checkpoint_is_known, place, DISABLED) == []


def test_a_damaged_config_of_the_last_start_is_named(tmp_path):
    (tmp_path / "hydra" / ".hydra").mkdir(parents=True)
    (tmp_path / "hydra" / ".hydra" / "config.yaml").write_text("search: [")
    with pytest.raises(UserError, match="the config of the last start, cannot be read"):
        kept_setting(tmp_path, "search.control", None)


def test_a_home_that_cannot_be_written_needs_another_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    for name in ("HF_DATASETS_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    ((severity, message),) = told(rules.cache_can_be_written)
    assert severity is Severity.ERROR
    assert message.startswith(f"{tmp_path}/file/.cache/huggingface cannot be written (HOME, HF_HOME)")
    assert message.endswith("set XDG_CACHE_HOME to a folder that can")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert told(rules.cache_can_be_written) == []


NODES = [Node("127.0.0.1", 1, 8), Node("198.51.100.7", 1, 8)]  # this machine, and one of another address


@pytest.mark.parametrize(
    ("url", "nodes", "refused"),
    [
        ("http://127.0.0.1:8000", NODES[:1], []),
        ("http://127.0.0.1:8000", [], []),  # a Ray of the run's own
        ("http://10.0.0.1:8000, https://retrieval.test/wiki", NODES, []),
        ("http://127.0.0.1:8000", NODES, ["http://127.0.0.1:8000"]),
        (
            "http://10.0.0.1:8000, http://LOCALHOST:8001,http://[::1]:9",
            NODES,
            ["http://LOCALHOST:8001", "http://[::1]:9"],
        ),
        ("http://0.0.0.0:8000", NODES, ["http://0.0.0.0:8000"]),
    ],
)
def test_a_loopback_address_is_refused_on_several_nodes(url: str, nodes: list[Node], refused: list[str]):
    found = told(rules.servers_are_reached_from_each_node, f"search.url='{url}'", ray_nodes=nodes)
    assert [(severity, message.partition(" is another")[0]) for severity, message in found] == [
        (Severity.ERROR, f"search_url={one}") for one in refused
    ]


def test_the_address_to_write_instead_is_this_machines_in_the_cluster():
    judge = "search.judge={model: m, url: 'http://localhost:8001/v1'}"
    given = ["search.url=http://127.0.0.1:8000/wiki", "search.reward={judge: 1}", judge]
    nodes = [NODES[1], NODES[0]]
    first, second = told(rules.servers_are_reached_from_each_node, *given, ray_nodes=nodes)
    assert first[1] == (
        "search_url=http://127.0.0.1:8000/wiki is another machine on each of the 2 nodes of the Ray cluster; let the "
        "server listen for them (--host 0.0.0.0) and name this one: http://127.0.0.1:8000/wiki"
    )
    assert second[1].startswith("search.judge.url=http://localhost:8001/v1 is another machine")


def test_another_prompt_than_the_model_was_trained_with_is_told(tmp_path: Path):
    given = ["search.url=http://127.0.0.1:1", f"trainer.default_local_dir={tmp_path}"]
    model, checkpoint = tmp_path / "model", tmp_path / "global_step_3"
    write_record(model, choose_prompt("qa_template").record(apply_chat=True))
    assert told(rules.prompt_is_the_model_s, *given, "search.apply_chat=true", model_folder=model) == []
    ((severity, message),) = told(rules.prompt_is_the_model_s, *given, model_folder=model)
    assert severity is Severity.WARNING
    assert message.startswith(
        f"{model}: the model was trained with the prompt built-in qa_template (in the chat template"
    )
    assert "and is asked with built-in qa_template (as plain text" in message

    # A run that goes on starts from its checkpoint, not from the model.
    write_record(checkpoint, choose_prompt("search_r1").record(apply_chat=False))
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    ((_, message),) = told(rules.prompt_is_the_model_s, *given, "search.apply_chat=true", model_folder=model)
    assert message.startswith(f"{checkpoint}: the model was trained with the prompt built-in search_r1")


def test_a_prompt_in_other_tags_is_told(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("user: 'Ask by <search>. {question}'\n")
    given = ["search.url=http://127.0.0.1:1", f"search.prompt_file={tmp_path}/mine.yaml"]
    ((_, message),) = told(rules.prompt_is_the_model_s, *given, model_folder=None)
    assert message.startswith(f"{tmp_path}/mine.yaml never names <answer>, by which the model")
    (tmp_path / "mine.yaml").write_text("user: '{questions}'\n")
    ((severity, message),) = told(rules.prompt_is_the_model_s, *given, model_folder=None)
    assert (severity, "did you mean 'question'?" in message) == (Severity.ERROR, True)
