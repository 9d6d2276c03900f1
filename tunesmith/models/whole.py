"""Parts of a peft model that are trained in full beside its adapters (peft's `modules_to_save`)."""

from __future__ import annotations

from typing import Any


def is_tied(model: Any, paths: list[str]) -> bool:
    """Whether one of the parts is the matrix that embedding and output head share."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    shared = head is not None and head.weight is embedding.weight
    return shared and any(model.get_submodule(path) in {head, embedding} for path in paths)


def use_masters(tuned: Any) -> None:
    """Make the trained copies fp32 master weights; the frozen originals keep the precision of the base."""
    from peft.utils.other import ModulesToSaveWrapper

    wrapped = [module for module in tuned.modules() if isinstance(module, ModulesToSaveWrapper)]
    precision = tuned.config.get_text_config().dtype or wrapped[0].original_module.weight.dtype
    for module in wrapped:
        module.original_module.to(precision)
        for parameter in module.modules_to_save.parameters():
            parameter.data = parameter.data.float()


def trained_part(module: Any) -> Any:
    """The module that answers where peft keeps a trained copy beside the original; any other module itself."""
    if not hasattr(type(module), "adapter_state_dict") or not hasattr(module, "modules_to_save"):
        return module
    if module.disable_adapters or not module.active_adapters:
        return module.original_module
    return module.modules_to_save[module.active_adapters[0]]
