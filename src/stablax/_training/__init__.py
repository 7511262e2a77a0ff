from ._training import masked_mean as masked_mean, partition as partition
