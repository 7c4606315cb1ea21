"""Positions of lines and error bars in learning curves and charts."""

import numpy as np
from PIL import Image

from fcnpipe.training.learning_curve import (
    COLOURS,
    HEIGHT,
    WIDTH,
    Chart,
    draw_chart,
    draw_learning_curve,
)

LOG = """what,step,hours,loss,rate
train,25,0.1,0.8,1e-3
validation,25,0.1,0.7,1e-3
train,50,0.2,0.9,1e-3
train,50,0.2,0.4,1e-3
train,75,0.3,0.2,1e-3
"""


def test_the_learning_curve_shows_both_lines_of_a_log(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    path = draw_learning_curve(tmp_path / "log.csv")
    assert path == tmp_path / "log.png"
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    for colour in COLOURS[:2]:
        assert (pixels == colour).all(-1).sum() > 40
    assert not (pixels == COLOURS[2]).all(-1).any()


def test_a_decreasing_line_descends_in_the_chart(tmp_path):
    chart = Chart("t", "x", "y", {"one": [(1, 8.0), (10, 2.0), (100, 1.0)]}, log_x=True)
    pixels = np.asarray(Image.open(draw_chart(chart, tmp_path / "c.png")))
    y, x = np.nonzero((pixels == COLOURS[0]).all(-1))
    line = y > 80  # below the legend
    left, right = x[line].min(), x[line].max()
    assert y[line & (x == right)].mean() > y[line & (x < left + 40)].mean() + 100


def test_an_empty_log_has_no_chart(tmp_path):
    assert draw_learning_curve(tmp_path / "log.csv") is None
    (tmp_path / "log.csv").write_text("what,step,hours,loss,rate\n")
    assert draw_learning_curve(tmp_path / "log.csv") is None


def test_error_bars_are_drawn_at_their_points(tmp_path):
    lines, bars = {"one": [(1, 1.0), (10, 1.0)]}, {"one": [0.5, 0.0]}
    chart = Chart("t", "x", "y", lines, log_x=True, bars=bars)
    pixels = np.asarray(Image.open(draw_chart(chart, tmp_path / "c.png")))
    y, x = np.nonzero((pixels == COLOURS[0]).all(-1))
    line = y > 80
    at_bar, at_none = (np.ptp(y[line & (x == column)]) for column in (x.min(), x[line].max()))
    assert at_bar > 300 > 10 > at_none
