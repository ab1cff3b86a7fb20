"""How each command of the docs is run: the first entry whose pattern matches the beginning of the printed text.

An entry says what the command needs (a file that another printed command writes, or the port of a printed server), what
is added to it so that it is small, and what shows that it worked: a text that it prints, the files that it writes. The
text of a server (`serves`: its printed port) is the one that it prints when it is ready. `run_by` names the file of a
test that reads the command out of the page and runs it, or the script by which CI runs it.
"""

import re
from dataclasses import dataclass

from tests.docs.pages import Command, commands

QUESTIONS = "data/hotpotqa/dev.jsonl"
RESEARCH_RUN = "outputs/evaluation/hotpotqa_dev_research/summary.json"
PUBLISHED_RUNS = tuple(
    f"outputs/published/hotpotqa_dev_{method}/summary.json" for method in ("naive", "flare", "iterretgen")
)


@dataclass(frozen=True)
class Entry:
    pattern: str
    quick: bool = False
    needs: tuple[str, ...] = ()
    more: str = ""
    replace: tuple[str, str] = ("", "")
    prints: str = ""
    writes: tuple[str, ...] = ()
    serves: str = ""
    run_by: str = ""

    def script(self, command: Command) -> str:
        """What to type: the printed command, small."""
        old, new = self.replace
        assert old in command.script, f"{old!r} is not in {command}"
        script = command.script.replace(old, new) if old else command.script
        return f"{script} {self.more}" if self.more else script


INDEX_BUILDER = r"python -m flashrag\.retriever\.index_builder "
STARTS = "0 errors: this would start"
RUN_EVAL = r"python evaluation/run_eval\.py "
ASK = r"python evaluation/ask\.py "
ASKED = r"question +Which river flows through Paris\?\n(.*\n)*answer .*\n.* tokens, .*; kept in outputs/ask/traj"

TABLE = (
    # ---- set-up and tests
    Entry(r"bash scripts/setup\.sh$", run_by="scripts/check.sh"),
    Entry(r"bash scripts/setup\.sh --sglang ", run_by="tests/end_to_end/test_engines.py"),
    Entry(r"bash scripts/check\.sh$", run_by=".ci/run"),
    Entry(r"bash scripts/test\.sh --all$", run_by=".ci/run"),
    Entry(r"bash scripts/test\.sh$", more="tests/flashrag/test_document.py", prints=r"\d+ passed"),
    Entry(r"bash scripts/test\.sh tests/", more="--collect-only", prints=r"\d+ tests collected"),
    # ---- checks
    Entry(INDEX_BUILDER + "--check ", quick=True, prints=STARTS),
    Entry(r"python -m flashrag\.retriever\.index_shards --check ", needs=("indexes/e5_Flat.index",), prints=STARTS),
    Entry(r"python rag_serving/serving\.py --check ", needs=("indexes/e5_Flat.index",), prints=STARTS),
    Entry(r"scripts/export_checkpoint\.sh --check ", quick=True, prints=STARTS),
    Entry(r"scripts/serve_model\.sh --check ", needs=("models/trained/config.json",), prints=STARTS),
    # ---- indexes
    Entry(INDEX_BUILDER + ".*--write_card", needs=("indexes/e5_Flat.index",), writes=("indexes/e5_Flat.index.json",)),
    Entry(INDEX_BUILDER + ".*--retrieval_method e5", writes=("indexes/e5_Flat.index", "indexes/e5_Flat.index.json")),
    Entry(INDEX_BUILDER + ".*--retrieval_method bm25", writes=("INDEX_DIR/bm25",)),
    Entry(
        INDEX_BUILDER + ".*--faiss_type SQ8",
        needs=("INDEX_DIR/emb_minilm",),
        writes=("INDEX_DIR/minilm_SQ8.index", "INDEX_DIR/minilm_SQ8.index.json"),
    ),
    Entry(
        INDEX_BUILDER + ".*--save_embedding",
        writes=("INDEX_DIR/emb_minilm", "INDEX_DIR/minilm_Flat.index", "INDEX_DIR/minilm_Flat.index.json"),
    ),
    Entry(INDEX_BUILDER + ".*--retrieval_method minilm", writes=("INDEX_DIR/minilm_Flat.index",)),
    Entry(
        r"python -m flashrag\.retriever\.index_shards ",
        needs=("indexes/e5_Flat.index",),
        writes=("indexes/e5_Flat.8shards",),
    ),
    # ---- servers
    Entry(
        r"python rag_serving/serving\.py ",
        needs=("indexes/e5_Flat.index",),
        prints=r"ready: http://127\.0\.0\.1:\d+ \(e5, 44 documents, [24] retrievers\)",
        serves="8000",
    ),
    Entry(r"scripts/serve_model\.sh --engine sglang ", run_by="tests/end_to_end/test_engines.py"),
    Entry(
        r"scripts/serve_model\.sh ",
        needs=("models/trained/config.json",),
        prints=r"ready: http://127\.0\.0\.1:\d+\n(.*\n)*.*generator_model: models/trained",
        serves="8010",
    ),
    # ---- training
    Entry(r"bash training/run\.sh$", run_by="tests/end_to_end/test_demo.py"),
    Entry(
        r"bash training/run\.sh --check ",
        needs=("data/train.parquet", "8000"),
        prints=STARTS,
    ),
    Entry(r"bash training/run\.sh --recipe help$", prints=r"research-pilot +Qwen2\.5-7B on HotpotQA"),
    Entry(r"bash training/run\.sh --actor_model_path ", run_by="tests/end_to_end/test_training.py"),
    Entry(
        r"python scripts/get_model\.py ",
        prints="models/smollm2: smollm2-135m-instruct",
        writes=("models/smollm2/config.json", "models/smollm2/model.safetensors"),
    ),
    Entry(
        r"bash training/warm_start\.sh ",
        needs=("data/train.parquet", "8000", "models/smollm2/config.json"),
        more="--held_out 0 --top_n 2 --max_result_tokens 100 data.train_batch_size=2 trainer.total_training_steps=1",
        prints=r"done: the model is in outputs/warm_start/model",
        writes=("outputs/warm_start/train.jsonl", "outputs/warm_start/model/model.safetensors"),
    ),
    Entry(
        r"python training/data_preprocess\.py ",
        quick=True,
        needs=(QUESTIONS,),
        prints=r"train\.parquet: 24 questions \(nq 16, hotpotqa 8\)\n.*: 5 of 5 dev questions \(nq 2, hotpotqa 3\)",
        writes=("data/mix/train.parquet", "data/mix/test.parquet"),
    ),
    Entry(
        r"python training/data_preprocess_hpqa\.py ",
        quick=True,
        prints=r"train\.parquet: 16 questions",
        writes=("data/train.parquet", "data/test.parquet"),
    ),
    Entry(
        r"scripts/export_checkpoint\.sh .* models/trained$",
        prints="1,154,816 parameters",
        writes=("models/trained/config.json", "models/trained/model.safetensors"),
    ),
    # ---- data
    Entry(
        r"python scripts/convert_data\.py hotpotqa ",
        quick=True,
        prints="3 questions -> data/hotpotqa/dev.jsonl",
        writes=("data/hotpotqa/dev.jsonl",),
    ),
    # ---- one question
    Entry(
        ASK + ".*--auto_serve ",
        needs=("models/trained/config.json", "8000"),
        prints=ASKED,
        writes=("outputs/ask/trajectories.jsonl",),
    ),
    Entry(ASK, needs=("8000", "8010"), prints=ASKED, writes=("outputs/ask/trajectories.jsonl",)),
    # ---- evaluation
    Entry(
        RUN_EVAL + "report .*--out outputs/report",
        needs=(RESEARCH_RUN, *PUBLISHED_RUNS),
        writes=("outputs/report/report.html", "outputs/report/report.md", "outputs/report/search_or_memory.json"),
    ),
    Entry(RUN_EVAL + "report ", needs=(RESEARCH_RUN,), prints=r"report\.html"),
    Entry(RUN_EVAL + "compare ", needs=PUBLISHED_RUNS, prints="em"),
    Entry(
        RUN_EVAL + ".*--auto_serve ",
        needs=(QUESTIONS, "8000"),
        more="--save_dir outputs/auto",
        writes=("outputs/auto/hotpotqa_dev_research/summary.json",),
    ),
    Entry(
        RUN_EVAL + ".*--search_control empty ",
        needs=(QUESTIONS, "8000", "8010"),
        prints="under search_control=empty",
        writes=("outputs/evaluation/hotpotqa_dev_research_empty/summary.json",),
    ),
    Entry(
        RUN_EVAL + ".*--tell_budget true ",
        needs=(QUESTIONS, "8000", "8010"),
        prints="with tell_budget=true",
        writes=("outputs/evaluation/hotpotqa_dev_research_told/summary.json",),
    ),
    Entry(
        RUN_EVAL + ".*--check$",
        needs=(QUESTIONS, "8000", "8010"),
        more="--save_note checked",  # a run that no other command has completed
        prints=r"token ids +server\n(.*\n)+.*0 errors: this would start",
    ),
    Entry(
        RUN_EVAL + ".*--method_name research .*models/trained$",
        needs=(QUESTIONS, "8000", "8010"),
        writes=(RESEARCH_RUN,),
    ),
    Entry(
        r"\$eval .*--metrics em,llm_judge ",
        needs=("outputs/published/hotpotqa_dev_research/summary.json", "judge"),
        replace=("https://api.openai.com/v1", "$JUDGE_URL"),
        prints="llm_judge",
        writes=("outputs/published/hotpotqa_dev_research/judge.jsonl",),
    ),
    Entry(
        r"\$eval --method_name research ",
        needs=(QUESTIONS, "8000", "8010"),
        writes=("outputs/published/hotpotqa_dev_research/summary.json",),
    ),
    Entry(r"for method in .*\n\$eval ", needs=(QUESTIONS, "8000", "8010"), writes=PUBLISHED_RUNS),
    # ---- clients
    Entry(r"curl ", run_by="tests/docs/test_serving.py"),
    # ---- Ray
    Entry(
        r"serve run --address local rag_serving\.ray_app:app ",
        needs=("indexes/e5_Flat.index", "port 8000"),
        replace=("num_replicas=4 num_cpus=2", "num_replicas=2 num_cpus=0.5"),
        prints="Application 'default' is ready at http://127.0.0.1:8000/",
        serves="ray",
    ),
    # ---- benchmarks
    Entry(
        r"python scripts/bench/retrieval_quality\.py ",
        needs=("INDEX_DIR/bm25", "INDEX_DIR/minilm_Flat.index"),
        prints=r'"HYBRID": \{"QUESTIONS": \{"recall@2"',
    ),
)


def entry_of(command: Command) -> Entry | None:
    return next((entry for entry in TABLE if re.match(entry.pattern, command.text)), None)


def run_here() -> list[Command]:
    """Each different command that is not marked."""
    different = {command.text: command for command in reversed(commands()) if command.not_run is None}
    return list(reversed(different.values()))


def writer_of(product: str) -> Command:
    """The first printed command that writes this file, or serves this port."""
    for command in run_here():
        entry = entry_of(command)
        if entry and (product in entry.writes or product == entry.serves):
            return command
    raise LookupError(f"no printed command makes {product}")
