"""Graph passes on onnx-ir, one per file. The tie groups are a postcondition of each."""
