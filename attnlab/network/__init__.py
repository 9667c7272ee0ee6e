"""The network that is trained: an embedding, blocks of a mechanism and an MLP, and an output layer."""

from attnlab.network.auxiliary import auxiliary_losses
from attnlab.network.network import Block, Cells, Inputs, Network, Outputs

__all__ = ["Block", "Cells", "Inputs", "Network", "Outputs", "auxiliary_losses"]
