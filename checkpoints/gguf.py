"""GGUF: weights, shape and tokenizer in the one file that llama.cpp, Ollama and LM Studio run.

    write_gguf(Path("model.gguf"), model, tokenizer, "q8_0", name="model")

GPT-2's shape keeps its name there; RoPE with RMSNorm and SwiGLU becomes a llama, or with QK-norm a qwen3. The keys are
those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from checkpoints.gguf_tokenizer import Vocabulary, gguf_vocabulary, special_id_fields
from checkpoints.huggingface import architecture
from data.tokenizer import Tokenizer
from model import GPT, GPTConfig, scale_frequencies
from system.files import replace, sync_file

FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
}
MODULES = {  # ours: GGUF's
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
    "lm_head": "output", "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_proj": "attn_output",
    "attn.q_norm": "attn_q_norm", "attn.k_norm": "attn_k_norm", "mlp.c_fc": "ffn_up", "mlp.c_gate": "ffn_gate",
    "mlp.c_proj": "ffn_down",
}  # fmt: skip
BLOCK = 32  # weights that share a scale in q8_0 and q4_0; a matrix with other rows is stored as f16


def import_gguf():
    try:
        import gguf
    except ImportError as error:
        raise ValueError("GGUF files need the package gguf: pip install gguf") from error
    return gguf


def gguf_architecture(config: GPTConfig) -> str:
    """'gpt2', 'llama' or 'qwen3'. ValueError for what llama.cpp does not compute."""
    kind, scaling = architecture(config), (config.rope_scaling or {}).get("rope_type")
    if config.mlp == "relu2":
        raise ValueError("llama.cpp computes GPT-2 with GELU, but this model has mlp='relu2'")
    if kind == "qwen3" and scaling == "llama3":
        raise ValueError("llama.cpp has rope_type 'llama3' for Llama only, but this model has qk_norm=True")
    return kind


def write_gguf(
    path: Path, model: GPT, tokenizer: Tokenizer, gguf_type: str, name: str = "", template: str | None = None
) -> tuple[str, int]:
    """Writes the file in one step, over an old one. gguf_type: one of FILE_TYPES; template: of a chat, in Jinja.

    Returns (architecture, bytes). ValueError for a model or a tokenizer that llama.cpp has no counterpart for, and
    OSError if the file cannot be written; then the old one stays.
    """
    gguf = import_gguf()
    kind, made = gguf_architecture(model.config), gguf_vocabulary(tokenizer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        temporary = Path(folder, path.name)
        writer = gguf.GGUFWriter(temporary, kind)
        add_shape(writer, model.config, kind, len(made.tokens))
        writer.add_name(name or path.stem)
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[gguf_type]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_vocabulary(writer, made, tokenizer.special_tokens)
        if template:
            writer.add_chat_template(template)
        for tensor, weight in gguf_tensors(model, kind, tokenizer.vocab_size, made.has_extra_end):
            stored = gguf.GGMLQuantizationType[stored_type(tensor, weight, gguf_type, model.config.tie_weights)]
            writer.add_tensor(tensor, gguf.quants.quantize(weight, stored), raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        sync_file(temporary)
        n_bytes = temporary.stat().st_size
        replace(temporary, path)
    return kind, n_bytes


def add_shape(writer, config: GPTConfig, kind: str, n_ids: int) -> None:
    writer.add_vocab_size(n_ids)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.kv_heads)
    if kind == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_theta)
    scaling = config.rope_scaling
    if kind == "qwen3" and scaling:  # a llama has a tensor for it
        writer.add_key_value("qwen3.rope.scaling.type", scaling["rope_type"], import_gguf().GGUFValueType.STRING)
        writer.add_rope_scaling_factor(scaling["factor"])
        if scaling["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(int(scaling["original_max_position_embeddings"]))
            writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
            writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])


def add_vocabulary(writer, made: Vocabulary, special_tokens: dict[str, int]) -> None:
    writer.add_tokenizer_model(made.model)
    writer.add_tokenizer_pre(made.pre)
    writer.add_token_list(made.tokens)
    writer.add_token_types(made.types)
    if made.scores is not None:
        writer.add_token_scores(made.scores)
    if made.merges:
        writer.add_token_merges(made.merges)
    for key, id in special_id_fields(made, special_tokens):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", id)
    writer.add_add_bos_token(made.begin is not None)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(made.first_space)


def stored_type(name: str, weight: np.ndarray, gguf_type: str, is_tied: bool) -> str:
    """As llama.cpp's own quantization: vectors and positions stay f32, and the head, where rounding costs most, has 8
    bits beside matrices of 4."""
    if weight.ndim == 1 or name == "position_embd.weight":
        return "F32"
    if gguf_type.startswith("q") and weight.shape[-1] % BLOCK:
        return "F16"
    is_head = name == "output.weight" or is_tied and name == "token_embd.weight"
    return "Q8_0" if gguf_type == "q4_0" and is_head else gguf_type.upper()


def gguf_tensors(model: GPT, kind: str, n_ids: int, has_extra_end: bool) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 array) of all weights. Rows that only pad the vocabulary are left out; see with_end for
    the one that may be added. Biases that llama.cpp's GPT-2 has and ours may lack are zeros."""
    config, stretch = model.config, attention_stretch(model.config, kind)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_weights:
            continue
        weight = weight.float()
        if name in ("transformer.wte.weight", "lm_head.weight"):
            weight = weight[:n_ids]
            weight = torch.cat([weight, weight.mean(0, keepdim=True)]) if has_extra_end else weight
        module, _, tensor = name.rpartition(".")
        prefix = ""
        if module.startswith("transformer.h."):
            layer, _, module = module.removeprefix("transformer.h.").partition(".")
            prefix = f"blk.{layer}."
        parts = split_heads(weight, config, kind) if module == "attn.c_attn" else {MODULES[module]: weight}
        for theirs, part in parts.items():
            scaled = ("attn_q", "attn_k") if kind == "llama" else ("attn_q_norm", "attn_k_norm")
            part = part * stretch if theirs in scaled and stretch != 1 else part
            yield f"{prefix}{theirs}.{tensor}", part.contiguous().numpy()
            if kind == "gpt2" and not config.bias and theirs not in ("token_embd", "position_embd", "output"):
                yield f"{prefix}{theirs}.bias", np.zeros(weight.size(0), np.float32)
    if kind == "llama" and config.rope_scaling:
        yield "rope_freqs.weight", frequency_factors(config).numpy()


def split_heads(weight: torch.Tensor, config: GPTConfig, kind: str) -> dict[str, torch.Tensor]:
    """Queries, keys and values by GGUF's names. A llama's RoPE there turns neighbours (2i, 2i + 1), ours halves
    (i, i + hs/2), so its query and key rows are reordered."""
    if kind == "gpt2":
        return {"attn_qkv": weight}
    hs, counts = config.head_size, (config.n_head, config.kv_heads, config.kv_heads)
    parts = dict(zip(("attn_q", "attn_k", "attn_v"), weight.split([n * hs for n in counts]), strict=True))
    if kind == "llama":
        for name in ("attn_q", "attn_k"):
            halves = parts[name].unflatten(0, (-1, 2, hs // 2))
            parts[name] = halves.transpose(1, 2).reshape(parts[name].shape)
    return parts


def frequency_factors(config: GPTConfig) -> torch.Tensor:
    """(hs/2,): what llama.cpp divides a llama's RoPE frequencies by."""
    half = torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
    plain = config.rope_theta**-half
    return plain / scale_frequencies(plain, config.rope_scaling, config.rope_theta)


def attention_stretch(config: GPTConfig, kind: str) -> float:
    """YaRN's factor for queries and keys, which is put into the weights: llama.cpp has none beside a llama's
    frequencies, and one of its own for a qwen3, which is taken out."""
    scaling = config.rope_scaling or {}
    stretch = scaling.get("attention_factor", 1.0)
    if kind == "qwen3" and scaling.get("rope_type") == "yarn":
        stretch /= 1 + 0.1 * math.log(scaling["factor"])
    return stretch
