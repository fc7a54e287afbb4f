"""Image towers of SigLIP's and PE-Core's modules that train on a CPU, registered with timm.

open_clip's description of an architecture names a model of timm by name alone, and timm has none of these this small.
``glscl-tiny-siglip`` and ``glscl-tiny-pe`` are the architectures with them.
"""

from functools import partial

from timm.layers import LayerNorm
from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

_SIZES: dict[str, object] = {"img_size": 64, "patch_size": 16, "embed_dim": 96, "depth": 2, "num_heads": 3}
_OF_TIMM = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # about weights, of which there are none


def _without_weights(pretrained: bool, options: dict[str, object]) -> dict[str, object]:
    if pretrained:
        raise ValueError("there are no pretrained weights of this model")
    return {name: value for name, value in options.items() if name not in _OF_TIMM}


def glscl_siglip_tiny(pretrained: bool = False, **options: object) -> VisionTransformer:
    """A vision transformer without class token, pooled by attention, as SigLIP's are."""
    known = _SIZES | {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"}
    return VisionTransformer(**known | _without_weights(pretrained, options))


def glscl_pe_tiny(pretrained: bool = False, **options: object) -> Eva:
    """A vision transformer with rotary positions, pooled by attention, as PE-Core's are."""
    known = _SIZES | {
        "global_pool": "map",
        "attn_type": "rope",
        "use_pre_transformer_norm": True,
        "use_rot_pos_emb": True,
        "ref_feat_shape": (4, 4),
        "rope_grid_offset": 1.0,
        "rope_grid_indexing": "xy",
        "attn_pool_num_heads": 4,
        "attn_pool_mlp_ratio": 4.0,
        "norm_layer": partial(LayerNorm, eps=1e-5),
    }
    return Eva(**known | _without_weights(pretrained, options))


for model in (glscl_siglip_tiny, glscl_pe_tiny):
    register_model(model)
