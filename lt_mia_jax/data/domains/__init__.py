"""Corpora in Python and in installed packages."""

from lt_mia_jax.data.domains.catalog import DOMAINS as DOMAINS
from lt_mia_jax.data.domains.catalog import Domain as Domain
from lt_mia_jax.data.domains.catalog import DomainRole as DomainRole
