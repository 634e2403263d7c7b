"""What every holdfast process shares: the messages (`v1`), framing, settings, log format, run directory.

Owns no behaviour of any process. Imports nothing of `kvmanager`, `compute` or `gateway`.
"""

__version__ = "0.1.0"
