"""Rewrite a GGUF file in another precision, with its metadata.

Every quantized tensor is dequantized first, which gives the weights of the fp32 checkpoint. One
dimensional tensors (the norms) stay fp32, as llama.cpp's own converter leaves them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
from gguf.quants import dequantize, quantize

FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}


def copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    written_by_itself = {gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE}
    for name, field in reader.fields.items():
        if name in written_by_itself or name.startswith("GGUF."):
            continue
        kind, *rest = field.types
        element = rest[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=element)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path, help="directory with one .gguf file")
    parser.add_argument("output", type=Path)
    parser.add_argument("precision", choices=list(FILE_TYPES))
    options = parser.parse_args()

    (file,) = options.source.glob("*.gguf")
    reader = gguf.GGUFReader(file)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(options.output / "model.gguf", architecture)
    copy_metadata(reader, writer)
    matrix_type = gguf.GGMLQuantizationType[options.precision]
    writer.add_file_type(FILE_TYPES[options.precision])
    for tensor in reader.tensors:
        kind = matrix_type if len(tensor.shape) > 1 else gguf.GGMLQuantizationType.F32
        values = quantize(dequantize(tensor.data, tensor.tensor_type), kind)
        writer.add_tensor(tensor.name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
