"""Files of trajectories: several writers, a kill in the middle of a write, a full disk, steps that expire."""

import asyncio
import gzip
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashrag.errors import UserError
from verl_search.rollout.trajectory_files import (
    Retention,
    TrajectoryNotWritten,
    TrajectoryWriter,
    append_member,
    cut_torn_tails,
    read_file,
    read_trajectories,
    trajectory_files,
    whole_members,
)

KEEP_ALL = Retention()
LINE = {"question_id": "0012", "text": "naïve \u2028 text", "token_ids": list(range(200))}


def encode(**line: object) -> bytes:
    return json.dumps(line).encode()


def write(directory: Path, *steps: int, split: str = "train", retention: Retention = KEEP_ALL) -> None:
    """One line a step, by one writer."""

    async def write_all() -> None:
        writer = TrajectoryWriter(directory, retention)
        for step in steps:
            await writer.write(split, step, lambda step=step: encode(**LINE, step=step))

    asyncio.run(write_all())


def steps_on_disk(directory: Path, split: str = "train") -> list[int]:
    return sorted({record["step"] for record in read_trajectories(directory, split)})


def test_lines_come_back_by_split_and_step(tmp_path: Path) -> None:
    write(tmp_path, 10, 9, 9)
    write(tmp_path, 2, split="val")
    assert [record["step"] for record in read_trajectories(tmp_path)] == [9, 9, 10, 2]
    assert list(read_trajectories(tmp_path, "train", step=9)) == [{**LINE, "step": 9}] * 2


def test_pandas_reads_a_file_in_one_line(tmp_path: Path) -> None:
    write(tmp_path, 3, 3)
    (path,) = trajectory_files(tmp_path)
    frame = pandas.read_json(path, lines=True, dtype=False)
    assert frame["question_id"].tolist() == ["0012", "0012"]
    assert frame["token_ids"][1] == LINE["token_ids"]


WRITE_FOR_EVER = """
import asyncio, pathlib, sys
from verl_search.rollout.trajectory_files import Retention, TrajectoryWriter

async def main():
    writer = TrajectoryWriter(pathlib.Path(sys.argv[1]), Retention())
    while True:
        await writer.write("train", 1, sys.argv[2].encode)

asyncio.run(main())
"""


def test_processes_write_at_once_and_a_kill_loses_no_whole_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path), encode(**LINE).decode()]
    processes = [subprocess.Popen(command) for _ in range(2)]
    deadline = time.monotonic() + 60
    while sum(path.stat().st_size > 50_000 for path in trajectory_files(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.wait()
    files = trajectory_files(tmp_path)
    records = list(read_trajectories(tmp_path))
    assert len(files) == 2
    assert len(records) > 100
    assert all(record == LINE for record in records)
    cut_torn_tails(tmp_path)
    assert sum(len(pandas.read_json(path, lines=True)) for path in files) == len(records)


@given(lines=st.lists(st.binary(max_size=300), max_size=5), cut=st.integers(0, 10_000))
def test_whatever_the_file_is_cut_to_every_whole_member_comes_back(lines: list[bytes], cut: int) -> None:
    ends, file = [], b""
    for line in lines:
        file += gzip.compress(line)
        ends.append(len(file))
    cut = min(cut, len(file))
    whole = [(end, line) for end, line in zip(ends, lines, strict=True) if end <= cut]
    assert list(whole_members(io.BytesIO(file[:cut]))) == whole


def test_a_torn_tail_is_left_out_then_cut(tmp_path: Path) -> None:
    write(tmp_path, 1, 1)
    (path,) = trajectory_files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + gzip.compress(b'{"step": 1}\n')[:-4])
    with pytest.raises(EOFError):
        pandas.read_json(path, lines=True)
    assert len(list(read_file(path))) == 2
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
        list(read_file(path))


def test_a_write_that_the_disk_cuts_short_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "step_000001.a.jsonl.gz"
    member = gzip.compress(os.urandom(3000))
    append_member(path, member)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(member) + 1000, limits[1]))
    try:
        with pytest.raises(OSError, match="1000 of"):
            append_member(path, member)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == member


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
