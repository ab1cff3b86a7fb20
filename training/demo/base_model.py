"""The recipe of the demo's imperfect base model, as a command.

    python -m training.demo.base_model --output_dir training/demo/base_model --overwrite

The product is a tiny Qwen2 (float32, tied embeddings) with its tokenizer, in the layout that `from_pretrained` and
vLLM load, and a MANIFEST.json with the recipe, the versions and the sha256 of every file. It knows the tags and can
copy, but it mostly guesses or stops after one search. `base_training` has the curriculum, `base_transcripts` the
habits. Where the versions are those of the manifest, git shows no change afterwards.
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from flashrag.errors import UserError, exit_on_user_error
from flashrag.system.arguments import CommandParser
from flashrag.system.machine import library_versions

MANIFEST_NAME = "MANIFEST.json"


def product_hashes(product_dir: Path) -> dict[str, str]:
    """sha256 of every file of the product but the manifest itself."""
    paths = sorted(path for path in product_dir.iterdir() if path.is_file() and path.name != MANIFEST_NAME)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def write_product(output_dir: Path) -> None:
    """Pretrain and save."""
    # Heavy imports wait until the arguments are known to be good.
    from training.demo.base_training import Recipe, pretrain

    recipe = Recipe()
    tokenizer, model = pretrain(recipe)
    output_dir.mkdir(parents=True, exist_ok=True)
    # Whatever class tokenizer_config.json names, AutoTokenizer takes Qwen2's own, whose NFC normalisation changes some
    # texts. Where that file names none, it takes the class that config.json names.
    model.config.tokenizer_class = "PreTrainedTokenizerFast"
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    tokenizer_config_path = output_dir / "tokenizer_config.json"
    tokenizer_config = json.loads(tokenizer_config_path.read_text(encoding="utf-8"))
    del tokenizer_config["tokenizer_class"]
    _write_json(tokenizer_config_path, tokenizer_config)
    manifest = {
        "command": "python -m training.demo.base_model --output_dir training/demo/base_model --overwrite",
        "recipe": asdict(recipe),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "versions": {"python": platform.python_version(), **library_versions(("torch", "transformers"))},
        "sha256": product_hashes(output_dir),
    }
    _write_json(output_dir / MANIFEST_NAME, manifest)
    print(f"{output_dir}: {manifest['parameters']:,} parameters")


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = CommandParser(prog="python -m training.demo.base_model", description="Pretrain the demo's base model.")
    parser.add_argument("--output_dir", type=Path, required=True, help="where to write the product")
    parser.add_argument("--overwrite", action="store_true", help="replace a product that is already there")
    arguments = parser.parse_args(argv)
    output_dir = arguments.output_dir
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {output_dir} is a file; name a folder")
    if output_dir.is_dir() and any(output_dir.iterdir()) and not arguments.overwrite:
        raise UserError(f"--output_dir {output_dir} is not empty; give --overwrite or name another folder")
    write_product(output_dir)


if __name__ == "__main__":
    raise SystemExit(main())
