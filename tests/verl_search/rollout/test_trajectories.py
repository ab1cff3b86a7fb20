"""The trajectories of a run on disk: several writers, a kill in the middle of a write, steps that expire."""

import asyncio
import gzip
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest

from flashrag.episode import EndReason, Episode, InvariantViolation, Segment, Source, Trajectory
from flashrag.errors import UserError
from verl_search.rollout.trajectories import (
    Retention,
    TrajectoryNotWritten,
    TrajectoryWriter,
    cut_torn_tails,
    read_run,
    read_trajectories,
    trajectory_files,
    write_violation,
)

KEEP_ALL = Retention()
EPISODE = Episode((1, 2), [Segment(Source.MODEL, "naïve \u2028 text", tuple(range(200)))], [], EndReason.LENGTH)


def trajectory(step: int = 1, split: str = "train") -> Trajectory:
    asked = {"question_id": "0012", "question": "Who?", "gold_answers": ("Wu",)}
    return Trajectory.of_episode(EPISODE, step=step, split=split, written_at=0.0, **asked)


def write(directory: Path, *steps: int, split: str = "train", retention: Retention = KEEP_ALL) -> None:
    """One line a step, by one writer."""

    async def write_all() -> None:
        writer = TrajectoryWriter(directory, retention)
        for step in steps:
            await writer.write(trajectory(step, split))

    asyncio.run(write_all())


def steps_on_disk(directory: Path, split: str = "train") -> list[int]:
    return sorted({kept.step or 0 for kept in read_trajectories(directory, split)})


def test_lines_come_back_by_split_and_step(tmp_path: Path) -> None:
    write(tmp_path, 10, 9, 9)
    write(tmp_path, 2, split="val")
    assert [kept.step for kept in read_trajectories(tmp_path)] == [9, 9, 10, 2]
    assert list(read_trajectories(tmp_path, "train", step=9)) == [trajectory(9)] * 2


@pytest.mark.parametrize("inside", ["trajectories", "training/trajectories", "."])
def test_a_run_is_read_from_its_folder_a_demo_s_or_that_of_its_trajectories(inside: str, tmp_path: Path) -> None:
    write(tmp_path / inside, 3, 4)
    assert [kept.step for kept in read_run(tmp_path)] == [3, 4]
    assert list(read_run(tmp_path / "nowhere")) == []


def test_pandas_reads_a_file_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, 3, 3)
    (path,) = trajectory_files(tmp_path)
    frame = pandas.read_json(path, lines=True, dtype=False)
    assert frame["question_id"].tolist() == ["0012", "0012"]
    assert frame["segments"][1][0]["token_ids"] == list(range(200))


WRITE_FOR_EVER = """
import asyncio, pathlib, sys
from flashrag.episode import Trajectory
from verl_search.rollout.trajectories import Retention, TrajectoryWriter

async def main():
    writer = TrajectoryWriter(pathlib.Path(sys.argv[1]), Retention())
    trajectory = Trajectory.from_json(sys.argv[2].encode())
    while True:
        await writer.write(trajectory)

asyncio.run(main())
"""


def test_processes_write_at_once_and_a_kill_loses_no_whole_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path), trajectory().to_json().decode()]
    processes = [subprocess.Popen(command) for _ in range(2)]
    deadline = time.monotonic() + 60
    while sum(path.stat().st_size > 50_000 for path in trajectory_files(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.wait()
    files = trajectory_files(tmp_path)
    kept = list(read_trajectories(tmp_path))
    assert len(files) == 2
    assert len(kept) > 100
    assert all(one == trajectory() for one in kept)
    cut_torn_tails(tmp_path)
    assert sum(len(pandas.read_json(path, lines=True)) for path in files) == len(kept)


def test_a_torn_tail_is_left_out_then_cut(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    (path,) = trajectory_files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + gzip.compress(b'{"step": 1}\n')[:-4])
    with pytest.raises(EOFError):
        pandas.read_json(path, lines=True)
    assert len(list(read_trajectories(tmp_path))) == 2
    assert cut_torn_tails(tmp_path) == [path]
    assert path.read_bytes() == whole
    assert cut_torn_tails(tmp_path) == []


def test_other_damage_is_refused_with_its_place(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    (path,) = trajectory_files(tmp_path)
    content = bytearray(path.read_bytes())
    second = len(content) // 2
    content[second : second + 2] = b"\0\0"
    path.write_bytes(content)
    assert cut_torn_tails(tmp_path) == []
    with pytest.raises(UserError, match=rf"damaged after byte {second} "):
        list(read_trajectories(tmp_path))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("a file in the folder's place")
    with pytest.raises(TrajectoryNotWritten, match=r"train.*set search\.trajectory_dir"):
        write(tmp_path, 1)


@pytest.mark.parametrize(
    ("current", "kept"),
    [
        # every 5th: 0 5 10 | the newest two up to the current one | what is later is not touched
        (12, {0, 5, 10, 11, 12}),
        (11, {0, 5, 10, 11, 12}),
        (9, {0, 5, 8, 9, 10, 11, 12}),
    ],
)
def test_steps_expire_by_age_unless_they_are_a_multiple(current: int, kept: set[int]) -> None:
    steps = set(range(13))
    assert steps - Retention(keep_every=5, keep_last=2).expired(steps, current) == kept


def test_a_validation_of_a_kept_step_is_kept(tmp_path: Path) -> None:
    retention = Retention(keep_every=6, keep_last=3)
    for step in range(1, 12):
        write(tmp_path, step, retention=retention)
        if step % 3 == 0:
            write(tmp_path, step, split="val", retention=retention)
    # Deleted when a step begins: train counts 9 10 11 as the newest three, val 3 6 9.
    assert steps_on_disk(tmp_path) == [6, 9, 10, 11]
    assert steps_on_disk(tmp_path, "val") == [3, 6, 9]


def test_a_resumed_run_keeps_what_it_writes_beside_the_abandoned_steps(tmp_path: Path) -> None:
    retention = Retention(keep_every=100, keep_last=2)
    write(tmp_path, 4, 5, 6, retention=retention)
    write(tmp_path, 3, 4, retention=retention)  # killed at 6, resumed after 2
    assert steps_on_disk(tmp_path) == [3, 4, 5, 6]
    assert len(list(read_trajectories(tmp_path, step=4))) == 1


def test_nothing_but_own_files_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    foreign = [tmp_path / "train" / name for name in ("step_000001.jsonl.gz", "step_1.a.jsonl.gz", "notes.txt")]
    for path in foreign:
        path.write_text("mine")
    (tmp_path / "train" / "step_000001.b.jsonl.gz").mkdir()
    write(tmp_path, *range(1, 6), retention=Retention(keep_every=100, keep_last=2))
    assert [path.name for path in trajectory_files(tmp_path, step=1)] == ["step_000001.b.jsonl.gz"]
    assert all(path.read_text() == "mine" for path in foreign)
    assert sorted(path.name[:11] for path in trajectory_files(tmp_path) if path.is_file()) == [
        "step_000004",
        "step_000005",
    ]


def test_a_line_of_another_version_is_refused_with_its_file(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (path,) = trajectory_files(tmp_path)
    path.write_bytes(gzip.compress(b'{"version": 1, "question_id": "0012"}\n'))
    with pytest.raises(UserError, match=rf"{path.name}: not a trajectory of version 3"):
        list(read_trajectories(tmp_path))


def test_a_violation_is_written_with_its_trajectory(tmp_path: Path) -> None:
    violation = InvariantViolation("masks differ", EPISODE)
    path = write_violation(tmp_path, violation, question_id="1", question="Who?", gold_answers=("Wu",))
    written = Trajectory.from_json(path.read_bytes())
    assert str(written.error) == "InvariantViolation: masks differ"
    assert written.segments[0].token_ids == tuple(range(200))
