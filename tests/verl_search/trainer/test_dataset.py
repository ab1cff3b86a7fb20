"""The question dataset: rows as the agent loop wants them, prompts measured as it builds them."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from transformers import AutoTokenizer
from verl.trainer.ppo.v1 import PPOTrainerSync

from flashrag.dataset import Question
from flashrag.episode import prompt_token_ids
from flashrag.errors import UserError
from flashrag.prompts import choose_prompt, read_record
from tests.verl_search.composing import composed
from training.qa_rows import qa_rows, write_parquet_files
from verl_search.trainer.dataset import QuestionDataset
from verl_search.trainer.trainer import SearchTrainer

BASE_MODEL = Path(__file__).parents[3] / "training" / "demo" / "base_model"
QUESTIONS = ["Who?", "Who is the leader of Hawks, and who was the leader before?"]


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE_MODEL)


def make_dataset(folder: Path, tokenizer, *, split: str = "train", **changes: object) -> QuestionDataset:
    for name in ("train", "dev"):
        questions = [Question(f"{name}{index}", question, ("gold",)) for index, question in enumerate(QUESTIONS)]
        write_parquet_files({folder / f"{name}.parquet": qa_rows(questions, name, "toy")})
    config: DictConfig = OmegaConf.create(
        {
            "prompt_key": "question",
            "max_prompt_length": 512,
            "filter_overlong_prompts": True,
            "prompt_template_name": "qa_template",
            "prompt_file": None,
            "apply_chat": False,
            "train_files": str(folder / "train.parquet"),
            "val_files": [str(folder / "dev.parquet")],
            "cache_dir": str(folder / "cache"),
            **changes,
        }
    )
    files = config.train_files if split == "train" else config.val_files
    dataset = QuestionDataset(data_files=files, tokenizer=tokenizer, config=config)
    dataset.split = split
    return dataset


def test_a_row_carries_question_answers_and_split(tmp_path: Path, tokenizer) -> None:
    row = make_dataset(tmp_path, tokenizer)[1]
    assert row["raw_prompt"] == [{"role": "user", "content": QUESTIONS[1]}]
    assert row["reward_model"]["ground_truth"] == ["gold"]
    assert (row["extra_info"]["id"], row["index"], row["split"]) == ("train1", 1, "train")
    assert make_dataset(tmp_path, tokenizer, split="val")[0]["split"] == "val"


def test_a_row_does_not_choose_another_agent_loop(tmp_path: Path, tokenizer) -> None:
    make_dataset(tmp_path, tokenizer)
    rows = [{"question": QUESTIONS[0], "agent_name": "tool_agent"}]  # as verl's tool data sets have it
    write_parquet_files({tmp_path / "tools.parquet": rows})
    (row,) = make_dataset(tmp_path, tokenizer, train_files=str(tmp_path / "tools.parquet"))
    assert "agent_name" not in row


def test_what_does_not_fit_is_left_out_and_counted(
    tmp_path: Path, tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    shorter = len(prompt_token_ids(tokenizer, QUESTIONS[0]))
    dataset = make_dataset(tmp_path, tokenizer, max_prompt_length=shorter)
    assert [row["question"] for row in dataset] == [QUESTIONS[0]]
    assert "left out 1 of 2 questions" in capsys.readouterr().out


def test_nothing_that_fits_is_an_error(tmp_path: Path, tokenizer) -> None:
    with pytest.raises(UserError, match="max_prompt_length=3 tokens; raise it"):
        make_dataset(tmp_path, tokenizer, max_prompt_length=3)


def test_chat_messages_are_a_question(tmp_path: Path, tokenizer) -> None:
    make_dataset(tmp_path, tokenizer)
    system = {"role": "system", "content": "You are a helpful and harmless assistant."}
    rows = [{"prompt": [system, {"role": "user", "content": question}]} for question in QUESTIONS]
    write_parquet_files({tmp_path / "chat.parquet": rows})
    shorter = len(prompt_token_ids(tokenizer, QUESTIONS[0]))
    chat, files = {"prompt_key": "prompt", "max_prompt_length": shorter}, str(tmp_path / "chat.parquet")
    (row,) = make_dataset(tmp_path, tokenizer, train_files=files, **chat)
    assert row["raw_prompt"] == [{"role": "user", "content": QUESTIONS[0]}]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # in torchdata
def test_the_same_file_for_both_splits_is_told_apart(tmp_path: Path, tokenizer) -> None:
    make_dataset(tmp_path, tokenizer)
    file = tmp_path / "train.parquet"
    keys = [f"data.train_files='{file}'", f"data.val_files='{file}'", "data.train_batch_size=2"]
    trainer = object.__new__(SearchTrainer)  # what upstream's method reads of a trainer, without the engines
    trainer.config = composed("demo", "search.url=http://127.0.0.1:1", *keys)
    trainer.tokenizer, trainer.processor = tokenizer, None
    trainer.trainer_mode, trainer.parameter_sync_step = "sync", 1
    trainer._init_dataloader()
    for loader, split in ((trainer.train_dataloader, "train"), (trainer.val_dataloader, "val")):
        assert [row for batch in loader for row in batch["split"]] == [split] * len(QUESTIONS)
    assert trainer.val_dataloader.batch_size == 1024, "unless told otherwise, verl asks all 7,405 at once"


def test_prompts_are_measured_in_the_words_of_the_file(tmp_path: Path, tokenizer) -> None:
    (tmp_path / "mine.yaml").write_text("user: '{question}'\n")
    longest = max(len(tokenizer.encode(question)) for question in QUESTIONS)
    dataset = make_dataset(tmp_path, tokenizer, max_prompt_length=longest, prompt_file=str(tmp_path / "mine.yaml"))
    assert len(dataset) == len(QUESTIONS)


def test_a_checkpoint_keeps_the_prompt_that_it_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PPOTrainerSync, "__init__", lambda trainer, config: setattr(trainer, "config", config))
    monkeypatch.setattr(PPOTrainerSync, "_save_checkpoint", lambda _: None)
    (tmp_path / "mine.yaml").write_text("user: '{question}'\n")
    given = ("search.url=http://127.0.0.1:1", f"search.prompt_file={tmp_path}/mine.yaml", "search.apply_chat=true")
    trainer = SearchTrainer(composed("demo", *given, f"trainer.default_local_dir={tmp_path / 'run'}"))
    record = choose_prompt("qa_template", tmp_path / "mine.yaml").record(apply_chat=True)
    (tmp_path / "mine.yaml").unlink()  # the run goes on with the words that it has read
    trainer.global_steps, trainer._alarms.save_due = 3, True
    trainer._save_checkpoint()
    assert read_record(tmp_path / "run") == read_record(tmp_path / "run" / "global_step_3") == record
    assert (trainer._saved_steps, trainer._alarms.save_due) == (3, False)
