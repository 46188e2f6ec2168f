"""Convert models to newer opsets, without reading their weights."""

import onnx_ir as ir

from edgetie.errors import QuantizeError, summarize

_INLINE_BYTES = 1024  # larger tensors are left out of the conversion


def raise_opset(model: ir.Model, opset: int) -> ir.Model:
    """Convert a model to an opset if its own is older.

    Returns:
        The model itself, or a converted one with the same tensors; the first is of no use then.

    Raises:
        QuantizeError: if onnx cannot convert it.
    """
    import onnx_ir.passes.common as common
    from onnx import version_converter

    before = model.graph.opset_imports.get("", 1)
    if before >= opset:
        return model
    if model.functions:  # the converter drops them
        common.InlinePass()(model)
    graph = model.graph
    inputs = [str(value.name) for value in graph.inputs]
    tensors = {
        name: value.const_value
        for name, value in graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > _INLINE_BYTES
    }
    for name, tensor in tensors.items():
        value = graph.initializers.pop(name)
        value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
        value.const_value = None
        if name not in inputs:
            graph.inputs.append(value)
    try:
        proto = version_converter.convert_version(ir.to_proto(model), opset)
    except Exception as error:  # RuntimeError, or a class of pybind11
        raise QuantizeError(
            f"the model's opset is {before} and this scheme's operators need {opset}, to which it "
            f"cannot be converted ({summarize(error)}); export it with opset {opset} or newer, or "
            "choose another scheme"
        ) from error
    converted = ir.from_proto(proto)
    converted.ir_version = max(converted.ir_version, model.ir_version)
    values = {str(value.name): value for value in converted.graph.inputs}
    for name, tensor in tensors.items():
        value = values[name]
        if name not in inputs:
            converted.graph.inputs.remove(value)
        value.const_value = tensor
        converted.graph.register_initializer(value)
    return converted
