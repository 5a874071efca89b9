"""Tiny visual towers of every class that open_clip offers: timm's are registered under names of their own."""

from __future__ import annotations

from typing import Any

from clip_parts import COCA, RESNET, settings
from timm.models import register_model
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.fastvit import FastVit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from timm.models.vitamin import GeGluMlp
from torch import nn

_ROW = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0}
_TIMM = {
    # SigLIP: no class token, attention pooling without projection.
    "siglip": (VisionTransformer, {**_ROW, "class_token": False, "global_pool": "map"}),
    # A class token beside registers, all of them pooled over by attention.
    "registers": (VisionTransformer, {**_ROW, "reg_tokens": 2, "global_pool": "map", "pool_include_prefix": True}),
    # MobileCLIP-B and -L: a class token pooled.
    "class": (VisionTransformer, {**_ROW, "pre_norm": True, "init_values": 0.1, "no_embed_class": True}),
    # ViTamin: average pooling and gated MLPs of its own.
    "vitamin": (VisionTransformer, {**_ROW, "class_token": False, "global_pool": "avg", "mlp_layer": GeGluMlp}),
    # PE: rotary positions, a class token, attention pooling.
    "pe": (Eva, {**_ROW, "attn_type": "rope", "use_rot_pos_emb": True, "ref_feat_shape": (4, 4), "global_pool": "map",
                 "use_pre_transformer_norm": True, "rope_grid_indexing": "xy", "rope_grid_offset": 1.0}),
    # EVA02-B and -L: rotary positions, separate projections, gated MLPs.
    "eva02": (Eva, {**_ROW, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "use_rot_pos_emb": True,
                    "ref_feat_shape": (4, 4), "global_pool": "token"}),
    # EVA01: a fused projection whose weight the block reads itself.
    "eva01": (Eva, {**_ROW, "global_pool": "token"}),
    # EVA02-E: norms after, not before.
    "eva02-e": (Eva, {**_ROW, "use_post_norm": True, "global_pool": "token"}),
    # Each block with rotary positions of its own; no model of open_clip's has them.
    "mixed": (Eva, {**_ROW, "attn_type": "rope", "use_rot_pos_emb": True, "rope_type": "mixed", "global_pool": "avg"}),
    "convnext": (ConvNeXt, {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16)}),
    "fastvit": (FastVit, {"layers": (1, 1), "embed_dims": (8, 32), "mlp_ratios": (2, 2), "downsamples": (False, True),
                          "token_mixers": ("repmixer", "attention"), "pos_embs": (None, None)}),
    "swin": (SwinTransformer, {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2),
                               "window_size": 4}),
    "relpos": (VisionTransformerRelPos, {**_ROW, "class_token": True}),
}  # fmt: skip


def _register(name: str, kind: type[nn.Module], settings_: dict[str, Any]) -> None:
    def build(pretrained: bool = False, pretrained_cfg: Any = None, pretrained_cfg_overlay: Any = None,
              cache_dir: Any = None, **more: Any) -> nn.Module:  # fmt: skip
        model = kind(**{**settings_, **more})
        model.default_cfg = {"pool_size": None}
        return model

    build.__name__ = f"tiny_{name.replace('-', '_')}"
    build.__module__ = __name__
    register_model(build)


for _name, (_kind, _settings) in _TIMM.items():
    _register(_name, _kind, _settings)


def _timm(name: str, **vision: Any) -> dict[str, Any]:
    """A config with one of these towers, and a text tower in a module of its own unless `custom_text` is False."""
    custom = vision.pop("custom_text", True)
    other = dict.fromkeys(("layers", "width", "head_width", "patch_size"))
    made = {"image_size": 32, "timm_model_name": f"tiny_{name.replace('-', '_')}", "timm_pool": "", "timm_proj": ""}
    return settings(vision={**other, **made, "timm_model_pretrained": False, **vision}, custom_text=custom)


ROWS: dict[str, dict[str, Any]] = {
    "class token": settings(),
    "average": settings(vision={"pool_type": "avg"}),
    "norm after pooling": settings(vision={"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}),
    "other blocks": settings(vision={"qk_norm": True, "ls_init_value": 0.1}),
    "coca": settings(
        vision={"output_tokens": True, "attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 3},
        text={"embed_cls": True, "output_tokens": True},
        multimodal_cfg=COCA,
        custom_text=True,
    ),
    "siglip": _timm("siglip", timm_pool="map", timm_proj="none") | {"embed_dim": 32},
    "registers": _timm("registers", timm_pool="map"),
    "class token of timm": _timm("class", timm_pool="token"),
    "vitamin": _timm("vitamin", timm_proj="linear"),
    "pe": _timm("pe", timm_pool="map"),
    "eva02": _timm("eva02", timm_pool="token"),
    "eva01": _timm("eva01", timm_pool="token"),
    "eva02-e": _timm("eva02-e", timm_pool="token"),
    "mixed rotary": _timm("mixed", timm_pool="avg"),
}
"""Configs of models whose visual tower is one row of tokens."""

TEXTS: dict[str, dict[str, Any]] = {
    "causal": settings(),
    "causal, on its own": settings(custom_text=True),
    "not causal": settings(text={"no_causal_mask": True, "pool_type": "last"}, custom_text=True),
    "summary token": ROWS["coca"],
}
"""Configs of models by their text tower."""

NO_ROWS: dict[str, dict[str, Any]] = {
    "resnet": settings(vision=RESNET),
    "convnext": _timm("convnext", timm_proj="mlp", custom_text=False),
    "fastvit": _timm("fastvit", timm_pool="avg"),
    "swin": _timm("swin", timm_proj="linear", custom_text=False),
    "relative positions": _timm("relpos", timm_proj="linear", custom_text=False),
}
"""Configs of models whose visual tower is not."""

TOWERS = ROWS | NO_ROWS
