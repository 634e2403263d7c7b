"""Speed claims: each benchmark runs its peer in the same run and writes JSON with hardware and versions."""
