"""The compute worker: scheduler, model, kernels and sampler over KV blocks that the kvmanager owns."""
