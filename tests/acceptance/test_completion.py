"""A shell that read our script completes our words."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.test_commands import ROOT, session_proxy

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
read -r -a told <<< "$(complete -p session-proxy)"
for n in "${!told[@]}"; do [ "${told[n]}" = -F ] && function="${told[n + 1]}"; done
"$function" session-proxy "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "session-proxy"
    done = session_proxy("completion", "bash")
    assert (done.returncode, done.stderr) == (0, "")
    file.write_text(done.stdout)
    return file


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", {"serve", "check", "schema", "demo", "init", "backup", "restore", "db", "doctor", "completion"}),
        ("ba", {"backup"}),
        ("serve --", {"--config", "--listen", "--upstream", "--demo"}),
        ("db ", {"check", "stats", "purge"}),
        ("db purge --o", {"--older-than"}),
        ("doctor --", {"--help", "--config", "--state", "--through", "--key"}),
        ("completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_bash_completes_commands_and_options(script: Path, line: str, words: set[str]) -> None:
    if not (bash := shutil.which("bash")):
        pytest.skip("bash is not installed (Debian: bash)")
    arguments = [bash, "--norc", "-c", ASK, "bash", str(script), "session-proxy", *line.split(" ")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=20, check=True)
    assert {word.strip() for word in done.stdout.split()} - {"-h"} >= words
    assert done.stderr == ""


def test_bash_completes_folders_for_folder_options(script: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    arguments = ["--norc", "-c", ASK, "bash", str(script), "session-proxy", "db", "check", "--state", f"{tmp_path}/f"]
    done = subprocess.run(["bash", *arguments], capture_output=True, text=True, timeout=20, check=True)
    assert [word.rstrip("/") for word in done.stdout.split()] == [str(tmp_path / "folder")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_completion_script_is_valid_and_names_every_command(shell: str, tmp_path: Path) -> None:
    done = session_proxy("completion", shell)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("backup", "restore", "doctor", "purge", "older-than", "through"))
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed (Debian: {shell})")
    (file := tmp_path / "script").write_text(done.stdout)
    subprocess.run([shell, "-n", str(file)], timeout=20, check=True)


def test_completion_without_shtab_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['shtab'] = None; from proxy import cli; sys.exit(cli.main(['completion', 'bash']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "pip install 'llm-session-proxy[completion]'" in done.stderr
    assert "Traceback" not in done.stderr
