"""What a model may come up with: programs, and a part of what it is told of each."""

PROGRAMS = {
    "sum": ("print(6 * 7)", "<result>\n42\n</result>"),
    "error": ("1 / 0", "ZeroDivisionError"),
    "bomb": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "The code was stopped after 10 s.",
    ),
    "loop": ("print('begun')\nwhile True: pass", "begun\nThe code was stopped after 10 s."),
    "memory": ("data = bytearray(10 << 30)", "MemoryError"),
    "file": ("print(open('/etc/passwd').read())", "FileNotFoundError"),
    "network": ("import socket\nsocket.create_connection(('127.0.0.1', 80), 1)", "OSError"),
    "flood": ("while True: print('x' * 1000)", "xxxxxxxx"),
}
