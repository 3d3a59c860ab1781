from dataclasses import dataclass


@dataclass(frozen=True)
class FlowFamilyRow:
    name: str
    configs: tuple[str, ...] = ()
    target_modules: str = ""
    timestep_sampling: str = "uniform"
    needs_guidance: float | None = None
    base_model: str = "other"
    modelspec_architecture: str = "other/lora"
    resolution_step: int = 16
