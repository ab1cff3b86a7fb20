"""The preflight: what is wrong is found in seconds, before an engine starts, and all of it at once."""

from flashrag.preflight.findings import (
    Finding,
    PreflightFailed,
    Rule,
    Severity,
    enforce,
    error,
    examine,
    fact,
    gathered,
    keep_findings,
    note,
    warning,
)
from flashrag.preflight.machine import (
    MACHINE_RULES,
    Machine,
    MachineFacts,
    check_readable,
    free_bytes,
    gib,
    is_writable,
    output_folder,
    socket_folder,
)
from flashrag.preflight.plan import CHECK_HELP, Plan, checked_command, keep_torch_out_of_a_check, show_check
from flashrag.preflight.questions import question_findings

__all__ = [
    "CHECK_HELP",
    "MACHINE_RULES",
    "Finding",
    "Machine",
    "MachineFacts",
    "Plan",
    "PreflightFailed",
    "Rule",
    "Severity",
    "check_readable",
    "checked_command",
    "enforce",
    "error",
    "examine",
    "fact",
    "free_bytes",
    "gathered",
    "gib",
    "is_writable",
    "keep_findings",
    "keep_torch_out_of_a_check",
    "note",
    "output_folder",
    "question_findings",
    "show_check",
    "socket_folder",
    "warning",
]
