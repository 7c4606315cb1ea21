"""Surveys: lists of images, incoming files, clean-up."""
