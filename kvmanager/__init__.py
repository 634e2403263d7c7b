"""The KV cache's owner: keeper, daemon and CLI, and what workers and gateways import to talk to them."""
