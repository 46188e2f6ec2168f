"""The token ids of the text that accuracy is measured on: a whole novel, no special tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgetie.bundle.bundle import open_bundle
from edgetie.downloads import demo_text
from edgetie.runtime.text.tokenizer import Tokenizer

tokenizer = Tokenizer.from_bundle(open_bundle(sys.argv[1]))
ids = tokenizer.encode(demo_text(), add_special_tokens=False)
(Path(sys.argv[2]) / "ids.json").write_text(json.dumps(ids), encoding="utf-8")
