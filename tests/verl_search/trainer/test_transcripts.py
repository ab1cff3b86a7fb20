"""Transcripts as the SFT trainer gets them: ids as they are, loss on sampled tokens alone."""

from pathlib import Path

from flashrag.episode import Segment, Source, Trajectory
from verl_search.trainer.transcripts import TranscriptDataset

SEGMENTS = (
    Segment(Source.MODEL, "search", (10, 11)),
    Segment(Source.RESULT, "result", (20, 21, 22)),
    Segment(Source.MODEL, "answer", (12, 0)),
)


def test_ids_positions_and_mask(tmp_path: Path) -> None:
    transcript = Trajectory("q1", "Who?", ("Wu",), segments=SEGMENTS, prompt_ids=(1, 2, 3, 4))
    path = tmp_path / "train.jsonl"
    path.write_bytes(transcript.to_json() + b"\n" + transcript.to_json() + b"\n")
    dataset = TranscriptDataset(str(path))
    assert len(dataset) == 2
    item = dataset[1]
    assert item["input_ids"].tolist() == [1, 2, 3, 4, 10, 11, 20, 21, 22, 12, 0]
    assert item["position_ids"].tolist() == list(range(11))
    assert item["loss_mask"].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1]
    assert len(TranscriptDataset([str(path), str(path)], max_samples=3)) == 3
