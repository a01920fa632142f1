"""View -> text, Markdown, DataFrame: pure functions, none of which needs torch."""
