"""The registry of adaptation methods: one file, one line here, and it is tested by being here."""

from peftlib.methods.base import Method
from peftlib.methods.deflect import Deflect
from peftlib.methods.frozen import Frozen, Full
from peftlib.methods.lora import LoRA

METHODS: dict[str, type[Method]] = {config.name: config for config in (Frozen, Full, LoRA, Deflect)}
