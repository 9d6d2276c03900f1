"""Weights, where they come from, and the methods that may change them. Knows no rows."""

import logging

# peft loads bitsandbytes where it is installed, which then names a kernel that training does not use
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
