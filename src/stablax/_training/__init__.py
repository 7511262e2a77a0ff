from ._masked_mean import SampleCounts as SampleCounts, masked_mean as masked_mean
from ._partition import partition as partition
