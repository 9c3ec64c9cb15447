#!/usr/bin/env bash
# smolagents 1.26.0 (openai 3.57.0), Python 3.11: with planning_interval the request for the next plan leaves out what the model
# said in its own words: of a step in which it called no tool only the error is told, joined to the task in one user message
# under another system prompt and without tools. No reply stands in it, so it looks like a new message under a new prompt.
# The plan that comes back is then told as an assistant message, in a frame of words that no model wrote.
#
# Output seen:
#   the next plan is asked for by: system user; tools 0
#   the reply before it stands in it: no; the task does: yes
#   the plan is told by: assistant, "Here are the facts I know and the plan of..."
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'smolagents[openai]==1.26.0' openai==3.57.0
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
["First look, then answer.", "I would rather talk about it than call a tool.", "Then think again, and answer.", "Still talking."]
EOF
(cd "$folder" && exec "$folder/venv/bin/python" upstream.py) &
upstream=$!
trap 'kill "$upstream"; rm -rf "$folder"' EXIT
for _ in $(seq 100); do [ -s "$folder/port" ] && break; sleep 0.1; done
export BASE_URL="http://127.0.0.1:$(cat "$folder/port")/v1" NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
cd "$folder"
cat > agent.py <<'EOF'
import os

from smolagents import OpenAIModel, ToolCallingAgent, tool


@tool
def look(at: str) -> str:
    """Looks at something.

    Args:
        at: where
    """
    return at


model = OpenAIModel(model_id="m", api_base=os.environ["BASE_URL"], api_key="k")
agent = ToolCallingAgent(tools=[look], model=model, planning_interval=1, max_steps=2, verbosity_level=0)
agent.run("How warm is it in Lisbon?")
EOF
venv/bin/python agent.py > agent.log 2>&1 || { cat agent.log; exit 1; }
venv/bin/python - <<'EOF'
import json


def text(message):
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


first, chat, again = json.load(open("requests.json"))[:3]
plan, reply = json.load(open("replies.json"))[:2]
whole = "\n".join(map(text, again["messages"]))
roles = " ".join(message["role"] for message in again["messages"])
has = ["yes" if words in whole else "no" for words in (reply, "How warm is it in Lisbon?")]
told = next(message for message in chat["messages"] if plan in text(message))
print(f"the next plan is asked for by: {roles}; tools", len(again.get("tools") or []))
print(f"the reply before it stands in it: {has[0]}; the task does: {has[1]}")
print(f"the plan is told by: {told['role']}, \"{text(told)[:41]}...\"")
assert (roles, has, again.get("tools") or []) == ("system user", ["no", "yes"], [])
assert told["role"] == "assistant" and text(told).strip("`\n ") != plan
EOF
