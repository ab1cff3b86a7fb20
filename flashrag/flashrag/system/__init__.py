"""The machine under every program: files, processes, servers, command lines. Each module stands alone.

arguments.py     command lines: one parser, whose help explains every flag
files.py         files and folders that are whole or absent, and locks
json_lines.py    logs of JSON lines that survive a kill
processes.py     child processes that never outlive their parent
local_server.py  a server as a child process: started, waited for, stopped
model_server.py  SGLang or vLLM as such a server; engine.py: their command lines
network.py       the way to an address: straight, or through a proxy
machine.py       GPUs, library versions, git revision
garbage.py       short pauses of the garbage collector
"""
