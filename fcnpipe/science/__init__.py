"""The science core: arrays in, arrays out."""
