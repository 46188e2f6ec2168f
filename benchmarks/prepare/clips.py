"""The sounds of the tests, and `said.json`: what their readers say, by the names of the files."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from packages import speech_clips

output = Path(sys.argv[1])
clips = speech_clips()
if clips is None:
    raise SystemExit("Error: the Debian package with speech cannot be downloaded here")
for clip in clips:
    shutil.copy(clip, output)
text = (clips[0].parent / "transcription").read_text("utf-8")
said = {f"{name}.wav": words for words, name in re.findall(r"<s> (.*) </s> \((.*)\)", text)}
(output / "said.json").write_text(json.dumps(said), encoding="utf-8")
