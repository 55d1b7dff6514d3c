"""Speaks OpenAI's protocol as far as a run needs it: python chat_server.py PORT FOLDER [ANSWERS].

Leaves a file for every start and every request in the folder, and one where two run at a time. Ends after
so many answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT, FOLDER, ANSWERS = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 10**6

COUNTING = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with COUNTING:
            number = len(list(FOLDER.glob("asked-*")))
            (FOLDER / f"asked-{os.getpid()}-{number}").write_text(body["model"])
        time.sleep(0.1)
        message = {"role": "assistant", "content": "[[100, 100, 700, 700]]"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        self.answer(
            {"id": "1", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [choice]}
        )
        if number + 1 == ANSWERS:
            os._exit(3)

    def answer(self, value: object) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
        self.wfile.flush()


if __name__ == "__main__":
    # What a real server does: it works in a process of its own, which must end with it.
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if any(Path(f"/proc/{p.name.split('-')[1]}").exists() for p in FOLDER.glob("started-*")):
        (FOLDER / "together").touch()
    (FOLDER / f"started-{os.getpid()}-{helper.pid}").touch()
    print("here I am", flush=True)
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
