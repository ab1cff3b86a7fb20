"""The cause of a failed training run, out of logs as verl, Ray and vLLM write them."""

from pathlib import Path

from training.failure import describe_failure, find_cause, what_a_repeat_does

# A value that the engine's own parser refuses: no traceback in the process that broke.
REFUSED = """\
\x1b[36m(vLLMHttpServer pid=29463)\x1b[0m  '--kv_cache_dtype',
\x1b[36m(vLLMHttpServer pid=29463)\x1b[0m  'fp7']
\x1b[33m(raylet)\x1b[0m A worker died or was killed while executing a task by an unexpected system error.
\x1b[36m(vLLMHttpServer pid=29463)\x1b[0m usage: vllm serve [model_tag] [options]
\x1b[36m(vLLMHttpServer pid=29463)\x1b[0m worker.py serve: error: argument --kv-cache-dtype: invalid choice: 'fp7'
Traceback (most recent call last):
  File "main_ppo.py", line 101, in train
    run_ppo(config, task_runner_class=SearchTaskRunner)
ray.exceptions.RayTaskError(ActorDiedError): \x1b[36mray::SearchTaskRunner.run()\x1b[39m (pid=28559, ip=192.0.2.2)
  File "replica.py", line 141, in init_hybrid
    await self.launch_servers()
ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.
\tclass_name: vLLMHttpServer
\tpid: 29463
"""
REFUSED_REASON = "ActorDiedError: The actor died unexpectedly.\n\tclass_name: vLLMHttpServer\n\tpid: 29463"

# An engine that raises in a process of its own; two processes repeat it in other words.
RAISED = """\
(vLLMHttpServer pid=17) starting
(vLLMHttpServer pid=17) (EngineCore pid=29) INFO 11-26 02:36:00 [core.py:9] allocating 40 GiB
(vLLMHttpServer pid=17) (EngineCore pid=29) ERROR 11-26 02:36:01 [core.py:1] Traceback (most recent call last):
(vLLMHttpServer pid=17) still waiting
(vLLMHttpServer pid=17) (EngineCore pid=29) ERROR 11-26 02:36:01 [core.py:1]   File "cache.py", line 3, in allocate
(vLLMHttpServer pid=17) (EngineCore pid=29) ERROR 11-26 02:36:01 [core.py:1] MemoryError: 40 GiB for the cache
(vLLMHttpServer pid=17) Traceback (most recent call last):
(vLLMHttpServer pid=17)   File "client.py", line 1, in wait
(vLLMHttpServer pid=17) RuntimeError: Engine core initialization failed. See root cause above.
Traceback (most recent call last):
  File "main_ppo.py", line 101, in train
RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_the_last_words_of_a_process_that_died_without_a_traceback():
    cause = find_cause(REFUSED, REFUSED_REASON)
    assert cause is not None
    assert (cause.process, cause.told) == (
        "vLLMHttpServer",
        "worker.py serve: error: argument --kv-cache-dtype: invalid choice: 'fp7'",
    )
    assert cause.around == (
        " '--kv_cache_dtype',",
        " 'fp7']",
        "usage: vllm serve [model_tag] [options]",
        "worker.py serve: error: argument --kv-cache-dtype: invalid choice: 'fp7'",
    )


def test_the_first_exception_of_the_process_that_broke_not_its_wrappers():
    cause = find_cause(RAISED, "RuntimeError: Engine core initialization failed. See root cause above.")
    assert cause is not None
    assert (cause.process, cause.told) == ("EngineCore", "MemoryError: 40 GiB for the cache")
    assert cause.around == (
        "allocating 40 GiB",
        '  File "cache.py", line 3, in allocate',
        "MemoryError: 40 GiB for the cache",
    )


def test_an_exception_of_the_trainer_itself_is_found_behind_rays():
    log = REFUSED[REFUSED.index("Traceback") :].replace("ray.exceptions.ActorDiedError", "ValueError")
    cause = find_cause(log, "ValueError: The actor died unexpectedly before finishing this task.")
    assert cause is not None
    assert cause.process == ""
    assert cause.told == "ValueError: The actor died unexpectedly before finishing this task."


def test_a_log_that_says_nothing_has_no_cause():
    assert find_cause("step 1\nTraceback (most recent call last):\n  File cut off here", "") is None


def test_what_is_told(tmp_path: Path):
    log = tmp_path / "train.log"
    log.write_text("error: of an earlier run\n" + RAISED)
    told = describe_failure(tmp_path, log, 25, 1, "RuntimeError: Engine core initialization failed. " * 20)
    assert told.splitlines() == [
        f"the trainer ended with exit code 1: {('RuntimeError: Engine core initialization failed. ' * 20)[:299]}…",
        "it began in EngineCore with: MemoryError: 40 GiB for the cache",
        "    allocating 40 GiB",
        '      File "cache.py", line 3, in allocate',
        "    MemoryError: 40 GiB for the cache",
        "No checkpoint was saved: the same command starts from the beginning.",
        f"The whole log: {log}",
    ]


def test_a_killed_trainer(tmp_path: Path):
    told = describe_failure(tmp_path, tmp_path / "train.log", 0, -9, "")
    assert told.startswith("the trainer was killed (signal 9), as the kernel does when memory runs out\n")


def test_a_checkpoint_is_named_only_where_it_is(tmp_path: Path):
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
    assert what_a_repeat_does(tmp_path).startswith("No checkpoint was saved")
    (tmp_path / "global_step_10").mkdir()
    assert what_a_repeat_does(tmp_path) == (
        f"The checkpoint of step 10 is in {tmp_path}: the same command resumes from it."
    )
