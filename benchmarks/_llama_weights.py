"""The bundled model as a GGUF file with 16-bit weights, for llama.cpp.

The package holds 4-bit weights; AI-OS unpacks them to bfloat16 once and computes with those. Here
the same bfloat16 numbers are written for llama.cpp, as float16 (or bfloat16), with the tokenizer
and all other settings of the original file. A bfloat16 number is exact in float16 unless it is
smaller than 2⁻¹⁴, where a few last bits are lost.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

from aios.backends.model_files.bundled import SMOLLM2_135M, obtain_gguf
from aios.core.protocols import ignore

FORMATS = ("f16", "bf16")
_FILE_TYPES = {"f16": LlamaFileType.MOSTLY_F16, "bf16": LlamaFileType.MOSTLY_BF16}
_OWN_KEYS = ("general.architecture", "general.file_type", "general.quantization_version")


def sixteen_bit_gguf(folder: Path, kind: str) -> Path:
    """The model's GGUF file with weights of `kind` (of `FORMATS`); made where it is missing."""
    path = folder / f"{SMOLLM2_135M.name}.{kind}.gguf"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            original = obtain_gguf(SMOLLM2_135M, Path(work), offline=False, emit=ignore)
            made = Path(work) / path.name
            _convert(original, made, kind)
            os.replace(made, path)
    return path


def _convert(original: Path, made: Path, kind: str) -> None:
    """Writes the tensors of `original` as `kind`, those in float32 (the norms) as they are."""
    reader = GGUFReader(original)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(made, architecture)
    writer.add_file_type(_FILE_TYPES[kind])
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in _OWN_KEYS:
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        numbers = dequantize(tensor.data, tensor.tensor_type)
        if tensor.tensor_type == GGMLQuantizationType.F32:
            writer.add_tensor(tensor.name, numbers)
            continue
        packed = quantize(numbers, GGMLQuantizationType.BF16)
        if kind == "f16":
            numbers = dequantize(packed, GGMLQuantizationType.BF16).astype("float16")
            writer.add_tensor(tensor.name, numbers)
        else:
            writer.add_tensor(tensor.name, packed, raw_dtype=GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
