"""Key maps of CLIP towers in the names of open_clip and of OpenAI's release, which single files of SD 2 and XL use.

Query, key and value share one matrix there, and projections act from the right.

Source: the model classes of open_clip (https://github.com/mlfoundations/open_clip) and the released checkpoints.
"""

from mezzotint.checkpoints.translate import Entry, KeyMap, fitted, modules, nested
from mezzotint.models.clip import ImageConfig, TextConfig


def text_map(config: TextConfig) -> KeyMap:
    """Entries of a text tower; the projection is there if the config has one."""
    keymap: KeyMap = {
        "token_embedding.weight": Entry(key="token_embedding.weight"),
        "position_embedding.weight": Entry(key="positional_embedding"),
    }
    keymap |= _layers(config.layers)
    keymap |= modules([("final_norm", "ln_final")])
    keymap["projection.weight"] = Entry(key="text_projection", form="transposed")
    return fitted(keymap, config)


def image_map(config: ImageConfig) -> KeyMap:
    """Entries of an image tower, without the `visual.` in front."""
    keymap: KeyMap = {
        "class_embedding": Entry(key="class_embedding"),
        "patch_embedding.weight": Entry(key="conv1.weight"),
        "position_embedding.weight": Entry(key="positional_embedding"),
    }
    keymap |= modules([("norm_in", "ln_pre")])
    keymap |= _layers(config.layers)
    keymap |= modules([("final_norm", "ln_post")])
    keymap["projection.weight"] = Entry(key="proj", form="transposed")
    return fitted(keymap, config)


def _layers(count: int) -> KeyMap:
    layer: KeyMap = {}
    for part, name in enumerate(("q", "k", "v")):
        for kind in ("weight", "bias"):
            layer[f"self_attention.{name}.{kind}"] = Entry(key=f"attn.in_proj_{kind}", part=part)
    layer |= modules(
        [
            ("self_attention.out", "attn.out_proj"),
            ("norm_1", "ln_1"),
            ("norm_2", "ln_2"),
            ("mlp_in", "mlp.c_fc"),
            ("mlp_out", "mlp.c_proj"),
        ]
    )
    keymap: KeyMap = {}
    for index in range(count):
        keymap |= nested(f"layers.{index}", f"transformer.resblocks.{index}", layer)
    return keymap
