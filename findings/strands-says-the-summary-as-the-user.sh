#!/usr/bin/env bash
# strands-agents 1.62.0 (openai 2.54.0), Python 3.11: SummarizingConversationManager puts the summary, which a model wrote, in
# front of the list as a message of the USER's, also where the oldest message that it keeps is a user's: then two user
# messages follow one another in every request of the chat from then on. So a summary, once a reply, comes back in the
# other role: who looks for replies among assistant messages misses it, and roles do not alternate.
#
# Output seen:
#   the summary is asked for by: system user assistant user
#   the chat then sends: system user user assistant user
#   its first user message: A summary.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'strands-agents[openai]==1.62.0' openai==2.54.0
cat > "$folder/upstream.py" <<'EOF'
"""Keeps each request, answers the texts of replies.json in turn."""
import http.server, json, sys

replies = json.load(open("replies.json"))
seen = []


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        seen.append(body)
        json.dump(seen, open("requests.json", "w"))
        text = replies[min(len(seen), len(replies)) - 1]
        if body.get("stream"):
            parts = [{"role": "assistant", "content": text}, {}]
            chunks = [{"choices": [{"index": 0, "delta": part, "finish_reason": None if part else "stop"}]} for part in parts]
            events = [{"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", **chunk} for chunk in chunks]
            data = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"
            kind = "text/event-stream"
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            data = json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}).encode()
            kind = "application/json"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
open("port", "w").write(str(server.server_port))
server.serve_forever()
EOF
cat > "$folder/replies.json" <<'EOF'
["Reply one.", "Reply two.", "A summary.", "Reply three."]
EOF
(cd "$folder" && exec "$folder/venv/bin/python" upstream.py) &
upstream=$!
trap 'kill "$upstream"; rm -rf "$folder"' EXIT
for _ in $(seq 100); do [ -s "$folder/port" ] && break; sleep 0.1; done
export BASE_URL="http://127.0.0.1:$(cat "$folder/port")/v1" NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
cd "$folder"
venv/bin/python - <<'EOF'
import os

from strands import Agent
from strands.agent.conversation_manager import SummarizingConversationManager
from strands.models.openai import OpenAIModel

model = OpenAIModel(client_args={"base_url": os.environ["BASE_URL"], "api_key": "k"}, model_id="m")
manager = SummarizingConversationManager(summary_ratio=0.5, preserve_recent_messages=2)
agent = Agent(model=model, system_prompt="Be brief.", conversation_manager=manager, callback_handler=None)
agent("One?")
agent("Two?")
manager.reduce_context(agent)
agent("Three?")
EOF
venv/bin/python - <<'EOF'
import json

asked, chat = json.load(open("requests.json"))[2:4]
roles = [" ".join(message["role"] for message in request["messages"]) for request in (asked, chat)]
first = next(message["content"] for message in chat["messages"] if message["role"] == "user")
first = first if isinstance(first, str) else "".join(part["text"] for part in first)
print("the summary is asked for by:", roles[0])
print("the chat then sends:", roles[1])
print("its first user message:", first)
assert roles == ["system user assistant user", "system user user assistant user"] and first == "A summary."
EOF
