"""The gateway: gRPC `Generate`, tokenization, routing, and the client."""
