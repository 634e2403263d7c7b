"""The decoder: every family of `families` in one model.

    tokens ─ embed ─┬─ norm ─ qkv ─ attend ─ out ─┬─ norm ─ gate·up ─ down ─┬─ … ─ norm ─ logits
                    └──────────── + ──────────────┴─────────── + ───────────┘

Matrix products are `linear`'s, everything between them is `kernels.interface`'s. The KV pool comes with each step; the
model owns weights only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compute.kernels.interface import AttentionSpec, Kernels
from compute.model.layer import Layer
from compute.model.linear import Linear, make_linear
from compute.model.rope import RotaryTable
from compute.model_config import ModelConfig
from compute.weights import Source

Progress = Callable[[int, int], None]  # layers done, layers in all


class Decoder:
    """A loaded model. `forward` is one step; the pool's slots named by the batch are written."""

    def __init__(
        self, config: ModelConfig, source: Source, kernels: Kernels, device: torch.device, progress: Progress
    ) -> None:
        self.config = config
        self.kernels = kernels
        self.device = device
        loader = Loader(config, source, device)
        self.embedding = loader.embedding()  # [V, E]
        self.dtype = self.embedding.dtype
        self.layers = []
        for index in range(config.num_layers):
            self.layers.append(loader.layer(index))
            progress(index + 1, config.num_layers)
        self.final_norm = loader.norm("norm", config.hidden_size)
        self.head = loader.head(self.embedding)
        self.specs = [layer.spec for layer in self.layers]
        self.next_norms = [layer.attention_norm for layer in self.layers[1:]] + [self.final_norm]
        self.stack = kernels.stack(self.layers, self.next_norms, config.activation, config.norm_eps)
        scaled = config.family.scaled_embedding
        scale = torch.tensor(config.hidden_size**0.5, dtype=self.dtype, device=device)
        self.embedding_scale = scale if scaled else None

    def forward(self, token_ids: Tensor, step: Any) -> Tensor:
        """Hidden states [T, E] after the last norm. `step`: what the kernels need to know of it, their own type."""
        eps, kernels = self.config.norm_eps, self.kernels
        x = functional.embedding(token_ids, self.embedding)  # [T, E], the residual stream
        if self.embedding_scale is not None:
            x.mul_(self.embedding_scale)
        h = kernels.norm(x, self.layers[0].attention_norm, eps)
        if self.stack is not None and self.stack.takes(step):
            return self.stack(h, x, step)
        for layer, next_norm in zip(self.layers, self.next_norms, strict=True):
            h = layer.output(kernels.attend(layer.spec, layer.qkv(h), step))
            if layer.post_attention_norm is not None:
                h = kernels.norm(h, layer.post_attention_norm, eps)
            h = kernels.add_norm(h, x, layer.mlp_norm, eps)
            h = layer.down(kernels.gate(layer.gate_up(h), self.config.activation))
            if layer.post_mlp_norm is not None:
                h = kernels.norm(h, layer.post_mlp_norm, eps)
            h = kernels.add_norm(h, x, next_norm, eps)
        return h

    def raw_logits(self, hidden: Tensor) -> Tensor:
        """[n, E] → [n, V], in the model's dtype where that is all there is to do."""
        return self.head(hidden) if self.config.final_softcap is None else self.logits(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, E] → [n, V] float32."""
        logits = self.head(hidden).float()
        cap = self.config.final_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


class Loader:
    """Takes a model's tensors by their Hugging Face names, merging q, k, v and gate, up."""

    def __init__(self, config: ModelConfig, source: Source, device: torch.device) -> None:
        self.config = config
        self.source = source
        self.device = device
        self.ropes = {rope: RotaryTable(rope, config.head_dim, device) for rope in set(config.ropes)}

    def embedding(self) -> Tensor:
        return self.take("embed_tokens.weight", self.config.vocab_size, self.config.hidden_size)

    def head(self, embedding: Tensor) -> Linear:
        tied = self.config.tied
        return make_linear(embedding if tied else self.take("lm_head.weight", *embedding.shape))

    def layer(self, index: int) -> Layer:
        config, name = self.config, f"layers.{index}."
        hidden, inner = config.hidden_size, config.intermediate_size
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        attention, post = name + "self_attn.", config.family.post_norms
        before_mlp = "pre_feedforward_layernorm" if post else "post_attention_layernorm"
        parts = {attention + "q_proj": q, attention + "k_proj": kv, attention + "v_proj": kv}
        return Layer(
            spec=self.attention(index, attention),
            attention_norm=self.norm(name + "input_layernorm", hidden),
            qkv=self.merged(parts, hidden, bias=config.qkv_bias),
            output=self.merged({attention + "o_proj": hidden}, q, bias=config.output_bias),
            post_attention_norm=self.norm(name + "post_attention_layernorm", hidden) if post else None,
            mlp_norm=self.norm(name + before_mlp, hidden),
            gate_up=self.merged(
                {name + "mlp.gate_proj": inner, name + "mlp.up_proj": inner}, hidden, bias=config.mlp_bias
            ),
            down=self.merged({name + "mlp.down_proj": hidden}, inner, bias=config.mlp_bias),
            post_mlp_norm=self.norm(name + "post_feedforward_layernorm", hidden) if post else None,
        )

    def attention(self, index: int, name: str) -> AttentionSpec:
        config = self.config
        normed = config.family.qk_norm
        return AttentionSpec(
            layer=index,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            scale=config.scale,
            softcap=config.attention_softcap,
            window=config.windows[index],
            rope=self.ropes[config.ropes[index]],
            q_norm=self.norm(name + "q_norm", config.head_dim) if normed else None,
            k_norm=self.norm(name + "k_norm", config.head_dim) if normed else None,
            norm_eps=config.norm_eps,
        )

    def merged(self, parts: dict[str, int], width: int, *, bias: bool) -> Linear:
        """One product for several: the weights [out, width] of all parts below one another."""
        weight = torch.cat([self.take(f"{name}.weight", rows, width) for name, rows in parts.items()])
        biases = [self.take(f"{name}.bias", rows) for name, rows in parts.items()] if bias else []
        return make_linear(weight, torch.cat(biases) if bias else None)

    def norm(self, name: str, size: int) -> Tensor:
        """[size] float32, with the family's offset folded in."""
        weight = self.take(f"{name}.weight", size).float()
        return weight + 1.0 if self.config.family.norm_offset else weight

    def take(self, name: str, *shape: int) -> Tensor:
        return self.source.take(name, shape).to(self.device)
