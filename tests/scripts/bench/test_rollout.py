"""The rollout benchmark: what it writes beforehand, what it makes the engine sample, what it makes of the rates."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from flashrag.document import Document, Hit
from flashrag.episode import EpisodeCodec
from scripts.bench.report import print_report

with warnings.catch_warnings(action="ignore"):  # verl and vLLM warn while they are imported
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    from scripts.bench.rollout import TARGETS, Engine, Rollouts, figures, main, rollout_config, sample_at_once
    from scripts.bench.transcripts import FORCED, ForcedTokens, Transcript, write_transcripts

REPOSITORY = Path(__file__).parents[3]
BASE_MODEL = REPOSITORY / "training" / "demo" / "base_model"
PASSAGES = ['"Hawks"\nThe home of Hawks is Wildford.', '"Wildford"\nThe river of Wildford is Tarn.']
QUESTIONS = ["In which city was the band Hawks formed?"] * 12


class OnePassage:
    """A retrieval client that finds the same for every query, as a step of a benchmark or of an episode."""

    async def batch_search(self, queries: list[str], top_n: int) -> list[list[Hit]]:
        return [[Hit(Document(str(n), PASSAGES[n]), 1.0 - n) for n in range(top_n)] for _ in queries]

    async def search_scored(self, query: str) -> list[Hit]:
        return (await self.batch_search([query], 2))[0]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BASE_MODEL)


@pytest.fixture(scope="module")
def transcripts(tokenizer: Any) -> list[Transcript]:
    codec = EpisodeCodec(tokenizer, [tokenizer.eos_token_id])
    return asyncio.run(write_transcripts(QUESTIONS, PASSAGES, codec, OnePassage(), seed=0))


def test_transcripts_are_episodes_that_end_by_themselves(transcripts: list[Transcript], tokenizer: Any):
    searches = [len(transcript.turns) - 1 for transcript in transcripts]
    assert min(searches) == 0 and max(searches) == 4
    for transcript in transcripts:
        *asking, last = transcript.turns
        for turn in asking:
            text = tokenizer.decode(turn.sampled_ids)
            assert text.startswith(" <think> ") and text.endswith(f"<search> {turn.query} </search>")
            assert tokenizer.decode(turn.spliced_ids) == f" <result>\n{PASSAGES[0]}\n\n{PASSAGES[1]}\n</result>"
            assert turn.wait_s > 0
        assert last.sampled_ids[-1] == tokenizer.eos_token_id
        assert (last.query, last.spliced_ids, last.wait_s) == ("", (), 0.0)


def test_a_row_samples_the_next_token_that_it_is_told_to():
    processor, sampled = ForcedTokens(), [5]
    told = SamplingParams(extra_args={FORCED: [5, 2, 7]})
    processor.update_state(
        BatchUpdate(2, removed=[], added=[(1, told, None, sampled), (0, SamplingParams(), None, [])], moved=[])
    )
    logits = processor.apply(torch.arange(16.0).reshape(2, 8))
    assert logits.argmax(dim=-1).tolist() == [7, 2]
    assert torch.isinf(logits).sum() == 7
    sampled += [2, 7]  # one step too far: anything will do
    assert processor.apply(torch.zeros(2, 8)).argmax(dim=-1).tolist() == [0, 7]


def test_every_way_brings_the_transcripts_to_their_end(transcripts: list[Transcript], tokenizer: Any, tmp_path: Path):
    rollouts = Rollouts(sample_at_once, rollout_config("http://127.0.0.1:1", BASE_MODEL, tmp_path), tokenizer)
    asyncio.run(_every_way(rollouts, transcripts[:4]))
    assert len(list(tmp_path.glob("train/*.jsonl.gz"))) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_engine_samples_exactly_the_transcripts(tmp_path: Path):
    """In a process of its own: vLLM leaves threads and sockets to its end."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, check=True)


async def on_the_engine(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    codec = EpisodeCodec(tokenizer, [tokenizer.eos_token_id])
    transcripts = await write_transcripts(QUESTIONS, PASSAGES, codec, OnePassage(), seed=0)
    with contextlib.closing(Engine(BASE_MODEL)) as engine:
        await _every_way(
            Rollouts(engine.sample, rollout_config("http://127.0.0.1:1", BASE_MODEL, folder), tokenizer), transcripts
        )
        await engine.llm.reset_prefix_cache()


async def _every_way(rollouts: Rollouts, transcripts: list[Transcript]) -> None:
    """Each checks its own tokens."""
    await rollouts.limit(transcripts)
    await rollouts.sequential(transcripts[:2])
    await rollouts.turn_sync(transcripts)
    await rollouts.ours(transcripts)
    await rollouts.ours(transcripts, OnePassage())


def test_the_figures_are_medians_of_ratios_within_a_round(capsys: pytest.CaptureFixture[str]):
    rates = {
        "limit": [1000.0, 2000.0, 1000.0],
        "ours": [900.0, 1900.0, 880.0],
        "server": [800.0, 1500.0, 700.0],
        "turn_sync": [600.0, 1000.0, 550.0],
        "sequential": [50.0, 95.0, 40.0],
    }
    print_report(figures(rates, [0.9, 0.5, 0.7]), TARGETS)
    *table, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == {
        "ours_over_limit": 0.9,
        "ours_over_sequential": 20.0,
        "ours_over_turn_sync": 1.6,
        "server_over_limit": 0.75,
        "limit_over_turn_sync": 1.8182,
        "python_ms_per_turn": 0.7,
    }
    assert "| ours_over_turn_sync | 1.6 (1.5–1.9) | >= 1.4 |" in table


def test_a_folder_without_a_demo_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--demo_dir", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


if __name__ == "__main__":
    asyncio.run(on_the_engine(Path(sys.argv[1])))
