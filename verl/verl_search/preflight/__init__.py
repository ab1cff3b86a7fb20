"""The preflight of training: facts about a composed config, the rules over them, the plan of `--check`."""
