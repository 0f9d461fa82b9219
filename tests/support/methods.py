"""What the experiments of papers are made of."""

# router's score, selection, weighing, drop; balance; experts
METHODS = {
    "noisy_topk": ("noisy", "top_k", "softmax", "none", ["importance", "smooth_load"], "coarse"),
    "base_layer": ("linear", "base_layer", "sigmoid", "none", [], "coarse"),
    "sinkhorn": ("linear", "sinkhorn", "softmax", "none", [], "coarse"),
    "expert_choice": ("linear", "expert_choice", "softmax", "none", [], "coarse"),
    "expert_threshold": ("linear", "expert_threshold", "sigmoid", "none", ["threshold"], "coarse"),
    "relu": ("linear", "positive", "relu", "none", ["relu_lambda"], "coarse"),
    "quantile": ("linear", "top_k", "sigmoid", "none", ["quantile"], "coarse"),
    "seq_top_k": ("linear", "seq_top_k", "softmax", "none", ["aux"], "coarse"),
    "moepp": ("residual", "top_k", "softmax", "none", ["heterogeneous"], "moepp"),
    "moge": ("linear", "grouped", "softmax", "none", [], "deepseek"),
    "grin": ("linear", "sparsemixer", "sparsemixer", "none", ["aux"], "coarse"),
    "zaya": ("depth_average", "top_k", "softmax", "none", ["pid"], "moepp"),
    "gpt_oss": ("linear", "top_k", "softmax", "none", ["aux"], "coarse"),
    "kimi_k2": ("linear", "top_k", "sigmoid", "none", ["loss_free", "seq_v3"], "deepseek"),
    "deepseek_v4": (
        "linear",
        "top_k",
        "sqrt_softplus",
        "none",
        ["loss_free", "seq_v3"],
        "deepseek",
    ),
    "nemotron_h": ("linear", "top_k", "sigmoid", "none", ["loss_free"], "residual"),
}
