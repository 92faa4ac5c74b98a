from lt_mia_jax.data.syntofu import (
    SynTofuConfig,
)
from lt_mia_jax.data.syntofu_pools import (
    ATTRIBUTES,
)

CONFIG = SynTofuConfig()


BY_NAME = {attribute.name: attribute for attribute in ATTRIBUTES}
