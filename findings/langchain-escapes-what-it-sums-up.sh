#!/usr/bin/env bash
# langchain 1.5.2 (langchain-core 1.8.3, langchain-openai 1.7.4), Python 3.11: what SummarizationMiddleware sends for a summary
# is the transcript as XML, with &, < and > of every message escaped, as one user message under no system prompt and with
# no tools; it goes out in the midst of the agent's own requests, by the same client. A gateway that looks for the replies
# that it relayed word for word finds none that holds code or markup.
#
# Output seen:
#   the reply:   Use `if (a < b && c > d)`.
#   the request: Use `if (a &lt; b &amp;&amp; c &gt; d)`.
#   word for word: no; roles of the request: [user]; tools: 0, of the request before it: 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check langchain==1.5.2 langchain-core==1.8.3 langchain-openai==1.7.4
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
["Use `if (a < b && c > d)`.", "A second reply.", "A summary.", "The last reply."]
EOF
(cd "$folder" && exec "$folder/venv/bin/python" upstream.py) &
upstream=$!
trap 'kill "$upstream"; rm -rf "$folder"' EXIT
for _ in $(seq 100); do [ -s "$folder/port" ] && break; sleep 0.1; done
export BASE_URL="http://127.0.0.1:$(cat "$folder/port")/v1" NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
cd "$folder"
venv/bin/python - <<'EOF'
import os

from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def look(at: str) -> str:
    """Looks at something."""
    return at


model = ChatOpenAI(model="m", base_url=os.environ["BASE_URL"], api_key="k")
summary = SummarizationMiddleware(model=model, trigger=("messages", 5), keep=("messages", 2))
agent = create_agent(model, tools=[look], system_prompt="Be brief.", middleware=[summary])
said = []
for text in ("How do I compare?", "And then?", "And at last?"):
    said = agent.invoke({"messages": [*said, {"role": "user", "content": text}]})["messages"]
EOF
venv/bin/python - <<'EOF'
import json, re

reply = json.load(open("replies.json"))[0]
chat, asked = json.load(open("requests.json"))[1:3]
text = asked["messages"][0]["content"]
found = re.search(r"<message type=\"ai\">(.*?)</message>", text)
assert found, text
tools = [len(request.get("tools") or []) for request in (asked, chat)]
print("the reply:  ", reply)
print("the request:", found[1])
roles = ", ".join(message["role"] for message in asked["messages"])
print(f'word for word: {"yes" if reply in text else "no"}; roles of the request: [{roles}]; tools: {tools[0]}, of the request before it: {tools[1]}')
assert found[1] == "Use `if (a &lt; b &amp;&amp; c &gt; d)`." and reply not in text
assert roles == "user" and tools == [0, 1]
EOF
