"""An OpenAI-compatible server on this machine that says what a test lets it say."""

import contextlib
import http.server
import json
import threading


class StandIn(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, dict(self.headers), body))
            number = len(self.server.asked)
        status, content, headers = self.server.reply(body, number)
        if status is None:  # as a server that is killed in the middle
            self.close_connection = True
            return
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def completion(text):
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def says(verdict_of):
    """Return a reply that gives each act of a request the truth value of verdict_of(user, act)."""

    def reply(body, number):
        user = json.loads(body["messages"][1]["content"])
        verdict = {act: bool(verdict_of(user, act)) for act in user["acts"]}
        return 200, completion(json.dumps(verdict)), {}

    return reply


@contextlib.contextmanager
def judge_server(reply):
    """Yield a `judge` for a server whose answers are reply(body, number), and what it was asked."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.reply, server.asked, server.lock = reply, [], threading.Lock()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        host, port = server.server_address
        yield {"base_url": f"http://{host}:{port}/v1", "model": "stand-in"}, server.asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
