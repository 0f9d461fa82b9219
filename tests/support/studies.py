"""The definition of a small study."""

from typing import Any

VALUES: dict[str, Any] = {
    "claim": "one is better than the other",
    "common": [
        "experts=coarse",
        "experts.num_experts=8",
        "model.dim=48",
        "model.hidden_dim=64",
        "trainer.max_steps=8",
    ],
    "contestants": {
        "top2": [],
        "fine": ["experts=deepseek", "experts.num_shared=1"],
        "big": ["experts.num_experts=64"],
    },
    "baseline": "top2",
    "match": "active_flops",
    "unmatched": [],
    "sizes": ["xs"],
    "seeds": [0, 1],
    "noise_seeds": [2, 3],
    "tuning_seed": 9,
    "lr": [0.01, 0.02, 0.04],
    "lengths": [0.5],
    "measure": "bpb",
    "margin": 0.01,
}


WHOLE: dict[str, Any] = {
    "nats": 2.0,
    "domains": {"a": 2.0},
    "tokens_seen": 9,
    "peak_memory_bytes": 9,
    "total_params": 9,
    "active_params": 9,
    "flops": 9.0,
    "torch": "2",
    "curve": [[1, 2.0]],
    "routing": None,
}
