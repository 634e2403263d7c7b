"""How a worker runs steps on a GPU: a ring that hands steps over by value, graphs of decode steps, two steps deep."""
