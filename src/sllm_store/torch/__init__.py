"""Save and load state dicts: the store for anyone who has PyTorch."""

from sllm_store.torch.load import LoadedDict, load_dict
from sllm_store.torch.save import save_dict

__all__ = ["LoadedDict", "load_dict", "save_dict"]
