"""The header of the starter in C, read back by a C compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edgetie.deploy.c_header import c_header

APP = {
    "model": "model/model.onnx",
    "weights": "model/model.onnx.data",
    "ort_format": False,
    "before_prompt": '<|im_start|>"é\\?\n',
    "after_prompt": "",
    "before_answer": "",
    "next_prompt": None,
    "trim_prompt": True,
    "trim_answer": False,
    "prefix": [1, 5],
    "suffix": [],
    "stop_tokens": [2, 7],
    "sampling": {"temperature": 0.7, "top_k": None, "top_p": 0.9, "repetition_penalty": 1.0},
    "stop_strings": ["###", "\nUser:"],
    "max_positions": None,
    "vocabulary": 320,
    "logits": "all",
    "inputs": ["input_ids", "attention_mask"],
    "cache": ["0.key", "0.value"],
    "cache_dtype": "int8",
    "cache_heads": 2,
    "cache_size": 16,
    "cache_in_place": True,
    "packed": True,
    "kernels": "libedgetie_kernels.so",
    "in_file": False,
    "optimize": False,
    "images": None,
}
IMAGES = {
    "processor": "model/image_processor.onnx",
    "encoder": "model/encoder_model.onnx",
    "inputs": ["pixel_values"],
    "outputs": ["image_embeds"],
    "feeds": ["image_embeds"],
    "required": False,
    "position_axes": 3,
    "size": 64,
    "token": "<image>",
    "token_id": 9,
    "before_prompt": ["user\n", "?"],
    "next_prompt": None,
}


def test_constants() -> None:
    lines = c_header(APP).splitlines()
    for expected in (
        '#define APP_BEFORE_PROMPT "<|im_start|>\\042\\303\\251\\134\\077\\012"',
        "#define APP_HISTORY 0",
        "#define APP_TRIM_PROMPT 1",
        "#define APP_TEMPERATURE 0.7",
        "#define APP_TOP_K 0",
        "#define APP_TOP_P 0.9",
        '#define APP_STOP_STRINGS "###\\000\\012User:\\000"',
        "#define APP_MAX_POSITIONS 0",
        "#define APP_LOGITS_OF_ALL 1",
        "#define APP_CACHE_BYTES 1",
        '#define APP_KERNELS "libedgetie_kernels.so"',
        "#define APP_CACHE_TYPE ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8",
        "#define APP_PREFIX_TOKENS 2",
        "static const long long APP_PREFIX[] = {1, 5, 0};",
        "#define APP_SUFFIX_TOKENS 0",
        "static const long long APP_SUFFIX[] = {0};",
        "static const long long APP_STOP[] = {2, 7};",
        'static const char *const APP_CACHE[] = {"0.key", "0.value"};',
    ):
        assert expected in lines
    assert "APP_STOP[] = {-1};" in c_header(APP | {"stop_tokens": []})


def test_constants_of_images() -> None:
    lines = c_header(APP | {"images": IMAGES}).splitlines()
    for expected in (
        "#define APP_IMAGES 1",
        "#define APP_NEEDS_IMAGE 0",
        '#define APP_ENCODER "model/encoder_model.onnx"',
        "#define APP_IMAGE_TOKEN_ID 9",
        "#define APP_IMAGE_SIZE 64",
        "#define APP_POSITION_AXES 3",
        '#define APP_BEFORE_IMAGE "user\\012"',
        '#define APP_AFTER_IMAGE "\\077"',
        '#define APP_NEXT_BEFORE_IMAGE ""',
        'static const char *const APP_IMAGE_FEEDS[] = {"image_embeds", 0};',
    ):
        assert expected in lines
    lines = c_header(APP).splitlines()
    assert "#define APP_IMAGES 0" in lines
    assert "#define APP_IMAGE_TOKEN_ID -1" in lines
    assert "static const char *const APP_IMAGE_FEEDS[] = {0};" in lines


def test_strings_are_what_a_compiler_reads(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "app.h").write_text(c_header(APP), encoding="utf-8")
    program = (
        '#include <stdio.h>\n#include "app.h"\nint main(void) { fputs(APP_BEFORE_PROMPT, stdout); }'
    )
    (tmp_path / "main.c").write_text(program, encoding="utf-8")
    subprocess.run(["cc", "main.c", "-o", "main"], cwd=tmp_path, check=True)
    done = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.decode() == APP["before_prompt"]
