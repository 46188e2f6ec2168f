"""edgetie: its own command `edgetie bench`, whose JSON has the fields of the other workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from _measure import arguments


def main() -> None:
    options = arguments()
    prompt: list[int] = json.loads(options.prompt.read_text(encoding="utf-8"))
    command = [
        str(Path(sys.executable).with_name("edgetie")),
        *("bench", str(options.model), "--json", "--repeat", "1"),
        *("--threads", str(options.threads)),
        *("--prompt-tokens", str(len(prompt))),
        *("--new-tokens", str(options.new_tokens)),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(json.dumps(json.loads(done.stdout)))


main()
