"""torch's own layers, also while `inject` has put others in their place in `torch.nn`."""

from torch.nn.modules.activation import MultiheadAttention
from torch.nn.modules.conv import Conv1d, Conv2d
from torch.nn.modules.linear import Linear
from torch.nn.modules.sparse import Embedding, EmbeddingBag

__all__ = ["Conv1d", "Conv2d", "Embedding", "EmbeddingBag", "Linear", "MultiheadAttention"]
