"""Surveys of many images: image lists, result tables, incoming files, clean-up after killed runs."""
