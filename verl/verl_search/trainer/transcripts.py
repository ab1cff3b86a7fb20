"""Transcripts as upstream's SFT trainer reads them: token ids, and a loss mask that is 1 on sampled tokens alone.

A transcript is a kept trajectory (flashrag.episode.record), from whatever source: its ids are trained on as they are,
with the mask of a rollout. Does not cover: making transcripts (training/warm_start).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from flashrag.episode import Trajectory, loss_mask
from flashrag.system.json_lines import read_lines


class TranscriptDataset(Dataset):
    """verl's interface of a data set for supervised fine-tuning; the tokenizer is not used, because ids are kept."""

    def __init__(
        self,
        parquet_files: str | Sequence[str],
        tokenizer: Any = None,
        config: Any = None,
        processor: Any = None,
        max_samples: int = -1,
    ) -> None:
        del tokenizer, config, processor
        paths = [parquet_files] if isinstance(parquet_files, str) else parquet_files
        lines = [line for path in paths for line in read_lines(Path(path))]
        self.transcripts = [Trajectory.from_json(line) for line in lines[: max_samples if max_samples > 0 else None]]

    def __len__(self) -> int:
        return len(self.transcripts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`input_ids`, `position_ids` and `loss_mask`, each of shape (tokens of prompt and response,)."""
        transcript = self.transcripts[index]
        ids = [*transcript.prompt_ids, *(token for segment in transcript.segments for token in segment.token_ids)]
        mask = [*[0] * len(transcript.prompt_ids), *loss_mask(transcript.segments)]
        return {
            "input_ids": torch.tensor(ids),
            "position_ids": torch.arange(len(ids)),
            "loss_mask": torch.tensor(mask),
        }
