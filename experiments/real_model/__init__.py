"""The attack on real pretrained models."""
