"""Make a file for LiteRT-LM with litert-torch, in int8 as it comes: activations are int8 too.

Shapes are fixed: a prompt is read 128 tokens at a time, and the cache holds 256.

Such a file names the token that every prompt starts with, and from its chat template the ends of an
answer, which the runtime waits for before it gives a token out. Both are left out here, so that it
reads the same prompt as its peers and gives each token out at once.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from litert_torch.generative.export_hf.export import export

source, output = map(Path, sys.argv[1:])
with tempfile.TemporaryDirectory() as folder:
    checkpoint = Path(folder)
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"):
        (checkpoint / name).symlink_to((source / name).resolve())
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["bos_token"]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    export(str(checkpoint), str(output), prefill_lengths=[128], cache_length=256)
