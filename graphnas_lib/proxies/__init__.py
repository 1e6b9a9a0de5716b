"""Zero-cost proxies of any network (Sec. 3.1, Eq. 11): `score`, the vector `zc_vector` of a cell, labelled corpora.

A proxy leaves the network as it was, bit for bit, and raises ProxyError rather than return a number that means nothing.
"""

from graphnas_lib.proxies.corpus import batch_name, label, labelled_only, zc_matrix
from graphnas_lib.proxies.costs import left_out, module_costs
from graphnas_lib.proxies.given import Chosen, ProxyError, as_batch, check_scores
from graphnas_lib.proxies.measures import MEANINGS, naswot, score, tcet, zc_vector
from graphnas_lib.proxies.spectra import az_terms, vkdnw_entropy
