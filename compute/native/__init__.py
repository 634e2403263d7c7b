"""Decode kernels in C for the CPU, built on the machine they run on; every caller has a torch path without them."""
