"""What every program of ours needs of the machine, each module on its own; nothing here knows of models or search.

arguments.py     command lines: one parser, complaints in one line
files.py         files and folders that are whole or absent, and locks
json_lines.py    logs of JSON lines that survive a kill
processes.py     child processes that never outlive their parent
local_server.py  a server as a child process: started, waited for, stopped
model_server.py  SGLang or vLLM as such a server
machine.py       what the machine has
garbage.py       the garbage collector's pauses
"""
