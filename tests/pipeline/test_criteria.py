"""Criteria: the options of the user take precedence over the defaults of the model."""

from __future__ import annotations

from fcnpipe.core.spec import make_spec
from fcnpipe.networks import load_model
from fcnpipe.pipeline.criteria import resolve_criteria


def test_explicit_dynamics_apply_to_all_branches() -> None:
    header = load_model("default").header
    usual = resolve_criteria(make_spec(image=("i.fits",), out="o.zarr"), header).branch
    assert usual.extended == header.defaults.extended
    assert usual.extended_dynamics > usual.dynamics > 0
    given = make_spec(image=("i.fits",), out="o.zarr", dynamics=header.defaults.dynamics)
    assert resolve_criteria(given, header).branch == usual._replace(extended=0)
