"""The token ids of the text that accuracy is measured on: a whole novel, no special tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgetie.bundle import open_bundle
from edgetie.runtime import Tokenizer
from edgetie.sources.demo import demo_text

tokenizer = Tokenizer.from_bundle(open_bundle(sys.argv[1]))
ids = tokenizer.encode(demo_text(), add_special_tokens=False)
(Path(sys.argv[2]) / "ids.json").write_text(json.dumps(ids), encoding="utf-8")
