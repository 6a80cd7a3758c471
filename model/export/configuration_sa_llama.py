"""Configuration of a Llama with Shared Attention (arXiv 2407.12866), as exported by satune.

Works with transformers 4.57 and 5.x: config.json carries the RoPE keys of both side by side.
"""

from transformers import LlamaConfig


class SALlamaConfig(LlamaConfig):
    """A LlamaConfig plus the sharing plan.

    sharing: the plan as the user wrote it, {"layers": "23-26", "anchor": "before" | "first"}.
    attention_sources: for each layer the layer whose queries and keys it attends with, itself where it
        computes its own. This list is what the model reads; None means that nothing is shared.
    """

    model_type = "sa_llama"
    # Queries and keys travel between layers, so a span cannot be cut into pipeline stages.
    base_model_pp_plan = None

    def __init__(self, sharing=None, attention_sources=None, **kwargs):
        # A config saved by transformers 5 holds rope_parameters only; version 4 reads the two older keys
        # and would fall back to its defaults without a word.
        rope = kwargs.get("rope_parameters")
        if rope is not None:
            kwargs.setdefault("rope_theta", rope["rope_theta"])
            if rope.get("rope_type", "default") != "default" and not kwargs.get("rope_scaling"):
                kwargs["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
        super().__init__(**kwargs)
        self.sharing = sharing
        self.attention_sources = attention_sources

    def sources(self):
        """attention_sources, checked: one entry a layer, each an earlier layer that computes its own."""
        layers = self.num_hidden_layers
        if self.attention_sources is None:
            return list(range(layers))
        sources = list(self.attention_sources)
        if len(sources) != layers:
            raise ValueError(f"attention_sources: found {len(sources)} entries, expected {layers}, one a layer")
        for layer, source in enumerate(sources):
            if not 0 <= source <= layer or sources[source] != source:
                raise ValueError(
                    f"attention_sources[{layer}]: found {source}, expected {layer} or an earlier layer "
                    "that computes its own queries and keys"
                )
        return sources
