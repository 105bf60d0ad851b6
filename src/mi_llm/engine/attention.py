"""Which models the attention of `branching.py` and `packing.py` is written for; transformers computes the others, more slowly."""

from transformers import PreTrainedModel

BY_LENGTH = {"dynamic", "longrope"}  # kinds of rotary positions whose frequencies change with the tokens that are there


def beyond(model: PreTrainedModel) -> str:
    """What a model's attention has that ours does not know, in words; empty if ours computes the same as the model's own."""
    config = model.config.get_text_config()
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    window, positions = getattr(config, "sliding_window", None), getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    unsupported = [f"layers with {', '.join(kinds).replace('_', ' ')}"] if kinds else []
    if not kinds and window and not (positions and positions <= window):
        unsupported.append(f"a sliding window of {window} tokens")
    if getattr(config, "attn_logit_softcapping", None):
        unsupported.append("soft caps on its scores")
    if rope.get("rope_type") in BY_LENGTH:
        unsupported.append(f"{rope['rope_type']} rotary positions")
    if not unsupported and not (model._supports_attention_backend and model._supports_sdpa):  # as transformers itself asks
        unsupported.append("a form of its own")
    return ", ".join(unsupported)
