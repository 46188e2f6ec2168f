"""Copy a checkpoint that transformers 5 wrote so that transformers 4 reads it rightly.

Version 5 moved `rope_theta` into `rope_parameters`; version 4 does not look there and silently
takes its default, so the exported model computes something else.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()

    shutil.copytree(options.source, options.output, dirs_exist_ok=True)
    config_file = options.output / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    config_file.write_text(json.dumps(config, indent=2), encoding="utf-8")


main()
