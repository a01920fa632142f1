"""Summaries, views and graphs -> text, pages, tables, drawings: pure functions, none of which needs torch."""
