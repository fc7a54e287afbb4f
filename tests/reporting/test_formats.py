"""Numbers, dates and keys as the pages write them."""

from __future__ import annotations

from dataclasses import dataclass

from glscl.reporting.formats import (
    duration,
    interval,
    number,
    p_value,
    ratio,
    short,
    short_key,
    si,
    signed,
    significant,
    size,
    tick,
    when,
)


@dataclass(frozen=True)
class Ends:
    low: float | None
    high: float | None


def test_numbers() -> None:
    assert [number(-0.04), number(-1.25), number(None), number(1234.5)] == ["0.0", "−1.2", "–", "1,234.5"]
    assert [signed(0.01), signed(-0.04), signed(2), signed(-1234.5), signed(float("nan"))] == [
        "0.0",
        "0.0",
        "+2.0",
        "−1,234.5",
        "–",
    ]
    assert [p_value(0.0004), p_value(0.0123), p_value(0.41)] == ["< 0.001", "= 0.012", "= 0.41"]
    assert [ratio(214.5), ratio(14.08), ratio(None)] == ["214 ×", "14.1 ×", "–"]
    assert [short(1e-6), short(-0.12345), short(3), short("sum"), short(None)] == [
        "1e−06",
        "−0.123",
        "3",
        "sum",
        "None",
    ]
    assert [significant(1.875), significant(1.42857e-5)] == ["1.875", "1.429e-05"]


def test_intervals_may_be_without_bound() -> None:
    bounds = [(1.5, 4.74), (None, 4.74), (1.5, float("inf")), (None, None)]
    assert [interval(Ends(*ends)) for ends in bounds] == ["1.5 to 4.7", "≤ 4.7", "≥ 1.5", "–"]


def test_units() -> None:
    assert [size(512), size(2048), size(40_000_000)] == ["512 B", "2 KiB", "38.1 MiB"]
    assert [duration(0.0042), duration(63.5), duration(412), duration(90_000), duration(None)] == [
        "4.2 ms",
        "63.5 s",
        "6.87 min",
        "25.0 h",
        "–",
    ]
    assert [si(value) for value in (0, 512, 16_900, 17_000, 999_900, 1_030_000)] == [
        "0",
        "512",
        "16.9 k",
        "17.0 k",
        "1.00 M",
        "1.03 M",
    ]


def test_ticks_are_short() -> None:
    values = (0.0, 1e-17, -2.0, 0.75, 1000.0, 20_000.0, 2.5e6, 1e-4, 2.5e-7)
    assert [tick(value) for value in values] == ["0", "0", "−2", "0.75", "1 k", "20 k", "2.5 M", "1e−4", "2.5e−7"]


def test_words() -> None:
    assert when("2025-06-01T12:30:00+00:00") == "1 June 2025, 12:30 UTC"
    assert when("yesterday") == "yesterday"
    assert short_key("model.heads.glscl.tau") == "glscl.tau"
