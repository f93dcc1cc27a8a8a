"""Scorers: pure functions (prediction, record) -> score in 0..1; `registry` names them all."""
