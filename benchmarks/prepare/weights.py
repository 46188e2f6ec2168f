"""Make the plain fp32 checkpoint that every peer starts from, out of a GGUF file.

The directory gets config, safetensors and tokenizer, as if it came from a model hub, and
`prompt_ids.json`: token ids of a long text, for the driver to cut the prompt from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = """\
The lighthouse on the northern point had been dark for eleven years when Marta Lind came back to
the island with two suitcases and a box of tools. Nobody met her at the pier. The ferryman put
her things on the planks, wished her luck, and turned the boat before the tide could hold it. She
stood a while and listened to the gulls. Then she took the path along the cliffs, past the old
salt store and the chapel without a roof, until she saw the white tower against the grey water.
The door was locked, but the key still hung behind the third stone, where her father had always
put it. Inside, everything was covered with dust and smelled of oil and wet rope. The stairs went
up in a spiral, one hundred and twelve of them, and she counted each one aloud as she had done
when she was a child. At the top the great lens waited under its canvas. She pulled the canvas
away, wiped one of the prisms with her sleeve, and looked through it at the sea. A small boat was
coming slowly around the point, and it carried no light at all.
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path, help="directory with one .gguf file")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()

    (gguf,) = options.source.glob("*.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(
        options.source, gguf_file=gguf.name, dtype=torch.float32
    )
    # A model read from GGUF counts as quantized, and save_pretrained refuses it: move its
    # weights into a fresh model whose config does not say so.
    config = loaded.config
    del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(options.output)

    tokenizer = AutoTokenizer.from_pretrained(options.source, gguf_file=gguf.name)
    tokenizer.save_pretrained(options.output)
    ids = tokenizer(" ".join(TEXT.split()))["input_ids"]
    (options.output / "prompt_ids.json").write_text(json.dumps(ids), encoding="utf-8")


main()
