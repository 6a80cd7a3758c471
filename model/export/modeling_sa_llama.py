"""Llama with Shared Attention (arXiv 2407.12866), as exported by satune, for transformers 4.57 and 5.x.

A shared layer attends with the softmax weights of its anchor layer. softmax(Q K^T) V with the anchor's
post-RoPE Q and K and the layer's own V is just attention(Q_anchor, K_anchor, V), so every attention
implementation that transformers knows (eager, sdpa, flash, flex, vLLM's) serves as it is. A shared layer has
no q_proj and no k_proj, and its KV cache holds values only.
"""

import inspect

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaForCausalLM,
    LlamaMLP,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

try:  # transformers 5
    from transformers.utils.generic import merge_with_config_defaults
    from transformers.utils.output_capturing import capture_outputs

    def check_model_inputs(forward):
        return merge_with_config_defaults(capture_outputs(forward))
except ImportError:  # transformers 4.57
    from transformers.utils.generic import check_model_inputs

from .configuration_sa_llama import SALlamaConfig

MASK_TAKES_CACHE_POSITION = "cache_position" in inspect.signature(create_causal_mask).parameters  # 4.57


class ValueOnlyLayer(DynamicLayer):
    """Cache of a shared layer: `values` as usual, `keys` of the same shape but zero width, so zero bytes.

    Cropping, reordering for beams and repeating treat both alike; only the length must come from the values.
    """

    def get_seq_length(self, *args, **kwargs):
        return self.values.shape[-2] if self.is_initialized and self.values.numel() > 0 else 0


def give_shared_layers_value_caches(cache, sources):
    """Replaces the still empty layers of a DynamicCache that belong to shared layers by ValueOnlyLayers."""
    if not isinstance(cache, DynamicCache):
        return
    while len(cache.layers) < len(sources):  # DynamicCache() without a config adds layers on their first use
        cache.layers.append(DynamicLayer())
    for layer, source in enumerate(sources):
        if source != layer and type(cache.layers[layer]) is DynamicLayer and not cache.layers[layer].is_initialized:
            cache.layers[layer] = ValueOnlyLayer()


class SALlamaAttention(nn.Module):
    """Attention of one layer; a shared layer takes queries and keys from its anchor."""

    def __init__(self, config, layer_idx, shared):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        self.shared = shared
        query_size = config.num_attention_heads * self.head_dim
        key_value_size = config.num_key_value_heads * self.head_dim
        if not shared:
            self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
            self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)

    def forward(
        self,
        hidden_states,
        query,
        key,
        position_embeddings,
        attention_mask=None,
        past_key_values=None,
        cache_position=None,
        **kwargs,
    ):
        """query, key: the anchor's, post-RoPE, [B, H, T, D] and [B, K, all tokens, D]; None unless shared.

        Returns the output, the attention weights where the implementation has them, and the query and key
        that were attended with.
        """
        input_shape = hidden_states.shape[:-1]
        head_shape = (*input_shape, -1, self.head_dim)
        value = self.v_proj(hidden_states).view(head_shape).transpose(1, 2)
        if not self.shared:
            query = self.q_proj(hidden_states).view(head_shape).transpose(1, 2)
            key = self.k_proj(hidden_states).view(head_shape).transpose(1, 2)
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = self.update_cache(past_key_values, key, value, {"cache_position": cache_position})

        # transformers searches this text for the call of its version before it lets an implementation be set.
        attention = eager_attention_forward
        if hasattr(ALL_ATTENTION_FUNCTIONS, "get_interface"):
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, attention)
        elif self.config._attn_implementation != "eager":
            attention = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(*input_shape, -1).contiguous()), weights, query, key

    def update_cache(self, cache, key, value, cache_kwargs):
        """Appends to this layer's cache and returns all keys and values. A shared layer's keys are the
        anchor's, complete already; caches of other kinds (static, quantised) demand keys of some shape, so
        they are given the values twice."""
        if not self.shared:
            return cache.update(key, value, self.layer_idx, cache_kwargs)
        layers = getattr(cache, "layers", [])
        value_only = self.layer_idx < len(layers) and isinstance(layers[self.layer_idx], ValueOnlyLayer)
        stored_key = value[..., :0] if value_only else value
        return key, cache.update(stored_key, value, self.layer_idx, cache_kwargs)[1]


class SALlamaDecoderLayer(GradientCheckpointingLayer):
    """A Llama decoder layer that takes the anchor's query and key and returns its own where others need them.

    Both travel as positional tensors: re-entrant checkpointing sees no gradient through keyword arguments.
    """

    def __init__(self, config, layer_idx, shared, is_anchor):
        super().__init__()
        self.is_anchor = is_anchor
        self.self_attn = SALlamaAttention(config, layer_idx, shared)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states, query=None, key=None, **kwargs):
        attended, _, query, key = self.self_attn(self.input_layernorm(hidden_states), query, key, **kwargs)
        hidden_states = hidden_states + attended
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return (hidden_states, query, key) if self.is_anchor else (hidden_states, None, None)


class SALlamaPreTrainedModel(LlamaPreTrainedModel):
    config: SALlamaConfig
    config_class = SALlamaConfig
    _no_split_modules = ["SALlamaDecoderLayer"]
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": SALlamaDecoderLayer, "attentions": SALlamaAttention}


class SALlamaModel(SALlamaPreTrainedModel):
    """The decoder: embedding, layers, final norm."""

    def __init__(self, config):
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.sources = config.sources()
        anchors = {source for layer, source in enumerate(self.sources) if source != layer}
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            SALlamaDecoderLayer(config, layer, shared=source != layer, is_anchor=layer in anchors)
            for layer, source in enumerate(self.sources)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @check_model_inputs
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        cache_position=None,
        **kwargs,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        give_shared_layers_value_caches(past_key_values, self.sources)
        if cache_position is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            cache_position = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past
        if position_ids is None:
            position_ids = cache_position.unsqueeze(0)

        mask = self.causal_mask(inputs_embeds, attention_mask, cache_position, past_key_values, position_ids)
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids)
        hidden_states, attended_with = inputs_embeds, {}
        for layer, source in zip(self.layers, self.sources):
            hidden_states, query, key = layer(
                hidden_states,
                *attended_with.get(source, (None, None)),
                position_embeddings=position_embeddings,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                cache_position=cache_position,
                **kwargs,
            )
            if query is not None:
                attended_with[source] = (query, key)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def causal_mask(self, inputs_embeds, attention_mask, cache_position, past_key_values, position_ids):
        """create_causal_mask as either version of transformers wants to be called."""
        arguments = {
            "config": self.config,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": position_ids,
        }
        if MASK_TAKES_CACHE_POSITION:
            arguments |= {"input_embeds": inputs_embeds, "cache_position": cache_position}
        else:
            arguments |= {"inputs_embeds": inputs_embeds}
        return create_causal_mask(**arguments)


class SALlamaForCausalLM(SALlamaPreTrainedModel, LlamaForCausalLM):
    """SALlamaModel with a language-model head; forward, loss and generate() are LlamaForCausalLM's."""

    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)  # not LlamaForCausalLM's, which would build a LlamaModel
        self.model = SALlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
