"""edgetie: its own command `edgetie bench`, whose JSON has the fields of the other workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from _measure import arguments, read_ids


def main() -> None:
    options = arguments()
    if options.reference:
        sys.exit("ValueError: `edgetie bench` does not take the prompt's tokens")
    prompt = read_ids(options.prompt)
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
