"""What the operator reconciles: one key per custom resource."""

from __future__ import annotations

from typing import NamedTuple

BASE_MODEL = "BaseModel"
LORA_ADAPTER = "LoRAAdapter"
MODEL_DEPLOYMENT = "ModelDeployment"


class Key(NamedTuple):
    """One custom resource by name; whether it exists is found out when it is reconciled."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"
