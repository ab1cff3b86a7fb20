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
    keep_findings,
    note,
    warning,
)
from flashrag.preflight.machine import (
    MACHINE_RULES,
    Machine,
    free_bytes,
    gib,
    is_writable,
    output_folder,
    socket_folder,
)
from flashrag.preflight.plan import Plan, show_check

__all__ = [
    "MACHINE_RULES",
    "Finding",
    "Machine",
    "Plan",
    "PreflightFailed",
    "Rule",
    "Severity",
    "enforce",
    "error",
    "examine",
    "fact",
    "free_bytes",
    "gib",
    "is_writable",
    "keep_findings",
    "note",
    "output_folder",
    "show_check",
    "socket_folder",
    "warning",
]
