"""The structures of native.c, for ctypes. Whatever is pointed into must be kept alive by the caller."""

import ctypes

from compute.kernels.interface import AttentionSpec


class LayerArgs(ctypes.Structure):
    """`Layer` in native.c."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("layer", "heads", "kv_heads", "dim", "window")],
        *[(name, ctypes.c_float) for name in ("scale", "softcap", "eps", "unused")],
        *[(name, ctypes.c_void_p) for name in ("q_norm", "k_norm")],
    ]


class StepArgs(ctypes.Structure):
    """`Step` in native.c."""

    _fields_ = [
        ("pool", ctypes.c_void_p),
        *[(name, ctypes.c_int64) for name in ("layers", "slots", "tokens", "padded")],
        *[(name, ctypes.c_void_p) for name in ("write_blocks", "write_slots")],
        *[(name, ctypes.c_int64) for name in ("decode", "table_width")],
        *[(name, ctypes.c_void_p) for name in ("tables", "lengths")],
    ]


def layer_args(spec: AttentionSpec) -> LayerArgs:
    return LayerArgs(
        layer=spec.layer,
        heads=spec.num_heads,
        kv_heads=spec.num_kv_heads,
        dim=spec.head_dim,
        window=spec.window or 0,
        scale=spec.scale,
        softcap=spec.softcap or 0.0,
        eps=spec.norm_eps,
        q_norm=None if spec.q_norm is None else spec.q_norm.data_ptr(),
        k_norm=None if spec.k_norm is None else spec.k_norm.data_ptr(),
    )
