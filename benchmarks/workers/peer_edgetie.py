"""edgetie: its own command `edgetie bench`, whose JSON has the fields of the other workers.

The command chooses its own prompt; so the comparison with a reference goes through the runtime.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from _measure import Emit, Generate, arguments, main, read_ids

from edgetie.runtime import Decoder, open_session


def open_model(path: Path, threads: int, length: int) -> Generate:
    decoder = Decoder(open_session(path, provider="cpu", threads=threads), 1, length)

    def generate(prompt: list[int], count: int, emit: Emit) -> None:
        decoder.reset()
        ids = np.array([prompt], np.int64)
        logits = decoder.prefill(ids, np.ones_like(ids))
        for left in reversed(range(count)):
            token = logits.argmax(axis=-1)
            emit(int(token[0]))
            if left:
                logits = decoder.step(token)

    return generate


def bench() -> None:
    """Run the command once and pass its JSON on, in one line."""
    options = arguments()
    command = [
        str(Path(sys.executable).with_name("edgetie")),
        *("bench", str(options.model), "--json", "--repeat", "1"),
        *("--threads", str(options.threads)),
        *("--prompt-tokens", str(len(read_ids(options.prompt)))),
        *("--new-tokens", str(options.new_tokens)),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(json.dumps(json.loads(done.stdout)))


if arguments().reference:
    main(open_model)
else:
    bench()
