"""The recipe of the demo's imperfect base model, as a command.

    python -m training.demo.base_model --output_dir training/demo/base_model --overwrite    pretrain it again
    python -m training.demo.base_model --verify training/demo/base_model                     compare with its manifest

The product is a tiny Qwen2 (float32, tied embeddings) with its tokenizer, in the layout that `from_pretrained` and
vLLM load, and a MANIFEST.json with the recipe, the versions and the sha256 of every file. It knows the tags and can
copy, but it mostly guesses or stops after one search. See `base_training` for the curriculum, `base_init` for the
copying prior that it starts from, `base_transcripts` for its habits.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from flashrag.errors import UserError, exit_on_user_error
from flashrag.system.arguments import CommandParser

MANIFEST_NAME = "MANIFEST.json"
COMMITTED_DIR = Path(__file__).parent / "base_model"
REPORT_EVERY = 25


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def product_hashes(product_dir: Path) -> dict[str, str]:
    """sha256 of every file of the product but the manifest itself."""
    paths = sorted(path for path in product_dir.iterdir() if path.is_file() and path.name != MANIFEST_NAME)
    return {path.name: sha256_of(path) for path in paths}


def verify_product(product_dir: Path) -> None:
    """Raise `UserError` when the files are not the ones that the manifest lists."""
    manifest_path = product_dir / MANIFEST_NAME
    if not manifest_path.is_file():
        raise UserError(f"{product_dir} has no {MANIFEST_NAME}; name a folder written by this command")
    expected = json.loads(manifest_path.read_text(encoding="utf-8"))["sha256"]
    actual = product_hashes(product_dir)
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            raise UserError(
                f"{product_dir / name} has sha256 {actual.get(name, 'none (missing)')}, the manifest says "
                f"{expected.get(name, 'no such file')}; restore the committed folder or run the recipe again"
            )


def write_product(output_dir: Path) -> None:
    """Pretrain and save; progress goes to stdout."""
    # Heavy imports wait until the arguments are known to be good.
    import torch
    import transformers

    from training.demo.base_training import Progress, Recipe, pretrain

    def report(progress: Progress) -> None:
        if progress.step % REPORT_EVERY == 0 or progress.step == progress.steps:
            print(
                f"{progress.phase:8s} {progress.step:4d}/{progress.steps}  loss {progress.loss:.3f}  "
                f"names {progress.name_accuracy:.3f}  {progress.seconds:.0f} s",
                flush=True,
            )

    recipe = Recipe()
    tokenizer, model = pretrain(recipe, report)
    output_dir.mkdir(parents=True, exist_ok=True)
    # Whatever class tokenizer_config.json names, AutoTokenizer takes Qwen2's own, whose NFC normalisation changes some
    # texts. Where that file names none, it takes the class that config.json names.
    model.config.tokenizer_class = "PreTrainedTokenizerFast"
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    tokenizer_config_path = output_dir / "tokenizer_config.json"
    tokenizer_config = json.loads(tokenizer_config_path.read_text(encoding="utf-8"))
    del tokenizer_config["tokenizer_class"]
    tokenizer_config_path.write_text(json.dumps(tokenizer_config, indent=2) + "\n", encoding="utf-8")
    manifest = {
        "command": "python -m training.demo.base_model --output_dir training/demo/base_model --overwrite",
        "recipe": asdict(recipe),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "sha256": product_hashes(output_dir),
    }
    (output_dir / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    print(f"{output_dir}: {manifest['parameters']:,} parameters")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(description="Pretrain the demo's imperfect base model, or verify a product.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--output_dir", type=Path, help="where to write the product")
    action.add_argument("--verify", type=Path, metavar="DIR", help="compare a product with its manifest")
    parser.add_argument("--overwrite", action="store_true", help="replace a product that is already there")
    arguments = parser.parse_args(argv)
    if arguments.verify:
        verify_product(arguments.verify)
        print(f"{arguments.verify}: every file is the one that {MANIFEST_NAME} lists")
        return
    output_dir = arguments.output_dir
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {output_dir} is a file; name a folder")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not arguments.overwrite:
        raise UserError(f"--output_dir {output_dir} is not empty; give --overwrite or name another folder")
    write_product(output_dir)


if __name__ == "__main__":
    raise SystemExit(main())
