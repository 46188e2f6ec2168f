"""Whisper tiny.en as a checkpoint of transformers, out of the package that the tests use."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from ctranslate2_files import write_whisper
from packages import whisper

write_whisper(whisper(), Path(sys.argv[1]))
