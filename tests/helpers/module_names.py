"""Names of Gemma 3n's modules, as transformers' Gemma3nForConditionalGeneration has them."""

# as transformers' Gemma3nForConditionalGeneration names them; its picture tower is timm's MobileNetV5
LANGUAGE = [
    f"model.language_model.layers.{n}.{part}"
    for n in (0, 7, 34)
    for part in [f"self_attn.{p}_proj" for p in "qkvo"]
    + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
]


OTHERS = [
    "lm_head",
    "model.embed_vision.embedding",
    "model.embed_vision.embedding_projection",
    "model.embed_audio.embedding_projection",
    *(
        f"model.language_model.{n}"
        for n in (
            "embed_tokens",
            "embed_tokens_per_layer",
            "per_layer_model_projection",
            "altup_projections.0",
            "altup_unembed_projections.2",
            "layers.0.self_attn",
            "layers.0.mlp",
            "layers.0.self_attn.q_norm",
            "layers.0.mlp.act_fn",
            "layers.0.laurel.linear_left",
            "layers.0.laurel.linear_right",
            "layers.0.per_layer_input_gate",
            "layers.0.per_layer_projection",
            "layers.0.altup.correction_coefs",
            "layers.0.altup.prediction_coefs",
            "layers.0.altup.modality_router",
        )
    ),
    *(
        f"model.audio_tower.{n}"
        for n in (
            "subsample_conv_projection.input_proj_linear",
            "conformer.0.attention.attn.q_proj",
            "conformer.0.attention.attn.k_proj",
            "conformer.11.attention.attn.v_proj",
            "conformer.0.attention.attn.relative_position_embedding.pos_proj",
            "conformer.0.attention.post",
            "conformer.0.ffw_layer_start.ffw_layer_1",
            "conformer.0.lconv1d.linear_start",
        )
    ),
    *(
        f"model.vision_tower.timm_model.{n}"
        for n in (
            "conv_stem.conv",
            "blocks.2.1.attn.query.proj",
            "blocks.3.5.attn.key.proj",
            "blocks.3.5.attn.value.proj",
            "blocks.3.5.attn.output.proj",
            "blocks.3.5.mlp.up_proj",
            "msfa.ffn.pw_proj.conv",
        )
    ),
]
